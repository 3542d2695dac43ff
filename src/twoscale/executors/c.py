"""The c executor: the exported C, compiled by the system's compiler and called here.

What it runs is what ``twoscale export --to c`` writes, per-layer hook included; the images are quantized by the
exported header's own function, equation (11). Compiled libraries are kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError, ExecutorError
from twoscale.executors import check_images, layers_to_keep
from twoscale.export.c.lowering import Program, lower
from twoscale.export.c.source import Source
from twoscale.files import replacing
from twoscale.network.network import IntegerNetwork

__all__ = ["CExecutor"]

_FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared", "-DNETWORK_TRACE", "-DNETWORK_FLOAT")
_NAME = "network"

_BATCH_C = """
#include "network.h"

#include <string.h>

struct keeping {
    uint8_t *const *kept;
    int64_t image;
};

static void keep(void *context, int32_t layer, const void *data, size_t bytes)
{
    const struct keeping *keeping = (const struct keeping *)context;

    if (keeping->kept[layer] != NULL)
        memcpy(keeping->kept[layer] + (size_t)keeping->image * bytes, data, bytes);
}

/* Real images in C order -> integers as the network wants them; order[i] is the element at place i. */
void quantize_batch(int64_t count, const float *real, const int64_t *order, INPUT *images)
{
    for (int64_t n = 0; n < count; n++)
        for (int32_t i = 0; i < NETWORK_INPUT_COUNT; i++)
            images[n * NETWORK_INPUT_COUNT + i] = network_quantize(real[n * NETWORK_INPUT_COUNT + order[i]]);
}

/* kept: for each layer, where its bytes for all images go, or NULL. */
void run_batch(int64_t count, const INPUT *images, uint8_t *arena, OUTPUT *outputs, uint8_t *const *kept)
{
    for (int64_t n = 0; n < count; n++) {
        struct keeping keeping = {kept, n};

        network_run(images + n * NETWORK_INPUT_COUNT, arena, outputs + n * NETWORK_OUTPUT_COUNT, keep, &keeping);
    }
}
"""


class CExecutor:
    """Runs a network as compiled C.

    Args:
        network: what to run; on the grid.
        threads: how many images to compute at once; by default one a core.

    Raises:
        ConfigurationError: the network has free float multipliers (names the layer), or ``threads`` is below 1.
        ExecutorError: there is no C compiler here, or it fails; says what is missing.
    """

    name = "c"

    def __init__(self, network: IntegerNetwork, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigurationError(f"threads is {threads}; expected at least 1")
        self.network = network
        self.threads = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        self._program = lower(network)
        self._library = _load(self._program)

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        wanted = layers_to_keep(self.network, keep)
        images = np.ascontiguousarray(check_images(self.network, images_nchw))
        program = self._program
        count = len(images)
        kept = {
            name: np.empty((count, len(program.tensors[name].order)), np.int32 if tensor.item == 4 else np.uint8)
            for name, tensor in program.tensors.items()
            if name in wanted
        }
        bounds = np.linspace(0, count, min(self.threads, max(1, count)) + 1).astype(int)
        with ThreadPoolExecutor(len(bounds) - 1) as pool:
            for done in [pool.submit(self._run_part, images, kept, *part) for part in itertools.pairwise(bounds)]:
                done.result()
        return {name: program.tensors[name].from_memory(values) for name, values in kept.items()}

    def _run_part(self, images: NDArray[np.float32], kept: dict[str, NDArray[Any]], start: int, stop: int) -> None:
        """Compute images start..stop − 1; foreign calls let other threads run."""
        program = self._program
        count = ctypes.c_int64(stop - start)
        quantized = np.empty((stop - start, program.input.size), np.uint8)
        outputs = np.empty((stop - start, program.output.size), np.uint8)
        arena = np.empty(program.arena_bytes, np.uint8)
        places = [kept[layer.name][start:].ctypes.data if layer.name in kept else None for layer in self.network]
        self._library.quantize_batch(
            count, _address(images[start:]), _address(program.input.order), _address(quantized)
        )
        self._library.run_batch(
            count, _address(quantized), _address(arena), _address(outputs), (ctypes.c_void_p * len(places))(*places)
        )


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _load(program: Program) -> ctypes.CDLL:
    """Return the compiled program from the cache, or compile it."""
    from twoscale.data.cache import cache_dir

    compiler = _compiler()
    told = [program.network.fingerprint, _generator(), *compiler, _version(compiler), *_FLAGS]
    path = cache_dir() / "c" / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.so"
    if path.exists():
        with contextlib.suppress(OSError):  # a damaged file is made again
            return ctypes.CDLL(str(path))
    _remove_leftovers(path.parent)
    _compile(compiler, program, path)
    return ctypes.CDLL(str(path))


def _compiler() -> list[str]:
    """Return the command of the C compiler: $CC, or cc.

    Raises:
        ExecutorError: there is none.
    """
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise ExecutorError(
            f"the c executor needs a C compiler, and '{command[0]}' is not there; "
            "install gcc or clang, or name one in the environment variable CC"
        )
    return command


def _version(compiler: list[str]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout


def _generator() -> str:
    """Return a digest of everything that writes the C, so that what an older version compiled is not used."""
    digest = hashlib.sha256(_BATCH_C.encode())
    for folder in ("", "kernels/portable", "templates"):
        entries = resources.files("twoscale.export.c").joinpath(folder).iterdir()
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_file():
                digest.update(entry.name.encode() + entry.read_bytes())
    return digest.hexdigest()


def _compile(compiler: list[str], program: Program, path: Path) -> None:
    """Compile to ``path``, all of it or nothing: what another process compiles meanwhile is as good.

    Raises:
        ExecutorError: the compiler fails; repeats its first error.
        TwoscaleError: the cache cannot be written.
    """
    source = Source(program, _NAME, compact=True)
    batch = _BATCH_C.replace("INPUT *", f"{source.input_type} *").replace("OUTPUT *", f"{source.output_type} *")
    with tempfile.TemporaryDirectory(prefix="twoscale-") as folder, replacing(path) as library:
        files = {"network.h": source.header(), "network.c": source.source(), "batch.c": batch}
        for name, text in files.items():
            Path(folder, name).write_text(text)
        command = [*compiler, *_FLAGS, "-o", str(library), "network.c", "batch.c"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise ExecutorError(
                f"the C compiler failed on {program.network.name}: {(errors or ['it says nothing'])[0].strip()}; "
                f"the command was {shlex.join(command)}"
            )


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed compilers left more than an hour ago; younger files may be another process's."""
    for leftover in folder.glob(".*.so"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()

"""The c executor: the exported C, compiled by the system's compiler and called here.

It runs the C that ``twoscale export --to c`` writes, including the per-layer hook. Images are quantized in C too, by
equation (11). Compiled libraries are kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.arrange import arrange, require_grid
from twoscale._codegen.c.common.tensors import outputs_layout
from twoscale._codegen.c.portable.source import source_of
from twoscale._codegen.targets import TARGETS
from twoscale._environment import core_count
from twoscale._ir.execution import check_images, layers_to_keep
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes import compiler
from twoscale._runtimes.compiled import CompiledNetwork
from twoscale.errors import ConfigurationError

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

/* Real inputs in C order -> integers as the network wants them; order[i] is the element at place i of an input. */
void quantize_batch(int64_t count, const float *real, const int64_t *order, uint8_t *images)
{
    for (int64_t n = 0; n < count; n++, real += INPUT_BYTES, images += INPUT_BYTES) {
QUANTIZE
    }
}

size_t arena_bytes(void)
{
    return NETWORK_ARENA_BYTES;
}

/* kept: for each layer, where its bytes for all images go, or NULL. */
void run_batch(int64_t count, const uint8_t *images, uint8_t *arena, uint8_t *outputs, uint8_t *const *kept)
{
    for (int64_t n = 0; n < count; n++) {
        struct keeping keeping = {kept, n};

        network_run((const INPUT *)(images + n * INPUT_BYTES), arena, (OUTPUT *)(outputs + n * OUTPUT_BYTES), keep,
                    &keeping);
    }
}
"""


class CExecutor:
    """Runs a network as compiled C.

    Args:
        network: what to run; on the grid.
        threads: how many images to compute at once; by default one per core.
        target: "native", "amx", "avx512vnni", "avxvnni", "avx2", "sse41", "i8mm", "dotprod" or "neon" for the vector
            kernels, "portable" for the C for microcontrollers.

    Raises:
        ConfigurationError: the network has free float multipliers (names the layer), or ``threads`` is below 1.
        ExecutorError: there is no C compiler here, or it fails; the message says what is missing.
        UnknownNameError: there is no such target.
    """

    name = "c"

    def __init__(self, network: IntegerNetwork, *, threads: int | None = None, target: str = "native") -> None:
        if threads is not None and threads < 1:
            raise ConfigurationError(f"threads is {threads}; expected at least 1")
        self.network = network
        self.target = target
        self.threads = threads or core_count()
        self._compiled: CompiledNetwork | _Portable
        if target == "portable":
            self._compiled = _Portable(network)
        else:
            self._compiled = CompiledNetwork(network, threads=self.threads, target=target)

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        wanted = layers_to_keep(self.network, keep)
        images = np.ascontiguousarray(check_images(self.network, images_nchw))
        if wanted == set(self.network.outputs) and isinstance(self._compiled, CompiledNetwork):
            return dict(zip(self.network.outputs, self._compiled.outputs(images), strict=True))
        bounds = np.linspace(0, len(images), min(self.threads, max(1, len(images))) + 1).astype(int)
        with ThreadPoolExecutor(len(bounds) - 1) as pool:  # ctypes releases the GIL during calls
            parts = [pool.submit(self._compiled.keep, images[a:b], wanted) for a, b in itertools.pairwise(bounds)]
            kept = [part.result() for part in parts]
        return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}


class _Portable:
    """The C for microcontrollers, one image at a time."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        require_grid(network)
        self._library = compiler.load(
            network.name, [network.fingerprint, "portable", _BATCH_C], lambda: _sources(network), _FLAGS
        ).handle
        self._library.arena_bytes.restype = ctypes.c_size_t
        self._tensors = arrange(network).tensors

    def keep(self, images_nchw: NDArray[np.float32], names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Compute a batch, and return the integers of the named layers."""
        images = np.ascontiguousarray(images_nchw)
        tensors = self._tensors
        order = np.concatenate([tensors[layer.name].order for layer in self.network.inputs])
        output_bytes = outputs_layout([self.network.spec(name) for name in self.network.outputs]).size
        count = len(images)
        kept = {
            name: np.empty((count, len(tensor.order)), np.int32 if tensor.item == 4 else np.uint8)
            for name, tensor in tensors.items()
            if name in names
        }
        quantized = np.empty((count, len(order)), np.uint8)
        outputs = np.empty((count, output_bytes), np.uint8)
        arena = np.empty(self._library.arena_bytes(), np.uint8)
        places = [kept[layer.name].ctypes.data if layer.name in kept else None for layer in self.network]
        self._library.quantize_batch(ctypes.c_int64(count), _address(images), _address(order), _address(quantized))
        self._library.run_batch(
            ctypes.c_int64(count),
            _address(quantized),
            _address(arena),
            _address(outputs),
            (ctypes.c_void_p * len(places))(*places),
        )
        return {name: tensors[name].from_memory(values) for name, values in kept.items()}


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _sources(network: IntegerNetwork) -> compiler.Sources:
    source = source_of(network, _NAME, TARGETS["portable"], binary=True)
    lines = []
    for facts, offset in zip(source.inputs, network.input_layout.offsets, strict=True):
        quantized = f"(uint8_t)network_quantize{facts.number}(real[{offset} + order[{offset} + i]])"
        lines.append(
            f"        for (int32_t i = 0; i < {facts.count}; i++)\n            images[{offset} + i] = {quantized};"
        )
    batch = _BATCH_C.replace("INPUT *", f"{source.input_type} *").replace("OUTPUT *", f"{source.output_type} *")
    batch = batch.replace("OUTPUT_BYTES", str(source.program.outputs_layout.size))
    batch = batch.replace("INPUT_BYTES", str(sum(facts.count for facts in source.inputs)))
    batch = batch.replace("QUANTIZE", "\n".join(lines))
    return compiler.Sources({**source.texts(), source.data_file: source.data(), "batch.c": batch})

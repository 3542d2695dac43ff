"""Networks as modules of WebAssembly, compiled by clang, with what a page needs to run them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from twoscale._codegen.c.common.arrange import require_grid
from twoscale._codegen.targets import WASM_SETS, InstructionSet
from twoscale._codegen.wasm.files import files
from twoscale._codegen.wasm.source import WasmSource, source_of
from twoscale._files import write_files
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError, ExecutorError, TwoscaleError

__all__ = ["WasmExport", "compile_module", "compiled_modules", "export_wasm", "find_clang", "recorded_classes"]

_FLAGS = (
    "--target=wasm32", "-nostdlib", "-std=gnu99", "-O3", "-mbulk-memory", "-ffp-contract=off", "-fvisibility=hidden",
    "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,-z,stack-size=65536",
)  # fmt: skip
_OLDEST = 17
"""The first clang whose header has relaxed dot products under their final name."""
_NEWEST = 30


@dataclass(frozen=True)
class WasmExport:
    """The result of an export for browsers."""

    folder: str
    files: tuple[str, ...]
    """Names in the folder."""
    module_bytes: dict[str, int]
    """Size of each kind of module."""
    fingerprint: str
    """Of the network."""


def export_wasm(
    network: IntegerNetwork,
    folder: str | Path,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    images: int = 4,
) -> WasmExport:
    """Compile a network into modules of WebAssembly, and write an ES module, its types and pages that use them.

    The integers are those of all other targets. NAME.wasm runs in every browser with SIMD. The others use relaxed SIMD,
    where a host's dot products are exact; NAME.mjs chooses one.

    Args:
        network: on the grid.
        folder: where to write; created if it does not exist. Files of the same names are replaced, all of them or none.
        name: prefix of the files; by default the network's name, as an identifier.
        classes: names of the classes, in order. Default: those that the network's metadata records.
        images: number of images of the self-test.

    Raises:
        ConfigurationError: the network is off the grid (names the layer), or there are not as many names as classes.
        ExecutorError: there is no clang for WebAssembly here, or it fails; the message says what to install.
        TwoscaleError: the folder cannot be written.
    """
    found = tuple(classes) if classes is not None else recorded_classes(network)
    if found is not None and len(found) != network[network.outputs[0]].output.shape[0]:
        if classes is not None:
            raise ConfigurationError(
                f"got {len(found)} names of classes; {network.name} has {network[network.outputs[0]].output.shape[0]}"
            )
        found = None
    source, modules = compiled_modules(network, network.name if name is None else name)
    written = files(source, modules, found, images)
    write_files(Path(folder), written)
    sizes = {kind: len(content) for kind, content in modules.items()}
    return WasmExport(str(folder), tuple(written), sizes, network.fingerprint)


def recorded_classes(network: IntegerNetwork) -> tuple[str, ...] | None:
    """Return the names of the classes in a network's metadata; None if there are none."""
    names = network.metadata.get("classes")
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def compiled_modules(
    network: IntegerNetwork, name: str, kinds: Sequence[InstructionSet] = WASM_SETS
) -> tuple[WasmSource, dict[str, bytes]]:
    """Return the source of the last kind of module, and the modules of all ``kinds``.

    Raises:
        ConfigurationError: the network is off the grid (names the layer).
        ExecutorError: there is no clang for WebAssembly here, or it fails.
    """
    require_grid(network)
    clang = find_clang()
    sources = {kind: source_of(network, name, kind) for kind in kinds}
    modules = {
        kind.name: compile_module(clang, network.name, source.contents(), kind) for kind, source in sources.items()
    }
    return sources[kinds[-1]], modules


@cache
def find_clang() -> str:
    """Return the command of a clang that compiles and links WebAssembly.

    Raises:
        ExecutorError: there is none.
    """
    for command in ("clang", *(f"clang-{version}" for version in range(_NEWEST, _OLDEST - 1, -1))):
        if shutil.which(command) is not None and _compiles(command):
            return command
    raise ExecutorError(
        f"WebAssembly needs clang {_OLDEST} or later and its linker wasm-ld; install them (Debian and Ubuntu: "
        "apt install clang-19 lld-19; macOS: brew install llvm lld, with its folder first in PATH)"
    )


def _compiles(command: str) -> bool:
    version = re.search(r"clang version (\d+)", _output(command, "--version"))
    linker = _output(command, "-print-prog-name=wasm-ld").strip()
    return (
        version is not None
        and int(version[1]) >= _OLDEST
        and "wasm32" in _output(command, "-print-targets")
        and shutil.which(linker) is not None
    )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def compile_module(
    clang: str, name: str, contents: Mapping[str, str | bytes], kind: InstructionSet, *flags: str
) -> bytes:
    """Return the module that is compiled from files.

    Args:
        clang: from ``find_clang``.
        name: of the network, for error messages.
        contents: of the files; one of them ends in .c.
        kind: of module.
        flags: more flags.

    Raises:
        ExecutorError: clang fails.
        TwoscaleError: there is no writable folder for temporary files.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="twoscale-") as temporary:
            folder = Path(temporary)
            for file, content in contents.items():
                (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
            features = [f"-m{feature}" for feature in kind.compile_for.split(",")]
            sources = [file for file in contents if file.endswith(".c")]
            command = [clang, *_FLAGS, *features, *flags, "-o", "made.wasm", *sources]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise ExecutorError(
                    f"clang failed on {name}: {(errors or ['it says nothing'])[0].strip()}; "
                    f"the command was {shlex.join(command)}"
                )
            return (folder / "made.wasm").read_bytes()
    except OSError as error:
        raise TwoscaleError(
            f"cannot compile {name} in {tempfile.gettempdir()}: {error.strerror or error}; "
            "free space there, or set TMPDIR to another folder"
        ) from error

"""Compiled networks as files: a shared library that a service loads without a compiler, and its C header."""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import dataclass
from pathlib import Path

from twoscale._environment import core_count, this_platform
from twoscale._files import write_files
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes import compiler, sealed
from twoscale._runtimes.classifier import CompiledClassifier
from twoscale._runtimes.compiled import FLAGS, CompiledLibrary, describe, target_named, vector_source
from twoscale._runtimes.description import Description, DescriptionError
from twoscale.errors import ConfigurationError, NetworkFileError, TwoscaleError

__all__ = ["SavedLibrary", "load_compiled", "save_compiled"]

_SUFFIX = ".so"


@dataclass(frozen=True)
class SavedLibrary:
    """The files that ``save_compiled`` wrote."""

    library: str
    header: str
    fingerprint: str
    """Of the network."""
    target: str
    features: tuple[str, ...]
    """Features that the CPU must have; empty if any CPU of the architecture will do."""
    library_bytes: int


def save_compiled(network: IntegerNetwork, path: str | Path, *, target: str = "native") -> SavedLibrary:
    """Compile a network into a shared library that other programs load without a compiler, and write its C header.

    ``load_compiled`` loads the library in Python. C programs link it or open it with dlopen; the header documents its
    functions. The prefix of their names, and the name of the header, is the library's name as a C identifier.

    Args:
        network: on the grid.
        path: of the library, ending in ".so". The header is written beside it. Both are replaced, or neither.
        target: "native" has every instruction set, chooses one at run time, and runs on any CPU of this architecture;
            "amx", "avx512vnni", "avxvnni", "avx2" and "sse41" (x86) and "i8mm", "dotprod" and "neon" (AArch64) have
            one, and refuse to run on a CPU without it.

    Raises:
        ConfigurationError: the network is off the grid (names the layer), or the path does not end in ".so".
        ExecutorError: there is no C compiler here, or it fails; the message says what is missing.
        UnknownNameError: there is no such target.
        TwoscaleError: the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != _SUFFIX:
        raise ConfigurationError(
            f"{path} does not end in {_SUFFIX}; expected the path of a shared library, such as net.so"
        )
    chosen = target_named(target)
    sets = chosen.instruction_sets if target == "native" else chosen.instruction_sets[:1]
    source = vector_source(network, path.stem, chosen, sets)
    description = describe(source)
    sources = compiler.Sources({**source.texts(), source.data_file: source.data()}, description.to_note())
    try:
        with tempfile.TemporaryDirectory(prefix="twoscale-") as folder:
            built = Path(folder) / "built.so"
            compiler.build(built, network.name, sources, (source.target.cflags, *FLAGS))
            content = built.read_bytes()
    except OSError as error:
        raise TwoscaleError(
            f"cannot compile {network.name} in {tempfile.gettempdir()}: {error.strerror or error}; "
            "free space there, or set TMPDIR to another folder"
        ) from error
    header = f"{source.prefix}.h"
    write_files(path.parent, {path.name: content, header: source.header()})
    return SavedLibrary(
        library=str(path),
        header=str(path.parent / header),
        fingerprint=network.fingerprint,
        target=target,
        features=description.features,
        library_bytes=len(content),
    )


def load_compiled(
    path: str | Path, *, threads: int | None = None, fingerprint: str | None = None
) -> CompiledClassifier:
    """Load a network that ``save_compiled`` or ``twoscale compile`` wrote.

    This needs no compiler, and no package but NumPy.

    The file is checked against its digest before it is loaded. A shared library is code that runs in this process: load
    only files that you trust. The digest detects damage, not forgery.

    Args:
        path: of the library.
        threads: number of threads that compute a batch; by default one per core.
        fingerprint: of the network that is expected, such as ``IntegerNetwork.fingerprint`` or the one in a record.

    Raises:
        NetworkFileError: the file is missing, is no such library, is damaged, is for another platform, or holds a
            network with another fingerprint.
        ExecutorError: this CPU lacks a feature that the library needs (names it).
        ConfigurationError: ``threads`` is below 1.
    """
    path = Path(path)
    try:
        description = Description.from_note(sealed.read_note(path))
    except OSError as error:
        raise NetworkFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (sealed.SealError, DescriptionError) as error:
        raise NetworkFileError(f"{path} {error}; expected a library that twoscale compile wrote") from error
    if description.platform != this_platform():
        raise NetworkFileError(
            f"{path} is compiled for {description.platform}, and this is {this_platform()}; compile the network here"
        )
    if fingerprint is not None and fingerprint != description.fingerprint:
        raise NetworkFileError(
            f"{path} holds the network with fingerprint {description.fingerprint}; expected {fingerprint}"
        )
    try:
        handle = ctypes.CDLL(str(path.absolute()))
    except OSError as error:
        raise NetworkFileError(f"cannot load {path}: {error}") from error
    threads = core_count() if threads is None else threads
    return CompiledClassifier(CompiledLibrary(handle, description, threads=threads, logits=True))

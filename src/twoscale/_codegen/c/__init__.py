"""C for any target: an integer network as a header, a source, a self-test and a Makefile."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.selftest import default_images, self_test
from twoscale._codegen.c.common.sizes import LayerSize, SizeReport, size_report, size_table
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.targets import TARGETS, Target
from twoscale._files import record_to_json, write_files
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import UnknownNameError

__all__ = ["ExportResult", "LayerSize", "SizeReport", "default_images", "export_c"]

_MAKEFILE = "Makefile"


_BACK_ENDS = ("cortex_m", "portable", "small_ram", "vector")
"""Packages with a function ``source_of``; ``Target.back_end`` is the name of one, with a hyphen. Each is imported when
it writes C: programs that run a compiled library import this package without them."""


def _source_of(network: IntegerNetwork, name: str, target: Target) -> SourceBase:
    """Return the C of a network."""
    back_end = target.back_end.replace("-", "_")
    assert back_end in _BACK_ENDS
    module = importlib.import_module(f"twoscale._codegen.c.{back_end}.source")
    source: SourceBase = module.source_of(network, name, target)
    return source


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    folder: str
    files: tuple[str, ...]
    """Names in the folder."""
    prefix: str
    """Prefix of public C names and files: the network's name as an identifier."""
    sizes: SizeReport

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(Path(self.folder) / name for name in self.files)


def export_c(
    network: IntegerNetwork,
    folder: str | Path,
    *,
    target: str = "portable",
    name: str | None = None,
    inputs: NDArray[Any] | Sequence[NDArray[Any]] | None = None,
) -> ExportResult:
    """Write a network as C.

    The target "portable" is C99 with no heap, no recursion, no floating point and no state; the caller provides the
    memory. The same holds for "small-ram", whose layers compute row by row and need far less memory. The other targets
    compute batches with vector kernels and threads. The integers are the same.

    Args:
        network: on the grid (any scheme but those with free float multipliers).
        target: "portable" or "small-ram" for microcontrollers, "cortex-m4" or "cortex-m4-small-ram" for those with the
            DSP extension, "cortex-m55" or "cortex-m55-small-ram" for those with Helium; "native" for this
            and other big CPUs, with the instruction set chosen at run time; "amx", "avx512vnni",
            "avxvnni", "avx2" or "sse41" (x86) or "i8mm", "dotprod" or "neon" (AArch64) for one.
        folder: where to write; created if it does not exist. Files of the same names are replaced, all of them or none.
        name: prefix of files and public names, turned into an identifier; by default the network's name.
        inputs: quantized images (N, C, H, W) of the network's input type for the self-test; by default four generated
            ones. Only the self-test contains them. Of a network with several inputs one array for each.

    Returns:
        The files: NAME.h, NAME.c (and, if not portable, NAME_kernels.h), NAME_test.c, Makefile, NAME_sizes.txt and
        NAME_sizes.json.

    Raises:
        ConfigurationError: integers alone cannot compute the network (names the layer), or the inputs do not fit it.
        UnknownNameError: there is no such target.
        TwoscaleError: the folder cannot be written.
    """
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    images = default_images(network) if inputs is None else [inputs] if isinstance(inputs, np.ndarray) else inputs
    called = network.name if name is None else name
    source = _source_of(network, called, TARGETS[target])
    report = size_report(source.program, called, source.pixel_bytes)
    texts = source.texts() | {
        f"{source.prefix}_test.c": self_test(source, images),
        _MAKEFILE: source.makefile(),
        f"{source.prefix}_sizes.txt": size_table(report),
        f"{source.prefix}_sizes.json": record_to_json(report),
    }
    write_files(Path(folder), texts)
    return ExportResult(str(folder), tuple(texts), source.prefix, report)

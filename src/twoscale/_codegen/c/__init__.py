"""C for any target: an integer network as a header, a source, a self-test and a Makefile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from twoscale._codegen.c.common.selftest import default_images, self_test
from twoscale._codegen.c.common.sizes import LayerSize, SizeReport, size_report, size_table
from twoscale._codegen.c.portable.lowering import lower
from twoscale._codegen.c.portable.source import Source
from twoscale._codegen.c.small_ram.lowering import lower_rows
from twoscale._codegen.c.small_ram.source import RowSource
from twoscale._codegen.c.vector.lowering import lower_fast
from twoscale._codegen.c.vector.source import FastSource
from twoscale._files import record_to_json, write_texts
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["ExportResult", "LayerSize", "SizeReport", "Target", "default_images", "export_c"]

Target = Literal["portable", "small-ram", "native", "avx512vnni", "avx2"]

_MAKEFILE = "Makefile"


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    folder: str
    files: tuple[str, ...]
    """Names in the folder."""
    prefix: str
    """What public C names and files begin with: the network's name as an identifier."""
    sizes: SizeReport

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(Path(self.folder) / name for name in self.files)


def export_c(
    network: IntegerNetwork,
    folder: str | Path,
    *,
    target: Target = "portable",
    name: str | None = None,
    inputs: NDArray[Any] | None = None,
) -> ExportResult:
    """Write a network as C.

    For "portable" it is C99 with no heap, no recursion, no floating point, no state; memory from the caller. So it is
    for "small-ram", whose layers compute row by row and need far less memory. For the other targets it computes
    batches with vector kernels and threads. The integers are the same.

    Args:
        network: on the grid (any scheme but those with free float multipliers).
        target: "portable" or "small-ram" for microcontrollers; "native" for this and other big CPUs, instruction sets
            being chosen when it runs; "avx512vnni" or "avx2" for one of them.
        folder: where; made if it does not exist. Files of the same names are replaced, all of them or none.
        name: what files and public names begin with, made an identifier; the network's own by default.
        inputs: quantized images (N, C, H, W) of the network's input type for the self-test; four made-up ones
            by default. They go into the self-test only.

    Returns:
        The files: NAME.h, NAME.c (and, if not portable, NAME_kernels.h), NAME_test.c, Makefile, NAME_sizes.txt and
        NAME_sizes.json.

    Raises:
        ConfigurationError: integers alone cannot compute the network (names the layer), or the inputs do not fit it.
        TwoscaleError: the folder cannot be written.
    """
    images = default_images(network) if inputs is None else inputs
    called = network.name if name is None else name
    texts: dict[str, str]
    if target in ("portable", "small-ram"):
        source = Source(lower(network), called) if target == "portable" else RowSource(lower_rows(network), called)
        prefix, report, test = source.prefix, size_report(source.program, source.name), self_test(source, images)
        texts = {f"{prefix}.h": source.header(), f"{prefix}.c": source.source()}
        makefile = source.render("Makefile.jinja")
    else:
        fast = FastSource(lower_fast(network), called, target=target)
        prefix, report, test = fast.prefix, size_report(fast.program, called), self_test(fast, images)
        texts = fast.texts()
        makefile = fast.render("fast_Makefile.jinja")
    texts |= {
        f"{prefix}_test.c": test,
        _MAKEFILE: makefile,
        f"{prefix}_sizes.txt": size_table(report),
        f"{prefix}_sizes.json": record_to_json(report),
    }
    write_texts(Path(folder), texts)
    return ExportResult(str(folder), tuple(texts), prefix, report)

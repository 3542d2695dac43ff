"""C99 for any target: an integer network as a header, a source, a self-test and a Makefile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from twoscale.export.c.lowering import lower
from twoscale.export.c.selftest import default_images, self_test
from twoscale.export.c.sizes import LayerSize, SizeReport, size_report, size_table
from twoscale.export.c.source import Source
from twoscale.files import write_text
from twoscale.network.network import IntegerNetwork
from twoscale.records import record_to_json

__all__ = ["ExportResult", "LayerSize", "SizeReport", "default_images", "export_c"]

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
    network: IntegerNetwork, folder: str | Path, *, name: str | None = None, inputs: NDArray[Any] | None = None
) -> ExportResult:
    """Write a network as C99: no heap, no recursion, no floating point, no state; memory from the caller.

    Args:
        network: on the grid (any scheme but those with free float multipliers).
        folder: where; made if it does not exist. Files of the same names are replaced.
        name: what files and public names begin with, made an identifier; the network's own by default.
        inputs: quantized images (N, C, H, W) of the network's input type for the self-test; four made-up ones
            by default. They go into the self-test only.

    Returns:
        The files: NAME.h, NAME.c, NAME_test.c, Makefile, NAME_sizes.txt and NAME_sizes.json.

    Raises:
        ConfigurationError: integers alone cannot compute the network (names the layer), or the inputs do not fit it.
        TwoscaleError: the folder cannot be written.
    """
    program = lower(network)
    source = Source(program, network.name if name is None else name)
    report = size_report(program, source.name)
    prefix = source.prefix
    texts = {
        f"{prefix}.h": source.header(),
        f"{prefix}.c": source.source(),
        f"{prefix}_test.c": self_test(source, default_images(network) if inputs is None else inputs),
        _MAKEFILE: source.render("Makefile.jinja"),
        f"{prefix}_sizes.txt": size_table(report),
        f"{prefix}_sizes.json": record_to_json(report),
    }
    for file, text in texts.items():
        write_text(Path(folder) / file, text)
    return ExportResult(str(folder), tuple(texts), prefix, report)

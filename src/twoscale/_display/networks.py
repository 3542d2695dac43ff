"""Integer networks as tables, for terminals and notebooks."""

from __future__ import annotations

from rich.console import RenderableType

from twoscale._display.verification import bits
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.weights_hash import METADATA_KEY
from twoscale._page.document import table_html
from twoscale._page.numbers import MISSING, count, fixed
from twoscale._page.tables import Cell, Column, Table
from twoscale._page.terminal import rich_table

__all__ = ["network_html", "network_table"]


def _network(network: IntegerNetwork) -> Table:
    bounds = {bound.layer: bound.bound for bound in network.bounds}
    rows = []
    for layer in network:
        spec = layer.output
        weights = layer.weight.size if isinstance(layer, n.Accumulating) else None
        is_accumulator = spec.dtype == "int32"
        rows.append(
            (
                layer.name,
                layer.op,
                "×".join(map(str, spec.shape)),
                count(weights) if weights is not None else MISSING,
                spec.dtype,
                f"{spec.scale:.4g}",
                MISSING if is_accumulator else str(spec.zero_point),
                MISSING if is_accumulator else f"{count(spec.lo)}..{count(spec.hi)}",
                fixed(bits(bounds.get(layer.name)), 1),
            )
        )
    columns = (
        Column("Layer", numeric=False),
        Column("Operator", numeric=False),
        Column("Output"),
        Column("Weights"),
        Column("Type", numeric=False),
        Column("Scale"),
        Column("Zero"),
        Column("Range"),
        Column("Bound", "bits"),
    )
    grid = "the same integers everywhere" if network.on_grid else "off the grid, executors may differ"
    caption = f"{network.name}: {count(network.parameters)} parameters, scheme {network.scheme}, {grid}"
    made_from = network.metadata.get(METADATA_KEY)
    if isinstance(made_from, str):
        caption += f", made from float weights {made_from[:12]}"
    return Table(caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def network_table(network: IntegerNetwork) -> RenderableType:
    """Return the layers of a network for a terminal."""
    return rich_table(_network(network))


def network_html(network: IntegerNetwork) -> str:
    """Return the layers of a network for a notebook."""
    return table_html(_network(network))

"""Integer networks as tables, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from twoscale._display.layers import bit_widths
from twoscale._display.verification import bits
from twoscale._ir import layers as n
from twoscale._ir.accumulators import AccumulatorBits
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.recorded_accuracy import recorded_accuracy
from twoscale._ir.weights_hash import METADATA_KEY
from twoscale._page.document import table_html
from twoscale._page.numbers import MISSING, count, fixed, percent
from twoscale._page.tables import Cell, Column, Table
from twoscale._page.terminal import rich_table
from twoscale._text import printable

__all__ = ["accumulator_table", "network_html", "network_table"]


def _network(network: IntegerNetwork) -> Table:
    bounds = {bound.layer: bound.bound for bound in network.bounds}
    rows = []
    for layer in network:
        spec = layer.output
        weights = layer.weight.size if isinstance(layer, n.Accumulating) else None
        bit_width = bit_widths(layer)
        is_accumulator = spec.dtype == "int32"
        rows.append(
            (
                layer.name,
                layer.op,
                "×".join(map(str, spec.shape)),
                count(weights),
                f"{count(bit_width.weights)}/{bit_width.output}",
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
        Column("Bits", "w/a"),
        Column("Scale"),
        Column("Zero"),
        Column("Range"),
        Column("Bound", "bits"),
    )
    grid = "the same integers everywhere" if network.on_grid else "off the grid, executors may differ"
    if network.exact and not network.on_grid:
        grid = "TensorFlow Lite's arithmetic, the same integers in every executor that has it"
    caption = f"{network.name}: scheme {network.scheme}, {grid}"
    return Table(caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def accumulator_table(name: str, found: Sequence[AccumulatorBits]) -> Table:
    """Return the bits that accumulators need, as a table."""
    rows = [
        (
            layer.layer,
            count(layer.products),
            count(layer.proved),
            count(layer.seen_in_any_order),
            count(layer.seen),
            f"{count(layer.lowest)}..{count(layer.highest)}",
        )
        for layer in found
    ]
    columns = (
        Column("Layer", numeric=False),
        Column("Products"),
        Column("Proved", "bits"),
        Column("Partial sums seen", "bits"),
        Column("Sums seen", "bits"),
        Column("Sums seen"),
    )
    caption = (
        f"{name}: bits of accumulators with the sign; proved for every input, and seen over {count(found[0].images)} "
        "images, partial sums in any order"
    )
    return Table(caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def _summary(network: IntegerNetwork) -> list[str]:
    """Return the lines under the table: size, bits, origin and accuracy."""
    layers = [layer for layer in network if isinstance(layer, n.Accumulating)]
    weights = sum(layer.weight.size for layer in layers)
    biases = network.parameters - weights
    lines = [
        f"{count(network.parameters)} parameters: {count(weights)} weights and {count(biases)} biases that are not 0"
    ]
    if weights:
        total = sum(layer.weight.size * (bit_widths(layer).weights or 0) for layer in layers)
        lines.append(
            f"bits of the weights / of the output (w/a); {fixed(total / weights, 2)} bits per weight on average"
        )
    if network.on_grid:
        tied = len(network.ties)
        lines.append(
            f"{count(tied)} of {count(len(network.layers))} layers can meet a tie; runtimes with another rounding "
            "rule may differ there (--json lists them)"
            if tied
            else "tie-free: runtimes that round up, or away from zero, compute the same integers"
        )
    made_from = network.metadata.get(METADATA_KEY)
    if isinstance(made_from, str):
        lines.append(f"made from float weights {made_from[:12]}")
    found = recorded_accuracy(network)
    if found is not None:
        lines.append(
            f"top-1 {percent(found.top1)} %, float network {percent(found.float_top1)} %, "
            f"on {count(found.samples)} test images of {found.data}"
        )
    return [printable(line, 200) for line in lines]


def network_table(network: IntegerNetwork) -> RenderableType:
    """Return the layers of a network for a terminal."""
    return Group(rich_table(_network(network)), Text(), *(Text(line) for line in _summary(network)))


def network_html(network: IntegerNetwork) -> str:
    """Return the layers of a network for a notebook."""
    lines = Markup("<br>").join(_summary(network))
    return table_html(_network(network)) + str(Markup("<p>{}</p>").format(lines))

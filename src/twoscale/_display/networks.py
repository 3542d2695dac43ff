"""Integer networks and their verification as tables, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from twoscale._calibration.summaries import TensorSummary
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._lab import tables
from twoscale._page.document import table_html
from twoscale._page.numbers import MISSING, count, fixed, percent
from twoscale._page.tables import Cell, Column, Table
from twoscale._page.terminal import rich_table
from twoscale._verification.results import VerifyResult

__all__ = [
    "network_html",
    "network_table",
    "statistics_table",
    "verify_html",
    "verify_tables",
]


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
                fixed(tables.bits(bounds.get(layer.name)), 1),
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
    return Table(caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def network_table(network: IntegerNetwork) -> RenderableType:
    """Return the layers of a network for a terminal."""
    return rich_table(_network(network))


def network_html(network: IntegerNetwork) -> str:
    """Return the layers of a network for a notebook."""
    return table_html(_network(network))


def statistics_table(title: str, summaries: Sequence[TensorSummary]) -> RenderableType:
    """Return mean, deviation and ranges of tensors for a terminal."""
    zeros = any(summary.zeros for summary in summaries)
    return rich_table(tables.statistics_table(summaries, title, zeros=zeros))


def _layers(result: VerifyResult) -> Table:
    rows = [
        (
            layer.name,
            layer.op,
            count(layer.mismatches),
            fixed(layer.sqnr_db, 1),
            MISSING if layer.seen_lo is None else f"{count(layer.seen_lo)}..{count(layer.seen_hi)}",
            percent(layer.saturated, 3),
            fixed(tables.bits(layer.accumulator_bound), 1),
        )
        for layer in result.layers
    ]
    columns = (
        Column("Layer", numeric=False),
        Column("Operator", numeric=False),
        Column("Differ"),
        Column("SQNR", "dB"),
        Column("Integers"),
        Column("At limit", "%"),
        Column("Bound", "bits"),
    )
    return Table(
        f"{result.network}: integers of each layer",
        columns,
        tuple(tuple(Cell(text) for text in row) for row in rows),
    )


def _executors(result: VerifyResult) -> Table:
    reference, *others = result.executors
    compared = result.compared // max(1, len(others))
    return Table(
        f"compared with {reference}",
        (Column("Executor", numeric=False), Column("Differ"), Column("Of")),
        tuple(
            (
                Cell(name),
                Cell(count(number)),
                Cell(count(compared * others.count(name))),
            )
            for name, number in result.mismatches_by_executor.items()
        ),
    )


def _summary(result: VerifyResult) -> list[str]:
    promise = "on the grid, 0 promised" if result.on_grid else "off the grid, measured"
    lines = [
        f"{result.network}, scheme {result.scheme}: {count(result.mismatches)} of {count(result.compared)} integers "
        f"differ ({promise}) between {', '.join(result.executors)} over {count(result.samples)} images"
    ]
    lines += [f"first difference of {name}: {where}" for name, where in result.divergence_by_executor.items()]
    parts = []
    if result.top1 is not None:
        parts.append(f"top-1 {percent(result.top1)} %")
    if result.agreement is not None:
        parts.append(f"agreement with {result.against or 'float'} {percent(result.agreement)} %")
    if result.sqnr_db is not None:
        parts.append(f"logit SQNR {fixed(result.sqnr_db, 1)} dB")
    if parts:
        lines.append(", ".join(parts))
    if result.uncompared:
        lines.append(f"without a counterpart there: {', '.join(result.uncompared)}")
    bounded = [layer for layer in result.layers if layer.accumulator_bound]
    if bounded:
        widest = max(bounded, key=lambda layer: layer.accumulator_bound or 0)
        lines.append(
            "no accumulator can overflow: no image can make one of more than "
            f"{fixed(tables.bits(widest.accumulator_bound), 1)} bits of 31 ({widest.name})"
        )
    limits = [layer for layer in result.layers if layer.saturated is not None and layer.op != "QuantizeInput"]
    if limits:
        most = max(limits, key=lambda layer: layer.saturated or 0.0)
        lines.append(
            f"saturation: at most {percent(most.saturated, 3)} % of a layer's integers at a limit ({most.name})"
        )
    outside = sum(layer.outside for layer in result.layers)
    lines.append(
        "every value of every layer is an integer in its range"
        if not outside
        else f"{count(outside)} values are outside their range"
    )
    return lines


def verify_tables(result: VerifyResult) -> tuple[RenderableType, ...]:
    """Return what verify found for a terminal: a row for each layer, one for each executor, a summary."""
    summary = Group(*(Text(line) for line in _summary(result)))
    parts: list[RenderableType] = [rich_table(_layers(result)), Text()]
    if len(result.executors) > 1:
        parts += [rich_table(_executors(result)), Text()]
    return *parts, summary


def verify_html(result: VerifyResult) -> str:
    """Return what verify found for a notebook: a row for each layer, one for each executor, a summary."""
    executors = table_html(_executors(result)) if len(result.executors) > 1 else ""
    lines = Markup("<br>").join(_summary(result))
    return table_html(_layers(result)) + executors + str(Markup("<p>{}</p>").format(lines))

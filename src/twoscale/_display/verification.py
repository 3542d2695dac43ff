"""What verify found, as tables for terminals, notebooks and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from twoscale._page.document import table_html
from twoscale._page.numbers import MISSING, count, fixed, percent, yes_no
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale._page.terminal import rich_table
from twoscale._text import printable
from twoscale._verification.results import LayerCheck, VerifyResult

__all__ = ["bits", "layers_table", "verify_html", "verify_tables"]


def bits(bound: int | None) -> float | None:
    """Return log2 of an accumulator bound; None without one, or where it is zero."""
    return math.log2(bound) if bound else None


def layers_table(layers: Sequence[LayerCheck], caption: str) -> Table:
    """Return what verify found about each layer; a bound is also given in bits (its log2)."""
    rows = [
        [
            layer.name,
            layer.op,
            count(layer.values),
            count(layer.mismatches),
            fixed(layer.sqnr_db, 1),
            count(layer.accumulator_bound),
            fixed(bits(layer.accumulator_bound), 1),
            yes_no(layer.float32_exact),
            yes_no(layer.pair_saturation_safe),
            percent(layer.saturated, 3),
        ]
        for layer in layers
    ]
    columns = [
        text_column("Layer"),
        text_column("Operator"),
        Column("Integers compared"),
        Column("Differing"),
        Column("SQNR", "dB"),
        Column("Accumulator bound"),
        Column("Bound", "bits"),
        text_column("Below 2²⁴"),
        text_column("Pair sums safe"),
        Column("Saturated", "%"),
    ]
    return table(caption, columns, rows)


def _layers(result: VerifyResult) -> Table:
    rows = [
        (
            layer.name,
            layer.op,
            count(layer.mismatches),
            fixed(layer.sqnr_db, 1),
            MISSING if layer.seen_lo is None else f"{count(layer.seen_lo)}..{count(layer.seen_hi)}",
            percent(layer.saturated, 3),
            fixed(bits(layer.accumulator_bound), 1),
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
    return Table(
        f"compared with {result.executors[0]}",
        (Column("Executor", numeric=False), Column("Differ"), Column("Of")),
        tuple(
            (
                Cell(name),
                Cell(count(number)),
                Cell(count(result.compared_by_executor.get(name))),
            )
            for name, number in result.mismatches_by_executor.items()
        ),
    )


def _outputs(result: VerifyResult) -> Table:
    rows = [
        (
            output.name,
            "×".join(map(str, output.shape)),
            count(output.mismatches),
            fixed(output.sqnr_db, 1),
            MISSING if output.rms_error is None else f"{output.rms_error:.3g}",
            percent(output.top1),
            percent(output.agreement),
        )
        for output in result.outputs
    ]
    columns = (
        Column("Output", numeric=False),
        Column("Shape"),
        Column("Differ"),
        Column("SQNR", "dB"),
        Column("RMS error"),
        Column("Top-1", "%"),
        Column("Agreement", "%"),
    )
    return Table("outputs", columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def _summary(result: VerifyResult) -> list[str]:
    promise = "on the grid, 0 promised" if result.on_grid else "off the grid, measured"
    if result.exact and not result.on_grid:
        promise = "TensorFlow Lite's arithmetic, 0 promised"
    lines = [
        f"{result.network}, scheme {result.scheme}: {count(result.mismatches)} of {count(result.compared)} integers "
        f"differ ({promise}) between {', '.join(result.executors)} over {count(result.samples)} images"
    ]
    lines += [f"first difference of {name}: {where}" for name, where in result.divergence_by_executor.items()]
    lines += [f"{name}: {count(cycles)} cycles per image" for name, cycles in result.cycles_by_executor.items()]
    parts = []
    if result.top1 is not None:
        parts.append(f"top-1 {percent(result.top1)} %")
    if result.agreement is not None:
        parts.append(f"agreement with {result.against or 'float'} {percent(result.agreement)} %")
    if result.sqnr_db is not None:
        classes = [len(output.shape) == 1 for output in result.outputs]
        what = "logit" if classes in ([], [True]) else "output" if len(classes) == 1 else "outputs'"
        parts.append(f"{what} SQNR {fixed(result.sqnr_db, 1)} dB")
    if result.agreement is None and result.rms_error is not None:  # the outputs are not classes
        parts.append(f"root mean square error {result.rms_error:.3g}")
    if parts:
        lines.append(", ".join(parts))
    if result.same_weights is False:
        lines.append("the float weights are not those that the network was made from")
    if result.original_left_out is not None:
        lines.append(f"not compared with the file itself: {result.original_left_out}")
    if result.uncompared:
        lines.append(f"without a counterpart there: {', '.join(result.uncompared)}")
    bounded = [layer for layer in result.layers if layer.accumulator_bound]
    if bounded:
        widest = max(bounded, key=lambda layer: layer.accumulator_bound or 0)
        lines.append(
            "no accumulator can overflow: no image can make one of more than "
            f"{fixed(bits(widest.accumulator_bound), 1)} bits of 31 ({widest.name})"
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
    return [printable(line, 1000) for line in lines]


def verify_tables(result: VerifyResult) -> tuple[RenderableType, ...]:
    """Return what verify found for a terminal: a row for each layer, one for each executor, a summary."""
    summary = Group(*(Text(line) for line in _summary(result)))
    parts: list[RenderableType] = [rich_table(_layers(result)), Text()]
    if len(result.executors) > 1:
        parts += [rich_table(_executors(result)), Text()]
    if len(result.outputs) > 1:
        parts += [rich_table(_outputs(result)), Text()]
    return *parts, summary


def verify_html(result: VerifyResult) -> str:
    """Return what verify found for a notebook: a row for each layer, one for each executor, a summary."""
    executors = table_html(_executors(result)) if len(result.executors) > 1 else ""
    executors += table_html(_outputs(result)) if len(result.outputs) > 1 else ""
    lines = Markup("<br>").join(_summary(result))
    return table_html(_layers(result)) + executors + str(Markup("<p>{}</p>").format(lines))

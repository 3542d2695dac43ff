"""Where does a step go?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twoscale._page.charts import Bar, Drawing, span_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, percent
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import BreakdownRecord, LayerTime, Span
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, milliseconds, number, plural, rounds
from twoscale.scaling._study.cells import BREAKDOWN, Measured

__all__ = ["QUESTION", "BreakdownAnswer", "kinds_table", "layers_table", "parts_table"]

_NAMES = {
    "data": "waiting for the batch",
    "buffers": "buffers, before the forward pass",
    "forward": "forward pass and loss",
    "backward": "backward pass",
    "wait": "waiting for the last gradients",
    "update": "optimizer",
}
_KINDS = ("computing", "communication", "waiting")
_KIND_OF = {"data": 2, "buffers": 2, "wait": 2}


@dataclass(frozen=True)
class BreakdownAnswer:
    """Where steps go, one record per number of ranks; without the operators of the trace."""

    breakdowns: tuple[BreakdownRecord, ...] = ()


def _answer(measured: Measured) -> BreakdownAnswer:
    records = sorted((record.result for record in measured.of(BREAKDOWN)), key=lambda one: one.world_size)
    return BreakdownAnswer(tuple(replace(one, profile=()) for one in records))


def _sentence(results: StudyResults) -> str | None:
    records = results.of(BreakdownAnswer).breakdowns
    if not records:
        return None
    first = records[0]
    whole = sum(part.seconds.median for part in first.parts)
    ordered = sorted(first.parts, key=lambda part: -part.seconds.median)
    shares = ", ".join(f"{part.name} {percent(part.seconds.median / whole, 0)} %" for part in ordered)
    text = f"On {plural(first.world_size, 'rank')} a step takes {milliseconds(first.step.median)}: {shares}"
    if first.layers:
        kind, seconds = _by_kind(first)[0]
        busy = first.forward + first.backward
        text += f"; layers of the kind {kind} take {percent(seconds / busy, 0)} % of forward and backward"
    last = records[-1]
    if last is not first:
        waiting = last.part("wait") + last.part("buffers")
        text += (
            f"; on {last.world_size} ranks it takes {milliseconds(last.step.median)}, of which it waits "
            f"{milliseconds(waiting)} for communication"
        )
    return text + "."


def _by_kind(record: BreakdownRecord) -> list[tuple[str, float]]:
    """Return the seconds of each kind of layer, the largest first, and of what is in no layer."""
    sums: dict[str, float] = {}
    for layer in record.layers:
        sums[layer.kind] = sums.get(layer.kind, 0.0) + layer.forward + layer.backward
    return sorted(sums.items(), key=lambda pair: -pair[1])


def parts_table(records: Sequence[BreakdownRecord]) -> Table:
    """Return the parts of a step, one column per number of ranks."""
    rows: list[list[str | Cell]] = []
    for name, words in _NAMES.items():
        row: list[str | Cell] = [words]
        for record in records:
            part = next((one for one in record.parts if one.name == name), None)
            row += [rounds(part.seconds) if part else MISSING]
            row += [percent(part.seconds.median / record.step.median, 0) if part else MISSING]
        rows.append(row)
    rows.append(["all", *(cell for one in records for cell in (rounds(one.step), "100"))])
    columns = [text_column("Part")]
    for record in records:
        columns += [Column(plural(record.world_size, "rank"), "ms"), Column("Of the step", "%")]
    return table(f"Parts of a step, batch {records[0].batch_size}", columns, rows)


def kinds_table(record: BreakdownRecord) -> Table:
    """Return forward and backward by kind of layer."""
    busy = record.forward + record.backward
    kinds = [kind for kind, _ in _by_kind(record)]
    rows = []
    for kind in kinds:
        layers = [layer for layer in record.layers if layer.kind == kind]
        rows.append(_kind_row(kind, len(layers), sum(x.forward for x in layers), sum(x.backward for x in layers), busy))
    forward = record.forward - sum(layer.forward for layer in record.layers)
    backward = record.backward - sum(layer.backward for layer in record.layers)
    rows.append(_kind_row("functions, loss, gradients' sums", None, forward, backward, busy))
    columns = [
        text_column("Kind"), Column("Layers"), Column("Forward", "ms"), Column("Backward", "ms"),
        Column("Of both passes", "%"),
    ]  # fmt: skip
    return table("By kind of layer, in steps that the profiler slows", columns, rows)


def _kind_row(kind: str, layers: int | None, forward: float, backward: float, busy: float) -> list[str]:
    return [
        kind,
        MISSING if layers is None else count(layers),
        number(forward * 1e3),
        number(backward * 1e3),
        percent((forward + backward) / busy, 0) if busy else MISSING,
    ]


def layers_table(record: BreakdownRecord) -> Table:
    """Return each layer's time and its place under the roofline."""
    assert record.roofline is not None
    roof = record.roofline
    rows = [_layer_row(layer, record) for layer in record.layers]
    columns = [
        text_column("Layer"), text_column("Kind"), Column("Forward", "ms"), Column("Backward", "ms"),
        Column("Intensity", "FLOP per byte"), Column("Measured", "GFLOP/s"), Column("Attainable", "GFLOP/s"),
        text_column("Limit"),
    ]  # fmt: skip
    return table(
        f"Layers under a roofline of {number(roof.flops_per_second / 1e9)} GFLOP/s and "
        f"{number(roof.bytes_per_second / 1e9)} GB/s, which meet at {number(roof.ridge)} FLOP per byte",
        columns,
        rows,
    )


def _layer_row(layer: LayerTime, record: BreakdownRecord) -> list[str]:
    assert record.roofline is not None
    attainable = record.roofline.attainable(layer.intensity)
    measured = layer.flops / layer.forward if layer.forward else None
    known = layer.flops > 0
    return [
        layer.name,
        layer.kind,
        number(layer.forward * 1e3),
        number(layer.backward * 1e3),
        number(layer.intensity) if known else MISSING,
        number(measured / 1e9) if known and measured is not None else MISSING,
        number(attainable / 1e9) if known else MISSING,
        "memory" if layer.intensity < record.roofline.ridge else "arithmetic",
    ]


def operators_table(record: BreakdownRecord) -> Table:
    """Return the operators that take longest on their own."""
    rows = [[one.name, count(one.calls), number(one.seconds * 1e3)] for one in record.operators]
    columns = [text_column("Operator"), Column("Calls", "per step"), Column("On its own", "ms per step")]
    return table("Operators of PyTorch that take longest", columns, rows)


def spans_table(record: BreakdownRecord) -> Table:
    """Return what each rank does in the median step, one row per part and bucket."""
    names = list(dict.fromkeys(span.name for span in record.timeline))
    ranks = range(record.world_size)

    def cell(name: str, rank: int) -> str:
        found = [span for span in record.timeline if (span.name, span.rank) == (name, rank)]
        return f"{number(found[0].start * 1e3)} + {number(found[0].seconds * 1e3)}" if found else MISSING

    rows = [[_NAMES.get(name, name), *(cell(name, rank) for rank in ranks)] for name in names]
    columns = [text_column("What"), *(Column(f"Rank {rank}", "ms") for rank in ranks)]
    return table(f"The median step on {plural(record.world_size, 'rank')}: begin + length", columns, rows)


def timeline_plot(record: BreakdownRecord) -> Drawing:
    """Draw the median step of every rank: its parts, and its buckets in a row of their own."""
    lanes = list(dict.fromkeys((span.rank, span.lane) for span in record.timeline))
    lanes.sort(key=lambda one: (one[0], one[1] != "step"))
    rows = [f"rank {rank}" if lane == "step" else "all-reduce" for rank, lane in lanes]

    def bar(span: Span) -> Bar:
        kind = 1 if span.lane == "communication" else _KIND_OF.get(span.name, 0)
        return Bar(lanes.index((span.rank, span.lane)), span.start * 1e3, (span.start + span.seconds) * 1e3, kind)

    return span_plot(
        f"A step on {plural(record.world_size, 'rank')}",
        rows,
        [bar(span) for span in record.timeline],
        _KINDS,
        label=f"What each of {plural(record.world_size, 'rank')} does in a step of {milliseconds(record.step.median)}",
        x_label="ms",
    )


def _content(results: StudyResults) -> Content:
    records = results.of(BreakdownAnswer).breakdowns
    groups = []
    if records:
        drawings = {f"timeline_{one.world_size}": timeline_plot(one) for one in records}
        tables = [parts_table(records), *(spans_table(one) for one in records)]
        first = records[0]
        if first.layers:
            tables += [kinds_table(first), layers_table(first), operators_table(first)]
        groups.append(Group(figures=figures(**drawings), tables=tables))
    return Content(
        (
            "All ranks begin each step together. Its parts are timed by marks between them, and add up to the step of "
            "the slowest rank. DDP's buckets are timed in its communication hook.",
            "Layers and operators are those of PyTorch's profiler in three further steps on one rank. Operators of the "
            "backward pass belong to the layer whose forward pass has their sequence number. A layer's intensity is "
            "its floating-point operations divided by the bytes of its input, parameters and output. Below the "
            "roofline's ridge, memory is its limit, and above it arithmetic.",
            "The files traces/timeline.json and traces/profile.json beside this page open in Perfetto "
            "(ui.perfetto.dev) and in chrome://tracing.",
        ),
        groups,
    )


QUESTION = Question(
    "step",
    "Where does a step go?",
    frozenset(("breakdown",)),
    BreakdownAnswer,
    _answer,
    _sentence,
    _content,
    of_step=True,
    by_default=False,
)

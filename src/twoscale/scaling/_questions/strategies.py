"""What do DDP's options and sharding change?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, percent, signed
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import DATA_PARALLEL, StrategyRecord
from twoscale.scaling._measure.statistics import mean_interval
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, milliseconds, number, rounds
from twoscale.scaling._study.cells import STRATEGIES, Measured

__all__ = ["QUESTION", "StrategiesAnswer", "memory_table", "sent_table", "strategies_table"]

_EXACT = 1e-5
"""Weights that differ by less, relative to their norm, differ by the order of sums only."""


@dataclass(frozen=True)
class StrategiesAnswer:
    """Ways to share a step among ranks, DDP first."""

    strategies: tuple[StrategyRecord, ...] = ()


def _answer(measured: Measured) -> StrategiesAnswer:
    return StrategiesAnswer(next((record.result for record in measured.of(STRATEGIES)), ()))


def _sentence(results: StudyResults) -> str | None:
    records = results.of(StrategiesAnswer).strategies
    if not records:
        return None
    ddp = records[0]
    off = [one.name for one in records if one.differences]
    state = (
        f"the collectives of all {len(_sharing(records))} strategies were observed as predicted, to the byte"
        if not off
        else f"collectives were not observed as predicted: {', '.join(off)}"
    )
    faster = [
        one for one in _sharing(records) if one.against_ddp is not None and one.against_ddp.median_interval.high < 0
    ]
    best = min(faster, key=lambda one: one.step.median, default=None)
    speed = (
        f"no strategy is measurably faster than DDP ({milliseconds(ddp.step.median)} per step)"
        if best is None
        else f"{best.name} is the fastest of those that are measurably faster than DDP, "
        f"{milliseconds(best.step.median)} per step ({milliseconds(ddp.step.median)} in DDP)"
    )
    least = min(_sharing(records), key=lambda one: one.memory.total)
    saved = 1 - least.memory.total / ddp.memory.total
    return (
        f"At {ddp.world_size} ranks {speed}; {least.name} holds least, {percent(saved, 0)} % less than DDP, and a rank "
        f"sends {number(least.sent() / ddp.sent() if ddp.sent() else None)} times as many bytes; {state}."
    )


def _sharing(records: Sequence[StrategyRecord]) -> list[StrategyRecord]:
    """Return the strategies of one process per rank."""
    return [one for one in records if one.name != DATA_PARALLEL]


def _accuracy(record: StrategyRecord, ddp: StrategyRecord) -> Cell:
    if not record.accuracies:
        return Cell(MISSING)
    mean = sum(record.accuracies) / len(record.accuracies)
    if record is ddp:
        return Cell(percent(mean, 1))
    differences = [one - other for one, other in zip(record.accuracies, ddp.accuracies, strict=True)]
    interval = mean_interval(differences)
    note = "1 seed" if interval is None else f"{signed(100 * interval.low, 1)} to {signed(100 * interval.high, 1)}"
    return Cell(percent(mean, 1), note)


def strategies_table(records: Sequence[StrategyRecord]) -> Table:
    """Return time, bytes, memory and weights of every strategy."""
    ddp = records[0]
    rows: list[list[str | Cell]] = [
        [
            one.name,
            rounds(one.step),
            rounds(one.against_ddp, signs=True),
            number(one.collectives),
            count(round(one.sent())),
            "yes" if not one.differences else "no",
            count(one.memory.total),
            "0" if one.distance == 0 else f"{one.distance:.0e}",
            _accuracy(one, ddp),
        ]
        for one in records
    ]
    if len(_sharing(records)) == len(records):
        # On a processor it runs the module on the whole batch and shares nothing.
        rows.append([Cell(DATA_PARALLEL, "on GPUs only"), *[MISSING] * 8])
    columns = [
        text_column("Strategy"),
        Column("Step", "ms"),
        Column("Against DDP", "ms"),
        Column("Collectives", "per step"),
        Column("Sent per rank", "bytes per step"),
        text_column("As predicted"),
        Column("Held per rank", "bytes"),
        Column("Weights' distance from DDP's"),
        Column("Test accuracy", "%"),
    ]
    trained = ddp.trained_steps
    runs = f"; test accuracy after {trained} steps, {len(ddp.accuracies)} seeds" if ddp.accuracies else ""
    return table(f"{ddp.world_size} ranks, batch {ddp.batch_size} per rank{runs}", columns, rows)


def sent_table(records: Sequence[StrategyRecord]) -> Table:
    """Return the bytes that a rank sends in a ring, by collective."""
    ops = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
    rows = [[one.name, *(count(round(one.sent(op))) for op in ops), count(round(one.sent()))] for one in records]
    columns = [
        text_column("Strategy"), Column("all-reduce", "bytes"), Column("all-gather", "bytes"),
        Column("reduce-scatter", "bytes"), Column("broadcast", "bytes"), Column("All", "bytes"),
    ]  # fmt: skip
    return table("Sent per rank and step, in a ring", columns, rows)


def memory_table(records: Sequence[StrategyRecord]) -> Table:
    """Return what a rank holds, by what it is for."""
    rows = [
        [
            one.name,
            *(
                count(size)
                for size in (
                    one.memory.parameters,
                    one.memory.gradients,
                    one.memory.optimizer,
                    one.memory.buckets,
                    one.memory.total,
                )
            ),
        ]
        for one in records
    ]
    columns = [
        text_column("Strategy"), Column("Parameters", "bytes"), Column("Gradients", "bytes"),
        Column("Optimizer", "bytes"), Column("Buckets", "bytes"), Column("All", "bytes"),
    ]  # fmt: skip
    return table("Held by the rank that holds most, at the end of a step", columns, rows)


def steps_plot(records: Sequence[StrategyRecord]) -> Drawing:
    """Draw the time of a step of every strategy."""
    values = tuple(one.step.median * 1e3 for one in records)
    return dot_plot(
        "Time of a step",
        [one.name for one in records],
        [Series("step", values)],
        label="Time of a step: " + ", ".join(f"{one.name} {milliseconds(one.step.median)}" for one in records),
        x_label="ms",
        span=(0.0, 1.08 * max(values)),
    )


def _content(results: StudyResults) -> Content:
    records = results.of(StrategiesAnswer).strategies
    groups = []
    if records:
        tables = [strategies_table(records), sent_table(records), memory_table(records)]
        groups.append(Group(figures=figures(strategies=steps_plot(records)), tables=tables))
    return Content(
        (
            "All strategies take the same steps in the same processes, in turn, in an order that rotates from round to "
            "round. Collectives are predicted from the model's tensors and PyTorch's rules, and observed in PyTorch's "
            "dispatcher. Sent bytes are those of ring algorithms, on average over the ranks and the last four of seven "
            "steps.",
            f"Weights are compared after these seven steps from the same weights and batches: strategies below "
            f"{_EXACT:.0e} differ by the order of sums only. Accuracies have the interval of the seeds' differences "
            "from DDP under them.",
            "nn.DataParallel is what not to use: one process drives all GPUs, copies the parameters to each of them in "
            "every step, and gathers outputs and gradients on the first. Its step takes the images of all ranks. It "
            "has numbers on several GPUs only.",
        ),
        groups,
        [f"{one.name}: {line}" for one in records for line in one.differences],
    )


QUESTION = Question(
    "strategies",
    "What do DDP's options and sharding change?",
    frozenset(("strategies",)),
    StrategiesAnswer,
    _answer,
    _sentence,
    _content,
    by_default=False,
)

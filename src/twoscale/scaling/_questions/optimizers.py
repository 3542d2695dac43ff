"""Which optimizer learns fastest, and what does BatchNorm change?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.document import Group
from twoscale._page.numbers import count, joined, percent
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import OptimizerRecord
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import with_interval
from twoscale.scaling._study.cells import OPTIMIZERS, Measured

__all__ = ["QUESTION", "OptimizersAnswer", "optimizers_table"]


@dataclass(frozen=True)
class OptimizersAnswer:
    """Optimizers, and a model with and without BatchNorm."""

    optimizers: tuple[OptimizerRecord, ...] = ()


def _answer(measured: Measured) -> OptimizersAnswer:
    return OptimizersAnswer(next((record.result for record in measured.of(OPTIMIZERS)), ()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sentence(results: StudyResults) -> str | None:
    records = results.of(OptimizersAnswer).optimizers
    rated = [one for one in records if "BatchNorm" not in one.name]
    if not rated:
        return None
    best = max(rated, key=lambda one: _mean(one.final()))
    epochs = len(best.accuracies[0])
    text = f"After {epochs} epochs {best.name} reaches {percent(_mean(best.final()), 1)} %, the most of {len(rated)}"
    pair = [one for one in records if "BatchNorm" in one.name]
    if len(pair) == 2:
        with_norm, without = pair
        difference = summarize([b - a for a, b in zip(with_norm.final(), without.final(), strict=True)])
        text += (
            f"; {without.model} reaches {percent(_mean(without.final()), 1)} % without BatchNorm and "
            f"{percent(_mean(with_norm.final()), 1)} % with it{_shown(difference.mean_interval)}"
        )
    return text + "."


def _shown(interval: object) -> str:
    from twoscale.scaling._measure.records import Interval

    if not isinstance(interval, Interval):
        return " (one seed)"
    return "" if interval.low > 0 or interval.high < 0 else ", a difference that these seeds do not show"


def optimizers_table(records: Sequence[OptimizerRecord]) -> Table:
    """Return time, accuracy by epoch and learning rates of every optimizer."""
    epochs = len(records[0].accuracies[0])
    rows: list[list[str | Cell]] = []
    for one in records:
        rows.append(
            [
                Cell(one.name, one.model),
                f"{one.rate:g}",
                *(percent(_mean([run[epoch] for run in one.accuracies]), 1) for epoch in range(epochs)),
                f"{percent(min(one.final()), 1)} to {percent(max(one.final()), 1)}",
                with_interval(one.epoch_seconds),
                count(one.state_bytes),
                ", ".join(f"{rate:g}: {percent(accuracy, 1)}" for rate, accuracy in one.tried),
            ]
        )
    columns = [
        text_column("Optimizer"),
        Column("Learning rate"),
        *(Column(f"Epoch {epoch + 1}", "%") for epoch in range(epochs)),
        Column("Seeds", "%"),
        Column("Epoch", "s"),
        Column("State", "bytes"),
        text_column("Rate: held-out accuracy, %"),
    ]
    runs = sorted({len(one.accuracies) for one in records})
    return table(f"Test accuracy by epoch, {joined(map(str, runs))} seeds", columns, rows)


def _content(results: StudyResults) -> Content:
    records = results.of(OptimizersAnswer).optimizers
    return Content(
        (
            "Every optimizer has three learning rates, tried on held-out training images, and the seeds train with the "
            "best. There is no schedule. Muon is for matrices, and AdamW updates everything else with a tenth of its "
            "rate. The time of an epoch is that of training alone. Where the model has no BatchNorm, a small residual "
            "network trains with and without it, on fewer images and seeds.",
        ),
        [Group(tables=[optimizers_table(records)])] if records else [],
    )


QUESTION = Question(
    "optimizers",
    "Which optimizer learns fastest, and what does BatchNorm change?",
    frozenset(("optimizers",)),
    OptimizersAnswer,
    _answer,
    _sentence,
    _content,
    by_default=False,
)

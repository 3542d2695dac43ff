"""What does a large batch do to accuracy?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from twoscale._page.charts import Drawing, Reference, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import count, fixed, percent, signed
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import TrainedRun
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, number
from twoscale.scaling._study.cells import ACCURACY, Measured
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.plan import ways
from twoscale.training import TrainConfig

__all__ = ["QUESTION", "AccuracyAnswer", "AccuracyRow", "accuracy_table"]


@dataclass(frozen=True)
class AccuracyRow:
    """One way to train, over several seeds."""

    way: str
    title: str
    batch_size: int
    equal: Literal["epochs", "steps"]
    """What it has in common with the small batch."""
    rate: float
    """Highest learning rate of the run: linear scaling multiplies the one that is set."""
    epochs: int
    steps: int | None
    accuracies: tuple[float | None, ...]
    """Fraction of test images, one value per seed, 0..1; None: the loss became infinite."""
    accuracy: Summary | None
    against_small: Summary | None
    """Difference to the small batch at the same seed."""


@dataclass(frozen=True)
class AccuracyAnswer:
    """Ways to train at a large batch."""

    accuracy: tuple[AccuracyRow, ...] = ()


def _answer(measured: Measured) -> AccuracyAnswer:
    trained = [run for record in measured.of(ACCURACY) for run in record.result]
    return AccuracyAnswer(_rows(measured.config, trained))


def _peak(config: TrainConfig) -> float:
    return config.lr * (config.batch_size / config.base_batch if config.base_batch else 1.0)


def _rows(config: StudyConfig, trained: Iterable[TrainedRun]) -> tuple[AccuracyRow, ...]:
    found: dict[tuple[str, str | None], dict[int, TrainedRun]] = {}
    for run in trained:
        found.setdefault((run.way, run.equal), {})[run.config.seed] = run
    small = {seed: run.accuracy for seed, run in found.get(("small", "epochs"), {}).items()}
    equals: tuple[Literal["epochs", "steps"], ...] = ("epochs", "steps")
    rows = []
    for equal in equals:
        for way in ways(config):
            runs = found.get((way.name, equal))
            if not runs:
                continue
            reached = {seed: run.accuracy for seed, run in sorted(runs.items())}
            known = [value for value in reached.values() if value is not None]
            paired = [
                value - base
                for seed, value in reached.items()
                if value is not None and (base := small.get(seed)) is not None
            ]
            one = next(iter(runs.values()))
            rows.append(
                AccuracyRow(
                    way=way.name,
                    title=way.title,
                    batch_size=one.config.batch_size,
                    equal=equal,
                    rate=_peak(one.config),
                    epochs=one.config.epochs or 0,
                    steps=next((run.steps for run in runs.values() if run.steps), None),
                    accuracies=tuple(reached.values()),
                    accuracy=summarize(known) if known else None,
                    against_small=summarize(paired) if paired and way.name != "small" else None,
                )
            )
    return tuple(rows)


def _sentence(results: StudyResults) -> str | None:
    rows = {(row.way, row.equal): row for row in results.of(AccuracyAnswer).accuracy}
    small, plain = rows.get(("small", "epochs")), rows.get(("plain", "epochs"))
    if small is None or plain is None:
        return None
    if small.accuracy is None or _diverged(small):
        return f"The small batch itself diverged with {_diverged(small)} seeds: there is nothing to compare with."
    before, change = percent(small.accuracy.mean, 1), plain.against_small
    if plain.accuracy is None or _diverged(plain):
        text = f"At equal epochs the large batch diverges with nothing changed, with {_diverged(plain)} seeds"
    elif (
        change is None or change.mean_interval is None or not change.mean_interval.low <= 0 <= change.mean_interval.high
    ):
        lost = small.accuracy.mean - plain.accuracy.mean
        text = (
            f"At equal epochs the large batch {'gains' if lost < 0 else 'loses'} {fixed(abs(100 * lost), 1)} points "
            f"with nothing changed ({before} % to {percent(plain.accuracy.mean, 1)} %)"
        )
    else:
        text = (
            f"At equal epochs the large batch with nothing changed reaches {percent(plain.accuracy.mean, 1)} %, the "
            f"small one {before} %, no more apart than seeds are"
        )
    helped = [
        row for (way, equal), row in rows.items() if equal == "epochs" and way not in ("small", "plain") and _whole(row)
    ]
    if helped:
        best = max(helped, key=_mean)
        text += f"; the best of the remedies, {best.title}, reaches {percent(_mean(best), 1)} %{_better(best, plain)}"
    longer = rows.get(("plain", "steps"))
    if longer is not None and _whole(longer):
        text += f"; at equal steps, nothing changed, it reaches {percent(_mean(longer), 1)} %"
    return text + "."


def _better(best: AccuracyRow, plain: AccuracyRow) -> str:
    """Return whether a remedy is shown to be better than nothing changed, seed by seed."""
    if _diverged(plain):
        return ""
    pairs = zip(best.accuracies, plain.accuracies, strict=False)
    gains = summarize([a - b for a, b in pairs if a is not None and b is not None])
    if gains.mean_interval is None:
        return ", with one seed, which shows nothing of chance"
    low, high = (fixed(100 * value, 1) for value in (gains.mean_interval.low, gains.mean_interval.high))
    if gains.mean_interval.low > 0:
        return f", better than with nothing changed by {low} to {high} points"
    return f", which is not shown to be better than nothing changed ({gains.n} seeds: {low} to {high} points)"


def _diverged(row: AccuracyRow) -> str:
    """Return "2 of 3" where so many runs have no accuracy, else nothing."""
    lost = sum(value is None for value in row.accuracies)
    return f"{lost} of {len(row.accuracies)}" if lost else ""


def _whole(row: AccuracyRow) -> bool:
    """Return whether every run has an accuracy: a mean of those that did not diverge would flatter."""
    return row.accuracy is not None and not _diverged(row)


def _mean(row: AccuracyRow) -> float:
    assert row.accuracy is not None
    return row.accuracy.mean


def accuracy_table(results: StudyResults, equal: str) -> Table:
    """Return one row per way to train."""
    rows: list[list[str | Cell]] = [
        [
            row.title,
            number(row.rate, 4),
            count(row.epochs),
            count(row.steps),
            Cell(
                percent(row.accuracy.mean if row.accuracy else None, 1),
                ", ".join("diverged" if value is None else percent(value, 1) for value in row.accuracies),
            ),
            Cell(
                signed(None if row.against_small is None else 100 * row.against_small.mean, 1),
                _points(row.against_small),
            ),
        ]
        for row in results.of(AccuracyAnswer).accuracy
        if row.equal == equal or row.way == "small"
    ]
    columns = [
        text_column("Way"),
        Column("Highest rate"),
        Column("Epochs"),
        Column("Steps"),
        Column("Test accuracy", "%"),
        Column("Against small", "points"),
    ]
    return table(f"At equal {equal}: mean of seeds, under it each seed", columns, rows)


def _points(summary: Summary | None) -> str:
    if summary is None or summary.mean_interval is None:
        return ""
    return f"{signed(100 * summary.mean_interval.low, 1)} to {signed(100 * summary.mean_interval.high, 1)}"


def accuracy_plot(results: StudyResults) -> Drawing | None:
    """Draw the accuracy of each way, at equal epochs and at equal steps."""
    found = {
        (row.way, row.equal): 100 * row.accuracy.mean for row in results.of(AccuracyAnswer).accuracy if row.accuracy
    }
    ways = list(dict.fromkeys(way for way, _ in found if way != "small"))
    if not ways:
        return None
    names = {"plain": "nothing changed", "linear": "linear + warm-up", "tuned": "rate tuned", "lars": "LARS",
             "lamb": "LAMB", "adamw": "AdamW"}  # fmt: skip
    small = found.get(("small", "epochs"))
    batches = results.config.accuracy_batches
    return dot_plot(
        f"Accuracy at batch {count(batches[1])}",
        [names.get(way, way) for way in ways],
        [Series(f"equal {equal}", tuple(found.get((way, equal)) for way in ways)) for equal in ("epochs", "steps")],
        label="Mean test accuracy: "
        + ", ".join(f"{names.get(way, way)} at equal {equal} {fixed(v, 1)} %" for (way, equal), v in found.items()),
        references=[] if small is None else [Reference(small, f"batch {batches[0]}: {fixed(small, 1)}")],
        x_label="test accuracy, %",
        least_span=4.0,
        limits=(0.0, 100.0),
    )


def _content(results: StudyResults) -> Content:
    config = results.config
    apart = ", at equal epochs and at equal steps apart" if config.device == "cpu" else ", at equal epochs"
    tuned = (
        "Each rate is the best of four or five, on a tenth of the training images that the run did not see, with a "
        f"seed of its own{apart}. Those of the rows that only scale are the small batch's best."
        if config.tune
        else "Learning rates were not tuned: each row has the rate that it would begin with."
    )
    listed = (
        [accuracy_table(results, equal) for equal in ("epochs", "steps")] if results.of(AccuracyAnswer).accuracy else []
    )
    return Content(
        (
            f"Batch {count(config.accuracy_batches[0])} against batch {count(config.accuracy_batches[1])}, the same "
            f"seeds ({config.seeds}). At equal epochs a large batch takes fewer steps; at equal steps it sees more "
            f"images. " + tuned,
        ),
        [Group(figures=figures(accuracy=accuracy_plot(results)), tables=listed)],
    )


QUESTION = Question(
    "accuracy",
    "Accuracy at large batch",
    frozenset(("accuracy",)),
    AccuracyAnswer,
    _answer,
    _sentence,
    _content,
)

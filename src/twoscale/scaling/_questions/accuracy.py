"""What does a large batch do to accuracy?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from twoscale._page.charts import Drawing, Reference, Series, dot_plot, line_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, fixed, percent, signed
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import CurvePoint, TrainedRun
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, number, plural
from twoscale.scaling._study.cells import ACCURACY, TUNE, Measured
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.plan import ways
from twoscale.training import TrainConfig

__all__ = ["QUESTION", "AccuracyAnswer", "AccuracyRow", "RateTried", "accuracy_table", "edges_sentence", "rates_table"]


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
    against_plain: Summary | None = None
    """Difference to nothing changed at the same seed and length; None for both of these, and in earlier records."""
    loss: float | None = None
    """Training loss of the last epoch, mean of seeds; None where a run diverged, and in earlier records."""
    curve: tuple[CurvePoint, ...] = ()
    """Means of the seeds that did not diverge, epoch by epoch; empty in earlier records."""


@dataclass(frozen=True)
class RateTried:
    """A learning rate that was tried for a way to train."""

    way: str
    title: str
    equal: Literal["epochs", "steps"]
    rate: float
    """The rate that is set."""
    accuracy: float | None
    """Of the training images that were held out, 0..1; None: the loss became infinite."""


@dataclass(frozen=True)
class AccuracyAnswer:
    """Ways to train at a large batch."""

    accuracy: tuple[AccuracyRow, ...] = ()
    rates: tuple[RateTried, ...] = ()
    """The search for learning rates, ascending for each way; empty in earlier records."""


def _answer(measured: Measured) -> AccuracyAnswer:
    trained = [run for record in measured.of(ACCURACY) for run in record.result]
    return AccuracyAnswer(_rows(measured.config, trained), _tried(measured))


def _tried(measured: Measured) -> tuple[RateTried, ...]:
    """Return what the search for learning rates found, by way and length, ascending rates."""
    titles = {way.name: way.title for way in ways(measured.config)}
    found = [
        RateTried(run.way, titles[run.way], run.equal or "epochs", run.config.lr, run.accuracy)
        for record in measured.of(TUNE)
        for run in record.result
    ]
    places = list(titles)
    return tuple(sorted(found, key=lambda one: (one.equal, places.index(one.way), one.rate)))


def _curve(runs: Iterable[TrainedRun]) -> tuple[CurvePoint, ...]:
    """Return the mean of the runs that did not diverge, epoch by epoch."""
    whole = [run.curve for run in runs if run.accuracy is not None and run.curve]
    points = []
    for together in zip(*whole, strict=False):
        known = [point.accuracy for point in together if point.accuracy is not None]
        points.append(
            CurvePoint(
                together[0].epoch,
                statistics.fmean(point.loss for point in together),
                statistics.fmean(known) if known else None,
            )
        )
    return tuple(points)


def _paired(reached: Mapping[int, float | None], others: Mapping[int, float | None]) -> Summary | None:
    """Return the differences at the same seed."""
    pairs = [
        value - other
        for seed, value in reached.items()
        if value is not None and (other := others.get(seed)) is not None
    ]
    return summarize(pairs) if pairs else None


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
        plain = {seed: run.accuracy for seed, run in found.get(("plain", equal), {}).items()}
        for way in ways(config):
            runs = found.get((way.name, equal))
            if not runs:
                continue
            reached = {seed: run.accuracy for seed, run in sorted(runs.items())}
            known = [value for value in reached.values() if value is not None]
            losses = [run.loss for run in runs.values() if run.accuracy is not None and run.loss is not None]
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
                    against_small=None if way.name == "small" else _paired(reached, small),
                    against_plain=None if way.name in ("small", "plain") else _paired(reached, plain),
                    loss=statistics.fmean(losses) if len(losses) == len(runs) else None,
                    curve=_curve(runs.values()),
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
            f"small one {before} %, a difference that {change.n} seeds cannot tell from chance"
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
    shown = gains.mean_interval.low >= -1 and gains.mean_interval.high <= 1  # beyond that it says nothing
    between = f": {low} to {high} points" if shown else ""
    return f", which is not shown to be better than nothing changed ({gains.n} seeds{between})"


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
            _rate(row.rate),
            count(row.epochs),
            count(row.steps),
            Cell(
                percent(row.accuracy.mean if row.accuracy else None, 1),
                ", ".join("diverged" if value is None else percent(value, 1) for value in row.accuracies),
            ),
            number(row.loss),
            Cell(
                signed(None if row.against_small is None else 100 * row.against_small.mean, 1),
                _points(row.against_small),
            ),
            Cell(_judged(row.against_plain), _points(row.against_plain)),
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
        Column("Training loss"),
        Column("Against small", "points"),
        Column("Against nothing changed", "points"),
    ]
    return table(f"At equal {equal}: the mean of the seeds, and each seed below it", columns, rows)


def _judged(against: Summary | None) -> str:
    """Return whether the seeds show a difference to nothing changed."""
    if against is None:
        return MISSING
    if against.mean_interval is None:
        return "one seed"
    if against.mean_interval.low > 0:
        return "better"
    return "worse" if against.mean_interval.high < 0 else "not shown"


def _rate(value: float) -> str:
    """Return a learning rate: it is one of a few round numbers."""
    return f"{value:g}"


def rates_table(rates: Sequence[RateTried]) -> Table:
    """Return one row per way to train and length of run: each rate with its accuracy, the best one marked."""
    rows: list[list[str | Cell]] = []
    for (title, equal), tried in _groups(rates).items():
        best = _best(tried)
        shown = [
            f"{_rate(one.rate)}: {'diverged' if one.accuracy is None else percent(one.accuracy, 1)}" for one in tried
        ]
        rows.append([title, f"equal {equal}", MISSING if best is None else _rate(best.rate), ", ".join(shown)])
    columns = [
        text_column("Way"),
        text_column("Length"),
        Column("Best rate"),
        text_column("Rate: held-out accuracy, %"),
    ]
    return table("Learning rates that were tried", columns, rows)


def _groups(rates: Sequence[RateTried]) -> dict[tuple[str, str], list[RateTried]]:
    found: dict[tuple[str, str], list[RateTried]] = {}
    for one in rates:
        found.setdefault((one.title, one.equal), []).append(one)
    return found


def _best(tried: Sequence[RateTried]) -> RateTried | None:
    known = [one for one in tried if one.accuracy is not None]
    return max(known, key=lambda one: one.accuracy or 0.0, default=None)


def edges_sentence(rates: Sequence[RateTried]) -> str | None:
    """Name the searches whose best rate is the smallest or the largest tried; None where there is none."""
    lines = []
    for (title, equal), tried in _groups(rates).items():
        best = _best(tried)
        if best is not None and len(tried) > 1 and best in (tried[0], tried[-1]):
            end, beyond = ("smallest", "smaller") if best is tried[0] else ("largest", "larger")
            lines.append(f"{title}, equal {equal}: {_rate(best.rate)} is the {end} tried, a {beyond} one may be better")
    return f"Best rates at the edge of what was tried. {'; '.join(lines)}." if lines else None


def _curves(rows: Sequence[AccuracyRow]) -> list[AccuracyRow]:
    """Return the rows whose curves are drawn: the small batch, and nothing changed at both lengths."""
    chosen = (("small", "epochs"), ("plain", "epochs"), ("plain", "steps"))
    by_key = {(row.way, row.equal): row for row in rows}
    return [by_key[key] for key in chosen if key in by_key and by_key[key].curve]


def _by_epoch(
    results: StudyResults, title: str, y_label: str, value: Callable[[CurvePoint], float | None]
) -> Drawing | None:
    lines = []
    for row in _curves(results.of(AccuracyAnswer).accuracy):
        name = str(row.batch_size) if row.way == "small" else f"{row.batch_size}, {row.equal}"
        points = [(float(point.epoch), y) for point in row.curve if (y := value(point)) is not None]
        if points:
            lines.append((name, points))
    if not lines:
        return None
    spoken = "; ".join(f"batch {name} ends at {fixed(points[-1][1], 2)}" for name, points in lines)
    last = max(int(points[-1][0]) for _, points in lines)
    ticks = range(1, last + 1, max(1, math.ceil(last / 12)))
    return line_plot(
        title,
        lines,
        label=f"{title} by epoch, nothing changed but the batch, at equal epochs or steps: {spoken}",
        x_label="epoch",
        y_label=y_label,
        x_ticks=[(float(epoch), str(epoch)) for epoch in ticks],
        dots=last <= 30,
    )


def loss_plot(results: StudyResults) -> Drawing | None:
    """Draw the training loss by epoch."""
    return _by_epoch(results, "Training loss", "mean of the epoch", lambda point: point.loss)


def curve_plot(results: StudyResults) -> Drawing | None:
    """Draw the test accuracy by epoch."""
    return _by_epoch(
        results, "Test accuracy", "%", lambda point: None if point.accuracy is None else 100 * point.accuracy
    )


def _points(summary: Summary | None) -> str:
    if summary is None or summary.mean_interval is None:
        return ""
    if summary.mean_interval.low < -1 or summary.mean_interval.high > 1:
        return f"{summary.n} seeds, too far apart"
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
    answer = results.of(AccuracyAnswer)
    lengths = "runs of both lengths were searched" if config.device == "cpu" else "the shorter runs were searched"
    tuned = (
        "Each learning rate is the best of several on a tenth of the training images, which the run did not see, with "
        f"a seed of its own; {lengths}. The rows that only scale have the small batch's best rate."
        if config.tune
        else "Learning rates were not tuned: each row has the rate that its search would begin with."
    )
    listed = [accuracy_table(results, equal) for equal in ("epochs", "steps")] if answer.accuracy else []
    if answer.rates:
        listed.append(rates_table(answer.rates))
    edges = edges_sentence(answer.rates)
    return Content(
        (
            f"Batch {count(config.accuracy_batches[0])} is compared with batch {count(config.accuracy_batches[1])} "
            f"over the same {plural(config.seeds, 'seed')}. At equal epochs, a large batch takes fewer steps; at equal "
            f"steps, it sees more images. {tuned}",
            "A way is better, or worse, than nothing changed where the 95% interval of its seeds' differences does not "
            "hold zero; otherwise the seeds do not show it.",
        ),
        [
            Group(
                findings=[] if edges is None else [edges],
                figures=figures(
                    accuracy=accuracy_plot(results), loss=loss_plot(results), accuracy_by_epoch=curve_plot(results)
                ),
                tables=listed,
            )
        ],
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

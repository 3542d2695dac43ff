"""How large may a batch be?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts import Drawing, line_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, fixed, joined, percent, signed
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import BatchRun, GradientNoise, LargeBatchRecord, Remedied, Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, number
from twoscale.scaling._study.cells import NOISE, Measured

__all__ = ["QUESTION", "NoiseAnswer", "batches_table", "noise_table", "remedies_table"]


@dataclass(frozen=True)
class NoiseAnswer:
    """Training by batch size, the noise of gradients, and remedies for a large batch."""

    large_batch: LargeBatchRecord | None = None


def _answer(measured: Measured) -> NoiseAnswer:
    return NoiseAnswer(next((record.result for record in measured.of(NOISE)), None))


def _known(values: Sequence[float | None]) -> Summary | None:
    """Return a summary of the seeds; None where one diverged, as the mean of the others would flatter."""
    whole = [value for value in values if value is not None]
    return summarize(whole) if whole and len(whole) == len(values) else None


def _images(scale: float) -> str:
    """Return a noise scale with two digits: more are not known."""
    return count(int(float(f"{scale:.2g}"))) if scale >= 10 else f"{scale:.2g}"


def _scales(noise: Sequence[GradientNoise]) -> str | None:
    known = [one for one in noise if one.scale is not None]
    if not known:
        return None
    first, last = known[0], known[-1]
    assert first.scale is not None
    assert last.scale is not None
    text = f"The gradient noise scale is about {_images(first.scale)} images {_moment(first)}"
    return text if first is last else f"{text} and {_images(last.scale)} {_moment(last)}"


def _moment(noise: GradientNoise) -> str:
    if noise.epoch == 0:
        return "at the initial weights"
    return f"after {noise.epoch} epoch{'' if noise.epoch == 1 else 's'}"


def _sentence(results: StudyResults) -> str | None:
    record = results.of(NoiseAnswer).large_batch
    if record is None:
        return None
    parts = [text for text in (_scales(record.noise),) if text]
    small, largest = record.runs[0], record.runs[-1].batch_size
    before = _known(small.losses)
    ends = []
    for run in record.runs:
        if run.batch_size == largest:
            after = _known(run.losses)
            ends.append(f"{'diverges' if after is None else number(after.mean)} at equal {run.equal}")
    if before is not None:
        parts.append(
            f"batch {small.batch_size} ends at a training loss of {number(before.mean)}, and batch {count(largest)} at "
            f"{joined(ends)}"
        )
    parts += [_judged(compared) for compared in _by_batch(record)]
    return "; ".join(parts) + f" ({len(small.losses)} seeds)."


_VERDICTS = ("better", "worse", "diverged")
"""That a sentence names; "not shown" is left."""


def _by_batch(record: LargeBatchRecord) -> list[list[Remedied]]:
    """Return the remedies at each batch size; the first of each changes nothing."""
    sizes = dict.fromkeys(one.batch_size for one in record.remedies)
    return [[one for one in record.remedies if one.batch_size == size] for size in sizes]


def _judged(compared: Sequence[Remedied]) -> str:
    """Return which remedies were better at a batch, and which were not."""
    nothing, *remedies = compared
    judged = [(verdict, [one.name for one in remedies if one.verdict == verdict]) for verdict in _VERDICTS]
    shown = [f"{verdict}: {joined(names)}" for verdict, names in judged if names]
    place = f"against nothing changed at batch {count(nothing.batch_size)}"
    if not shown:
        return f"{place}, no remedy is shown to be better or worse"
    rest = [one for one in remedies if one.verdict not in _VERDICTS]
    return f"{place}, {', '.join(shown)}{', the others not shown' if rest else ''}"


def noise_table(record: LargeBatchRecord) -> Table:
    """Return the noise scale by epoch."""
    rows: list[list[str | Cell]] = []
    for one in record.noise:
        interval = ""
        if one.interval is not None:
            interval = f"{_images(one.interval.low)} to {_images(one.interval.high)}"
        scale = MISSING if one.scale is None else _images(one.scale)
        rows.append([str(one.epoch), f"{one.squared_norm:.3g}", f"{one.trace:.3g}", Cell(scale, interval)])
    columns = [
        Column("Epochs"), Column("Squared norm of the gradient"), Column("Trace of its covariance"),
        Column("Noise scale", "images"),
    ]  # fmt: skip
    first = record.noise[0]
    return table(
        f"Gradient noise, from {first.draws} pairs of batches of {first.small} and {count(first.large)}", columns, rows
    )


def _seeds(summary: Summary | None, decimals: int | None = None, factor: float = 1.0) -> Cell:
    """Return the mean of the seeds with Student's interval under it."""
    if summary is None:
        return Cell("diverged")
    interval = summary.mean_interval
    shown = number(summary.mean * factor, decimals)
    if interval is None:
        return Cell(shown)
    places = decimals if decimals is not None else len(shown.partition(".")[2])
    return Cell(shown, f"{fixed(interval.low * factor, places)} to {fixed(interval.high * factor, places)}")


def batches_table(record: LargeBatchRecord) -> Table:
    """Return loss and accuracy by batch size, at equal epochs and at equal steps."""

    def row(run: BatchRun) -> list[str | Cell]:
        same = "the small batch" if run is record.runs[0] else f"equal {run.equal}"
        accuracies = _known(run.accuracies)
        return [count(run.batch_size), same, count(run.steps), _seeds(_known(run.losses)), _seeds(accuracies, 1, 100)]

    columns = [
        Column("Batch"), text_column("Length"), Column("Steps"), Column("Training loss"), Column("Test accuracy", "%"),
    ]  # fmt: skip
    ordered = sorted(record.runs, key=lambda run: (run.equal, run.batch_size))
    return table(
        f"The same learning rate, {record.rate:g}, at every batch; means of {len(record.runs[0].losses)} seeds",
        columns,
        [row(run) for run in ordered],
    )


def remedies_table(record: LargeBatchRecord) -> Table:
    """Return what each remedy changes at the larger batches and equal epochs."""
    remedies = [one for _, *others in _by_batch(record) for one in others]

    def row(one: Remedied) -> list[str | Cell]:
        cell = Cell(MISSING)
        if one.difference is not None and one.difference.mean_interval is not None:
            interval = one.difference.mean_interval
            places = 3 if max(abs(interval.low), abs(interval.high)) < 10 else 0
            low, high = signed(interval.low, places), signed(interval.high, places)
            cell = Cell(signed(one.difference.mean, places), f"{low} to {high}")
        accuracies = _known(one.accuracies)
        mean = MISSING if accuracies is None else percent(accuracies.mean, 1)
        verdict = one.verdict if one in remedies else MISSING
        return [count(one.batch_size), one.name, f"{one.rate:g}", _seeds(_known(one.losses)), mean, cell, verdict]

    columns = [
        Column("Batch"), text_column("Remedy"), Column("Highest rate"), Column("Training loss"),
        Column("Test accuracy", "%"), Column("Loss against nothing changed"), text_column("Verdict"),
    ]  # fmt: skip
    confidence = next((x.difference.mean_interval.coverage for x in remedies if x.difference and
                       x.difference.mean_interval), None)  # fmt: skip
    return table(
        f"Remedies at equal epochs; intervals of {percent(confidence, 1)} %",
        columns,
        [row(one) for one in record.remedies],
    )


def losses_plot(record: LargeBatchRecord) -> Drawing | None:
    """Draw the training loss by batch size."""
    lines = []
    for equal in ("epochs", "steps"):
        runs = [run for run in record.runs if run.equal == equal or run is record.runs[0]]
        points = [(float(i), s.mean) for i, run in enumerate(runs) if (s := _known(run.losses)) is not None]
        if points:
            lines.append((f"equal {equal}", points))
    if not lines:
        return None
    sizes = [run.batch_size for run in record.runs if run.equal == "epochs"]
    return line_plot(
        "Loss by batch size",
        lines,
        label="Training loss by batch size: "
        + "; ".join(f"at {name} it ends at {number(points[-1][1])}" for name, points in lines),
        x_label="batch size",
        y_label="loss",
        x_ticks=[(float(i), count(size)) for i, size in enumerate(sizes)],
        dots=True,
    )


def _content(results: StudyResults) -> Content:
    record = results.of(NoiseAnswer).large_batch
    groups = []
    if record is not None:
        tables = [batches_table(record), noise_table(record), remedies_table(record)]
        groups.append(Group(figures=figures(losses_by_batch=losses_plot(record)), tables=tables))
    return Content(
        (
            "At equal epochs a larger batch sees the same images in fewer steps. At equal steps it sees more images. "
            "The learning rate is the best of four for the smallest batch, and the same at every batch.",
            "The gradient noise scale is the trace of the covariance of single images' gradients, divided by the "
            "squared norm of the mean gradient (McCandlish et al. 2018). A batch well below it averages noise, so that "
            "twice the batch saves nearly half of the steps; a batch well above it saves none. Its interval is that of "
            "bootstrap samples.",
            "A remedy is better or worse than nothing changed where the interval of the differences at the same seeds "
            "does not hold zero. The intervals are wider than those of a single comparison: all together are wrong "
            "with a probability of 5%. The row with other seeds changes nothing that could help, and is a control.",
        ),
        groups,
    )


QUESTION = Question(
    "noise",
    "How large may a batch be?",
    frozenset(("noise",)),
    NoiseAnswer,
    _answer,
    _sentence,
    _content,
    by_default=False,
)

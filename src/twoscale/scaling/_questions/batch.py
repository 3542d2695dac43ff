"""How does the batch size change the time of an epoch?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts import Drawing, line_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, fixed, percent
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import CapacityRecord, EpochTime, PeakRecord, Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import BatchesResult
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, number, seconds_text, with_interval
from twoscale.scaling._study.cells import BATCHES, CAPACITY, Measured
from twoscale.scaling._study.config import StudyConfig

__all__ = ["QUESTION", "BatchAnswer", "BatchRow", "batch_table"]

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class BatchRow:
    """One batch size on one device with all its cores, the bare module."""

    batch_size: int
    epoch: Summary | None
    """Seconds per epoch, one value per launch; None: it failed."""
    samples_per_second: float | None
    """At the mean step of the launches."""
    data_wait: float | None
    """Share of the step spent asking for its batch, 0..1; median over launches."""
    peak_memory_bytes: int | None
    """Median over launches."""
    flops_per_second: float | None
    """Floating-point operations of forward and backward pass, by the mean step of the launches."""
    of_peak: float | None
    """Of the device's measured matrix rate, 0..1."""
    message: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class BatchAnswer:
    """One device with all its cores, by batch size."""

    capacity: CapacityRecord | None = None
    peak: PeakRecord | None = None
    batches: tuple[BatchRow, ...] = ()
    batch_times: tuple[EpochTime, ...] = ()
    """One per batch size and launch."""


def _answer(measured: Measured) -> BatchAnswer:
    capacity = next((record.result for record in measured.of(CAPACITY)), None)
    return _batches(measured.config, [record.result for record in measured.of(BATCHES)], capacity)


def _batches(config: StudyConfig, launches: Sequence[BatchesResult], capacity: CapacityRecord | None) -> BatchAnswer:
    times: list[EpochTime] = []
    messages: dict[int, str] = {}
    peak = None
    for launch in launches:
        for trial in launch.rows:
            if trial.record is None:
                messages[trial.batch_size] = trial.message
            else:
                times.append(trial.record)
        peak = launch.peak or peak
    if capacity is not None and capacity.largest is not None:
        for size in config.batch_sizes:
            if size > capacity.largest:
                messages[size] = f"does not fit: {_refusal(capacity, size)}"
    by_size: dict[int, list[EpochTime]] = {}
    for time in times:
        by_size.setdefault(time.workload.batch_size, []).append(time)
    rows = []
    for size in sorted({*by_size, *messages}):
        found = by_size.get(size)
        if not found:
            rows.append(BatchRow(size, None, None, None, None, None, None, messages[size]))
            continue
        step = statistics.fmean(time.step.median for time in found)
        flops = found[0].flops_per_step
        memory = [time.peak_memory_bytes for time in found if time.peak_memory_bytes is not None]
        rate = flops / step if flops else None
        rows.append(
            BatchRow(
                batch_size=size,
                epoch=summarize([time.epoch_seconds for time in found]),
                samples_per_second=size / step,
                data_wait=statistics.median(time.data_wait.median / time.step.median for time in found),
                peak_memory_bytes=int(statistics.median(memory)) if memory else None,
                flops_per_second=rate,
                of_peak=rate / peak.flops_per_second if rate and peak else None,
            )
        )
    ordered = sorted(times, key=lambda time: time.workload.batch_size)
    return BatchAnswer(capacity, peak, tuple(rows), tuple(ordered))


def _refusal(capacity: CapacityRecord, size: int) -> str:
    failed = [trial for trial in capacity.trials if trial.status != "ok" and trial.batch_size <= size]
    if failed:
        return max(failed, key=lambda trial: trial.batch_size).status
    return "more than all training images" if capacity.reached_limit else "larger than the largest that fits"


def _sentence(results: StudyResults) -> str | None:
    answer = results.of(BatchAnswer)
    rows = [row for row in answer.batches if row.epoch is not None]
    if not rows:
        return None
    slow, fast = max(rows, key=_epoch), min(rows, key=_epoch)
    text = (
        f"An epoch takes {seconds_text(_epoch(slow))} at batch {count(slow.batch_size)} and "
        f"{seconds_text(_epoch(fast))} at {count(fast.batch_size)}, the fastest measured"
    )
    if slow is fast:
        text = f"An epoch takes {seconds_text(_epoch(fast))} at batch {count(fast.batch_size)}"
    if fast.of_peak is not None:
        text += f", at {percent(fast.of_peak, 0)} % of the device's measured matrix rate"
    return text + _largest(answer.capacity) + "."


def _largest(capacity: CapacityRecord | None) -> str:
    """Return how large a batch fits, and why a larger one failed if memory was not the reason."""
    if capacity is None or capacity.largest is None:
        return ""
    largest = count(capacity.largest)
    if capacity.reached_limit:
        return f"; all {largest} training images fit in one batch"
    if not capacity.ended:
        return f"; a batch of {largest} fits, and there was no time to try larger ones"
    over = min(
        (t for t in capacity.trials if t.batch_size > capacity.largest), key=lambda t: t.batch_size, default=None
    )
    if over is not None and over.status != "out-of-memory":
        return f"; a batch of {largest} runs, and one of {count(over.batch_size)} ended in a {over.status}"
    return f"; the largest batch that fits is {largest}"


def _epoch(row: BatchRow) -> float:
    assert row.epoch is not None
    return row.epoch.mean


def batch_table(results: StudyResults) -> Table:
    """Return one row per batch size on one device."""
    rows: list[list[str | Cell]] = []
    for row in results.of(BatchAnswer).batches:
        memory = None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6
        rows.append(
            [
                Cell(count(row.batch_size), row.message),
                with_interval(row.epoch),
                MISSING if row.samples_per_second is None else count(round(row.samples_per_second)),
                percent(row.data_wait, 1),
                number(memory, 0),
                number(None if row.flops_per_second is None else row.flops_per_second / 1e9),
                percent(row.of_peak, 1),
            ]
        )
    columns = [
        text_column("Batch size"),
        Column("Epoch", "s"),
        Column("Images", "per s"),
        Column("Data wait", "% of step"),
        Column("Peak memory", "MB"),
        Column("Arithmetic", "GFLOP/s"),
        Column("Of matrix rate", "%"),
    ]
    where = "GPU" if results.config.device == "cuda" else "processor, with all its cores"
    return table(f"The bare module on one {where}", columns, rows)


def capacity_table(record: CapacityRecord) -> Table:
    """Return the trials of the search for the largest batch."""
    rows = [
        [
            Cell(count(trial.batch_size), trial.message[:120]),
            trial.status,
            number(None if trial.peak_memory_bytes is None else trial.peak_memory_bytes / 1e6, 0),
            fixed(trial.seconds, 1),
        ]
        for trial in record.trials
    ]
    columns = [text_column("Batch size"), text_column("Outcome"), Column("Peak memory", "MB"), Column("Took", "s")]
    limit = record.memory_limit_bytes
    within = "" if limit is None else f", within {count(limit // 10**6)} MB per process"
    return table(f"Search for the largest batch{within}", columns, rows)


def _by_batch(title: str, points: Points, y_label: str, label: str) -> Drawing | None:
    if not points:
        return None
    return line_plot(
        title,
        [("", [(math.log2(x), y) for x, y in points])],
        label=label,
        x_label="batch size, log axis",
        y_label=y_label,
        x_ticks=[(math.log2(x), f"{x:.0f}") for x, _ in points],
        y_from=0.0,
        dots=True,
    )


def epoch_plot(results: StudyResults) -> Drawing | None:
    """Draw the time of an epoch by batch size."""
    points = [(float(row.batch_size), row.epoch.mean) for row in results.of(BatchAnswer).batches if row.epoch]
    spoken = ", ".join(f"{seconds_text(y)} at {count(round(x))}" for x, y in points)
    return _by_batch("Epoch time", points, "seconds", f"Epoch time by batch size: {spoken}")


def rate_plot(results: StudyResults) -> Drawing | None:
    """Draw how near the matrix rate each batch size runs; images per second if that is not known."""
    near = [
        (float(row.batch_size), 100 * row.of_peak) for row in results.of(BatchAnswer).batches if row.of_peak is not None
    ]
    if near:
        spoken = ", ".join(f"{fixed(y, 0)} % at {count(round(x))}" for x, y in near)
        return _by_batch("Of the matrix rate", near, "%", f"Share of the device's matrix rate: {spoken}")
    rates = [
        (float(r.batch_size), r.samples_per_second)
        for r in results.of(BatchAnswer).batches
        if r.samples_per_second is not None
    ]
    spoken = ", ".join(f"{count(round(y))} at {count(round(x))}" for x, y in rates)
    return _by_batch("Throughput", rates, "images per second", f"Images per second by batch size: {spoken}")


def _content(results: StudyResults) -> Content:
    answer = results.of(BatchAnswer)
    listed = [batch_table(results)] if answer.batches else []
    if answer.capacity is not None:
        listed.append(capacity_table(answer.capacity))
    return Content(
        (
            "Each launch is a fresh process that times every batch size in an order of its own: a fixed number of "
            "steps, after some that are not timed, as one run without barriers between steps; the median of three such "
            "runs counts. An epoch is the number of its steps times that.",
            "Arithmetic counts the multiplications and additions of convolutions and matrix products; the matrix rate "
            "is the best rate of large square matrix products measured on the same device.",
        ),
        [Group(figures=figures(epoch_time=epoch_plot(results), rate=rate_plot(results)), tables=listed)],
    )


QUESTION = Question(
    "batch", "Batch size", frozenset(("capacity", "batches")), BatchAnswer, _answer, _sentence, _content
)

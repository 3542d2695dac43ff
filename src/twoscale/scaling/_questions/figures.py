"""The study's charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twoscale._page.charts import Drawing, Reference, Series, dot_plot, line_plot
from twoscale._page.numbers import count, fixed, percent
from twoscale.scaling._measure.records import ArmsRecord, BandwidthRecord, LedgerEntry, LedgerRecord, ReplicasRecord
from twoscale.scaling._questions.results import ArmsAt, StudyResults
from twoscale.scaling._questions.sentences import milliseconds, seconds_text

__all__ = [
    "accuracy_plot",
    "bandwidth_plot",
    "epoch_plot",
    "forecast_plot",
    "ledger_plot",
    "orders_plot",
    "parts_plot",
    "rate_plot",
    "replicas_plot",
    "speedup_plot",
    "verdict_plot",
]

Points = list[tuple[float, float]]


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
    points = [(float(row.batch_size), row.epoch.mean) for row in results.batches if row.epoch]
    spoken = ", ".join(f"{seconds_text(y)} at {count(round(x))}" for x, y in points)
    return _by_batch("Epoch time", points, "seconds", f"Epoch time by batch size: {spoken}")


def rate_plot(results: StudyResults) -> Drawing | None:
    """Draw how near the matrix rate each batch size runs; images a second where that is not known."""
    near = [(float(row.batch_size), 100 * row.of_peak) for row in results.batches if row.of_peak is not None]
    if near:
        spoken = ", ".join(f"{fixed(y, 0)} % at {count(round(x))}" for x, y in near)
        return _by_batch("Of the matrix rate", near, "%", f"Share of the device's matrix rate: {spoken}")
    rates = [(float(r.batch_size), r.samples_per_second) for r in results.batches if r.samples_per_second is not None]
    spoken = ", ".join(f"{count(round(y))} at {count(round(x))}" for x, y in rates)
    return _by_batch("Throughput", rates, "images a second", f"Images a second by batch size: {spoken}")


def speedup_plot(results: StudyResults) -> Drawing | None:
    """Draw speed-up by ranks against the ideal."""
    lines: list[tuple[str, Points]] = []
    for scaling in ("weak", "strong"):
        rows = [row for row in results.speed if row.scaling == scaling and row.speedup is not None]
        lines.append((scaling, [(1.0, 1.0), *((float(r.world_size), r.speedup.mean) for r in rows if r.speedup)]))
    most = max((row.world_size for row in results.speed), default=1)
    if most == 1:
        return None
    spoken = "; ".join(f"{name} {', '.join(f'{fixed(y, 2)} at {x:.0f}' for x, y in line)}" for name, line in lines)
    sizes = sorted({row.world_size for row in results.speed})
    return line_plot(
        "Speed-up by ranks",
        [("ideal", [(1.0, 1.0), (float(most), float(most))]), *lines],
        label=f"Speed-up against the bare module on one rank: {spoken}",
        x_label="ranks",
        y_label="times as fast",
        x_ticks=[(float(n), str(n)) for n in sizes],
        y_from=0.0,
        dots=True,
    )


def parts_plot(arms: Sequence[ArmsAt], base_batch: int) -> Drawing | None:
    """Draw where the time of a step goes, one series a number of ranks."""
    found = [at.record for at in arms if at.batch_size == base_batch][-3:]
    if not found:
        return None

    def values(record: ArmsRecord) -> tuple[float | None, ...]:
        parts = (record.compute, record.imbalance, record.wrapper_tax, record.exposed, record.data_wait)
        total = None if record.isolated is None else 1000 * record.isolated.median
        return (*(1000 * part.median for part in parts), total)

    series = [Series(f"{r.world_size} rank{'s' * (r.world_size > 1)}", values(r)) for r in found]
    spoken = "; ".join(
        f"{r.world_size} ranks: compute {milliseconds(r.compute.median)}, exposed {milliseconds(r.exposed.median)}"
        for r in found
    )
    return dot_plot(
        "Where a step's time goes",
        ["compute", "imbalance", "wrapper tax", "exposed comm.", "data wait", "comm. alone"],
        series,
        label=f"Parts of a step: {spoken}",
        x_label="milliseconds",
        references=[Reference(0.0, "0")] if any(v is not None and v < 0 for s in series for v in s.values) else [],
        least_span=0.1,
    )


def bandwidth_plot(record: BandwidthRecord, in_situ: ArmsRecord | None) -> Drawing | None:
    """Draw busbw by size, alone and inside a step."""
    factor = 2 * (record.world_size - 1) / record.world_size
    alone = [(math.log2(row.bytes), row.busbw / 1e6) for row in record.rows if row.busbw is not None]
    if not alone:
        return None
    lines: list[tuple[str, Points]] = [("alone", alone)]
    if in_situ is not None and in_situ.collectives_in_situ:
        inside = [(math.log2(c.bytes), c.bytes / c.seconds.median * factor / 1e6) for c in in_situ.collectives_in_situ]
        lines.append(("inside a step", sorted(inside)))
    best = max(y for _, y in alone)
    ticks = [(math.log2(row.bytes), _power(row.bytes)) for row in record.rows]
    return line_plot(
        "All-reduce bandwidth",
        lines,
        label=f"Bus bandwidth of all-reduces by size, at most {fixed(best, 0)} MB/s",
        x_label="bytes, log axis",
        y_label=f"busbw, MB/s, {record.world_size} ranks",
        x_ticks=ticks,
        y_from=0.0,
        dots=True,
    )


def _power(size: int) -> str:
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if size >= unit:
            return f"{size // unit}{name}"
    return str(size)


def accuracy_plot(results: StudyResults) -> Drawing | None:
    """Draw the accuracy of each way, at equal epochs and at equal steps."""
    found = {(row.way, row.equal): 100 * row.accuracy.mean for row in results.accuracy if row.accuracy}
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


def orders_plot(results: StudyResults) -> Drawing | None:
    """Draw how many images keep their place from epoch to epoch."""
    if not results.orders:
        return None
    epochs = len(results.orders[0].same_place)
    series = [
        Series(
            "with set_epoch" if row.set_epoch else "without",
            tuple(100 * share for share in row.same_place),
        )
        for row in results.orders
    ]
    return dot_plot(
        "Images in the same place",
        [f"epoch {i + 1}" for i in range(epochs)],
        series,
        label="Share of images in the place they have in the first epoch: "
        + "; ".join(f"{one.name} {', '.join(fixed(v, 1) for v in one.values)} %" for one in series),
        x_label="as in epoch 1, %",
        span=(-3.0, 103.0),
    )


def ledger_plot(ledger: LedgerRecord) -> Drawing:
    """Draw the bytes of each phase, predicted and observed."""
    phases = list(dict.fromkeys(entry.phase for entry in ledger.predicted))

    def totals(entries: Sequence[LedgerEntry]) -> tuple[float, ...]:
        return tuple(sum(entry.bytes for entry in entries if entry.phase == phase) / 1000 for phase in phases)

    series = [Series("predicted", totals(ledger.predicted))]
    if ledger.observed is not None:
        series.append(Series("observed", totals(ledger.observed)))
    return dot_plot(
        f"Bytes by phase: {ledger.model}",
        phases,
        series,
        label=f"Bytes that a rank of {ledger.model} puts into collectives, by phase",
        x_label="kB",
        span=(0.0, 1.08 * max(1.0, *totals(ledger.predicted))),
    )


def replicas_plot(record: ReplicasRecord) -> Drawing:
    """Draw in how many steps replicas were the same, by how they began and what was broadcast."""

    def equal(hashes: Sequence[tuple[str, ...]]) -> float:
        return float(sum(len(set(one)) == 1 for one in hashes))

    rows: list[str] = []
    parameters: list[float | None] = []
    inside: list[float | None] = []
    after: list[float | None] = []
    for case in record.cases:
        seeds = "same" if case.same_seed else "other"
        rows.append(f"{seeds} {'i' if case.initial_broadcast else '–'} {'b' if case.buffers_broadcast else '–'}")
        steps = case.steps[1:]
        parameters.append(equal([step.parameters for step in steps]))
        has_buffers = case.buffers_equal is not None
        inside.append(equal([step.buffers_in_forward for step in steps]) if has_buffers else None)
        after.append(equal([step.buffers for step in steps]) if has_buffers else None)
    last = len(record.cases[0].steps) - 1
    series = [Series("parameters", tuple(parameters))]
    if any(value is not None for value in after):
        series += [Series("buffers", tuple(inside)), Series("after", tuple(after))]
    return dot_plot(
        f"Equal replicas: {record.model}",
        rows,
        series,
        label=f"Of {last} steps, those in which replicas of {record.model} were equal",
        x_label=f"steps of {last} in which all ranks were equal",
        span=(-0.2, last + 0.2),
    )


def forecast_plot(results: StudyResults) -> Drawing | None:
    """Draw the step's time by ranks, measured and forecast."""
    base = results.config.base_batch
    measured = sorted((float(at.record.world_size), 1000 * at.record.ddp.median)
                      for at in results.arms if at.batch_size == base)  # fmt: skip
    if not measured or not (results.forecasts or results.held_out):
        return None
    ahead = sorted((float(f.world_size), 1000 * f.step) for f in [*results.held_out, *results.forecasts]
                   if f.batch_size == base)  # fmt: skip
    sizes = sorted({x for x, _ in [*measured, *ahead]})
    return line_plot(
        "Step time by ranks",
        [("measured", [(math.log2(x), y) for x, y in measured]), ("forecast", [(math.log2(x), y) for x, y in ahead])],
        label=f"A step of {base} images a rank: "
        + "; ".join(f"{x:.0f} ranks {fixed(y, 1)} ms" for x, y in [*measured, *ahead]),
        x_label="ranks, log axis",
        y_label="milliseconds",
        x_ticks=[(math.log2(x), f"{x:.0f}") for x in sizes],
        y_from=0.0,
        dots=True,
    )


def verdict_plot(results: StudyResults) -> Drawing | None:
    """Draw the causes."""
    verdict = results.verdict
    if verdict is None:
        return None
    return dot_plot(
        "What a step loses",
        [cause.name for cause in verdict.causes],
        [Series("", tuple(1000 * cause.seconds for cause in verdict.causes))],
        label="Milliseconds of a step by cause: "
        + ", ".join(f"{cause.name} {percent(cause.share, 0)} %" for cause in verdict.causes),
        note=f"{verdict.world_size} ranks",
        x_label="milliseconds a step",
        limits=(0.0, math.inf),
        least_span=0.1,
    )

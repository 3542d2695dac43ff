"""From the cells of a study to its answers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from twoscale._environment import Environment
from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import (
    ArmsRecord,
    BandwidthRecord,
    CapacityRecord,
    Cell,
    CollectiveSample,
    EpochTime,
    Forecast,
    LedgerRecord,
    Link,
    LinkModel,
    PeakRecord,
    ReplicasRecord,
    SamplerRecord,
    decode,
)
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.forecast import cell_of, fit, forecast, held_out
from twoscale.scaling._questions.results import (
    AccuracyRow,
    ArmsAt,
    BatchRow,
    CellFailure,
    OrderRow,
    SpeedRow,
    StudyResults,
    Verdict,
)
from twoscale.scaling._questions.sentences import sentences
from twoscale.scaling._questions.verdict import Round, decide
from twoscale.scaling._study.cells import CellRecord, StudyCell, strong_batch, ways
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.progress import describe

__all__ = ["TRUSTED", "analyse", "link_of", "measured_cells"]

Times = dict[tuple[str, int, int], dict[int, EpochTime]]
"""(arm, ranks, batch per rank) to what each round's launch measured."""
TRUSTED = 0.3
"""Largest error on held-out cells with which more ranks are still forecast."""
_BEYOND = (2, 4, 8)
"""Forecasts are for so many times the most ranks that were measured."""
_NEAR = 4
"""Collectives from 1/4 of the smallest to 4 times the largest bucket are fitted: the line is for them."""


def analyse(
    config: StudyConfig,
    records: Sequence[CellRecord],
    left_out: Sequence[StudyCell],
    *,
    environment: Environment,
    gpus: Sequence[str] = (),
) -> StudyResults:
    """Return the answers that these cells give.

    Args:
        config: of the study.
        records: cells that were done, failed ones too.
        left_out: cells that there was no time for.
        environment: of the machine.
        gpus: names of those that ranks ran on, rank 0's first.
    """
    good: dict[str, list[CellRecord]] = {}
    for record in records:
        if record.outcome.ok:
            good.setdefault(record.cell.kind, []).append(record)
    capacity = next((r.outcome.record(CapacityRecord) for r in good.get("capacity", [])), None)
    times, batches, peak = _batches(config, good.get("batches", []), capacity)
    steps = _times(good.get("ranks", []))
    arms, bandwidth = _arms(good.get("arms", []))
    cells = measured_cells(config, arms, bandwidth)
    forecasts, held, refused = _forecasts(config, cells) if "forecast" in config.sections else ((), (), ())
    wire = next((r.outcome.result for r in good.get("wire", [])), None) or {}
    loads = [record.load for record in records if record.load is not None]
    results = StudyResults(
        config=config,
        environment=environment,
        complete=not left_out,
        sentences={},
        verdict=_verdict(config, steps, arms, cells),
        capacity=capacity,
        peak=peak,
        batches=batches,
        batch_times=times,
        speed=_speed(config, steps) if "speedup" in config.sections else (),
        arms=arms,
        bandwidth=bandwidth,
        accuracy=_accuracy(config, good.get("accuracy", [])),
        orders=tuple(decode(row, OrderRow) for row in wire.get("orders", [])),
        shown_orders=tuple(decode(row, SamplerRecord) for row in wire.get("shown", [])),
        ledgers=tuple(decode(row, LedgerRecord) for row in wire.get("ledgers", [])),
        replicas=tuple(decode(row, ReplicasRecord) for row in wire.get("replicas", [])),
        held_out=held,
        forecasts=forecasts,
        refused=refused,
        failures=tuple(_failures(records)),
        left_out=tuple(describe(cell) for cell in left_out),
        seconds=sum(record.outcome.seconds for record in records),
        loads=(min(loads), max(loads)) if loads else None,
        gpus=tuple(gpus),
    )
    return replace(results, sentences=sentences(results))


def _failures(records: Iterable[CellRecord]) -> Iterable[CellFailure]:
    for record in records:
        if not record.outcome.ok:
            yield CellFailure(record.cell.name, describe(record.cell), record.outcome.status, record.outcome.message)


# ---------------------------------------------------------------- 1, one device


def _batches(
    config: StudyConfig, records: Sequence[CellRecord], capacity: CapacityRecord | None
) -> tuple[tuple[EpochTime, ...], tuple[BatchRow, ...], PeakRecord | None]:
    times: list[EpochTime] = []
    messages: dict[int, str] = {}
    peak = None
    for record in records:
        for row in record.outcome.result["rows"]:
            if row["record"] is None:
                messages[row["batch_size"]] = row["message"]
            else:
                times.append(decode(row["record"], EpochTime))
        if record.outcome.result["peak"]:
            peak = decode(record.outcome.result["peak"], PeakRecord)
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
    return tuple(sorted(times, key=lambda time: time.workload.batch_size)), tuple(rows), peak


def _refusal(capacity: CapacityRecord, size: int) -> str:
    failed = [trial for trial in capacity.trials if trial.status != "ok" and trial.batch_size <= size]
    if failed:
        return max(failed, key=lambda trial: trial.batch_size).status
    return "more than all training images" if capacity.reached_limit else "larger than the largest that fits"


# ---------------------------------------------------------------- 2, many


def _times(records: Sequence[CellRecord]) -> Times:
    found: Times = {}
    for record in records:
        for values in record.outcome.result:
            time = decode(values, EpochTime)
            key = (time.arm, time.world_size, time.workload.batch_size)
            found.setdefault(key, {})[record.cell.repeat] = time
    return found


def _speed(config: StudyConfig, found: Times) -> tuple[SpeedRow, ...]:
    """Return the rows in order; ratios are taken within a round of launches."""
    base = found.get(("bare", 1, config.base_batch), {})
    rows: list[SpeedRow] = []

    def add(scaling: Literal["bare", "ddp-alone", "apart", "weak", "strong"], arm: str, n: int, batch: int) -> None:
        launches = found.get((arm, n, batch))
        if not launches:
            return
        # Images a second are compared, not epochs: rounding an epoch to whole steps is no speed.
        speedups = [
            time.samples_per_second / base[repeat].samples_per_second
            for repeat, time in launches.items()
            if repeat in base
        ]
        compared = bool(speedups) and scaling != "bare"
        rows.append(
            SpeedRow(
                scaling=scaling,
                world_size=n,
                batch_size=batch,
                threads_per_rank=next(iter(launches.values())).threads_per_rank,
                step=summarize([time.step.median for time in launches.values()]),
                epoch=summarize([time.epoch_seconds for time in launches.values()]),
                speedup=summarize(speedups) if compared else None,
                efficiency=summarize([value / n for value in speedups]) if compared else None,
            )
        )

    add("bare", "bare", 1, config.base_batch)
    add("ddp-alone", "ddp", 1, config.base_batch)
    more = [n for n in config.world_sizes if n > 1]
    for n in more:
        add("apart", "bare", n, config.base_batch)
    for n in more:
        add("weak", "ddp", n, config.base_batch)
    for n in more:
        add("strong", "ddp", n, strong_batch(config, n))
    return tuple(rows)


# ---------------------------------------------------------------- 3, communication


def _arms(records: Sequence[CellRecord]) -> tuple[tuple[ArmsAt, ...], tuple[BandwidthRecord, ...]]:
    found = []
    bandwidth = []
    for record in sorted(records, key=lambda record: record.cell.world_size):
        sizes = record.cell.arguments["batch_sizes"]
        for size, values in zip(sizes, record.outcome.result["arms"], strict=True):
            found.append(ArmsAt(size, decode(values, ArmsRecord)))
        if record.outcome.result["bandwidth"]:
            bandwidth.append(decode(record.outcome.result["bandwidth"], BandwidthRecord))
    return tuple(found), tuple(bandwidth)


def link_of(config: StudyConfig) -> Link:
    """Return what the ranks of a study talk over."""
    return Link("between this machine's GPUs" if config.device == "cuda" else "this machine's loopback")


def measured_cells(config: StudyConfig, arms: Sequence[ArmsAt], bandwidth: Sequence[BandwidthRecord]) -> list[Cell]:
    """Return what a study's forecasts are made from: its arms, and all-reduces alone of like sizes."""
    cells = []
    for at in arms:
        sizes = [bucket.bytes for bucket in at.record.buckets]
        more = [
            CollectiveSample(row.op, row.bytes, row.seconds.median)
            for record in bandwidth
            if record.world_size == at.record.world_size
            for row in record.rows
            if sizes and min(sizes) / _NEAR <= row.bytes <= max(sizes) * _NEAR
        ]
        cells.append(cell_of(at.record, at.batch_size, link_of(config), more))
    # One rank broadcasts nothing, but its cell tells what more ranks would compute: they broadcast what others do.
    broadcasts = next((cell.broadcasts for cell in cells if cell.broadcasts), ())
    return [replace(cell, broadcasts=broadcasts) for cell in cells]


def _model(cells: Sequence[Cell], link: Link) -> LinkModel | None:
    try:
        return fit(cells, link.name)
    except ForecastError:
        return None


def _verdict(config: StudyConfig, times: Times, arms: Sequence[ArmsAt], cells: Sequence[Cell]) -> Verdict | None:
    base = config.base_batch
    alone = times.get(("bare", 1, base), {})
    # At the most ranks that everything is known of: a cell that failed there leaves fewer to be judged.
    for n in reversed([n for n in config.world_sizes if n > 1]):
        record = next((at.record for at in arms if at.record.world_size == n and at.batch_size == base), None)
        apart, ddp = times.get(("bare", n, base), {}), times.get(("ddp", n, base), {})
        rounds = [Round(alone[r], apart[r], ddp[r]) for r in alone if r in apart and r in ddp]
        if record is not None and rounds:
            return decide(rounds, record, _model(cells, link_of(config)), base)
    return None


# ---------------------------------------------------------------- 4, accuracy


def _accuracy(config: StudyConfig, records: Sequence[CellRecord]) -> tuple[AccuracyRow, ...]:
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        for run in record.outcome.result:
            found.setdefault((run["way"], run["equal"]), {})[run["config"]["seed"]] = run
    small = found.get(("small", "epochs"), {})
    rows = []
    for equal in ("epochs", "steps"):
        for way in ways(config):
            runs = found.get((way.name, equal))
            if not runs:
                continue
            reached = {seed: run["accuracy"] for seed, run in sorted(runs.items())}
            known = [value for value in reached.values() if value is not None]
            paired = [
                value - small[seed]["accuracy"]
                for seed, value in reached.items()
                if value is not None and seed in small and small[seed]["accuracy"] is not None
            ]
            one = next(iter(runs.values()))
            rows.append(
                AccuracyRow(
                    way=way.name,
                    title=way.title,
                    batch_size=one["config"]["batch_size"],
                    equal=equal,
                    rate=one["config"]["lr"],
                    epochs=one["config"]["epochs"],
                    steps=next((run["steps"] for run in runs.values() if run["steps"]), None),
                    accuracies=tuple(reached.values()),
                    accuracy=summarize(known) if known else None,
                    against_small=summarize(paired) if paired and way.name != "small" else None,
                )
            )
    return tuple(rows)


# ---------------------------------------------------------------- 8, forecast


def _forecasts(
    config: StudyConfig, cells: Sequence[Cell]
) -> tuple[tuple[Forecast, ...], tuple[Forecast, ...], tuple[str, ...]]:
    """Return forecasts for more ranks, those of held-out cells, and what is refused."""
    if not cells:
        return (), (), ()
    held, refused = held_out(cells)
    lines = list(refused)
    link, most = link_of(config), max(cell.world_size for cell in cells)
    errors = [abs(one.error) for one in held if one.error is not None]
    found = []
    for factor in _BEYOND:
        asked = f"{factor * most} ranks, batch {config.base_batch}, {link.name}"
        if not errors:
            lines.append(f"{asked}: no cell could be held out to check a forecast on; measure 2 ranks or more")
        elif max(errors) > TRUSTED:
            lines.append(
                f"{asked}: held-out cells were off by up to {max(errors):.0%}, more than {TRUSTED:.0%}; "
                "measure again on a quieter machine, or more cells"
            )
        else:
            found.append(forecast(cells, factor * most, config.base_batch, link))
    other = Link("10 Gbit/s Ethernet", 1.25e9)
    beyond = 4 * max(cell.batch_size for cell in cells)
    for batch, over in ((config.base_batch, other), (beyond, link)):
        try:
            found.append(forecast(cells, 2 * most, batch, over))
        except ForecastError as error:
            lines.append(f"{2 * most} ranks, batch {batch}, {over.name}: {error}")
    return tuple(found), held, tuple(lines)

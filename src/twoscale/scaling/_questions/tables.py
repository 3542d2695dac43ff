"""The study's tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twoscale._page.numbers import MISSING, count, fixed, percent, signed, yes_no
from twoscale._page.tables import Cell, Column, Table
from twoscale.scaling._measure.records import (
    BandwidthRecord,
    CapacityRecord,
    Forecast,
    LedgerRecord,
    ReplicasRecord,
    SamplerRecord,
    Summary,
)
from twoscale.scaling._questions.results import ArmsAt, StudyResults, Verdict

__all__ = [
    "accuracy_table",
    "arms_table",
    "bandwidth_table",
    "batch_table",
    "buckets_table",
    "capacity_table",
    "causes_table",
    "failures_table",
    "forecast_table",
    "ledger_table",
    "options_table",
    "orders_table",
    "replicas_table",
    "speed_table",
    "waits_table",
]


def _table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Table:
    cells = (tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return Table(caption, tuple(columns), tuple(cells))


def _named(label: str) -> Column:
    return Column(label, numeric=False)


def _decimals(value: float) -> int:
    """Return how many decimals show three digits of ``value``."""
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def _number(value: float | None, decimals: int | None = None) -> str:
    if value is None:
        return MISSING
    return fixed(value, _decimals(value) if decimals is None else decimals)


def _with_interval(summary: Summary | None, factor: float = 1.0, decimals: int | None = None) -> Cell:
    """Return the mean of launches with Student's interval under it, or a single value."""
    if summary is None:
        return Cell(MISSING)
    places = _decimals(summary.mean * factor) if decimals is None else decimals
    interval = summary.mean_interval
    if interval is None:
        return Cell(fixed(summary.median * factor, places), "1 launch")
    low, high = (fixed(value * factor, places) for value in (interval.low, interval.high))
    return Cell(fixed(summary.mean * factor, places), f"{low} to {high}")


def _rounds(summary: Summary | None, *, signs: bool = False) -> Cell:
    """Return the median of rounds in milliseconds with its interval under it."""
    if summary is None:
        return Cell(MISSING)
    show = signed if signs else fixed
    places = _decimals(summary.median * 1e3)
    interval = summary.median_interval
    return Cell(
        show(summary.median * 1e3, places),
        f"{fixed(interval.low * 1e3, places)} to {fixed(interval.high * 1e3, places)}",
    )


def batch_table(results: StudyResults) -> Table:
    """Return one row a batch size on one device."""
    rows: list[list[str | Cell]] = []
    for row in results.batches:
        memory = None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6
        rows.append(
            [
                Cell(count(row.batch_size), row.message),
                _with_interval(row.epoch),
                MISSING if row.samples_per_second is None else count(round(row.samples_per_second)),
                percent(row.data_wait, 1),
                _number(memory, 0),
                _number(None if row.flops_per_second is None else row.flops_per_second / 1e9),
                percent(row.of_peak, 1),
            ]
        )
    columns = [
        _named("Batch size"),
        Column("Epoch", "s"),
        Column("Images", "per s"),
        Column("Data wait", "% of step"),
        Column("Peak memory", "MB"),
        Column("Arithmetic", "GFLOP/s"),
        Column("Of matrix rate", "%"),
    ]
    where = "GPU" if results.config.device == "cuda" else "processor, with all its cores"
    return _table(f"The bare module on one {where}", columns, rows)


def capacity_table(record: CapacityRecord) -> Table:
    """Return the trials of the search for the largest batch."""
    rows = [
        [
            Cell(count(trial.batch_size), trial.message[:120]),
            trial.status,
            _number(None if trial.peak_memory_bytes is None else trial.peak_memory_bytes / 1e6, 0),
            fixed(trial.seconds, 1),
        ]
        for trial in record.trials
    ]
    columns = [_named("Batch size"), _named("Outcome"), Column("Peak memory", "MB"), Column("Took", "s")]
    limit = record.memory_limit_bytes
    within = "" if limit is None else f", within {count(limit // 10**6)} MB a process"
    return _table(f"Search for the largest batch{within}", columns, rows)


_SCALINGS = {
    "bare": "T₁: bare module",
    "ddp-alone": "DDP at one rank",
    "apart": "bare modules that never talk",
    "weak": "weak: a rank's batch kept",
    "strong": "strong: all ranks' batch kept",
}


def speed_table(results: StudyResults) -> Table:
    """Return one row a way of scaling and number of ranks."""
    rows = [
        [
            _SCALINGS[row.scaling],
            count(row.world_size),
            count(row.batch_size),
            count(row.batch_size * row.world_size),
            count(row.threads_per_rank),
            _with_interval(row.step, 1e3),
            _with_interval(row.epoch),
            _with_interval(row.speedup, 1.0, 2),
            _with_interval(row.efficiency, 100.0, 0),
        ]
        for row in results.speed
    ]
    base = results.config.base_batch
    whole = next((row for row in results.batches if row.batch_size == base), None)
    on_cores = results.config.device == "cpu"
    if on_cores and whole is not None and whole.epoch is not None and results.speed:
        rows.insert(
            1,
            [
                Cell("bare module, all cores"), "1", count(base), count(base), count(results.config.cores),
                _number(None if whole.samples_per_second is None else 1e3 * base / whole.samples_per_second),
                _with_interval(whole.epoch), MISSING, MISSING,
            ],
        )  # fmt: skip
    columns = [
        _named("Scaling"),
        Column("Ranks"),
        Column("Batch a rank"),
        Column("Batch in all"),
        Column("Threads a rank"),
        Column("Step", "ms"),
        Column("Epoch", "s"),
        Column("Speed-up"),
        Column("Efficiency", "%"),
    ]
    return _table("Means of launches with 95% intervals; ratios of launches of the same round", columns, rows)


def _cell_name(at: ArmsAt) -> str:
    return f"{at.record.world_size} rank{'s' * (at.record.world_size > 1)}, batch {at.batch_size}"


def arms_table(arms: Sequence[ArmsAt]) -> Table:
    """Return one row a number of ranks and batch."""
    rows = [
        [
            _cell_name(at),
            _rounds(r.ddp),
            _rounds(r.silent),
            _rounds(r.bare),
            _rounds(r.isolated),
            _rounds(r.exposed),
            _rounds(r.exposed_in_situ),
            percent(r.overlap, 0),
        ]
        for at in arms
        for r in (at.record,)
    ]
    columns = [
        _named("Cell"),
        Column("A: DDP", "ms"),
        Column("B: silent", "ms"),
        Column("D: bare", "ms"),
        Column("R: alone", "ms"),
        Column("A − B: exposed", "ms"),
        Column("Exposed in situ", "ms"),
        Column("Overlap", "%"),
    ]
    return _table("The arms, a step: medians of rounds with their intervals", columns, rows)


def waits_table(arms: Sequence[ArmsAt]) -> Table:
    """Return what else a step costs, one row a number of ranks and batch."""
    rows = [
        [_cell_name(at), *map(_rounds, (r.wrapper_tax, r.buffers, r.skew, r.data_wait, r.free_running))]
        for at in arms
        for r in (at.record,)
    ]
    columns = [
        _named("Cell"),
        Column("B − D: wrapper", "ms"),
        Column("Exposed for buffers", "ms"),
        Column("Skew", "ms"),
        Column("Data wait", "ms"),
        Column("A without barriers", "ms"),
    ]
    return _table("What else a step costs; A as a training loop runs it", columns, rows)


def bandwidth_table(record: BandwidthRecord) -> Table:
    """Return one row a size."""
    rows = [
        [
            count(row.bytes),
            _number(row.seconds.median * 1e6),
            _number(row.seconds.p95 * 1e6),
            _number(row.algbw / 1e6),
            _number(None if row.busbw is None else row.busbw / 1e6),
        ]
        for row in record.rows
    ]
    columns = [
        Column("Bytes"),
        Column("Median", "µs"),
        Column("95th percentile", "µs"),
        Column("algbw", "MB/s"),
        Column("busbw", "MB/s"),
    ]
    left = f"; not reached: {', '.join(map(count, record.left_out))} bytes" if record.left_out else ""
    return _table(f"All-reduce alone, {record.world_size} ranks, {record.backend}{left}", columns, rows)


def buckets_table(at: ArmsAt) -> Table:
    """Return a step's gradient buckets, alone and inside the step."""
    record = at.record
    factor = 2 * (record.world_size - 1) / record.world_size
    alone = [c for c in record.collectives_alone if c.op == "all_reduce"]
    rows = []
    for number, (bucket, by_itself, inside) in enumerate(
        zip(record.buckets, alone, record.collectives_in_situ, strict=False), 1
    ):
        rows.append(
            [
                str(number),
                count(bucket.bytes),
                _number(bucket.ready * 1e3),
                _rounds(by_itself.seconds),
                _rounds(inside.seconds),
                _number(bucket.bytes / by_itself.seconds.median * factor / 1e6),
                _number(bucket.bytes / inside.seconds.median * factor / 1e6),
            ]
        )
    columns = [
        Column("Bucket"),
        Column("Bytes"),
        Column("Ready after", "ms"),
        Column("Alone", "ms"),
        Column("Inside a step", "ms"),
        Column("busbw alone", "MB/s"),
        Column("busbw inside", "MB/s"),
    ]
    return _table(f"Gradient buckets, {record.world_size} ranks, batch {at.batch_size}", columns, rows)


def accuracy_table(results: StudyResults, equal: str) -> Table:
    """Return one row a way to train."""
    rows = [
        [
            row.title,
            _number(row.rate, 4),
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
        for row in results.accuracy
        if row.equal == equal or row.way == "small"
    ]
    columns = [
        _named("Way"),
        Column("Rate"),
        Column("Epochs"),
        Column("Steps"),
        Column("Test accuracy", "%"),
        Column("Against small", "points"),
    ]
    return _table(f"At equal {equal}: mean of seeds, under it each seed", columns, rows)


def _points(summary: Summary | None) -> str:
    if summary is None or summary.mean_interval is None:
        return ""
    return f"{signed(100 * summary.mean_interval.low, 1)} to {signed(100 * summary.mean_interval.high, 1)}"


def orders_table(record: SamplerRecord) -> Table:
    """Return the orders of a few images, a row an epoch."""
    rows = [
        [f"epoch {number}", *(" ".join(map(str, shard)) for shard in order)]
        for number, order in enumerate(record.orders, 1)
    ]
    told = "with" if record.set_epoch else "without"
    columns = [_named("Epoch"), *(_named(f"Rank {rank}") for rank in range(record.world_size))]
    return _table(f"{record.samples} images {told} set_epoch", columns, rows)


def ledger_table(ledger: LedgerRecord) -> Table:
    """Return every collective, predicted and observed, equal ones of a phase in one row."""
    rows: list[list[str]] = []
    for phase in dict.fromkeys(entry.phase for entry in ledger.predicted):
        predicted = [entry for entry in ledger.predicted if entry.phase == phase]
        observed = [entry for entry in ledger.observed or () if entry.phase == phase]
        for number, entry in enumerate(predicted):
            seen = observed[number].bytes if number < len(observed) else None
            row = [phase if number == 0 else "", entry.op.replace("_", "-"), entry.what, entry.dtype,
                   count(entry.bytes), count(seen)]  # fmt: skip
            rows.append(row)
    columns = [
        _named("When"), _named("Collective"), _named("What"), _named("Type"),
        Column("Predicted", "bytes"), Column("Observed", "bytes"),
    ]  # fmt: skip
    return _table(
        f"{ledger.model}: {count(ledger.parameters)} parameters in {ledger.parameter_tensors} tensors, "
        f"{count(ledger.buffer_bytes)} bytes of buffers; {ledger.world_size} ranks",
        columns,
        rows,
    )


def replicas_table(record: ReplicasRecord) -> Table:
    """Return one row a case."""
    rows = [
        [
            "same" if case.same_seed else "different",
            yes_no(case.initial_broadcast),
            yes_no(case.buffers_broadcast),
            yes_no(case.parameters_equal),
            yes_no(case.buffers_equal_in_forward),
            yes_no(case.buffers_equal),
            case.steps[-1].parameters[0][:8],
            case.steps[-1].parameters[-1][:8],
        ]
        for case in record.cases
    ]
    columns = [
        _named("Seeds"),
        _named("Initial broadcast"),
        _named("Buffers broadcast"),
        _named("Parameters stay equal"),
        _named("Buffers equal in forward"),
        _named("Buffers equal after a step"),
        _named("Hash, first rank"),
        _named("Hash, last rank"),
    ]
    steps = len(record.cases[0].steps) - 1
    return _table(f"{record.model}, {record.world_size} ranks, {steps} steps on each rank's own images", columns, rows)


def forecast_table(forecasts: Sequence[Forecast], caption: str) -> Table:
    """Return one row a forecast."""
    rows = [
        [
            f"{f.world_size} rank{'s' * (f.world_size > 1)}, batch {f.batch_size}",
            _number(f.compute * 1e3),
            _number(f.communication * 1e3),
            _number(f.exposed * 1e3),
            _number(f.step * 1e3),
            _number(None if f.measured is None else f.measured * 1e3),
            signed(None if f.error is None else 100 * f.error, 1),
        ]
        for f in forecasts
    ]
    columns = [
        _named("Cell"),
        Column("Compute", "ms"),
        Column("Communication", "ms"),
        Column("Exposed", "ms"),
        Column("Step, forecast", "ms"),
        Column("Step, measured", "ms"),
        Column("Error", "%"),
    ]
    return _table(caption, columns, rows)


def causes_table(verdict: Verdict) -> Table:
    """Return one row a cause."""
    rows = [[cause.name, _number(cause.seconds * 1e3), percent(cause.share, 0)] for cause in verdict.causes]
    unknown = percent(verdict.unexplained / verdict.loss.mean, 0) if verdict.unexplained > 0 else MISSING
    rows.append(["not explained", _number(verdict.unexplained * 1e3), unknown])
    columns = [_named("Cause"), Column("Of a step", "ms"), Column("Share", "%")]
    loss = verdict.loss
    spread = (
        f"{_number(loss.min * 1e3)} to {_number(loss.max * 1e3)} ms in {loss.n} rounds" if loss.n > 1 else "1 round"
    )
    return _table(
        f"A step on {verdict.world_size} ranks is {_number(loss.mean * 1e3)} ms longer than one on one ({spread})",
        columns,
        rows,
    )


def failures_table(results: StudyResults) -> Table:
    """Return the cells that failed."""
    rows = [[Cell(one.what, one.message), one.status, one.name] for one in results.failures]
    return _table("Cells that failed", [_named("Cell"), _named("Outcome"), _named("File")], rows)


def options_table(results: StudyResults) -> Table:
    """Return the study's options and the machine."""
    config, environment = results.config, results.environment
    values = {
        "Model": config.model,
        "Data": config.data,
        "Device": config.device,
        "Precision": config.precision + (", channels last" if config.channels_last else ""),
        "Matrix rate": MISSING
        if results.peak is None
        else f"{_number(results.peak.flops_per_second / 1e9)} GFLOP/s, {results.peak.precision}, {results.peak.device}",
        "Launches of a timed cell": count(config.repeats),
        "Seeds of a training run": count(config.seeds),
        "Seed of the study": str(config.seed),
        "Threads a rank": count(config.threads_per_rank),
        "Cores": count(config.cores),
        "Processor": environment.machine,
        "Python": environment.python,
        **environment.versions,
        "All cells together": f"{fixed(results.seconds, 0)} s",
        "Load as cells began": MISSING
        if results.loads is None
        else f"{fixed(results.loads[0], 1)} to {fixed(results.loads[1], 1)}",
    }
    return _table("Options and machine", [_named("What"), _named("Value")], values.items())

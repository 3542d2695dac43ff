"""How does computing compare with communication?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts import Drawing, Reference, Series, dot_plot, line_plot
from twoscale._page.document import Group
from twoscale._page.numbers import count, fixed, joined, percent
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import ArmsRecord, BandwidthRecord, RankGroup
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, milliseconds, number, rounds
from twoscale.scaling._study.cells import ARMS, RANKS, Measured

__all__ = ["QUESTION", "ArmsAt", "CommunicationAnswer", "arms_table", "most_ranks"]

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class ArmsAt:
    """The arms at one number of ranks and batch."""

    batch_size: int
    """Per rank."""
    record: ArmsRecord


@dataclass(frozen=True)
class CommunicationAnswer:
    """The arms at each number of ranks and batch, and bandwidth."""

    arms: tuple[ArmsAt, ...] = ()
    bandwidth: tuple[BandwidthRecord, ...] = ()
    epoch_samples: int | None = None
    """Training images of an epoch; None in earlier records."""


def _answer(measured: Measured) -> CommunicationAnswer:
    launches = sorted(measured.of(ARMS), key=lambda record: RankGroup(record.cell.world_size, record.cell.hosts))
    arms = [
        ArmsAt(size, record)
        for launch in launches
        for size, record in zip(launch.task.batch_sizes, launch.result.arms, strict=True)
    ]
    bandwidth = [launch.result.bandwidth for launch in launches if launch.result.bandwidth is not None]
    samples = next((time.epoch_samples for record in measured.of(RANKS) for time in record.result), None)
    return CommunicationAnswer(tuple(arms), tuple(bandwidth), samples)


def most_ranks(results: StudyResults) -> ArmsAt | None:
    """Return the arms at the most ranks, at the base batch."""
    found = [at for at in results.of(CommunicationAnswer).arms if at.batch_size == results.config.base_batch]
    return max(found, key=lambda at: at.record.group, default=None)


def _sentence(results: StudyResults) -> str | None:
    at = most_ranks(results)
    if at is None:
        return None
    record = at.record
    if record.isolated is None:
        tax = record.wrapper_tax
        adds = (
            f"{milliseconds(tax.median)} to a step of {milliseconds(record.bare.median)}"
            if tax.median_interval.low > 0
            else f"nothing that could be told apart from zero to a step of {milliseconds(record.bare.median)}"
        )
        return f"One rank sends nothing; DDP itself adds {adds}."
    step, alone = milliseconds(record.ddp.median), milliseconds(record.isolated.median)
    exposed, seen = record.exposed, record.exposed_in_situ
    if exposed.median_interval.low <= 0:
        if seen is None or seen.median_interval.low <= 0:
            return (
                f"At {record.group} a step of {step} does not measurably wait for communication, which "
                f"takes {alone} alone."
            )
        low, high = (milliseconds(value) for value in (exposed.median_interval.low, exposed.median_interval.high))
        return (
            f"At {record.group} a clock inside the step sees it wait {milliseconds(seen.median)} of "
            f"{step} for communication, which takes {alone} alone; the difference of the arms, {low} to {high}, is too "
            "uncertain to confirm that."
        )
    text = (
        f"At {record.group} a step of {step} waits {milliseconds(exposed.median)} for communication "
        f"that takes {alone} alone: "
    )
    if exposed.median_interval.low > record.isolated.median_interval.high:
        return text + "nothing of it is hidden behind computing, and inside a step it costs more than alone."
    hidden = _hidden(record)
    if hidden is None:
        return text + "these rounds differ too much to say how much of it computing hides."
    if exposed.median >= record.isolated.median:
        return text + "nothing of it is hidden behind computing."
    return text + f"computing hides {percent(hidden, 0)} % of it."


_WIDE = 0.5
"""An overlap whose interval is wider says nothing."""


def _hidden(record: ArmsRecord) -> float | None:
    """Return the overlap, or None where its interval says nothing."""
    if record.isolated is None or record.overlap is None:
        return None
    exposed, alone = record.exposed.median_interval, record.isolated.median_interval
    if alone.low <= 0:
        return None
    ends = [1 - part / whole for part in (exposed.low, exposed.high) for whole in (alone.low, alone.high)]
    return record.overlap if max(ends) - min(ends) <= _WIDE else None


def _cell_name(at: ArmsAt) -> str:
    return f"{at.record.group}, batch {at.batch_size}"


def arms_table(arms: Sequence[ArmsAt]) -> Table:
    """Return one row per number of ranks and batch."""
    rows: list[list[str | Cell]] = [
        [
            _cell_name(at),
            rounds(r.free_running),
            rounds(r.ddp),
            rounds(r.silent),
            rounds(r.bare),
            rounds(r.isolated),
            rounds(r.exposed),
            rounds(r.exposed_in_situ),
            percent(_hidden(r), 0),
        ]
        for at in arms
        for r in (at.record,)
    ]
    columns = [
        text_column("Cell"),
        Column("Step in a loop", "ms"),
        Column("A: DDP", "ms"),
        Column("B: silent", "ms"),
        Column("D: bare", "ms"),
        Column("R: alone", "ms"),
        Column("A − B: exposed", "ms"),
        Column("Exposed in situ", "ms"),
        Column("Overlap", "%"),
    ]
    return table("The arms, per step: medians of rounds with their intervals", columns, rows)


def _epoch_seconds(seconds: float | None) -> str:
    return number(seconds, 4 if seconds is not None and seconds < 0.1 else None)


def epochs_table(arms: Sequence[ArmsAt], samples: int) -> Table:
    """Return computing and communication per step and per epoch, one row per number of ranks and batch."""
    rows: list[list[str]] = []
    for at in arms:
        record = at.record
        steps = math.ceil(samples / (at.batch_size * record.world_size))
        parts = (
            record.bare.median,
            None if record.isolated is None else record.exposed.median,
            None if record.isolated is None else record.isolated.median,
        )
        rows.append(
            [
                _cell_name(at),
                *(number(None if part is None else 1e3 * part) for part in parts),
                count(steps),
                *(_epoch_seconds(None if part is None else steps * part) for part in parts),
            ]
        )
    columns = [
        text_column("Cell"),
        Column("Computing", "ms per step"),
        Column("Waiting", "ms per step"),
        Column("Alone", "ms per step"),
        Column("Steps per epoch"),
        Column("Computing", "s per epoch"),
        Column("Waiting", "s per epoch"),
        Column("Alone", "s per epoch"),
    ]
    return table(
        "Computing (the bare module), waiting for communication (A − B), and the collectives alone",
        columns,
        rows,
    )


def wire_table(arms: Sequence[ArmsAt]) -> Table:
    """Return the bandwidth of a step's all-reduces, one row per number of ranks and batch."""
    rows: list[list[str | Cell]] = []
    for at in arms:
        found = _rates(at.record)
        if found is None:
            continue
        size, n = sum(bucket.bytes for bucket in at.record.buckets), at.record.world_size
        factor = 2 * (n - 1) / n
        rows.append(
            [
                _cell_name(at),
                count(size),
                Cell(fixed(factor, 2), f"2 × {n - 1} / {n}"),
                count(round(factor * size)),
                *(number(1e3 * seconds) for seconds, _ in found),
                *(number(rate / 1e6) for _, rate in found),
            ]
        )
    columns = [
        text_column("Cell"),
        Column("Gradients S", "bytes"),
        Column("2(n − 1)/n"),
        Column("Sent per rank", "bytes"),
        Column("Alone", "ms"),
        Column("Inside a step", "ms"),
        Column("busbw alone", "MB/s"),
        Column("busbw inside", "MB/s"),
    ]
    return table(
        "Bandwidth of a step's all-reduces. In a ring the gradients are cut into n parts; each rank sends n − 1 parts "
        "to sum them and n − 1 parts to spread the sums, each of S/n bytes: 2(n − 1)/n · S in all",
        columns,
        rows,
    )


def _rates(record: ArmsRecord) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return seconds and busbw (bytes per second) of a step's all-reduces, alone and inside the step."""
    if record.in_situ_union is None or not record.buckets:
        return None
    sent = 2 * (record.world_size - 1) / record.world_size * sum(bucket.bytes for bucket in record.buckets)
    alone = sum(one.seconds.median for one in record.collectives_alone if one.op == "all_reduce")
    inside = record.in_situ_union.median
    if min(alone, inside) <= 0:
        return None
    return (alone, sent / alone), (inside, sent / inside)


_SAME = 1.5
"""Rates within this factor count as the same link's."""


def rates_sentence(arms: Sequence[ArmsAt]) -> str | None:
    """Return whether the rate depends on the batch, at the most ranks; None where one batch was measured."""
    most = max((at.record.group for at in arms), default=RankGroup(1))
    rates = [found[0][1] for at in arms if at.record.group == most and (found := _rates(at.record)) is not None]
    if len(rates) < 2:
        return None
    low, high = (number(rate / 1e6) for rate in (min(rates), max(rates)))
    if max(rates) <= _SAME * min(rates):
        return (
            f"At {most} the all-reduces alone run at {low} to {high} MB/s at every batch: the same bytes pass "
            "over the same link, and the batch does not change its rate."
        )
    return (
        f"At {most} the all-reduces alone ran at {low} to {high} MB/s. The batch cannot change the rate of a "
        "link: something disturbed these measurements."
    )


def links_sentence(bandwidth: Sequence[BandwidthRecord]) -> str | None:
    """Return the bandwidth within a host and between hosts, each at the fewest ranks; None where one was measured."""
    best = []
    for several in (False, True):
        found = [record for record in bandwidth if (record.hosts > 1) == several and record.rows]
        if not found:
            return None
        record = min(found, key=lambda one: one.group)
        row = max(record.rows, key=lambda one: one.busbw or 0.0)
        rate = number(None if row.busbw is None else row.busbw / 1e6)
        where = f"{record.group}{'' if several else ' on one host'}"
        best.append(f"{rate} MB/s between {where} (at {count(row.bytes)} bytes)")
    return f"All-reduces alone reach {best[0]}, and {best[1]}."


def loop_sentence(at: ArmsAt) -> str | None:
    """Return both step times of a cell and what makes them differ; None where a loop is not slower."""
    record = at.record
    longer = record.free_running.median - record.ddp.median
    if longer <= 0:
        return None
    data = min(longer, max(0.0, record.data_wait.median))
    slow = 0.0 if record.slow_steps is None else min(longer - data, max(0.0, record.slow_steps.median))
    rest = longer - data - slow
    parts = [
        (data, "the wait for data"),
        (slow, "slow steps (a loop's time is the mean, the other the median)"),
        (rest, "not explained"),
    ]
    shown = [f"{milliseconds(seconds)} {what}" for seconds, what in parts if seconds >= 0.05 * longer]
    return (
        f"At {_cell_name(at)}, the same step takes {milliseconds(record.free_running.median)} in a training loop and "
        f"{milliseconds(record.ddp.median)} where all ranks begin it together. The difference: {joined(shown)}."
    )


def waits_table(arms: Sequence[ArmsAt]) -> Table:
    """Return what else a step costs, one row per number of ranks and batch."""
    rows: list[list[str | Cell]] = [
        [_cell_name(at), *map(rounds, (r.wrapper_tax, r.buffers, r.imbalance, r.data_wait))]
        for at in arms
        for r in (at.record,)
    ]
    columns = [
        text_column("Cell"),
        Column("B − D: wrapper", "ms"),
        Column("Exposed for buffers", "ms"),
        Column("Skew", "ms"),
        Column("Data wait", "ms"),
    ]
    return table("What else a step costs; skew is the slowest rank's bare step less the fastest's", columns, rows)


def bandwidth_table(record: BandwidthRecord) -> Table:
    """Return one row per size."""
    rows: list[list[str | Cell]] = [
        [
            count(row.bytes),
            number(row.seconds.median * 1e6),
            number(row.seconds.p95 * 1e6),
            number(row.algbw / 1e6),
            number(None if row.busbw is None else row.busbw / 1e6),
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
    return table(f"All-reduce alone, {record.group}, {record.backend}{left}", columns, rows)


def buckets_table(at: ArmsAt) -> Table:
    """Return a step's gradient buckets, alone and inside the step."""
    record = at.record
    factor = 2 * (record.world_size - 1) / record.world_size
    alone = [c for c in record.collectives_alone if c.op == "all_reduce"]
    rows: list[list[str | Cell]] = []
    for place, (bucket, by_itself, inside) in enumerate(
        zip(record.buckets, alone, record.collectives_in_situ, strict=False), 1
    ):
        rows.append(
            [
                str(place),
                count(bucket.bytes),
                number(bucket.ready * 1e3),
                rounds(by_itself.seconds),
                rounds(inside.seconds),
                number(bucket.bytes / by_itself.seconds.median * factor / 1e6),
                number(bucket.bytes / inside.seconds.median * factor / 1e6),
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
    return table(f"Gradient buckets, {record.group}, batch {at.batch_size}", columns, rows)


def parts_plot(arms: Sequence[ArmsAt], base_batch: int) -> Drawing | None:
    """Draw where the time of a step goes, one series per number of ranks."""
    found = [at.record for at in arms if at.batch_size == base_batch][-3:]
    if not found:
        return None

    def values(record: ArmsRecord) -> tuple[float | None, ...]:
        parts = (record.compute, record.imbalance, record.wrapper_tax, record.exposed, record.data_wait)
        total = None if record.isolated is None else 1000 * record.isolated.median
        return (*(1000 * part.median for part in parts), total)

    series = [Series(str(r.group), values(r)) for r in found]
    spoken = "; ".join(
        f"{r.group}: compute {milliseconds(r.compute.median)}, exposed {milliseconds(r.exposed.median)}" for r in found
    )
    return dot_plot(
        "Where a step's time goes",
        ["compute", "skew", "wrapper tax", "exposed comm.", "data wait", "comm. alone"],
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
        y_label=f"busbw, MB/s, {record.group}",
        x_ticks=ticks,
        y_from=0.0,
        dots=True,
    )


def _power(size: int) -> str:
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if size >= unit:
            return f"{size // unit}{name}"
    return str(size)


def _content(results: StudyResults) -> Content:
    answer = results.of(CommunicationAnswer)
    at = most_ranks(results)
    notes = [
        f"{one.record.group}, batch {one.batch_size}: {one.record.disagreement}."
        for one in answer.arms
        if one.record.disagreement
    ]
    if answer.arms and not notes and any(one.record.exposed_in_situ for one in answer.arms):
        notes = ["Differencing and the clock inside the step agree within their intervals."]
    listed = []
    drawn = figures(parts=parts_plot(answer.arms, results.config.base_batch))
    if answer.arms:
        listed += [arms_table(answer.arms), waits_table(answer.arms)]
        if answer.epoch_samples is not None:
            listed.append(epochs_table(answer.arms, answer.epoch_samples))
        if any(_rates(one.record) for one in answer.arms):
            listed.append(wire_table(answer.arms))
    for sentence in (
        None if at is None else loop_sentence(at),
        rates_sentence(answer.arms),
        links_sentence(answer.bandwidth),
    ):
        if sentence is not None:
            notes.append(sentence)
    if at is not None and at.record.collectives_in_situ:
        listed.append(buckets_table(at))
    for record in answer.bandwidth:
        listed.append(bandwidth_table(record))
        if at is not None and record.group == at.record.group:
            drawn += figures(bandwidth=bandwidth_plot(record, at.record))
    return Content(
        (
            "Four arms run the same step: DDP as it is (A), DDP that sends nothing (B), the bare module (D), and the "
            "step's collectives on their own (R). A − B is communication that the step waits for, and B − D is what "
            "the wrapper costs. Overlap is 1 − (A − B)/R. It is shown only where its interval is no wider than 50 "
            "points; below zero, communication costs more inside a step than alone. In the arms, all ranks begin each "
            "step together, and the median step counts. In a training loop, as in section 2 and in the verdict, they "
            "do not, the wait for data counts, and the mean step is taken.",
            "In situ: a clock in DDP's communication hook sees when each bucket starts and ends inside the step. "
            "Bandwidth is counted as nccl-tests does: algbw is bytes divided by time, busbw is the rate that each "
            "rank's link carries.",
        ),
        [Group(findings=notes, figures=drawn, tables=listed)],
    )


QUESTION = Question(
    "communication",
    "Communication",
    frozenset(("ranks", "arms")),
    CommunicationAnswer,
    _answer,
    _sentence,
    _content,
    of_step=True,
)

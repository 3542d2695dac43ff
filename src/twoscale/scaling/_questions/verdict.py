"""Why scaling stops here: the growth of a step from one rank to many, divided among its causes by stated rules.

The growth is that of weak scaling: DDP's step on all ranks less the bare module's on one, with launches paired within
each round. All steps run in a training loop, without barriers between them. These parts are measured in each round:

    data         data wait of bare modules on all ranks - data wait of one
    straggler    bare modules on all ranks at once: one and the same rank in every round - the fastest
    cores        bare modules on all ranks at once, the fastest rank - bare module on one, both without data wait:
                 ranks that never talk slow each other all the same
    wrapper      DDP that sends nothing - bare modules on all ranks at once
    exposed      DDP - DDP that sends nothing

Records of earlier versions have the last two from the arms (B - D and A - B), which take turns in one launch. Exposed
time is divided by what was seen inside the step, on the rank that arrives last, and so waits for no other:

    buffers      what goes away when buffers are not broadcast
    latency      the fixed part of the gradients' all-reduces, by the fitted line t = Aα + FS/B
    bandwidth    their bytes' part
    last bucket  the same, where all buckets but the last fit beside the backward pass: a smaller last one would help
    jitter       beyond what is seen inside: what the bare module alone loses when every step waits for the slowest rank
    contention   the rest, where it is above zero in every round: communication and computing slow each other

A part below zero counts as zero. The largest is the cause. A round is left out where a launch of it began at a load of
more than twice the cores or ranks, whichever are more, or where a step of it took more than 1.5 times the median of the
rounds, of which there must be three; unless that leaves none. No cause is named where efficiency is 95% or
more, where the growth is not above zero in every round, or where more is unexplained, or explained twice, than the
largest part explains.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, fixed, percent, signed
from twoscale._page.tables import Column, Table, table, text_column
from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import ArmsRecord, EpochTime, Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions import communication
from twoscale.scaling._questions.communication import ArmsAt, CommunicationAnswer
from twoscale.scaling._questions.forecast import link_of, measured_steps
from twoscale.scaling._questions.link_model import Link, LinkModel, MeasuredStep, collective_seconds, fit, replay
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, milliseconds, number
from twoscale.scaling._questions.speedup import Launches, times_of
from twoscale.scaling._study.cells import RANKS, Measured
from twoscale.scaling._study.config import StudyConfig

__all__ = [
    "QUESTION",
    "SCALES",
    "Cause",
    "Round",
    "Verdict",
    "VerdictAnswer",
    "causes_table",
    "communication_parts",
    "decide",
    "link_line",
]

CauseName = Literal[
    "latency",
    "bandwidth",
    "last bucket",
    "buffers",
    "data",
    "cores",
    "wrapper",
    "straggler",
    "jitter",
    "contention",
]

SCALES = 0.95
"""At this efficiency or above there is nothing to explain."""
_NOMINAL = (10, 100, 1000)
"""Mbit/s of links that a measured rate may belong to."""
_BUSY = 2.0
"""A round that began at more than so many times the cores or ranks is left out."""
_OUTLIER = 1.5
"""So is one with a step of more than so many times the median of the rounds."""

_WHY: dict[CauseName, str] = {
    "latency": "Each message costs its fixed time however small it is. Fewer, larger collectives or less frequent "
    "steps would help, a faster link would not.",
    "bandwidth": "There are more bytes than the backward pass can hide. A faster link, fewer bytes (bf16 gradients, "
    "accumulation) or more computation per step would help.",
    "last bucket": "The last gradients are ready only when the backward pass ends, and nothing is left to hide their "
    "all-reduce behind. A smaller last bucket or more computation per step would help.",
    "buffers": "Buffers are broadcast before every forward pass, which waits for them. Broadcasting them at the start "
    "only, or never, would help.",
    "data": "Ranks wait for their batches. A faster or less shared source of data would help.",
    "cores": "Ranks that run at once slow each other's computing. Cores, memory and power of their own would help, a "
    "faster network would not.",
    "wrapper": "DDP's own work, without any communication, takes the time. More computation per step would help.",
    "straggler": "All ranks wait for one that computes more slowly. A core of its own for that rank would help, a "
    "faster network would not.",
    "jitter": "Now one rank is late and now another, and every step waits for the latest. Fewer other processes on "
    "these cores would help.",
    "contention": "Computing and communication slow each other when they run at the same time. Cores left over for "
    "communication, or fewer bytes, would help.",
}
_NAMES = {"last bucket": "the last bucket", "wrapper": "the wrapper", "cores": "shared cores"}


@dataclass(frozen=True)
class Cause:
    """What part of a step's growth a cause has."""

    name: CauseName
    seconds: float
    """Of a step."""
    share: float
    """Of the loss, or of the sum of all causes where that is more, 0..1."""


@dataclass(frozen=True)
class Verdict:
    """Why scaling stops here."""

    world_size: int
    batch_size: int
    loss: Summary
    """Seconds by which a step on all ranks is longer than one of the bare module on one; launches of a round paired."""
    efficiency: float
    """Of weak scaling: bare at one rank / DDP; mean of rounds."""
    causes: tuple[Cause, ...]
    """Largest first; together all of the loss that was explained."""
    unexplained: float
    """Seconds of the loss that no cause explains; below 0 if causes overlap."""
    sentence: str
    straggler: str = ""
    """The slowest rank and its cores, e.g. "rank 1 on core 3"; empty where it is not known."""
    left_out: tuple[str, ...] = ()
    """Rounds that were left out, each with its load."""
    link: LinkModel | None = None
    """The line that was fitted to all-reduces alone."""


@dataclass(frozen=True)
class VerdictAnswer:
    """Why scaling stops here."""

    verdict: Verdict | None = None
    """None: not everything that it needs was measured."""


@dataclass(frozen=True)
class Round:
    """Launches of one round, at the same batch per rank."""

    alone: EpochTime
    """The bare module on one rank."""
    apart: EpochTime
    """Bare modules on all ranks, which never talk."""
    ddp: EpochTime
    """DDP on all ranks."""
    load: float | None = None
    """Largest at the start of one of these launches."""
    number: int = 1
    """Which it is, from 1."""
    silent: EpochTime | None = None
    """DDP that sends nothing on all ranks; None in records of earlier versions."""


def communication_parts(record: ArmsRecord, model: LinkModel | None, inside: float) -> dict[CauseName, float]:
    """Divide the time that a step was seen to wait for gradients, seconds.

    Args:
        record: arms at more than one rank.
        model: the link, fitted. None: nothing counts as latency.
        inside: what the step was seen to wait, without the broadcast of buffers.
    """
    sizes = [bucket.bytes for bucket in record.buckets]
    fixed, each = 0.0, [c.seconds.median for c in record.collectives_alone if c.op == "all_reduce"]
    if model is not None:
        rate = model.rates[1] if model.rates else None
        one = collective_seconds(model, "all_reduce", 0, record.world_size, rate)
        fixed = one * len(sizes)
        each = [collective_seconds(model, "all_reduce", size, record.world_size, rate) - one for size in sizes]
    total = fixed + sum(each)
    # No more than it takes alone: what a collective takes longer inside a step is no property of the link.
    expected = min(inside, total)
    latency = expected * fixed / total if total > 0 else 0.0
    parts: dict[CauseName, float] = {"latency": latency, "bandwidth": 0.0, "last bucket": 0.0}
    parts["last bucket" if _only_the_last_waits(record, each) else "bandwidth"] = expected - latency
    parts["contention"] = inside - expected
    return parts


def _only_the_last_waits(record: ArmsRecord, seconds: Sequence[float]) -> bool:
    """Return whether all buckets but the last are averaged before the last is ready."""
    if len(seconds) < 2 or len(seconds) != len(record.buckets):
        return False
    free = 0.0
    for bucket, one in zip(record.buckets[:-1], seconds[:-1], strict=True):
        free = max(free, bucket.ready) + one
    return free <= record.buckets[-1].ready


def _quiet(rounds: Sequence[Round], cores: int) -> tuple[list[Round], tuple[str, ...]]:
    """Return the rounds that count, and those left out in words."""
    most = _BUSY * max(cores, rounds[0].ddp.world_size)
    quiet = [one for one in rounds if one.load is None or one.load <= most]
    if not quiet:
        return list(rounds), ()
    left_out = [f"round {one.number}, which began at load {one.load:.1f}" for one in rounds if one not in quiet]
    if len(quiet) >= 3:
        usual = [statistics.median(step) for step in zip(*map(_steps, quiet), strict=True)]
        for one in list(quiet):
            over = [(seconds, limit) for seconds, limit in zip(_steps(one), usual, strict=True)
                    if seconds > _OUTLIER * limit]  # fmt: skip
            if over:
                seconds, limit = max(over, key=lambda pair: pair[0] / pair[1])
                load = "" if one.load is None else f", and which began at load {one.load:.1f}"
                left_out.append(
                    f"round {one.number}, in which a step took {milliseconds(seconds)} where the median of the rounds "
                    f"is {milliseconds(limit)}{load}"
                )
                quiet.remove(one)
    return quiet, tuple(left_out)


def _busy(rounds: Sequence[Round], cores: int) -> str:
    """Return a warning where every round that counts began at a load at which others are left out."""
    loads = [one.load for one in rounds]
    most = _BUSY * max(cores, rounds[0].ddp.world_size)
    known = [load for load in loads if load is not None and load > most]
    if len(known) < len(loads):
        return ""
    between = f"{min(known):.1f}" if len(known) == 1 else f"{min(known):.1f} to {max(known):.1f}"
    return (
        f" Every round began at a load of more than {most:.0f} ({between}), so other processes have part in all of "
        "this; measure again on a quieter machine."
    )


def _steps(one: Round) -> tuple[float, ...]:
    """Return the steps of a round, seconds."""
    return one.alone.step.median, one.apart.step.median, one.ddp.step.median


def _beyond_data(time: EpochTime) -> float:
    """Return a step without its wait for data, seconds."""
    return time.step.median - time.data_wait.median


def _wrapper_and_exposed(rounds: Sequence[Round], many: ArmsRecord) -> tuple[float, list[float]]:
    """Return what DDP itself takes, and what it waits for communication, by round where rounds know it; seconds."""
    if all(one.silent is not None for one in rounds):
        silent = [one.silent.step.median for one in rounds if one.silent is not None]
        wrapper = statistics.fmean(s - one.apart.step.median for s, one in zip(silent, rounds, strict=True))
        return wrapper, [one.ddp.step.median - s for s, one in zip(silent, rounds, strict=True)]
    if many.silent_free is not None and many.bare_free is not None:
        exposed = many.free_running.median - many.silent_free.median
        return many.silent_free.median - many.bare_free.median, [exposed]
    return many.wrapper_tax.median, [many.exposed.median]


def _straggler(rounds: Sequence[Round]) -> tuple[float, str]:
    """Return by how much one and the same rank is slower than the fastest, seconds, and which one; 0 for none."""
    times = [one.apart.rank_seconds for one in rounds]
    if not all(times):
        return 0.0, ""
    slowest = {seconds.index(max(seconds)) for seconds in times}
    if len(slowest) > 1:
        return 0.0, ""  # now one and now another is chance, not a straggler
    (rank,) = slowest
    cores = rounds[0].apart.rank_cores
    where = ""
    if cores and cores[rank]:
        where = f" on core{'s' * (len(cores[rank]) > 1)} {', '.join(map(str, cores[rank]))}"
    return statistics.fmean(max(seconds) - min(seconds) for seconds in times), f"rank {rank}{where}"


def decide(
    rounds: Sequence[Round], many: ArmsRecord, model: LinkModel | None, batch_size: int, *, cores: int = 1
) -> Verdict:
    """Name the cause.

    Args:
        rounds: at least one.
        many: arms at as many ranks, at the same batch.
        model: the link, fitted. None: nothing of exposed communication counts as latency.
        batch_size: per rank.
        cores: of the machine, all together.
    """
    rounds, left_out = _quiet(rounds, cores)
    loss = summarize([one.ddp.step.median - one.alone.step.median for one in rounds])
    efficiency = statistics.fmean(one.alone.step.median / one.ddp.step.median for one in rounds)
    waits = statistics.fmean(one.apart.data_wait.median - one.alone.data_wait.median for one in rounds)
    slower = statistics.fmean(_beyond_data(one.apart) - _beyond_data(one.alone) for one in rounds)
    late, which = _straggler(rounds)
    late = min(late, max(0.0, slower))
    wrapper, waited = _wrapper_and_exposed(rounds, many)
    exposed = max(0.0, statistics.fmean(waited))
    seen = exposed if many.exposed_in_situ is None else min(exposed, max(0.0, many.exposed_in_situ.median))
    buffers = min(seen, max(0.0, many.buffers.median)) if many.buffers else 0.0
    parts = communication_parts(many, model, seen - buffers)
    beyond = exposed - seen
    jitter = min(beyond, max(0.0, many.jitter.median)) if many.jitter is not None else 0.0
    if min(waited) > seen + jitter:  # in every round; otherwise it is chance, and stays unexplained
        parts["contention"] += beyond - jitter
    parts |= {
        "buffers": buffers,
        "data": max(0.0, waits),
        "cores": max(0.0, slower) - late,
        "straggler": late,
        "wrapper": max(0.0, wrapper),
        "jitter": jitter,
    }
    total = sum(parts.values())
    # What no cause explains has its share too; causes that overlap are shares of their sum.
    whole = max(total, loss.mean)
    causes = tuple(
        Cause(name, seconds, seconds / whole if whole > 0 else 0.0)
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
    )
    sentence = _conclusion(many.world_size, efficiency, loss, causes, total, which) + _busy(rounds, cores)
    return Verdict(
        many.world_size,
        batch_size,
        loss,
        efficiency,
        causes,
        loss.mean - total,
        sentence,
        straggler=which if late > 0 else "",
        left_out=left_out,
        link=model,
    )


def _conclusion(n: int, efficiency: float, loss: Summary, causes: Sequence[Cause], total: float, which: str) -> str:
    first, unexplained = causes[0], loss.mean - total
    if efficiency > 2 - SCALES:
        return (
            f"At {n} ranks a step was faster than on one, {efficiency:.0%} of its speed, which no scaling explains; "
            "measure again on a quieter machine, or more launches."
        )
    if efficiency >= SCALES:
        return f"Scaling does not stop at {n} ranks: a step keeps {efficiency:.0%} of its speed."
    keeps = f"At {n} ranks a step keeps {efficiency:.0%} of its speed"
    if loss.min <= 0:
        return (
            f"{keeps}, but not in every round of launches: there is no cause to name; measure again on a quieter "
            "machine, or more launches."
        )
    if unexplained > first.seconds:
        return (
            f"{keeps}, and the largest part of what is lost, {unexplained / loss.mean:.0%}, has no measured cause: "
            "measure again on a quieter machine."
        )
    if -unexplained > first.seconds:
        return (
            f"{keeps}, but what its causes took in launches of their own adds up to {total / loss.mean:.1f} times what "
            "is lost, so that there is no cause to name; measure again on a quieter machine."
        )
    name = f"a straggler, {which}" if first.name == "straggler" else _NAMES.get(first.name, first.name)
    return f"{keeps}. The largest part of what is lost, {first.share:.0%}, goes to {name}. {_WHY[first.name]}"


def _model(steps: Sequence[MeasuredStep], link: Link) -> LinkModel | None:
    try:
        return fit(steps, link.name)
    except ForecastError:
        return None


def _verdict(
    config: StudyConfig,
    times: Launches,
    loads: Mapping[int, float],
    arms: Sequence[ArmsAt],
    steps: Sequence[MeasuredStep],
) -> Verdict | None:
    base = config.base_batch
    alone = times.get(("bare", 1, base), {})
    # At the most ranks that everything is known of: a cell that failed there leaves fewer to be judged.
    for n in reversed([n for n in config.world_sizes if n > 1]):
        record = next((at.record for at in arms if at.record.world_size == n and at.batch_size == base), None)
        apart, ddp = times.get(("bare", n, base), {}), times.get(("ddp", n, base), {})
        silent = times.get(("silent", n, base), {})
        rounds = [
            Round(alone[r], apart[r], ddp[r], loads.get(r), r + 1, silent.get(r))
            for r in sorted(alone)
            if r in apart and r in ddp
        ]
        if record is not None and rounds:
            return decide(rounds, record, _model(steps, link_of(config)), base, cores=config.cores)
    return None


def _loads(measured: Measured) -> dict[int, float]:
    """Return the largest load at which a launch of each round began."""
    found: dict[int, float] = {}
    for record in measured.of(RANKS):
        if record.load is not None:
            found[record.cell.repeat] = max(record.load, found.get(record.cell.repeat, 0.0))
    return found


def _answer(measured: Measured) -> VerdictAnswer:
    config, found = measured.config, communication.QUESTION.answer(measured)
    steps = measured_steps(config, found.arms, found.bandwidth)
    return VerdictAnswer(_verdict(config, times_of(measured), _loads(measured), found.arms, steps))


def _sentence(results: StudyResults) -> str:
    verdict = results.of(VerdictAnswer).verdict
    if verdict is not None:
        return verdict.sentence
    if results.config.world_sizes[-1] == 1:
        why = "one rank has nothing to scale to; measure more with --world-sizes 1,2"
    elif {"communication", "forecast"}.isdisjoint(results.config.sections):
        why = "it needs the arms, which the sections communication and forecast measure"
    else:
        why = "it needs the steps of one rank and the steps and arms of more, and not all of them gave a result"
    return f"There is no verdict: {why}."


def causes_table(verdict: Verdict) -> Table:
    """Return one row per cause."""
    rows = [
        [
            f"{cause.name}: {verdict.straggler}" if cause.name == "straggler" and verdict.straggler else cause.name,
            number(cause.seconds * 1e3),
            percent(cause.share, 0),
        ]
        for cause in verdict.causes
    ]
    unknown = percent(verdict.unexplained / verdict.loss.mean, 0) if verdict.unexplained > 0 else MISSING
    rows.append(["not explained", number(verdict.unexplained * 1e3), unknown])
    columns = [text_column("Cause"), Column("Of a step", "ms"), Column("Share", "%")]
    loss = verdict.loss
    spread = f"{number(loss.min * 1e3)} to {number(loss.max * 1e3)} ms in {loss.n} rounds" if loss.n > 1 else "1 round"
    return table(
        f"A step on {verdict.world_size} ranks is {number(loss.mean * 1e3)} ms longer than one on one ({spread})",
        columns,
        rows,
    )


def verdict_plot(results: StudyResults) -> Drawing | None:
    """Draw the causes."""
    verdict = results.of(VerdictAnswer).verdict
    if verdict is None:
        return None
    parts = [(str(cause.name), cause.seconds) for cause in verdict.causes]
    parts.append(("not explained", verdict.unexplained))
    return dot_plot(
        "What a step loses",
        [name for name, _ in parts],
        [Series("", tuple(1000 * seconds for _, seconds in parts))],
        label="Milliseconds of a step by cause: "
        + ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in parts),
        note=f"{verdict.world_size} ranks",
        x_label="milliseconds per step",
        limits=(min(0.0, 1000 * verdict.unexplained), math.inf),
        least_span=0.1,
    )


def link_line(model: LinkModel) -> str:
    """Return what the fit found: the time of a message and the rate."""
    latency = f"{fixed(1e6 * model.latency, 0)} µs" if model.latency < 1e-3 else milliseconds(model.latency)
    text = f"All-reduces alone take {latency} per message"
    if model.fixed > 0:
        mbits = 8e-6 / model.fixed
        text += f", and their bytes pass at {number(mbits)} Mbit/s"
        # Of what a link carries, framing leaves 94 to 96 %; above a Gbit/s a loopback may be as fast by chance.
        nominal = next((rate for rate in _NOMINAL if 0.9 * rate <= mbits <= rate), None)
        if nominal is not None:
            text += f", probably a link of {count(nominal)} Mbit/s"
    return text + f" (fitted line within {percent(model.residual, 0)} %)."


@dataclass(frozen=True)
class WhatIf:
    """The step after a hypothetical change."""

    what: str
    step: float
    """Seconds."""
    saved: float | None
    """Seconds by which the step is shorter; None where it has another batch."""
    gain: float
    """Increase in images per second, as a share of the present rate."""


def what_ifs(verdict: Verdict, arms: Sequence[ArmsAt]) -> list[WhatIf]:
    """Return what a faster link, fewer bytes and a larger batch would bring, by the fitted line and the arms."""
    found = {at.batch_size: at.record for at in arms if at.record.world_size == verdict.world_size}
    record, model = found.get(verdict.batch_size), verdict.link
    if record is None:
        return []
    now = record.free_running.median
    rows = []
    if model is not None and record.buckets:
        rate = model.rates[1] if model.rates else None
        n = record.world_size

        def waits(factor: float, latency: float = 1.0) -> float:
            one = collective_seconds(model, "all_reduce", 0, n, rate)
            buckets = []
            for bucket in record.buckets:
                whole = collective_seconds(model, "all_reduce", bucket.bytes, n, rate)
                buckets.append((bucket, latency * one + factor * (whole - one)))
            return replay(record.silent.median, buckets)[0] - record.silent.median

        exposed = max(0.0, record.exposed.median)
        for what, factor, latency in (
            ("a link ten times as fast", 0.1, 1.0),
            ("a tenth of the latency", 1.0, 0.1),
            ("gradients sent as bf16", 0.5, 1.0),
        ):
            step = now - min(exposed, waits(1.0) - waits(factor, latency))
            rows.append(WhatIf(what, step, now - step, now / step - 1))
    for size in sorted(size for size in found if size > verdict.batch_size):
        step = found[size].free_running.median
        rows.append(WhatIf(f"batch {size} per rank, measured", step, None, size / verdict.batch_size * now / step - 1))
    return rows


def what_if_table(rows: Sequence[WhatIf]) -> Table:
    """Return one row per change."""
    return table(
        "What would help: one thing changed, by the fitted line where nothing else is stated",
        [text_column("With"), Column("Step", "ms"), Column("Saved per step", "ms"), Column("Images per second", "%")],
        [
            [
                row.what,
                number(1e3 * row.step),
                number(None if row.saved is None else 1e3 * row.saved),
                signed(100 * row.gain, 0),
            ]
            for row in rows
        ],
    )


def _content(results: StudyResults) -> Content:
    verdict = results.of(VerdictAnswer).verdict
    if verdict is None:
        return Content((), ())
    findings = [f"Left out: {one}." for one in verdict.left_out]
    if verdict.link is not None:
        findings.append(link_line(verdict.link))
    tables = [causes_table(verdict)]
    if rows := what_ifs(verdict, results.of(CommunicationAnswer).arms):
        tables.append(what_if_table(rows))
    return Content(
        (
            "The verdict compares a step on all ranks with one on a single rank at the same batch per rank (weak "
            "scaling), and divides the time that it loses among causes, by the rules in docs/scaling.md.",
        ),
        [
            Group(
                "Why scaling stops here",
                figures=figures(verdict=verdict_plot(results)),
                findings=findings,
                tables=tables,
            )
        ],
    )


QUESTION = Question("summary", "Summary", frozenset(), VerdictAnswer, _answer, _sentence, _content)

"""The growth of a step from one rank to many, divided among its causes.

The growth is that of weak scaling: DDP's step on all ranks less the bare module's on one, with launches paired within
each round. All steps run in a training loop, without barriers between them. These parts are measured in each round, and
add up to the growth:

    data         data wait of bare modules on all ranks - data wait of one
    straggler    bare modules on all ranks at once: one and the same rank in every run of every round - the fastest
    cores        bare modules on all ranks at once, the fastest rank - bare module on one, both without data wait:
                 ranks that never talk slow each other all the same
    wrapper      DDP that sends nothing - bare modules on all ranks at once
    exposed      DDP - DDP that sends nothing

A clock in the same steps (twoscale.scaling._measure.waits) sees what each rank waits inside DDP, with communication and
without; the difference divides the exposed time:

    seen         the wait of the rank that arrives last in each step, and so waits for no other rank
    jitter       what the rank that is slowest without communication waits beyond that: for the rank that is slowest in
                 each step
    contention   the rest, which is computing that takes longer beside communication; counted where every round has it

What was seen is divided by the line that was fitted to all-reduces alone, t = Aα + FS/B, with which the step is
replayed bucket by bucket: what is sent beside the backward pass is not waited for.

    buffers      what goes away when buffers are not broadcast
    latency      the fixed part of the gradients' all-reduces
    bandwidth    their bytes' part
    last bucket  the same, where all buckets but the last fit beside the backward pass: a smaller last one would help
    contention   what is waited beyond the replay, which is no property of the link

Records of earlier versions have no clock in their loops. For them, the clock in the arms' steps counts, which all ranks
begin together, and the jitter of the bare module. The oldest take wrapper and exposed from the arms too (B - D and
A - B).

No part is below zero. In the chain of steps (one bare module, bare modules on all ranks, DDP that sends nothing, DDP)
each does all that the one before it does, and takes at least as long. Where noise makes one shorter, both count as
their mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twoscale.scaling._measure.records import ArmsRecord, Bucket, Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.link_model import LinkModel, collective_seconds
from twoscale.scaling._questions.rounds import Round
from twoscale.scaling._questions.step_forecast import replay

__all__ = ["Cause", "CauseName", "Division", "communication_parts", "divide"]

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


@dataclass(frozen=True)
class Cause:
    """What part of a step's growth a cause has."""

    name: CauseName
    seconds: float
    """Of a step."""
    share: float
    """Of the loss, or of the sum of all causes where that is more, 0..1."""


@dataclass(frozen=True)
class Division:
    """The growth of a step, and the part of each cause."""

    loss: Summary
    """Seconds by which a step on all ranks is longer than one of the bare module on one; launches of a round paired."""
    efficiency: float
    """Of weak scaling: bare at one rank / DDP; mean of rounds."""
    causes: tuple[Cause, ...]
    """Largest first."""
    unexplained: float
    """Seconds of the loss that no cause explains; below 0 if causes overlap."""
    straggler: str
    """The slowest rank and its cores, e.g. "rank 1 on core 3"; empty where there is none."""


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
        fixed = collective_seconds(model, "all_reduce", 0, record.world_size, rate)
        each = [collective_seconds(model, "all_reduce", size, record.world_size, rate) for size in sizes]
    total = sum(each)
    # No more than the line says: what a collective takes longer inside a step is no property of the link.
    compute = record.silent.median
    sent = list(zip(record.buckets, each, strict=True))
    expected = min(inside, replay(compute, sent)[0] - compute)
    latency = expected * len(sizes) * fixed / total if total > 0 else 0.0
    parts: dict[CauseName, float] = {"latency": latency, "bandwidth": 0.0, "last bucket": 0.0}
    parts["last bucket" if _only_the_last_waits(sent) else "bandwidth"] = expected - latency
    parts["contention"] = inside - expected
    return parts


def _only_the_last_waits(sent: Sequence[tuple[Bucket, float]]) -> bool:
    """Return whether all buckets but the last are averaged before the last is ready."""
    if len(sent) < 2:
        return False
    free = 0.0
    for bucket, seconds in sent[:-1]:
        free = max(free, bucket.ready) + seconds
    return free <= sent[-1][0].ready


@dataclass(frozen=True)
class _Waiting:
    """What DDP takes longer than DDP that sends nothing, seconds per step; none is below zero."""

    seen: float
    """Waiting for communication."""
    late: float
    """Waiting for ranks that are late in turn."""
    slowed: float
    """Computing that takes longer beside communication."""


@dataclass(frozen=True)
class _Exposed:
    """A round's DDP less DDP that sends nothing, seconds per step, and what a clock inside the steps saw of it."""

    whole: float
    seen: float
    late: float


def _exposed_in_loop(one: Round) -> _Exposed | None:
    """Return a round's exposed time as the clock in its own loops saw it; None where there was none."""
    ddp, silent = one.ddp, one.silent
    if silent is None or ddp.least_wait is None or silent.least_wait is None or not silent.rank_seconds:
        return None
    slowest = silent.rank_seconds.index(max(silent.rank_seconds))
    beyond = [time.rank_waits[slowest] - least for time, least in ((ddp, ddp.least_wait), (silent, silent.least_wait))]
    return _Exposed(ddp.step.median - silent.step.median, ddp.least_wait - silent.least_wait, beyond[0] - beyond[1])


def _exposed_in_arms(one: Round, many: ArmsRecord) -> _Exposed:
    """Return the same with the clock of the arms: in records of earlier versions."""
    if one.silent is not None:
        whole = one.ddp.step.median - one.silent.step.median
    elif many.silent_free is not None and many.bare_free is not None:
        whole = many.free_running.median - many.silent_free.median
    else:
        whole = many.exposed.median
    seen = whole if many.exposed_in_situ is None else many.exposed_in_situ.median
    return _Exposed(whole, seen, many.jitter.median if many.jitter is not None else 0.0)


def _in_order(steps: Sequence[float]) -> list[float]:
    """Return the non-decreasing numbers nearest to these, by least squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for step in steps:
        mean, size = step, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


@dataclass(frozen=True)
class _Growth:
    """What a step gains from one thing to the next, seconds; none is below zero."""

    ranks: float
    """Bare modules on all ranks, beyond one."""
    wrapper: float
    """DDP that sends nothing, beyond these."""
    exposed: float
    """DDP, beyond that."""


def _growth(rounds: Sequence[Round], many: ArmsRecord, exposed: float) -> _Growth:
    """Return the growth along the chain of steps, each of which does all that the one before it does.

    A step that is shorter than the one before it was disturbed, or that one was: both count as their mean.
    """
    silent = [one.silent.step.median for one in rounds if one.silent is not None]
    if len(silent) == len(rounds):
        alone, apart, ddp = zip(*((one.alone, one.apart, one.ddp) for one in rounds), strict=True)
        steps = [statistics.fmean(time.step.median for time in times) for times in (alone, apart, ddp)]
        one, ranks, wrapped, whole = _in_order([*steps[:2], statistics.fmean(silent), steps[2]])
        return _Growth(ranks - one, wrapped - ranks, whole - wrapped)
    ranks = statistics.fmean(one.apart.step.median - one.alone.step.median for one in rounds)
    wrapper = many.wrapper_tax.median
    if many.silent_free is not None and many.bare_free is not None:
        wrapper = many.silent_free.median - many.bare_free.median
    return _Growth(max(0.0, ranks), max(0.0, wrapper), max(0.0, exposed))


def _straggler(rounds: Sequence[Round]) -> tuple[float, str]:
    """Return by how much one and the same rank is slower than the fastest, seconds, and which one; 0 for none."""
    times = [one.apart.rank_seconds for one in rounds]
    if not all(times):
        return 0.0, ""
    slowest = {rank for one in rounds for rank in one.apart.slowest_ranks}
    slowest |= {seconds.index(max(seconds)) for seconds in times}
    if len(slowest) > 1:
        return 0.0, ""  # now one and now another is chance, not a straggler
    (rank,) = slowest
    cores = rounds[0].apart.rank_cores
    where = ""
    if cores and cores[rank]:
        where = f" on core{'s' * (len(cores[rank]) > 1)} {', '.join(map(str, cores[rank]))}"
    return statistics.fmean(max(seconds) - min(seconds) for seconds in times), f"rank {rank}{where}"


def _waiting(by_round: Sequence[_Exposed], whole: float) -> _Waiting:
    """Divide the exposed time of all rounds, ``whole`` seconds."""
    seen = min(whole, max(0.0, statistics.fmean(one.seen for one in by_round)))
    late = min(whole - seen, max(0.0, statistics.fmean(one.late for one in by_round)))
    # In every round; otherwise it is chance, and stays unexplained.
    slowed = whole - seen - late if all(one.whole > one.seen + one.late for one in by_round) else 0.0
    return _Waiting(seen, late, slowed)


def divide(rounds: Sequence[Round], many: ArmsRecord, model: LinkModel | None) -> Division:
    """Divide the growth of a step among its causes.

    Args:
        rounds: at least one.
        many: arms at as many ranks, at the same batch.
        model: the link, fitted. None: nothing of exposed communication counts as latency.
    """
    loss = summarize([one.ddp.step.median - one.alone.step.median for one in rounds])
    by_round = [_exposed_in_loop(one) or _exposed_in_arms(one, many) for one in rounds]
    growth = _growth(rounds, many, statistics.fmean(one.whole for one in by_round))
    data = statistics.fmean(one.apart.data_wait.median - one.alone.data_wait.median for one in rounds)
    data = min(growth.ranks, max(0.0, data))
    late, which = _straggler(rounds)
    late = min(late, growth.ranks - data)
    waiting = _waiting(by_round, growth.exposed)
    buffers = min(waiting.seen, max(0.0, many.buffers.median)) if many.buffers else 0.0
    parts = communication_parts(many, model, waiting.seen - buffers)
    parts["contention"] += waiting.slowed
    parts |= {
        "buffers": buffers,
        "data": data,
        "cores": growth.ranks - data - late,
        "straggler": late,
        "wrapper": growth.wrapper,
        "jitter": waiting.late,
    }
    total = sum(parts.values())
    # What no cause explains has its share too; causes that overlap are shares of their sum.
    whole = max(total, loss.mean)
    return Division(
        loss=loss,
        efficiency=statistics.fmean(one.alone.step.median / one.ddp.step.median for one in rounds),
        causes=tuple(
            Cause(name, seconds, seconds / whole if whole > 0 else 0.0)
            for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
        ),
        unexplained=loss.mean - total,
        straggler=which if late > 0 else "",
    )

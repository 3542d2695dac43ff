"""Why scaling stops here: the growth of a step from one rank to many, divided among its causes by stated rules.

The growth is that of weak scaling: DDP's step on all ranks less the bare module's on one, launches of a round paired.
Its parts are

    data         data wait of bare modules on all ranks - data wait of one
    cores        bare modules on all ranks at once - bare module on one, without data wait: ranks that never talk slow
                 each other all the same, or one is late
    wrapper      arms B - D: DDP without communication - bare module
    buffers      arms: what goes away when buffers are not broadcast
    exposed      arms A - B, less buffers: what DDP waits for gradients

and exposed communication is divided further, by the collectives' times alone and the fitted line t = Aα + FS/B:

    latency      the share of the Aα in it
    last bucket  of what is left, up to the bytes' time of the last bucket: there is nothing to hide it behind
    bandwidth    the rest: more bytes than the backward pass can hide

A part below zero counts as zero. The largest is the cause. Where efficiency is 95% or more, or the growth is not above
zero in every round, there is no cause to name. Where more of the growth is unexplained than the largest part explains,
the verdict says so, and so it does where the parts, which other launches measured, add up to that much more than was
lost.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from twoscale.scaling._measure.records import ArmsRecord, EpochTime, LinkModel
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.forecast import collective_seconds
from twoscale.scaling._questions.results import Cause, Verdict

__all__ = ["SCALES", "Round", "decide", "latency_share"]

SCALES = 0.95
"""Efficiency from which on there is nothing to explain."""

_WHY = {
    "latency": "Each message costs its fixed time however small it is. Fewer, larger collectives or less frequent "
    "steps would help, a faster link would not.",
    "bandwidth": "There are more bytes than the backward pass can hide. A faster link, fewer bytes (bf16 gradients, "
    "accumulation) or more computing a step would help.",
    "last bucket": "The last gradients are ready only when the backward pass ends, and nothing is left to hide their "
    "all-reduce behind. A smaller last bucket or more computing a step would help.",
    "buffers": "Buffers are broadcast before every forward pass, which waits for them. Broadcasting them at the start "
    "only, or never, would help.",
    "data": "Ranks wait for their batches. A faster or less shared source of data would help.",
    "cores": "Ranks slow each other's computing, or wait for the slowest. Cores, memory and power of their own would "
    "help, a faster network would not.",
    "wrapper": "DDP's own work, without any communication, takes the time. More computing a step would help.",
}
_NAMES = {"last bucket": "the last bucket", "wrapper": "the wrapper", "cores": "shared cores"}


@dataclass(frozen=True)
class Round:
    """Launches of one round, at the same batch per rank."""

    alone: EpochTime
    """The bare module on one rank."""
    apart: EpochTime
    """Bare modules on all ranks, which never talk."""
    ddp: EpochTime
    """DDP on all ranks."""


def latency_share(record: ArmsRecord, model: LinkModel) -> float:
    """Return the fixed part of the step's all-reduces by the fitted line, 0..1."""
    rate = model.rates[1] if model.rates else None
    sizes = [bucket.bytes for bucket in record.buckets]
    total = sum(collective_seconds(model, "all_reduce", size, record.world_size, rate) for size in sizes)
    fixed = len(sizes) * collective_seconds(model, "all_reduce", 0, record.world_size, rate)
    return fixed / total if total > 0 else 0.0


def decide(rounds: Sequence[Round], many: ArmsRecord, model: LinkModel | None, batch_size: int) -> Verdict:
    """Name the cause.

    Args:
        rounds: at least one.
        many: arms at as many ranks, at the same batch.
        model: the link, fitted. None: nothing of exposed communication counts as latency.
        batch_size: per rank.
    """
    loss = summarize([one.ddp.step.median - one.alone.step.median for one in rounds])
    efficiency = statistics.fmean(one.alone.step.median / one.ddp.step.median for one in rounds)
    waits = statistics.fmean(one.apart.data_wait.median - one.alone.data_wait.median for one in rounds)
    slower = statistics.fmean(
        (one.apart.step.median - one.apart.data_wait.median) - (one.alone.step.median - one.alone.data_wait.median)
        for one in rounds
    )
    buffers = max(0.0, many.buffers.median) if many.buffers else 0.0
    exposed = max(0.0, many.exposed.median - buffers)
    fixed = latency_share(many, model) if model else 0.0
    gradients = [c.seconds.median for c in many.collectives_alone if c.op == "all_reduce"]
    last = (1 - fixed) * min(exposed, gradients[-1] if gradients else 0.0)
    parts = {
        "latency": fixed * exposed,
        "bandwidth": (1 - fixed) * exposed - last,
        "last bucket": last,
        "buffers": buffers,
        "data": max(0.0, waits),
        "cores": max(0.0, slower),
        "wrapper": max(0.0, many.wrapper_tax.median),
    }
    total = sum(parts.values())
    # What no cause explains has its share too; causes that overlap are shares of their sum.
    whole = max(total, loss.mean)
    causes = tuple(
        Cause(name, seconds, seconds / whole if whole > 0 else 0.0)  # type: ignore[arg-type]
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
    )
    n = many.world_size
    unexplained = loss.mean - total
    if efficiency > 2 - SCALES:
        sentence = (
            f"At {n} ranks a step was faster than on one, {efficiency:.0%} of its speed, which no scaling explains; "
            "measure again on a quieter machine, or more launches."
        )
    elif efficiency >= SCALES:
        sentence = f"Scaling does not stop at {n} ranks: a step keeps {efficiency:.0%} of its speed."
    elif loss.min <= 0:
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed, but not in every round of launches: there is "
            "no cause to name; measure again on a quieter machine, or more launches."
        )
    elif unexplained > causes[0].seconds:
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed, and the largest part of what is lost, "
            f"{unexplained / loss.mean:.0%}, has no measured cause: measure again on a quieter machine."
        )
    elif -unexplained > causes[0].seconds:
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed, but what its causes took in launches of their "
            f"own adds up to {total / loss.mean:.1f} times what is lost, so that there is no cause to name; measure "
            "again on a quieter machine."
        )
    else:
        first = causes[0]
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed. The largest part of what is lost, "
            f"{first.share:.0%}, goes to {_NAMES.get(first.name, first.name)}. {_WHY[first.name]}"
        )
    return Verdict(n, batch_size, loss, efficiency, causes, unexplained, sentence)

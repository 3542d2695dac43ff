"""Why scaling stops here: the growth of a step from one rank to many, divided among its causes by stated rules.

The growth is that of weak scaling: DDP's step on all ranks, data wait included, less the bare module's on one, as the
arms measured them (barrier before each step). It is the sum of

    cores        bare module on all ranks at once - bare module on one: ranks slow each other, or one is late
    wrapper      DDP without communication - bare module
    buffers      what goes away when buffers are not broadcast
    exposed      the rest of DDP - DDP without communication
    data         data wait on all ranks - data wait on one

and exposed communication is divided further, by the collectives' times alone and the fitted line t = Aα + FS/B:

    latency      the share of the Aα in it
    last bucket  of what is left, up to the bytes' time of the last bucket: there is nothing to hide it behind
    bandwidth    the rest: more bytes than the backward pass can hide

A part below zero counts as zero. The largest is the cause. Where efficiency is 95% or more, or the growth is within the
intervals of the two steps, there is no cause to name.
"""

from __future__ import annotations

from twoscale.scaling.forecast import collective_seconds
from twoscale.scaling.records import ArmsRecord, LinkModel
from twoscale.scaling.results import Cause, Verdict

__all__ = ["SCALES", "decide", "latency_share"]

SCALES = 0.95
"""Efficiency from which on there is nothing to explain."""

_WHY = {
    "latency": "each message costs its fixed time however small it is: fewer, larger collectives or less frequent "
    "steps would help, a faster link would not",
    "bandwidth": "there are more bytes than the backward pass can hide: a faster link, fewer bytes (bf16 gradients, "
    "accumulation) or more computing a step would help",
    "last bucket": "the last gradients are ready only when the backward pass ends, and nothing is left to hide their "
    "all-reduce behind: a smaller last bucket or more computing a step would help",
    "buffers": "buffers are broadcast before every forward pass, which waits for them: broadcasting them at the start "
    "only, or never, would help",
    "data": "ranks wait for their batches: a faster or less shared source of data would help",
    "cores": "the ranks slow each other's computing, or wait for the slowest: cores, memory and power of their own "
    "would help, the network is not at fault",
    "wrapper": "DDP's own work, without any communication, takes the time",
}


def latency_share(record: ArmsRecord, model: LinkModel) -> float:
    """Return the fixed part of the step's all-reduces by the fitted line, 0..1."""
    sizes = [bucket.bytes for bucket in record.buckets]
    total = sum(collective_seconds(model, "all_reduce", size, record.world_size, _rate(model)) for size in sizes)
    fixed = sum(collective_seconds(model, "all_reduce", 0, record.world_size, _rate(model)) for _ in sizes)
    return fixed / total if total > 0 else 0.0


def _rate(model: LinkModel) -> float | None:
    return model.rates[1] if model.rates else None


def decide(alone: ArmsRecord, many: ArmsRecord, model: LinkModel | None, batch_size: int) -> Verdict:
    """Name the cause.

    Args:
        alone: arms at one rank.
        many: arms at the most ranks, same batch a rank.
        model: the link, fitted; None: exposed communication cannot be divided, and counts as bandwidth but for the
            last bucket.
        batch_size: per rank.
    """
    one = alone.bare.median + alone.data_wait.median
    all_ranks = many.ddp.median + many.data_wait.median
    loss = all_ranks - one
    efficiency = one / all_ranks
    buffers = max(0.0, many.buffers.median) if many.buffers else 0.0
    exposed = max(0.0, many.exposed.median - buffers)
    fixed = latency_share(many, model) if model else 0.0
    gradients = [c.seconds.median for c in many.collectives_alone if c.op == "all_reduce"]
    last = min((1 - fixed) * exposed, (1 - fixed) * (gradients[-1] if gradients else 0.0))
    parts = {
        "latency": fixed * exposed,
        "bandwidth": (1 - fixed) * exposed - last,
        "last bucket": last,
        "buffers": buffers,
        "data": max(0.0, many.data_wait.median - alone.data_wait.median),
        "cores": max(0.0, many.bare.median - alone.bare.median),
        "wrapper": max(0.0, many.wrapper_tax.median),
    }
    total = sum(parts.values())
    causes = tuple(
        Cause(name, seconds, seconds / total if total else 0.0)  # type: ignore[arg-type]
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
    )
    return Verdict(
        world_size=many.world_size,
        batch_size=batch_size,
        loss=loss,
        efficiency=efficiency,
        causes=causes,
        unexplained=loss - total,
        sentence=_sentence(alone, many, efficiency, loss, causes),
    )


def _sentence(alone: ArmsRecord, many: ArmsRecord, efficiency: float, loss: float, causes: tuple[Cause, ...]) -> str:
    n = many.world_size
    within = alone.bare.median_interval.overlaps(many.ddp.median_interval)
    if efficiency >= SCALES or (within and loss < alone.bare.median * (1 - SCALES)):
        return f"Scaling does not stop at {n} ranks: a step keeps {efficiency:.0%} of its speed."
    first = causes[0]
    return (
        f"At {n} ranks a step keeps {efficiency:.0%} of its speed, and {first.share:.0%} of what is lost is "
        f"{_name(first)}: {_WHY[first.name]}."
    )


def _name(cause: Cause) -> str:
    return {"last bucket": "the last bucket", "wrapper": "the wrapper", "cores": "shared cores"}.get(
        cause.name, cause.name
    )

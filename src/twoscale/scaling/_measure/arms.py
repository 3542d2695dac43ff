"""Where the time of a data-parallel step goes: the same step run in several ways, and their differences.

    A  ddp         DistributedDataParallel as it is
    B  silent      DDP with a hook that sends nothing, and buffers left alone: the replicas diverge, for timing only
    D  bare        the module without DDP
    R  isolated    the step's collectives on their own, nothing else running
       waiting     B, then a barrier: shows which rank waits for which
       watched     A with a hook that notes when each bucket starts and ends
       no buffers  A without the broadcast of buffers, where the model has any
       free        A, B and D without barriers between steps

All run in the same processes, in turn, in an order that rotates from round to round, so that whatever else the
machine does falls on all of them. In every arm but "free", all ranks have their batch before a step begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import Paced, RankClock, free_running, paced
from twoscale.scaling._measure.collectives import BucketClock, collective
from twoscale.scaling._measure.ledger import buffer_broadcasts
from twoscale.scaling._measure.records import (
    ArmsRecord,
    Bucket,
    CollectiveTime,
    Op,
    Summary,
    Workload,
)
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.workload import (
    Batch,
    Step,
    batch_stream,
    create_model,
    device_of,
    silent_ddp,
    training_step,
    without_buffers_sent,
    wrap,
)

__all__ = ["measure_arms"]

_Buckets = list[tuple[int, float, float]]


class _Watched:
    """Steps whose buckets were timed."""

    def __init__(self, step: Step, clock: BucketClock) -> None:
        self._step, self._clock = step, clock
        self.seen: list[tuple[float, _Buckets]] = []

    def __call__(self, batch: Batch) -> None:
        self._clock.begin()
        self._step(batch)
        if self._clock.device.type == "cuda":
            torch.cuda.synchronize(self._clock.device)
        self.seen.append(self._clock.step())

    def table(self, ranks: RankClock, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]:
        """Give the last ``steps``: forward starts (ranks, steps), buckets (ranks, steps, buckets, 2), their sizes."""
        last = self.seen[-steps:]
        self.seen = []
        sizes = tuple(size for size, _, _ in last[0][1])
        flat = [value for forward, found in last for value in (forward, *(t for b in found for t in b[1:]))]
        table = ranks.table(flat).reshape(ranks.size, len(last), 1 + 2 * len(sizes))
        return table[:, :, 0], table[:, :, 1:].reshape(ranks.size, len(last), len(sizes), 2), sizes


def _union(times: NDArray[np.float64]) -> float:
    """Return the length of the union of intervals (n, 2)."""
    total, reached = 0.0, -np.inf
    for start, end in sorted(times.tolist()):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _alone(ranks: RankClock, run: Callable[[], None], count: int) -> list[float]:
    """Time a collective with nothing else running: seconds of the slowest rank, once for each of ``count``."""
    durations = []
    for _ in range(count):
        start = ranks.start()
        run()
        durations.append(ranks.stop() - start)
    return [float(value) for value in ranks.table(durations).max(0)]


def _difference(a: Sequence[float], b: Sequence[float]) -> Summary:
    return summarize([x - y for x, y in zip(a, b, strict=True)])


def _disagreement(exposed: Summary, in_situ: Summary) -> str | None:
    difference, inside = exposed.median_interval, in_situ.median_interval
    if difference.overlaps(inside):
        return None
    return (
        f"exposed communication is {exposed.median * 1e3:.2f} ms by differencing "
        f"({difference.low * 1e3:.2f} to {difference.high * 1e3:.2f}) but {in_situ.median * 1e3:.2f} ms "
        f"({inside.low * 1e3:.2f} to {inside.high * 1e3:.2f}) as seen inside the step: "
        + (
            "communication slows the computing beside it"
            if difference.low > inside.high
            else "part of what the last bucket takes is spent whether or not it is sent"
        )
    )


def measure_arms(
    workload: Workload,
    *,
    rounds: int = 9,
    steps: int = 5,
    warmup: int = 3,
    group: dist.ProcessGroup | None = None,
    create: Callable[[], nn.Module] | None = None,
    source: Iterator[Batch] | None = None,
    watch: Callable[[str], None] | None = None,
) -> ArmsRecord:
    """Run every arm in the ranks of this launch and take their differences.

    Args:
        workload: what a rank does.
        rounds: times that every arm has its turn; six are the fewest whose interval covers 95%, nine the fewest whose
            interval leaves out the smallest and the largest.
        steps: timed in a turn, after one that is not.
        warmup: steps of every arm before the first round, at least 2: DDP's first sends everything at once, and its
            buckets are made anew before the second (with static_graph one step later, so at least 3).
        group: whose ranks average gradients. Default: all.
        create: makes the module of an arm, on this rank's device; called once for each. Default: the workload's.
        source: of batches, without end. Default: the workload's.
        watch: is called with what is measured now, e.g. "round 2 of 6".

    Raises:
        ConfigurationError: fewer rounds, steps or warm-up than that.
    """
    least = 3 if workload.ddp.static_graph else 2
    if min(rounds, steps) < 1 or warmup < least:
        raise ConfigurationError(
            f"{rounds} rounds, {steps} steps, {warmup} warm-up: expected at least 1, 1 and {least}"
        )
    ranks = RankClock(device_of(workload))
    create = create or (lambda: create_model(workload))
    source = source or batch_stream(workload, ranks.rank, ranks.size)
    options, device = workload.ddp, ranks.device

    def step_of(model: nn.Module) -> Step:
        return training_step(workload, model)

    ddp = step_of(wrap(create(), options, group))
    bare = step_of(create())
    inner = create()
    broadcast = buffer_broadcasts(inner) if options.sync_buffers == "every-forward" else ()
    without_buffers = step_of(wrap(create(), without_buffers_sent(options), group)) if broadcast else None

    silent_clock = BucketClock(device, group, communicate=False)
    silent_step = step_of(silent_ddp(create(), options, silent_clock, group))
    silent = _Watched(silent_step, silent_clock)

    clock = BucketClock(device, group)
    watched_ddp = wrap(inner, options, group)
    watched_ddp.register_comm_hook(None, clock.hook)
    if broadcast:
        clock.watch(inner)
    watched = _Watched(step_of(watched_ddp), clock)

    everything: list[Step] = [ddp, bare, silent, watched, *([without_buffers] if without_buffers else [])]
    if watch is not None:
        watch("warm-up")
    for step in everything:
        for batch in itertools.islice(source, warmup):
            step(batch)
    sizes = tuple(size for size, _, _ in watched.seen[-1][1])
    parts: list[tuple[Op, int]] = [("broadcast", size) for size in broadcast] + [("all_reduce", s) for s in sizes]
    alone = [collective(op, size, device, group)[0] for op, size in parts] if ranks.size > 1 else []
    for collect in alone:
        collect()

    taken: dict[str, list[Paced]] = {name: [] for name in ("ddp", "silent", "bare", "waiting", "no buffers")}
    free: dict[str, list[float]] = {name: [] for name in ("ddp", "silent", "bare")}
    parts_alone: list[list[float]] = [[] for _ in parts]
    isolated: list[float] = []
    ready: list[NDArray[np.float64]] = []
    inside: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def take(name: str, step: Step, *, barrier_after: bool = False) -> None:
        taken[name].append(paced(ranks, step, source, steps, barrier_after=barrier_after))

    def take_silent() -> None:
        take("silent", silent)
        ready.append(silent.table(ranks, steps)[1])

    def take_watched() -> None:
        paced(ranks, watched, source, steps)
        forward, times, _ = watched.table(ranks, steps)
        inside.append((forward, times))

    def take_free(name: str, step: Step) -> None:
        free[name].append(free_running(ranks, step, source, steps).step)

    def take_isolated() -> None:
        if alone:
            each = [_alone(ranks, collect, steps) for collect in alone]
            for times, found in zip(parts_alone, each, strict=True):
                times.append(float(np.median(found)))
            isolated.append(float(np.median(np.sum(each, axis=0))))

    turns: list[Callable[[], None]] = [
        lambda: take("ddp", ddp),
        take_silent,
        lambda: take("bare", bare),
        take_isolated,
        lambda: take("waiting", silent, barrier_after=True),
        take_watched,
        lambda: take_free("ddp", ddp),
        lambda: take_free("silent", silent_step),
        lambda: take_free("bare", bare),
    ]
    if without_buffers:
        turns.append(lambda: take("no buffers", without_buffers))
    for i in range(rounds):
        if watch is not None:
            watch(f"round {i + 1} of {rounds}")
        shift = i % len(turns)
        for turn in turns[shift:] + turns[:shift]:
            turn()

    a, b, d = ([p.slowest for p in taken[name]] for name in ("ddp", "silent", "bare"))
    exposed = _difference(a, b)
    total = summarize(isolated) if isolated else None
    in_situ: Summary | None = None
    union: Summary | None = None
    collectives: tuple[CollectiveTime, ...] = ()
    if ranks.size > 1:
        # On the rank that arrives last nothing waits for others: the least over ranks, step by step.
        tails = [float(np.median((t[..., 1].max(2) - t[:, :, -1, 0]).min(0) + forward.min(0))) for forward, t in inside]
        in_situ = summarize(tails)
        union = summarize(
            [
                float(np.median([min(_union(t[r, s]) for r in range(ranks.size)) for s in range(steps)]))
                for _, t in inside
            ]
        )
        collectives = tuple(
            CollectiveTime(
                "all_reduce",
                size,
                summarize([float(np.median((t[:, :, i, 1] - t[:, :, i, 0]).min(0))) for _, t in inside]),
                start=float(np.median([np.median(t[:, :, i, 0].max(0)) for _, t in inside])),
            )
            for i, size in enumerate(sizes)
        )
    return ArmsRecord(
        world_size=ranks.size,
        threads_per_rank=torch.get_num_threads(),
        backend="nccl" if device.type == "cuda" else "gloo",
        rounds=rounds,
        steps=steps,
        ddp=summarize(a),
        silent=summarize(b),
        bare=summarize(d),
        buckets=tuple(
            Bucket(size, float(np.median([np.median(t[:, :, i, 0].max(0)) for t in ready])))
            for i, size in enumerate(sizes)
        ),
        isolated=total,
        free_running=summarize(free["ddp"]),
        compute=summarize([p.fastest for p in taken["bare"]]),
        imbalance=summarize([p.slowest - p.fastest for p in taken["bare"]]),
        skew=summarize([p.skew for p in taken["waiting"]]),
        data_wait=summarize([p.data_wait for p in taken["ddp"]]),
        wrapper_tax=_difference(b, d),
        exposed=exposed,
        exposed_in_situ=in_situ,
        buffers=_difference(a, [p.slowest for p in taken["no buffers"]]) if without_buffers else None,
        overlap=1 - exposed.median / total.median if total and total.median > 0 else None,
        collectives_alone=tuple(
            CollectiveTime(op, size, summarize(times))
            for (op, size), times in zip(parts, parts_alone, strict=True)
            if times
        ),
        collectives_in_situ=collectives,
        in_situ_union=union,
        disagreement=_disagreement(exposed, in_situ) if in_situ else None,
        steps_timed=rounds * steps * (len(turns) - 1),
        silent_free=summarize(free["silent"]),
        bare_free=summarize(free["bare"]),
        jitter=summarize([p.jitter for p in taken["bare"]]),
        slow_steps=summarize([p.slow_steps for p in taken["ddp"]]),
        hosts=ranks.hosts,
    )

"""Times of steps, collectives and matrix products, and how large a batch fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoscale.scaling._measure.records.base import Op, RankGroup, Status, Summary, Workload

__all__ = [
    "ArmsRecord",
    "Bucket",
    "CapacityRecord",
    "CapacityTrial",
    "CollectiveTime",
    "EpochTime",
    "PeakRecord",
    "PeakRow",
]


@dataclass(frozen=True)
class EpochTime:
    """A fixed number of steps, timed as one run, and what an epoch takes at that rate.

    The clock starts after barrier and synchronization, stops after synchronization; the slowest rank counts.
    """

    arm: Literal["bare", "ddp", "silent"]
    workload: Workload
    world_size: int
    threads_per_rank: int
    steps: int
    """Timed, after the warm-up."""
    repeats: int
    """Runs of so many steps in the same processes."""
    step: Summary
    """Seconds per step, data wait included; one value per run."""
    data_wait: Summary
    """Part of that spent waiting for the next batch; one value per run, of the rank that waited longest."""
    samples_per_second: float
    """Over all ranks, of the median step."""
    epoch_samples: int
    """Training images of the data set, all ranks together."""
    steps_per_epoch: int
    """ceil(images / (batch size × world size))."""
    epoch_seconds: float
    """steps_per_epoch × median step; its last batch, which may be smaller, is taken as full."""
    peak_memory_bytes: int | None
    """Largest of all ranks: of the GPU's allocator, or the process's largest resident set."""
    flops_per_step: int | None
    """Floating-point operations of one rank's forward and backward pass, multiplications and additions."""
    rank_seconds: tuple[float, ...] = ()
    """Seconds per step of each rank, data wait included: median of runs; empty in earlier records."""
    slowest_ranks: tuple[int, ...] = ()
    """The slowest rank of each run; empty in earlier records."""
    rank_cores: tuple[tuple[int, ...], ...] = ()
    """Numbers of the cores that each rank may run on; empty on a GPU and in earlier records."""
    rank_waits: tuple[float, ...] = ()
    """Seconds per step that each rank waits inside DDP, for communication and for other ranks, in the run with the
    median step; empty for the bare module and in earlier records."""
    least_wait: float | None = None
    """The same on the rank that waits least, which arrives last and waits for no other rank: the mean over the steps of
    that run. None for the bare module and in earlier records."""
    hosts: int = 1
    """That the ranks run on, an equal number on each."""

    @property
    def group(self) -> RankGroup:
        """The ranks and their hosts."""
        return RankGroup(self.world_size, self.hosts)


@dataclass(frozen=True)
class Bucket:
    """A gradient bucket in a step without communication."""

    bytes: int
    ready: float
    """Seconds from the start of the step until its last gradient is there."""


@dataclass(frozen=True)
class CollectiveTime:
    """One collective, alone or inside a step."""

    op: Op
    bytes: int
    seconds: Summary
    """Alone: of the slowest rank. In a step: of the rank that arrived last, which waits for no one."""
    start: float | None = None
    """Median offset of that rank's call from the start of the step; None where timed alone."""


@dataclass(frozen=True)
class ArmsRecord:
    """Where the time of a data-parallel step goes.

    A Summary has one value per round: the median over a round's steps; differences are taken within a round.
    Rows add up: ``compute + imbalance + wrapper_tax + exposed = ddp``, each a median of its own.
    """

    world_size: int
    threads_per_rank: int
    backend: str
    rounds: int
    steps: int
    """Per round and arm."""
    ddp: Summary
    """Arm A, DDP as it is: seconds per step of the slowest rank, from the moment all ranks have their batch."""
    silent: Summary
    """Arm B, DDP without any communication, likewise."""
    bare: Summary
    """Arm D, the bare module, likewise."""
    buckets: tuple[Bucket, ...]
    """Gradient buckets, and when they are ready in arm B, on the slowest rank."""
    isolated: Summary | None
    """Arm R: a step's collectives on their own, one after the other, nothing else running; None at one rank."""
    free_running: Summary
    """DDP without a barrier between steps, data wait included: what an epoch is made of. Unlike the arms, whose value
    of a round is a median, it is the mean of a round's steps."""
    compute: Summary
    """Arm D of the fastest rank."""
    imbalance: Summary
    """Arm D of the slowest rank less that of the fastest."""
    skew: Summary
    """Arm B followed by a barrier: how long the first to arrive waits for the last."""
    data_wait: Summary
    """Seconds asking for a batch, before the step, of the rank that waits longest."""
    wrapper_tax: Summary
    """B - D."""
    exposed: Summary
    """A - B: communication that the step waits for."""
    exposed_in_situ: Summary | None
    """The same seen from inside: from the last bucket's start to its end, on the rank that arrives last."""
    buffers: Summary | None
    """Part of exposed that goes away when buffers are not broadcast; None where they are not."""
    overlap: float | None
    """1 - exposed / isolated; below 0 when communication costs more inside a step than alone. None at one rank."""
    collectives_alone: tuple[CollectiveTime, ...]
    collectives_in_situ: tuple[CollectiveTime, ...]
    """Gradient buckets, in order, as an instrumented DDP arm saw them."""
    in_situ_union: Summary | None
    """Seconds of a step with at least one gradient bucket under way, least over ranks; None at one rank."""
    disagreement: str | None
    """One sentence where differencing and in-situ differ by more than their intervals; None where they agree."""
    steps_timed: int
    """All arms and rounds together."""
    silent_free: Summary | None = None
    """Arm B without a barrier between steps, as ``free_running``; None in earlier records."""
    bare_free: Summary | None = None
    """Arm D without a barrier between steps, as ``free_running``; None in earlier records."""
    jitter: Summary | None = None
    """What it costs the module alone that every step waits for the slowest rank of that step: the mean over steps of
    the slowest rank's time less the slowest rank's mean time; None in earlier records."""
    slow_steps: Summary | None = None
    """Arm A: the mean over a round's steps less their median, which steps that take far longer do not change; None in
    earlier records."""
    hosts: int = 1
    """That the ranks run on, an equal number on each."""

    @property
    def group(self) -> RankGroup:
        """The ranks and their hosts."""
        return RankGroup(self.world_size, self.hosts)


@dataclass(frozen=True)
class PeakRow:
    """A square matrix product."""

    size: int
    seconds: Summary
    flops_per_second: float
    """2 size³ / median seconds."""


@dataclass(frozen=True)
class PeakRecord:
    """How fast this device multiplies matrices at best, measured."""

    device: str
    precision: Literal["fp32", "tf32", "bf16"]
    threads: int
    """Of the processor; 1 on a GPU."""
    rows: tuple[PeakRow, ...]
    flops_per_second: float
    """The best row's."""


@dataclass(frozen=True)
class CapacityTrial:
    """One batch size tried in fresh processes."""

    batch_size: int
    status: Status
    seconds: float
    peak_memory_bytes: int | None
    message: str = ""


@dataclass(frozen=True)
class CapacityRecord:
    """The largest batch that fits."""

    workload: Workload
    world_size: int
    memory_limit_bytes: int | None
    """Of each process's private memory; None: what the device has."""
    largest: int | None
    """None: not even the smallest tried fits."""
    reached_limit: bool
    """Whether the search stopped at its own upper end, not at the memory's."""
    trials: tuple[CapacityTrial, ...]
    """In the order they ran."""
    ended: bool = True
    """False: there was no time to look for a larger one."""

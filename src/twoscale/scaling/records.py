"""What the scaling measurements leave behind: frozen dataclasses of plain values, written and read as JSON.

Times are seconds, sizes bytes, rates bytes or samples per second, all said in the names or beside them. ``None``
means "not applicable" or "not measured", never zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from twoscale.errors import ConfigurationError, TwoscaleError

__all__ = [
    "ArmsRecord",
    "BandwidthRecord",
    "BandwidthRow",
    "Bucket",
    "BucketTime",
    "CapacityRecord",
    "CapacityTrial",
    "Cell",
    "CollectiveSample",
    "CollectiveTime",
    "DdpOptions",
    "EpochTime",
    "Forecast",
    "Interval",
    "LedgerEntry",
    "LedgerRecord",
    "Link",
    "LinkModel",
    "Op",
    "Outcome",
    "PeakRecord",
    "PeakRow",
    "ReplicaCase",
    "ReplicaStep",
    "ReplicasRecord",
    "SamplerRecord",
    "Summary",
    "Workload",
    "decode",
]

T = TypeVar("T")

Op = Literal["all_reduce", "broadcast", "all_gather", "reduce_scatter"]
"""The collectives that are counted and timed."""


def decode(values: object, kind: type[T]) -> T:
    """Turn plain JSON values into a record.

    Raises:
        ConfigurationError: they do not make one; the message names the field.
    """
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


@dataclass(frozen=True)
class Interval:
    """A confidence interval that says how much it covers."""

    low: float
    high: float
    coverage: float
    """Probability that such intervals hold the true value, 0..1."""

    def overlaps(self, other: Interval) -> bool:
        """Whether the two share a value."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Summary:
    """Measured values of one quantity."""

    n: int
    median: float
    mean: float
    deviation: float | None
    """Sample standard deviation; None for a single value."""
    min: float
    max: float
    p95: float
    """95th percentile, nearest rank."""
    median_interval: Interval
    """Assumes nothing of the distribution; with few values its coverage is below 95% and says so."""
    mean_interval: Interval | None
    """Student's; None for a single value."""


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class DdpOptions:
    """How DistributedDataParallel is set up; the defaults are PyTorch's.

    Raises:
        ConfigurationError: a bucket size that is not positive.
    """

    bucket_cap_mb: float | None = None
    """Largest bucket, MiB. Default: 1 for the first bucket, 25 for the rest."""
    sync_buffers: Literal["every-forward", "at-start", "never"] = "every-forward"
    """When rank 0's buffers replace those of the others. "never": not at construction either."""
    init_sync: bool = True
    """Whether construction checks shapes and broadcasts rank 0's parameters (and buffers)."""
    find_unused_parameters: bool = False
    """Whether each forward pass is searched for parameters that it left out."""
    static_graph: bool = False
    """Whether the same parameters are used in every step."""

    def __post_init__(self) -> None:
        if self.bucket_cap_mb is not None and not self.bucket_cap_mb > 0:
            raise ConfigurationError(f"bucket_cap_mb is {self.bucket_cap_mb}; expected a positive number of MiB")


@dataclass(frozen=True)
class Workload:
    """A training step to measure: the model, its batch, and what it runs on.

    Raises:
        ConfigurationError: a number outside its range.
    """

    model: str = "net"
    """Name of the model."""
    data: str = "synthetic"
    """Name of the data set, or "synthetic": random 32×32 images in 10 classes."""
    batch_size: int = 32
    """Images a rank takes in one step."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Each rank takes one GPU, or its share of the processor's cores."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; parameters and gradients stay fp32."""
    channels_last: bool = False
    """Memory layout of images and of convolutions' weights."""
    lr: float = 0.01
    """Learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    seed: int = 0
    """Decides initial weights, synthetic images and order."""
    ddp: DdpOptions = DdpOptions()
    """How the data-parallel arms are wrapped."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigurationError(f"batch_size is {self.batch_size}; expected at least 1")
        if self.seed < 0:
            raise ConfigurationError(f"seed is {self.seed}; expected at least 0")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigurationError(f"lr is {self.lr}; expected a positive number")


@dataclass(frozen=True)
class Outcome:
    """What became of a launch: a result, or the reason why there is none. A failure is a result too."""

    status: Literal["ok", "out-of-memory", "crash", "time-out"]
    seconds: float
    """From start to the end of the last process."""
    world_size: int
    threads_per_rank: int
    result: Any = None
    """What the function returned on rank 0, as plain JSON values."""
    message: str = ""
    """Why it failed, one line."""
    log_tail: str = ""
    """The end of what the processes printed, where it failed."""

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.status == "ok"

    def record(self, kind: type[T]) -> T:
        """Return the result as a record.

        Raises:
            TwoscaleError: the launch failed.
        """
        if not self.ok:
            raise TwoscaleError(f"no measurement ({self.status}): {self.message}")
        return decode(self.result, kind)


# ---------------------------------------------------------------- times


@dataclass(frozen=True)
class EpochTime:
    """A fixed number of steps, timed as one run, and what an epoch takes at that rate.

    The clock starts after barrier and synchronization, stops after synchronization; the slowest rank counts.
    """

    arm: Literal["bare", "ddp"]
    workload: Workload
    world_size: int
    threads_per_rank: int
    steps: int
    """Timed, after the warm-up."""
    repeats: int
    """Runs of so many steps, one after the other in the same processes."""
    step: Summary
    """Seconds a step of a run, data wait included; one value a run."""
    data_wait: Summary
    """Seconds of that spent asking for the next batch; one value a run, the rank that waited longest."""
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

    Values of a Summary are one a round: the median over a round's steps; differences are taken within a round.
    Rows add up: ``compute + imbalance + wrapper_tax + exposed = ddp``, each a median of its own.
    """

    world_size: int
    threads_per_rank: int
    backend: str
    rounds: int
    steps: int
    """Per round and arm."""
    ddp: Summary
    """Arm A, DDP as it is: seconds a step of the slowest rank, from the moment all ranks have their batch."""
    silent: Summary
    """Arm B, DDP without any communication, likewise."""
    bare: Summary
    """Arm D, the bare module, likewise."""
    buckets: tuple[Bucket, ...]
    """Gradient buckets, and when they are ready in arm B, on the slowest rank."""
    isolated: Summary | None
    """Arm R: a step's collectives on their own, one after the other, nothing else running; None at one rank."""
    free_running: Summary
    """DDP without a barrier between steps, data wait included: what an epoch is made of."""
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


# ---------------------------------------------------------------- the wire


@dataclass(frozen=True)
class LedgerEntry:
    """One collective that DDP starts."""

    phase: str
    """"construction", "forward 1", "backward 1", ..., counted in mini-batches."""
    op: Op
    what: str
    """E.g. "parameters and buffers", "gradients", "bucket indices"."""
    dtype: str
    bytes: int
    """Of the tensor that each rank puts in."""


@dataclass(frozen=True)
class LedgerRecord:
    """What DDP puts on the wire, predicted, and observed where it was."""

    model: str
    world_size: int
    options: DdpOptions
    mini_batches: int
    accumulation: int
    """Mini-batches an optimizer step is made of; all but the last run under ``no_sync``."""
    parameters: int
    parameter_tensors: int
    parameter_bytes: int
    buffer_bytes: int
    predicted: tuple[LedgerEntry, ...]
    observed: tuple[LedgerEntry, ...] | None
    differences: tuple[str, ...]
    """One line for each entry that is not as predicted."""
    sent_bytes: tuple[int, ...] | None
    """Per rank: payload that gloo's algorithms send to other ranks for all of it; None for other backends."""

    @property
    def ok(self) -> bool:
        """Observed, and equal to the prediction entry by entry."""
        return self.observed is not None and not self.differences

    def total(self, phase: str, op: str | None = None) -> int:
        """Return the predicted bytes of a phase, of one operation or of all."""
        return sum(e.bytes for e in self.predicted if e.phase == phase and op in (None, e.op))


@dataclass(frozen=True)
class BandwidthRow:
    """One collective at one size. Sizes and factors are those of nccl-tests."""

    op: Op
    bytes: int
    """all_reduce, broadcast: the tensor; all_gather: the output; reduce_scatter: the input."""
    seconds: Summary
    """Of the slowest rank."""
    algbw: float
    """bytes / median seconds."""
    busbw: float | None
    """algbw times the operation's factor; None at one rank, where nothing is sent."""
    busbw_p95: float | None
    """From the 95th percentile of the times."""


@dataclass(frozen=True)
class BandwidthRecord:
    """Bandwidth of collectives with nothing else running."""

    world_size: int
    backend: str
    rows: tuple[BandwidthRow, ...]
    left_out: tuple[int, ...]
    """Sizes, all operations, that the time budget did not reach."""


# ---------------------------------------------------------------- replicas


@dataclass(frozen=True)
class ReplicaStep:
    """The replicas after one step."""

    step: int
    """0 is before the first."""
    parameters: tuple[str, ...]
    """Hash per rank."""
    buffers: tuple[str, ...]
    """Hash per rank at the end of the step; empty strings where the model has none."""
    buffers_in_forward: tuple[str, ...]
    """Hash per rank as the forward pass begins, after any broadcast."""


@dataclass(frozen=True)
class ReplicaCase:
    """One way of starting and keeping replicas, and whether they stayed the same."""

    same_seed: bool
    initial_broadcast: bool
    buffers_broadcast: bool
    steps: tuple[ReplicaStep, ...]
    parameters_equal: bool
    """On all ranks after every step, the start included."""
    buffers_equal: bool | None
    """Likewise at the end of every step; None where the model has none."""
    buffers_equal_in_forward: bool | None
    """Likewise as every forward pass begins."""


@dataclass(frozen=True)
class ReplicasRecord:
    """Would gradients alone do?"""

    model: str
    world_size: int
    cases: tuple[ReplicaCase, ...]


@dataclass(frozen=True)
class SamplerRecord:
    """Orders in which a sharded sampler visits a data set."""

    samples: int
    world_size: int
    epochs: int
    seed: int
    set_epoch: bool
    orders: tuple[tuple[tuple[int, ...], ...], ...]
    """[epoch][rank]: indices in order."""
    order_changes: bool
    """Whether no two epochs have the same order."""
    covers: bool
    """Whether the ranks together visit every sample in every epoch."""
    repeated: int
    """Samples visited more than once in an epoch: the padding that makes shards equal."""


# ---------------------------------------------------------------- forecast


@dataclass(frozen=True)
class Link:
    """What the ranks talk over."""

    name: str
    """E.g. "loopback", "nvlink", "10 Gbit Ethernet". A forecast never crosses from one name to another."""
    bytes_per_second: float | None = None
    """Nominal rate of each direction, where it is known."""


@dataclass(frozen=True)
class CollectiveSample:
    """One timed collective, for the fit."""

    op: Op
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Cell:
    """One measured configuration, as the forecast takes it."""

    world_size: int
    batch_size: int
    """Per rank."""
    link: Link
    compute: float
    """Seconds a step of DDP without communication, arm B."""
    step: float
    """Seconds a step of DDP, arm A: what a forecast is held against."""
    buckets: tuple[Bucket, ...]
    broadcasts: tuple[int, ...] = ()
    """Bytes of each broadcast that the forward pass waits for (buffers)."""
    collectives: tuple[CollectiveSample, ...] = ()
    """Collectives timed alone with these ranks over this link."""


@dataclass(frozen=True)
class LinkModel:
    """What a collective takes over a link: t = A(n) α + F(n) S (fixed + per_rate / rate).

    A and F are the algorithm's: messages one after the other, and the share of S that each rank sends.
    """

    link: str
    algorithm: Literal["ring", "tree"]
    latency: float
    """α: seconds that a message takes besides its bytes."""
    fixed: float
    """Seconds a byte, whatever the link's nominal rate."""
    per_rate: float
    """Bytes on the wire for a byte of payload; 0 where the nominal rate was not varied, and ``fixed`` holds all."""
    rates: tuple[float, float] | None
    """Smallest and largest nominal rate among the measurements, bytes per second; None where it is not known."""
    residual: float
    """Root mean square of (fitted / measured - 1) over the measurements."""
    samples: int


@dataclass(frozen=True)
class BucketTime:
    """A bucket in a forecast step, seconds from its start."""

    bytes: int
    ready: float
    start: float
    end: float


@dataclass(frozen=True)
class Forecast:
    """A predicted step."""

    world_size: int
    batch_size: int
    link: Link
    model: LinkModel | None
    """None at one rank, where nothing is sent."""
    compute: float
    communication: float
    """All collectives of the step, one after the other."""
    exposed: float
    """Part of it that the step waits for."""
    step: float
    buckets: tuple[BucketTime, ...]
    fitted_on: int
    """Cells."""
    measured: float | None = None
    """The step's measured time, where this was held out from the fit."""
    error: float | None = None
    """step / measured - 1."""


# ---------------------------------------------------------------- peak and memory


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
    status: str
    """"ok", "out-of-memory", "crash" or "time-out"."""
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

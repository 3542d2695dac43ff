"""Workloads and their options, what became of a launch, and summaries of measured values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import msgspec

from twoscale import data
from twoscale.data import Preprocessing
from twoscale.errors import ConfigurationError, TwoscaleError

__all__ = ["DdpOptions", "Interval", "Op", "Outcome", "RankGroup", "Status", "Summary", "Workload", "decode", "is_own"]

T = TypeVar("T")
R = TypeVar("R")

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


Status = Literal["ok", "out-of-memory", "crash", "time-out"]
"""How a launch ended."""


def is_own(name: str) -> bool:
    """Whether ``name`` says where pictures of the user's own are, instead of naming a data set."""
    return name != "synthetic" and name not in data.names()


@dataclass(frozen=True, order=True)
class RankGroup:
    """A number of ranks on a number of hosts, equally many on each."""

    world_size: int
    hosts: int = 1

    @property
    def ranks_per_host(self) -> int:
        """Ranks on each host."""
        return self.world_size // self.hosts

    def __str__(self) -> str:
        ranks = f"{self.world_size} rank{'' if self.world_size == 1 else 's'}"
        return ranks if self.hosts == 1 else f"{ranks} on {self.hosts} hosts"


@dataclass(frozen=True)
class Interval:
    """A confidence interval with its coverage."""

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
    """Name of the data set, or where pictures of your own are, or "synthetic": random 32×32 images in 10 classes."""
    batch_size: int = 32
    """Images per rank and step."""
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
    preprocessing: Preprocessing | None = None
    """From picture files to pixels, of pictures of your own."""
    model_args: str | None = None
    """Options of the model, as name=value,name=value."""
    own_step: bool = False
    """Whether the model is a step of the user's own, with its loss, optimizer and loader."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigurationError(f"batch_size is {self.batch_size}; expected at least 1")
        if self.seed < 0:
            raise ConfigurationError(f"seed is {self.seed}; expected at least 0")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigurationError(f"lr is {self.lr}; expected a positive number")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """The outcome of a launch: a result, or the reason for the failure. A failure is recorded too."""

    status: Status
    seconds: float
    """From start to the end of the last process."""
    world_size: int
    threads_per_rank: int
    result: R | None = None
    """What the function returned on rank 0."""
    message: str = ""
    """Why it failed, one line."""
    log_tail: str = ""
    """The end of what the processes printed, where it failed."""

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.status == "ok"

    @property
    def value(self) -> R:
        """The result.

        Raises:
            TwoscaleError: the launch failed.
        """
        if not self.ok:
            raise TwoscaleError(f"no measurement ({self.status}): {self.message}")
        return self.result  # type: ignore[return-value]

    def decoded(self, kind: type[T]) -> Outcome[T]:
        """Return the same outcome with its result, plain JSON values, as a record."""
        return replace(self, result=decode(self.result, kind) if self.ok else None)  # type: ignore[arg-type, return-value]

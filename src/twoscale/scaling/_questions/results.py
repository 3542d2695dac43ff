"""The answers of a study: what ``study.json`` holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoscale._environment import Environment
from twoscale.scaling._measure.records import (
    ArmsRecord,
    BandwidthRecord,
    CapacityRecord,
    EpochTime,
    Forecast,
    LedgerRecord,
    PeakRecord,
    ReplicasRecord,
    SamplerRecord,
    Summary,
)
from twoscale.scaling._study.config import StudyConfig

__all__ = [
    "AccuracyRow",
    "ArmsAt",
    "BatchRow",
    "Cause",
    "CellFailure",
    "OrderRow",
    "SpeedRow",
    "StudyResults",
    "Verdict",
]


@dataclass(frozen=True)
class BatchRow:
    """One batch size on one device with all its cores, the bare module."""

    batch_size: int
    epoch: Summary | None
    """Seconds of an epoch, one value a launch; None: it failed."""
    samples_per_second: float | None
    """At the mean step of the launches."""
    data_wait: float | None
    """Share of the step spent asking for its batch, 0..1; median over launches."""
    peak_memory_bytes: int | None
    """Median over launches."""
    flops_per_second: float | None
    """Floating-point operations of forward and backward pass, by the mean step of the launches."""
    of_peak: float | None
    """Of the device's measured matrix rate, 0..1."""
    message: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class SpeedRow:
    """A number of ranks against the bare module on one of them."""

    scaling: Literal["bare", "ddp-alone", "apart", "weak", "strong"]
    """bare: T₁. ddp-alone: DDP at one rank. apart: bare modules on all ranks, which never talk. weak: DDP, the batch of
    a rank stays. strong: DDP, the batch of all ranks stays."""
    world_size: int
    batch_size: int
    """Per rank."""
    threads_per_rank: int
    step: Summary
    """Seconds, one value a launch."""
    epoch: Summary
    """Seconds, one value a launch."""
    speedup: Summary | None
    """T₁ / Tₙ of epochs, launches of a round paired; None for T₁ itself."""
    efficiency: Summary | None
    """Speed-up / ranks."""


@dataclass(frozen=True)
class ArmsAt:
    """The arms at one number of ranks and batch."""

    batch_size: int
    """Per rank."""
    record: ArmsRecord


@dataclass(frozen=True)
class AccuracyRow:
    """One way to train, over several seeds."""

    way: str
    title: str
    batch_size: int
    equal: Literal["epochs", "steps"]
    """What it has in common with the small batch."""
    rate: float
    """Learning rate that was set."""
    epochs: int
    steps: int | None
    accuracies: tuple[float | None, ...]
    """Of the test images, one a seed, 0..1; None: the loss became infinite."""
    accuracy: Summary | None
    against_small: Summary | None
    """Difference to the small batch at the same seed."""


@dataclass(frozen=True)
class OrderRow:
    """The sampler over a whole data set."""

    set_epoch: bool
    same_place: tuple[float, ...]
    """By epoch: share of places that have the same image as in the first, 0..1."""
    record: SamplerRecord
    """Without its orders."""


@dataclass(frozen=True)
class Cause:
    """What part of a step's growth a cause has."""

    name: Literal["latency", "bandwidth", "last bucket", "buffers", "data", "cores", "wrapper"]
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
    """Seconds of the loss that no cause has; below 0 where causes overlap."""
    sentence: str


@dataclass(frozen=True)
class CellFailure:
    """A cell that has no result."""

    name: str
    what: str
    status: str
    message: str


@dataclass(frozen=True)
class StudyResults:
    """study.json: the answers in the order of the questions; what was not measured is empty or None."""

    config: StudyConfig
    environment: Environment
    complete: bool
    """Whether no cell was left out for want of time."""
    sentences: dict[str, str]
    """Section to its answer."""
    verdict: Verdict | None
    capacity: CapacityRecord | None
    peak: PeakRecord | None
    batches: tuple[BatchRow, ...]
    batch_times: tuple[EpochTime, ...]
    """Of section 1, one a batch size and launch."""
    speed: tuple[SpeedRow, ...]
    arms: tuple[ArmsAt, ...]
    bandwidth: tuple[BandwidthRecord, ...]
    accuracy: tuple[AccuracyRow, ...]
    orders: tuple[OrderRow, ...]
    shown_orders: tuple[SamplerRecord, ...]
    """A few images' orders, without and with the epoch."""
    ledgers: tuple[LedgerRecord, ...]
    replicas: tuple[ReplicasRecord, ...]
    held_out: tuple[Forecast, ...]
    forecasts: tuple[Forecast, ...]
    refused: tuple[str, ...]
    """Forecasts that no measurement covers, and why."""
    failures: tuple[CellFailure, ...]
    left_out: tuple[str, ...]
    """Cells there was no time for."""
    seconds: float
    """That all cells took together."""
    loads: tuple[float, float] | None
    """Smallest and largest load of the machine as cells began."""
    gpus: tuple[str, ...] = ()
    """Names of those that ranks ran on, rank 0's first; empty on a processor."""

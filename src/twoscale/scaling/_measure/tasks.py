"""The tasks of ranks and their results: the types on both sides of a launch.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoscale.scaling._measure.records import (
    ArmsRecord,
    BandwidthRecord,
    EpochTime,
    LargeBatchRecord,
    LedgerRecord,
    Op,
    OptimizerRecord,
    OrderRow,
    PeakRecord,
    ReplicasRecord,
    SamplerRecord,
    StrategyRecord,
    VariantRecord,
    Workload,
)
from twoscale.training import TrainConfig

__all__ = [
    "Arm",
    "ArmsResult",
    "ArmsTask",
    "BandwidthTask",
    "BatchTrial",
    "BatchesResult",
    "BatchesTask",
    "BreakdownTask",
    "CapacityTask",
    "CurvePoint",
    "Equal",
    "FitResult",
    "FitTask",
    "LoadingTask",
    "NoiseResult",
    "NoiseTask",
    "OptimizersResult",
    "OptimizersTask",
    "RanksTask",
    "StrategiesResult",
    "StrategiesTask",
    "TrainedRun",
    "TrainingRun",
    "TrainingTask",
    "VariantsResult",
    "VariantsTask",
    "WireResult",
    "WireTask",
]

Arm = Literal["bare", "ddp", "silent"]
"""The module alone, in DistributedDataParallel, or in one that sends nothing (for timing only: replicas diverge)."""


Equal = Literal["epochs", "steps"]
"""What a training run has in common with the small batch's."""


@dataclass(frozen=True)
class CapacityTask:
    """Find the largest batch that fits."""

    workload: Workload
    start: int
    """First batch size tried."""


@dataclass(frozen=True)
class FitTask:
    """Train a few steps, to see whether they fit in memory."""

    workload: Workload
    arm: Arm
    steps: int


@dataclass(frozen=True)
class FitResult:
    """Steps that fitted."""

    peak_memory_bytes: int
    """Largest of all ranks."""


@dataclass(frozen=True)
class BatchesTask:
    """Time the bare module at several batch sizes."""

    workload: Workload
    batch_sizes: tuple[int, ...]
    peak: bool
    """Whether the device's matrix rate is measured too."""
    order_seed: int
    steps: int | None = None
    """Of a timed run. Default: by the batch size."""


@dataclass(frozen=True)
class BatchTrial:
    """One batch size."""

    batch_size: int
    record: EpochTime | None
    """None: it did not fit."""
    message: str
    """Why it did not."""


@dataclass(frozen=True)
class BatchesResult:
    """All batch sizes of a launch."""

    rows: tuple[BatchTrial, ...]
    peak: PeakRecord | None


@dataclass(frozen=True)
class RanksTask:
    """Time steps at a number of ranks."""

    workload: Workload
    runs: tuple[tuple[Arm, int], ...]
    """Arm and batch size per rank."""
    order_seed: int
    steps: int | None = None
    """Of a timed run. Default: by the batch size."""


@dataclass(frozen=True)
class ArmsTask:
    """Run the arms at several batch sizes, and collectives alone."""

    workload: Workload
    batch_sizes: tuple[int, ...]
    bandwidth: bool
    """Whether collectives of all sizes are timed too."""
    steps: int | None = None
    """Timed in each turn of an arm. Default: 5."""


@dataclass(frozen=True)
class ArmsResult:
    """The arms, one record per batch size."""

    arms: tuple[ArmsRecord, ...]
    bandwidth: BandwidthRecord | None


@dataclass(frozen=True)
class BandwidthTask:
    """Time collectives with nothing else running."""

    sizes: tuple[int, ...]
    """Bytes."""
    repeats: int
    budget_seconds: float
    ops: tuple[Op, ...] = ("all_reduce",)
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class StrategiesTask:
    """Compare ways to share a step among ranks."""

    workload: Workload
    steps: int | None = None
    """Timed in each turn of a strategy. Default: 5."""
    seeds: int = 3
    """Training runs of DDP, and of each strategy whose update is not DDP's."""


@dataclass(frozen=True)
class LoadingTask:
    """Time a training loop by the number of workers that decode its batches."""

    workload: Workload
    workers: tuple[int, ...]
    steps: int | None = None
    """Of a run. Default: 10."""


@dataclass(frozen=True)
class BreakdownTask:
    """Time the parts of a step; on one rank, its layers and operators too."""

    workload: Workload
    steps: int | None = None
    """Default: 12."""


@dataclass(frozen=True)
class VariantsTask:
    """Time a step on one device, compiled or not, in several precisions and memory layouts."""

    workload: Workload
    steps: int | None = None
    """Of a run. Default: 5."""


@dataclass(frozen=True)
class OptimizersTask:
    """Train with every optimizer, and without BatchNorm."""

    workload: Workload
    companion: str
    """A model with BatchNorm, for a workload whose model has none."""
    epochs: int
    seeds: int


@dataclass(frozen=True)
class NoiseTask:
    """Train at several batch sizes, estimate the noise of gradients, and compare remedies."""

    workload: Workload
    batch_sizes: tuple[int, ...]
    epochs: int
    seeds: int


NoiseResult = LargeBatchRecord
VariantsResult = tuple[VariantRecord, ...]
OptimizersResult = tuple[OptimizerRecord, ...]
StrategiesResult = tuple[StrategyRecord, ...]


@dataclass(frozen=True)
class WireTask:
    """Write ledgers, hash replicas and record orders."""

    workload: Workload
    companion: str
    """A model with buffers, measured too where the workload's has none."""
    parts: tuple[str, ...]
    """Some of "sampler", "wire", "replicas"."""
    data: str
    """Name of the data set whose order is recorded."""


@dataclass(frozen=True)
class WireResult:
    """What crosses the wire, replicas, and the sampler's orders."""

    ledgers: tuple[LedgerRecord, ...]
    replicas: tuple[ReplicasRecord, ...]
    orders: tuple[OrderRow, ...]
    shown: tuple[SamplerRecord, ...]
    """The orders of a few images, without and with the epoch."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run whose accuracy is compared."""

    way: str
    """The way to train, by name."""
    config: TrainConfig
    equal: Equal | None = None
    """None in searches for learning rates of earlier versions."""


@dataclass(frozen=True)
class TrainingTask:
    """Train every run."""

    runs: tuple[TrainingRun, ...]


@dataclass(frozen=True)
class CurvePoint:
    """A training run at the end of an epoch."""

    epoch: int
    """From 1."""
    loss: float
    """Mean training loss of the epoch's mini-batches."""
    accuracy: float | None
    """Of the test images, 0..1."""


@dataclass(frozen=True)
class TrainedRun(TrainingRun):
    """A training run and where it ended."""

    accuracy: float | None = None
    """Of the test images, 0..1; None: the loss became infinite."""
    steps: int | None = None
    seconds: float | None = None
    loss: float | None = None
    """Mean training loss of the last epoch."""
    message: str = ""
    """Why there is no accuracy."""
    curve: tuple[CurvePoint, ...] = ()
    """Every epoch; empty in searches for learning rates and in earlier records."""

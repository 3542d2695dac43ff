"""What the scaling measurements leave behind: frozen dataclasses of plain values, written and read as JSON.

Times are seconds, sizes bytes, rates bytes or samples per second; the name or the documentation of a field states its
unit. ``None`` means "not applicable" or "not measured", never zero.

    base        workloads and their options, what became of a launch, summaries of measured values
    times       steps, collectives, matrix products; how large a batch fits
    wire        ledger, bandwidth, replicas, the sampler's orders
    strategies  ways to share a step among ranks
    loading     what a step waits for its batch
    variants    ways to run a step on one device, and optimizers
    noise       how large a batch may be
    breakdown   the parts, layers and operators of a step
"""

from __future__ import annotations

from twoscale.scaling._measure.records.base import (
    DdpOptions,
    Interval,
    Op,
    Outcome,
    RankGroup,
    Status,
    Summary,
    Workload,
    decode,
    is_own,
)
from twoscale.scaling._measure.records.breakdown import (
    BreakdownRecord,
    LayerTime,
    OperatorTime,
    Roofline,
    Span,
    StepPart,
)
from twoscale.scaling._measure.records.loading import LoadingRecord, LoadingRow
from twoscale.scaling._measure.records.noise import BatchRun, GradientNoise, LargeBatchRecord, Remedied
from twoscale.scaling._measure.records.strategies import DATA_PARALLEL, HeldMemory, StrategyRecord
from twoscale.scaling._measure.records.times import (
    ArmsRecord,
    Bucket,
    CapacityRecord,
    CapacityTrial,
    CollectiveTime,
    EpochTime,
    PeakRecord,
    PeakRow,
)
from twoscale.scaling._measure.records.variants import OptimizerRecord, VariantRecord
from twoscale.scaling._measure.records.wire import (
    BandwidthRecord,
    BandwidthRow,
    LedgerEntry,
    LedgerRecord,
    OrderRow,
    ReplicaCase,
    ReplicasRecord,
    ReplicaStep,
    SamplerRecord,
)

__all__ = [
    "DATA_PARALLEL",
    "ArmsRecord",
    "BandwidthRecord",
    "BandwidthRow",
    "BatchRun",
    "BreakdownRecord",
    "Bucket",
    "CapacityRecord",
    "CapacityTrial",
    "CollectiveTime",
    "DdpOptions",
    "EpochTime",
    "GradientNoise",
    "HeldMemory",
    "Interval",
    "LargeBatchRecord",
    "LayerTime",
    "LedgerEntry",
    "LedgerRecord",
    "LoadingRecord",
    "LoadingRow",
    "Op",
    "OperatorTime",
    "OptimizerRecord",
    "OrderRow",
    "Outcome",
    "PeakRecord",
    "PeakRow",
    "RankGroup",
    "Remedied",
    "ReplicaCase",
    "ReplicaStep",
    "ReplicasRecord",
    "Roofline",
    "SamplerRecord",
    "Span",
    "Status",
    "StepPart",
    "StrategyRecord",
    "Summary",
    "VariantRecord",
    "Workload",
    "decode",
    "is_own",
]

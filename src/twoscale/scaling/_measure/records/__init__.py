"""What the scaling measurements leave behind: frozen dataclasses of plain values, written and read as JSON.

Times are seconds, sizes bytes, rates bytes or samples per second, all said in the names or beside them. ``None``
means "not applicable" or "not measured", never zero.

    base        workloads and their options, what became of a launch, summaries of measured values
    times       steps, collectives, matrix products; how large a batch fits
    wire        ledger, bandwidth, replicas, the sampler's orders
    forecasts   what a forecast is made from, and what it says
"""

from __future__ import annotations

from twoscale.scaling._measure.records.base import DdpOptions, Interval, Op, Outcome, Summary, Workload, decode
from twoscale.scaling._measure.records.forecasts import BucketTime, Cell, CollectiveSample, Forecast, Link, LinkModel
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
from twoscale.scaling._measure.records.wire import (
    BandwidthRecord,
    BandwidthRow,
    LedgerEntry,
    LedgerRecord,
    ReplicaCase,
    ReplicasRecord,
    ReplicaStep,
    SamplerRecord,
)

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

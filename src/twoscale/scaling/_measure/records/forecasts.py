"""What a forecast is made from, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoscale.scaling._measure.records.base import Op
from twoscale.scaling._measure.records.times import Bucket

__all__ = ["BucketTime", "Cell", "CollectiveSample", "Forecast", "Link", "LinkModel"]


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

"""How long collectives take on a link, fitted to measured cells.

    collective       t = A α + F S / B, fitted to collectives timed alone (α–β model; Hockney 1994)
                     all_reduce, ring: A = 2(n-1), F = 2(n-1)/n; tree: A = 2 ⌈log₂ n⌉, F = 2(n-1)/n (two pipelined
                     trees, Sanders, Speck and Träff 2009); broadcast: A = ⌈log₂ n⌉, F = 1

1/B is one number for a link, or, where cells were measured at several nominal rates, a fixed part and a part that
goes with 1/rate: then rates between those measured can be forecast too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import ArmsRecord, Bucket, Op, RankGroup

__all__ = [
    "Algorithm",
    "CollectiveSample",
    "Link",
    "LinkModel",
    "MeasuredStep",
    "check_rate",
    "collective_seconds",
    "fit",
    "given_model",
    "measured_step",
    "non_negative",
]

Algorithm = Literal["ring", "tree"]
_RATE_SLACK = 0.01
"""A nominal rate counts as within the measured ones up to this share beyond them."""


@dataclass(frozen=True)
class Link:
    """The link between the ranks."""

    name: str
    """E.g. "loopback" or "nvlink". A forecast never crosses from one name to another."""
    bytes_per_second: float | None = None
    """Nominal rate of each direction, where it is known."""
    ranks_per_host: int | None = None
    """Of a link between hosts; None: all ranks are on one host."""

    def group(self, world_size: int) -> RankGroup:
        """Return so many ranks over this link, and their hosts."""
        return RankGroup(world_size, world_size // self.ranks_per_host if self.ranks_per_host else 1)


@dataclass(frozen=True)
class CollectiveSample:
    """One timed collective, for the fit."""

    op: Op
    bytes: int
    seconds: float


@dataclass(frozen=True)
class MeasuredStep:
    """One measured configuration, as the forecast takes it."""

    world_size: int
    batch_size: int
    """Per rank."""
    link: Link
    compute: float
    """Seconds per step of DDP without communication, arm B."""
    step: float
    """Seconds per step of DDP, arm A: the value that a forecast is compared with."""
    buckets: tuple[Bucket, ...]
    broadcasts: tuple[int, ...] = ()
    """Bytes of each broadcast that the forward pass waits for (buffers)."""
    collectives: tuple[CollectiveSample, ...] = ()
    """Collectives timed alone with these ranks over this link."""
    exposed: float | None = None
    """Seconds per step that DDP was measured to wait for communication. None: step - compute."""

    @property
    def waits(self) -> float:
        """Seconds per step that DDP was measured to wait for communication; below zero by chance."""
        return self.step - self.compute if self.exposed is None else self.exposed


@dataclass(frozen=True)
class LinkModel:
    """The time of a collective over a link: t = A(n) α + F(n) S (fixed + per_rate / rate).

    A and F are the algorithm's: messages one after the other, and the share of S that each rank sends.
    """

    link: str
    algorithm: Literal["ring", "tree"]
    latency: float
    """α: seconds that a message takes besides its bytes."""
    fixed: float
    """Seconds per byte that do not depend on the link's nominal rate."""
    per_rate: float
    """Bytes on the wire for a byte of payload; 0 where the nominal rate was not varied, and ``fixed`` holds all."""
    rates: tuple[float, float] | None
    """Smallest and largest nominal rate among the measurements, bytes per second; None where it is not known."""
    residual: float
    """Root mean square of (fitted / measured - 1) over the measurements."""
    samples: int


def _exposed(record: ArmsRecord) -> float:
    """Return what a step waits for communication, seconds.

    Differencing and the clock inside the step measure the same where communication does not slow the computing beside
    it. Where they agree, the one with the narrower interval counts; where they do not, the difference has all of it.
    """
    by_difference, inside = record.exposed, record.exposed_in_situ
    if inside is None:
        return by_difference.median
    wide, narrow = by_difference.median_interval, inside.median_interval
    if wide.overlaps(narrow) and narrow.high - narrow.low < wide.high - wide.low:
        return inside.median
    return by_difference.median


def measured_step(
    record: ArmsRecord, batch_size: int, link: Link, more: Sequence[CollectiveSample] = ()
) -> MeasuredStep:
    """Return what the forecast takes from a measurement.

    Args:
        record: of :func:`~twoscale.scaling._measure.arms.measure_arms`.
        batch_size: per rank.
        link: that the ranks talked over.
        more: other collectives timed alone with these ranks over this link, as in a bandwidth record.
    """
    alone = tuple(CollectiveSample(c.op, c.bytes, c.seconds.median) for c in record.collectives_alone)
    return MeasuredStep(
        world_size=record.world_size,
        batch_size=batch_size,
        link=link,
        compute=record.silent.median,
        step=record.ddp.median,
        buckets=record.buckets,
        broadcasts=tuple(c.bytes for c in record.collectives_alone if c.op == "broadcast"),
        collectives=alone + tuple(more),
        exposed=_exposed(record),
    )


def _factors(op: Op, world_size: int, algorithm: Algorithm) -> tuple[float, float]:
    """Return A and F of a collective."""
    n = world_size
    rounds = math.ceil(math.log2(n))
    if op == "broadcast":
        return rounds, 1.0
    messages = 2 * (n - 1) if algorithm == "ring" else 2 * rounds
    share = 2 * (n - 1) / n
    return (messages, share) if op == "all_reduce" else (messages / 2, share / 2)


def _inverse(model: LinkModel, rate: float | None) -> float:
    """Return seconds per byte."""
    return model.fixed + (model.per_rate / rate if rate and model.per_rate else 0.0)


def collective_seconds(model: LinkModel, op: Op, size: int, world_size: int, rate: float | None = None) -> float:
    """Return the time of a collective, seconds.

    Args:
        model: of the link.
        op: which.
        size: bytes, as nccl-tests counts them.
        world_size: at least 1; at 1 nothing is sent.
        rate: the link's nominal bytes per second, where the model knows it.
    """
    if world_size == 1:
        return 0.0
    messages, share = _factors(op, world_size, model.algorithm)
    return messages * model.latency + share * size * _inverse(model, rate)


def non_negative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve least squares with no negative unknown: the best of all choices of unknowns that are not zero."""
    columns = matrix.shape[1]
    best, best_error = np.zeros(columns), float(np.sum(target**2))
    for count in range(1, columns + 1):
        for chosen in itertools.combinations(range(columns), count):
            solution = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            error = float(np.sum((matrix[:, chosen] @ solution - target) ** 2))
            if (solution >= 0).all() and error < best_error * (1 - 1e-9):
                best, best_error = np.zeros(columns), error
                best[list(chosen)] = solution
    return best


def fit(cells: Sequence[MeasuredStep], link: str, algorithm: Algorithm | None = None) -> LinkModel:
    """Fit the α–β model of a link to the collectives timed over it; each counts by its relative error.

    Args:
        cells: cells of other links are ignored.
        link: name.
        algorithm: Default: the one that fits better, the ring where both do alike (as with two ranks only).

    Raises:
        ForecastError: no collective was timed over that link.
    """
    samples = [
        (sample, cell.world_size, cell.link.bytes_per_second)
        for cell in cells
        if cell.link.name == link and cell.world_size > 1
        for sample in cell.collectives
    ]
    if not samples:
        known = sorted({cell.link.name for cell in cells if cell.world_size > 1 and cell.collectives})
        raise ForecastError(
            f"no collective was timed over '{link}', and what holds for one link says nothing of another "
            f"(measured: {', '.join(known) or 'none'}); measure at least 2 ranks over '{link}'"
        )
    rates = [rate for _, _, rate in samples if rate]
    varied = len(rates) == len(samples) and max(rates) > min(rates) * (1 + _RATE_SLACK)
    models = []
    algorithms: tuple[Algorithm, ...] = (algorithm,) if algorithm else ("ring", "tree")
    for name in algorithms:
        rows = []
        for sample, world_size, rate in samples:
            messages, share = _factors(sample.op, world_size, name)
            size = share * sample.bytes
            rows.append([messages, size, *([size / rate] if varied and rate else [])])
        seconds = np.array([sample.seconds for sample, _, _ in samples])
        matrix = np.array(rows, dtype=np.float64) / seconds[:, None]
        # Columns of equal length: bytes and messages differ by many orders of magnitude.
        scale = np.linalg.norm(matrix, axis=0)
        solution = non_negative(matrix / scale, np.ones(len(seconds))) / scale
        residual = float(np.sqrt(np.mean((matrix @ solution - 1) ** 2)))
        models.append(
            LinkModel(
                link=link,
                algorithm=name,
                latency=float(solution[0]),
                fixed=float(solution[1]),
                per_rate=float(solution[2]) if varied else 0.0,
                rates=(min(rates), max(rates)) if len(rates) == len(samples) else None,
                residual=residual,
                samples=len(samples),
            )
        )
    return min(models, key=lambda model: (round(model.residual, 6), model.algorithm))


def check_rate(model: LinkModel, link: Link) -> None:
    """Refuse a rate that the model does not cover."""
    if model.rates is None or link.bytes_per_second is None:
        if (model.rates is None) != (link.bytes_per_second is None):
            raise ForecastError(
                f"the rate of '{link.name}' is known for the {'forecast' if model.rates is None else 'cells'} only; "
                "give it for all or for none"
            )
        return
    low, high = model.rates
    if not low * (1 - _RATE_SLACK) <= link.bytes_per_second <= high * (1 + _RATE_SLACK):
        raise ForecastError(
            f"'{link.name}' at {link.bytes_per_second / 1e6:.1f} MB/s is another link than the one measured at "
            f"{low / 1e6:.1f} to {high / 1e6:.1f} MB/s; measure it at that rate, or on both sides of it"
        )


def given_model(link: str, latency: float, bytes_per_second: float) -> LinkModel:
    """Return the model of a link that was not measured: rings over a link of this latency and rate."""
    return LinkModel(
        link=link,
        algorithm="ring",
        latency=latency,
        fixed=1 / bytes_per_second,
        per_rate=0.0,
        rates=None,
        residual=0.0,
        samples=0,
    )

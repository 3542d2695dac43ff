"""Forecasts of a step on more ranks, or at another rate of the same link, from measured cells.

    collective       t = A α + F S / B, fitted to collectives timed alone (α–β model; Hockney 1994)
                     all_reduce, ring: A = 2(n-1), F = 2(n-1)/n; tree: A = 2 ⌈log₂ n⌉, F = 2(n-1)/n (two pipelined
                     trees, Sanders, Speck and Träff 2009); broadcast: A = ⌈log₂ n⌉, F = 1
    step             DDP without communication as it was measured; each bucket is sent when its last gradient is
                     there and the one before has been sent; the optimizer waits for the last

    contention       what the nearest measured steps wait longer (or less) than the same replay says; never less exposed
                     than fewer ranks were measured to wait at that batch

    computing        as at the measured number of ranks that is nearest; a batch that was not measured there is carried
                     over from another number of ranks, as the other batches' steps changed

1/B is one number for a link, or, where cells were measured at several nominal rates, a fixed part and a part that
goes with 1/rate: then rates between those measured can be forecast too. A forecast assumes that every rank computes
as it did in the measured cells: on cores of its own.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import ArmsRecord, Bucket, Op, RankGroup

__all__ = [
    "BucketTime",
    "CollectiveSample",
    "Forecast",
    "Link",
    "LinkModel",
    "MeasuredStep",
    "collective_seconds",
    "fit",
    "forecast",
    "given_model",
    "held_out",
    "measured_step",
    "replay",
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
    """Part of it that the step waits for, contention included."""
    step: float
    buckets: tuple[BucketTime, ...]
    """As replayed, without contention."""
    fitted_on: int
    """Measured configurations."""
    measured: float | None = None
    """The step's measured time, where this was held out from the fit."""
    error: float | None = None
    """step / measured - 1."""
    measured_exposed: float | None = None
    """Measured wait of the held-out step."""


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


def _non_negative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
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
        solution = _non_negative(matrix / scale, np.ones(len(seconds))) / scale
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


def _check_rate(model: LinkModel, link: Link) -> None:
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


@dataclass(frozen=True)
class _Compute:
    """A step without communication."""

    seconds: float
    buckets: tuple[Bucket, ...]
    broadcasts: tuple[int, ...]


def _compute(cells: Sequence[MeasuredStep], world_size: int, batch_size: int) -> _Compute:
    """Find or interpolate what a rank computes in a step.

    Ranks that share memory or power slow each other: the steps at the measured number of ranks nearest to
    ``world_size`` are the best guide. Where that batch was measured at another number of ranks only, its step is
    carried over by how the other batches' steps changed.
    """

    def distance(cell: MeasuredStep) -> float:
        return abs(math.log2(cell.world_size / world_size))

    by_batch: dict[int, list[MeasuredStep]] = {}
    for cell in cells:
        by_batch.setdefault(cell.batch_size, []).append(cell)
    nearest = min(map(distance, cells))
    guides = {batch: [cell for cell in same if distance(cell) == nearest] for batch, same in by_batch.items()}

    def at(batch: int) -> tuple[MeasuredStep, float]:
        if guides[batch]:
            return guides[batch][0], statistics.median(cell.compute for cell in guides[batch])
        least = min(map(distance, by_batch[batch]))
        cell = next(cell for cell in by_batch[batch] if distance(cell) == least)
        pairs = [
            (other.compute, statistics.median(guide.compute for guide in guides[size]))
            for size in by_batch
            if guides[size]
            for other in by_batch[size]
            if other.world_size == cell.world_size
        ]
        return cell, _carried(cell.compute, pairs)

    below = max((batch for batch in by_batch if batch <= batch_size), default=None)
    above = min((batch for batch in by_batch if batch >= batch_size), default=None)
    if below is None or above is None:
        raise ForecastError(
            f"no cell has a batch of {batch_size} or ones on both sides of it (measured: "
            f"{', '.join(map(str, sorted(by_batch)))}); measure one"
        )
    cell, low = at(below)
    _, high = at(above)
    seconds = low if above == below else low + (high - low) * (batch_size - below) / (above - below)
    stretch = seconds / cell.compute
    buckets = tuple(replace(bucket, ready=bucket.ready * stretch) for bucket in cell.buckets)
    return _Compute(seconds, buckets, cell.broadcasts)


def _carried(seconds: float, pairs: Sequence[tuple[float, float]]) -> float:
    """Return a step at another number of ranks, from the same step and other batches' steps at both numbers.

    A step is a fixed part plus a part in proportion to its images, and more ranks stretch each by a factor of its own:
    the step at one number of ranks is a linear function of the step at another. Both its coefficients are kept from
    being negative, and each pair counts by its relative error.

    Args:
        seconds: of the step that is known.
        pairs: seconds of other batches' steps: at the number of ranks of that step, and at the wanted one.
    """
    if not pairs:
        return seconds
    if len(pairs) == 1:
        ((one, other),) = pairs
        return seconds * other / one
    wanted = np.array([other for _, other in pairs])
    matrix = np.array([[1.0, one] for one, _ in pairs]) / wanted[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    fixed, factor = _non_negative(matrix / scale, np.ones(len(pairs))) / scale
    return float(fixed + factor * seconds)


def replay(
    compute: float, buckets: Sequence[tuple[Bucket, float]], before: float = 0.0
) -> tuple[float, tuple[BucketTime, ...]]:
    """Run through a step bucket by bucket.

    Args:
        compute: seconds of the step without communication.
        buckets: in the order in which they get ready, with the seconds that each takes to be averaged.
        before: seconds that the forward pass waits for before it begins.

    Returns:
        Seconds of the step, and when each bucket was ready, started and ended.
    """
    times: list[BucketTime] = []
    free = 0.0
    for bucket, seconds in buckets:
        ready = before + bucket.ready
        start = max(ready, free)
        free = start + seconds
        times.append(BucketTime(bucket.bytes, ready, start, free))
    if not times:
        return before + compute, ()
    # What follows the last gradient, the optimizer above all, follows the last bucket now.
    after = max(0.0, before + compute - times[-1].ready)
    return max(times[-1].ready, free) + after, tuple(times)


def _contention(cells: Sequence[MeasuredStep], model: LinkModel, world_size: int, batch_size: int) -> float:
    """Return what the nearest measured steps over this link wait beyond their replay, seconds; the least if several."""
    by_distance: dict[tuple[float, float], list[float]] = {}
    for cell in cells:
        if cell.link.name != model.link or cell.world_size == 1:
            continue
        rate = cell.link.bytes_per_second
        sent = [
            (bucket, collective_seconds(model, "all_reduce", bucket.bytes, cell.world_size, rate))
            for bucket in cell.buckets
        ]
        before = sum(collective_seconds(model, "broadcast", size, cell.world_size, rate) for size in cell.broadcasts)
        beyond = cell.waits - (replay(cell.compute, sent, before)[0] - cell.compute)
        distance = abs(math.log2(cell.world_size / world_size)), abs(math.log2(cell.batch_size / batch_size))
        by_distance.setdefault(distance, []).append(beyond)
    return min(by_distance[min(by_distance)], default=0.0) if by_distance else 0.0


def _least(cells: Sequence[MeasuredStep], link: Link, world_size: int, batch_size: int) -> float:
    """Return the longest that fewer ranks were measured to wait over this link at this batch, seconds."""
    waits = [
        cell.waits
        for cell in cells
        if cell.link == link and cell.batch_size == batch_size and 1 < cell.world_size < world_size
    ]
    return max(waits, default=0.0)


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


def forecast(
    cells: Sequence[MeasuredStep],
    world_size: int,
    batch_size: int,
    link: Link,
    algorithm: Algorithm | None = None,
    *,
    model: LinkModel | None = None,
) -> Forecast:
    """Forecast a step.

    Args:
        cells: measured, of one model and one device.
        world_size: ranks, at least 1.
        batch_size: per rank; measured, or between two that were.
        link: over which; one of the cells' names, at a rate within those measured.
        algorithm: of all-reduces. Default: the one that fits the cells better.
        model: of the link. Default: fitted to the collectives that were timed over it.

    Raises:
        ForecastError: no measurement covers it: another link, a rate or a batch outside those measured.
    """
    if not cells:
        raise ForecastError("no cell was measured; measure one first")
    if world_size < 1 or batch_size < 1:
        raise ForecastError(f"{world_size} ranks, batch {batch_size}: expected at least 1 of each")
    step = _compute(cells, world_size, batch_size)
    if world_size == 1:
        times = tuple(BucketTime(b.bytes, b.ready, b.ready, b.ready) for b in step.buckets)
        return Forecast(1, batch_size, link, None, step.seconds, 0.0, 0.0, step.seconds, times, len(cells))
    if model is None:
        model = fit(cells, link.name, algorithm)
        _check_rate(model, link)
    fitted = model

    def takes(op: Op, size: int) -> float:
        return collective_seconds(fitted, op, size, world_size, link.bytes_per_second)

    before = sum(takes("broadcast", size) for size in step.broadcasts)
    each = [takes("all_reduce", bucket.bytes) for bucket in step.buckets]
    total, times = replay(step.seconds, list(zip(step.buckets, each, strict=True)), before)
    exposed = total - step.seconds
    if fitted.samples:  # of a given link no step was measured
        exposed = max(
            0.0,
            exposed + _contention(cells, fitted, world_size, batch_size),
            _least(cells, link, world_size, batch_size),
        )
    return Forecast(
        world_size=world_size,
        batch_size=batch_size,
        link=link,
        model=fitted,
        compute=step.seconds,
        communication=before + sum(each),
        exposed=exposed,
        step=step.seconds + exposed,
        buckets=times,
        fitted_on=len(cells),
    )


def held_out(
    cells: Sequence[MeasuredStep], algorithm: Algorithm | None = None, *, link: str | None = None
) -> tuple[tuple[Forecast, ...], tuple[str, ...]]:
    """Forecast each cell of more than one rank from all the others, and compute the error.

    Args:
        cells: measured, of one model and one device.
        algorithm: of all-reduces. Default: the one that fits the cells better.
        link: name of the link whose cells are forecast. Default: each.

    Returns:
        The forecasts, with the measured step and the relative error, and one line for each cell that the others
        do not cover.
    """
    forecasts, refused = [], []
    for i, cell in enumerate(cells):
        if cell.world_size == 1 or link not in (None, cell.link.name):
            continue
        others = [*cells[:i], *cells[i + 1 :]]
        try:
            found = forecast(others, cell.world_size, cell.batch_size, cell.link, algorithm)
        except ForecastError as error:
            refused.append(f"{cell.link.group(cell.world_size)}, batch {cell.batch_size}, {cell.link.name}: {error}")
            continue
        waited = max(0.0, cell.waits)
        off = found.step / cell.step - 1
        forecasts.append(replace(found, measured=cell.step, error=off, measured_exposed=waited))
    return tuple(forecasts), tuple(refused)

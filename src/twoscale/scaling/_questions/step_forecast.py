"""Forecasts of a step on more ranks, or at another rate of the same link, from measured cells.

    step             DDP without communication as it was measured; each bucket is sent when its last gradient is
                     there and the one before has been sent; the optimizer waits for the last

    contention       what the nearest measured steps wait longer (or less) than the same replay says; never less exposed
                     than fewer ranks were measured to wait at that batch

    computing        as at the measured number of ranks that is nearest; a batch that was not measured there is carried
                     over from another number of ranks, as the other batches' steps changed

A forecast assumes that every rank computes as it did in the measured cells: on cores of its own. How long a collective
takes is the link's model (``link_model``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import Bucket, Op
from twoscale.scaling._questions.link_model import (
    Algorithm,
    Link,
    LinkModel,
    MeasuredStep,
    check_rate,
    collective_seconds,
    fit,
    non_negative,
)

__all__ = ["BucketTime", "Forecast", "forecast", "held_out", "replay"]


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
    fixed, factor = non_negative(matrix / scale, np.ones(len(pairs))) / scale
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
        check_rate(model, link)
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

"""Symmetric scales of weights, from the values themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twoscale._calibration.methods import RangeMethod
from twoscale._calibration.ranges import choose_range
from twoscale._calibration.statistics import StatisticsAccumulator
from twoscale.errors import ConfigurationError, QuantizationError

__all__ = ["choose_weight_scales"]

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
# Scales searched, as fractions of the one that clips nothing. They are dense near 1, where the best scale nearly
# always is at 8 bits, and go down to 1/32 for outliers and few bits.
_RATIOS = np.concatenate([np.linspace(1.0, 0.5, 101), np.geomspace(0.5, 1 / 32, 60)[1:]])
_COARSEST_STEP = float(max(_RATIOS[:-1] / _RATIOS[1:]))
_FINE = 8
_NEAR = 2  # candidates tried on each side of the expected best
_DENSE = 0.5  # ratios above are so close together that no finer ones are tried where _MANY_STEPS holds
_BINS = 512  # of magnitudes, for the expected error
# From this largest integer and this number of values per row on, the expected error is accurate enough to choose
# candidates.
_MANY_STEPS, _MANY_VALUES = 63, 256
_ZOOMS = 2
_BLOCK = 1 << 15  # values at a time, so that temporaries stay in the second-level cache
_ROWS_BLOCK = 1 << 20  # values converted to float64 at a time, to bound memory


def choose_weight_scales(
    weight: NDArray[np.float32], method: RangeMethod, *, hi: int, per_channel: bool, name: str = "weight"
) -> NDArray[np.float64]:
    """Return the scales with which weights are quantized to q = clamp(RNE(w / scale), -hi, hi).

    Args:
        weight: (O, ...), one row per output channel.
        method: how to choose the magnitude up to which nothing is clipped.
        hi: largest integer, e.g. 127.
        per_channel: one scale per output channel, or one for all.
        name: the tensor, for messages.

    Returns:
        (O,) scales, or (1,), all positive. A channel of zeros gets the largest of the other channels' scales, or 1 / hi
        if all are zero. Its integers are 0 with any scale.

    Raises:
        QuantizationError: NaN or infinity among the weights, or no weights.
        ConfigurationError: hi is not positive.
    """
    if hi < 1:
        raise ConfigurationError(f"{name}: the largest integer of weights must be positive, not {hi}")
    if weight.size == 0:
        raise QuantizationError(f"{name}: there are no weights (shape {weight.shape})")
    bad = ~np.isfinite(weight)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise QuantizationError(
            f"{name}: {np.count_nonzero(bad)} of {weight.size} weights are NaN or infinite, the first is "
            f"{weight[where]} at index {where}; train again or repair the checkpoint"
        )
    rows = weight.reshape(weight.shape[0] if per_channel else 1, -1)
    high = max(1, _ROWS_BLOCK // rows.shape[1])
    widest, reach = np.empty(len(rows)), np.empty(len(rows))
    for start in range(0, len(rows), high):
        part = slice(start, start + high)
        block = rows[part].astype(np.float64)
        widest[part] = np.abs(block).max(axis=1)
        reach[part] = _reach(block, widest[part], method, hi, name)
    scales = reach / hi
    zero = widest == 0.0
    scales[zero] = 1 / hi if zero.all() else scales[~zero].max()
    return np.maximum(scales, _SMALLEST_SCALE)


def _reach(
    rows: NDArray[np.float64], widest: NDArray[np.float64], method: RangeMethod, hi: int, name: str
) -> NDArray[np.float64]:
    """Return the largest magnitude kept of each row, (rows,). It is 0 only if the whole row is."""
    if method.kind == "sigma" and method.value is not None:
        reach = np.abs(rows.mean(axis=1)) + method.value * rows.std(axis=1)
        return np.where(reach < widest, reach, widest)
    if method.kind == "percentile" and method.value is not None:
        reach = np.percentile(np.abs(rows), method.value, axis=1)
        return np.where(reach > 0.0, reach, widest)
    if method.kind == "mse":
        return _least_squares_reach(rows, widest, hi)
    if method.kind == "entropy":
        return np.array([_entropy_reach(row, hi, name) for row in rows])
    return widest


def _likely_ratios(relative: NDArray[np.float32], hi: int) -> NDArray[np.float64]:
    """Return ratios near the one with the least expected error, and 1: (rows, candidates).

    The error of clipping is that of a histogram's bins. The error of rounding is taken as step² / 12. From 64 steps on
    this is accurate to a few percent, so the exact search need not try all ratios.
    """
    rows, count = relative.shape
    bins = np.abs(relative)
    bins *= _BINS - 0.5
    places = bins.astype(np.intp)
    places += np.arange(0, rows * _BINS, _BINS)[:, None]
    counts = np.bincount(places.ravel(), minlength=rows * _BINS).reshape(rows, _BINS)
    centres = (np.arange(_BINS) + 0.5) / (_BINS - 0.5)
    terms = counts[None] * centres ** np.arange(3)[:, None, None]
    above = np.zeros((3, rows, _BINS + 1))  # moments of order 0, 1, 2 of the bins from each one on
    above[:, :, :-1] = np.cumsum(terms[:, :, ::-1], axis=2)[:, :, ::-1]
    zeroth, first, second = above[:, :, np.searchsorted(centres, _RATIOS, side="right")]
    clipped = second - 2 * _RATIOS * first + zeroth * _RATIOS**2
    best = np.argmin(clipped + (count - zeroth) * (_RATIOS / hi) ** 2 / 12, axis=1)
    near = np.clip(best[:, None] + np.arange(-_NEAR, _NEAR + 1), 0, _RATIOS.size - 1)
    return np.concatenate([np.ones((len(near), 1)), _RATIOS[near]], axis=1)


def _least_squares_reach(rows: NDArray[np.float64], widest: NDArray[np.float64], hi: int) -> NDArray[np.float64]:
    """Return the magnitude represented by hi that has the least squared error over each row, (rows,)."""
    relative = (rows / np.where(widest > 0.0, widest, 1.0)[:, None]).astype(np.float32)
    row = np.arange(rows.shape[0])
    best = np.ones(rows.shape[0])
    least = np.full(rows.shape[0], np.inf)
    many = hi >= _MANY_STEPS and rows.shape[1] >= _MANY_VALUES
    ratios = _likely_ratios(relative, hi) if many else np.broadcast_to(_RATIOS, (rows.shape[0], _RATIOS.size))
    step = _COARSEST_STEP
    for _ in range(1 + (1 if many else _ZOOMS)):
        errors = _squared_errors(relative, ratios, hi)
        i = np.argmin(errors, axis=1)
        better = errors[row, i] < least
        best, least = np.where(better, ratios[row, i], best), np.where(better, errors[row, i], least)
        if many and best.min() >= _DENSE:
            break
        ratios = np.minimum(best[:, None] * np.geomspace(1 / step, step, 2 * _FINE + 1), 1.0)
        step **= 1 / _FINE
    return best * widest


def _squared_errors(rows: NDArray[np.float32], ratios: NDArray[np.float64], hi: int) -> NDArray[np.float64]:
    """Return the squared errors of weights in [-1, 1] if hi represents each ratio, (rows, candidates).

    Computed in float32, which is twice as fast and off by about 1e-6 of the error.
    """
    errors = np.zeros(ratios.shape)
    high, width = max(1, _BLOCK // rows.shape[1]), min(_BLOCK, rows.shape[1])
    for top in range(0, rows.shape[0], high):
        for left in range(0, rows.shape[1], width):
            block = rows[top : top + high, left : left + width]
            q = np.empty_like(block)
            for j in range(ratios.shape[1]):
                ratio = ratios[top : top + high, j : j + 1]
                np.multiply(block, (hi / ratio).astype(np.float32), out=q)
                np.rint(q, out=q)
                np.clip(q, -hi, hi, out=q)
                q *= (ratio / hi).astype(np.float32)
                q -= block
                errors[top : top + high, j] += np.einsum("ij,ij->i", q, q)
    return errors


def _entropy_reach(row: NDArray[np.float64], hi: int, name: str) -> float:
    accumulator = StatisticsAccumulator(name)
    accumulator.update(row)
    return choose_range(accumulator.finish(), RangeMethod("entropy"), lo=-hi, hi=hi, symmetric=True).hi

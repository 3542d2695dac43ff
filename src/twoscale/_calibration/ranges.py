"""Chooses the range of real values that a tensor's integers represent, from its statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twoscale._calibration.affine import RealRange, zero_point_candidates
from twoscale._calibration.entropy import least_divergence_range
from twoscale._calibration.methods import RangeMethod
from twoscale._calibration.squared_error import least_squared_error_range
from twoscale._calibration.statistics import TensorStatistics

__all__ = ["choose_range", "pixel_range"]

_PIXEL_TOLERANCE = 1e-4
"""Largest error of rounding pixels / 255 to float32, in steps."""


def choose_range(
    stats: TensorStatistics,
    method: RangeMethod,
    *,
    lo: int,
    hi: int,
    symmetric: bool,
    even_zero_point: bool = True,
) -> RealRange:
    """Return the range of real values that the integers lo..hi represent.

    It contains 0. minmax, sigma, percentile and entropy never exceed what was seen (for a symmetric quantizer,
    its largest magnitude), and leave the lower or upper end at 0 if nothing was seen on that side. mse gives exactly
    the range of the best scale and zero point. All zeros give (0, 0). If a percentile would leave no range because
    nearly all values are 0, minmax is used; also for entropy with fewer than 4 values per bin.

    percentile, mse and entropy use the histogram. For a tensor with few distinct values, such
    as 8-bit images, 8192 bins rather than 2048 bring the estimated error to within 2% of the true one.

    Args:
        stats: of the tensor.
        method: how to choose.
        lo: smallest integer, e.g. 0 or -127.
        hi: largest integer, e.g. 255 or 127.
        symmetric: zero point 0, and a range of equal magnitudes on both sides (with lo = 0, from 0).
        even_zero_point: as for ``affine_parameters``.

    Raises:
        ConfigurationError: the integers are too few, or symmetric with lo = 0 for negative values.
    """
    seen = RealRange(min(stats.min, 0.0), max(stats.max, 0.0))
    zero_point_candidates(seen, lo=lo, hi=hi, symmetric=symmetric, even=even_zero_point)  # or an error
    if method.kind == "mse":
        return least_squared_error_range(stats, lo=lo, hi=hi, symmetric=symmetric, even_zero_point=even_zero_point)
    if method.kind == "entropy":
        found = least_divergence_range(stats, lo=lo, hi=hi, symmetric=symmetric, even_zero_point=even_zero_point)
    elif method.kind == "sigma" and method.value is not None:
        reach = method.value * stats.std
        found = _within(seen, stats.mean - reach, stats.mean + reach)
    elif method.kind == "percentile" and method.value is not None:
        found = _percentile_range(stats, seen, method.value / 100, symmetric=symmetric)
    else:
        found = seen
    if symmetric:
        magnitude = max(-found.lo, found.hi)
        return RealRange(-magnitude if lo < 0 else 0.0, magnitude)
    return found


def pixel_range(stats: TensorStatistics, *, lo: int, hi: int) -> RealRange | None:
    """Return the range that represents 8-bit pixels exactly: 0..255, or 0..1 for pixels / 255.

    None if the histogram shows other values, or if lo..hi are not 256 integers from 0. A few images may lack the
    brightest pixels, and the range seen would then round all others.
    """
    step = 1.0 if stats.max > 1.0 else 1 / 255
    is_possible = stats.min >= 0.0 and 0.0 < stats.max <= 255 * step
    if (lo, hi) != (0, 255) or not is_possible or stats.bin_width > step / 8:
        return None  # with bins as wide as a step, all values would look like pixels
    occupied = (stats.first_bin + np.flatnonzero(stats.nonzero_counts)) * stats.bin_width
    next_pixel = np.ceil((occupied - _PIXEL_TOLERANCE * step) / step) * step
    is_pixel = next_pixel < occupied + stats.bin_width + _PIXEL_TOLERANCE * step
    return RealRange(0.0, 255 * step) if is_pixel.all() else None


def _within(seen: RealRange, lo: float, hi: float) -> RealRange:
    """Return the part of lo..hi that was seen, widened to contain 0; everything that was seen if no part is left."""
    found = RealRange(max(seen.lo, min(lo, 0.0)), min(seen.hi, max(hi, 0.0)))
    return seen if found.lo == found.hi else found


def _percentile_range(stats: TensorStatistics, seen: RealRange, fraction: float, *, symmetric: bool) -> RealRange:
    if not symmetric:
        lower, upper = _quantiles(stats.edges, stats.nonzero_counts, stats.zeros, (1 - fraction, fraction))
        return _within(seen, lower, upper)
    below = -stats.first_bin
    negative, positive = stats.nonzero_counts[:below][::-1], stats.nonzero_counts[below:]
    magnitudes = np.zeros(max(negative.size, positive.size), np.int64)
    magnitudes[: negative.size] += negative
    magnitudes[: positive.size] += positive
    edges = np.arange(magnitudes.size + 1, dtype=np.float64) * stats.bin_width
    (reach,) = _quantiles(edges, magnitudes, stats.zeros, (fraction,))
    return _within(seen, -reach, reach)


def _quantiles(
    edges: NDArray[np.float64], counts: NDArray[np.int64], zeros: int, fractions: tuple[float, ...]
) -> list[float]:
    """Values below which these fractions of all lie: uniform within a bin, with ``zeros`` exactly at 0."""
    at_zero = int(np.searchsorted(edges, 0.0))
    ranks = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    ranks = np.concatenate([ranks[: at_zero + 1], ranks[at_zero:] + zeros])
    values = np.insert(edges, at_zero, 0.0)
    return [float(v) for v in np.interp(np.array(fractions) * ranks[-1], ranks, values)]

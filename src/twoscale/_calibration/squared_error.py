"""Expected squared quantization error under a histogram, in closed form, and the range that minimizes it.

Values are assumed uniform within a bin. The first and last bin are cut at the smallest and largest value seen. Exact
zeros have no error. With x and the scale s in units of the bin width and p the density:

- Rounding to multiples of s, from 0 to x, costs s**3 * G(x/s) per unit of density, where
  G(u) = integral from 0 to u of (v - RNE(v))**2 dv = n/12 + (u - n)**3 / 3 with n = RNE(u).
  This accounts for structure within a step (a peak at zero, values on a grid), unlike the usual s**2/12.
- Clipping at c costs the integral of (x - c)**2 * p(x) beyond c, from tail sums whose terms are all positive.

Rounding does not depend on the zero point, and clipping does not depend on rounding. So for each scale both are sums up
to multiples of s, which are looked up for all zero points at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twoscale._calibration.affine import RealRange, affine_parameters, zero_point_candidates
from twoscale._calibration.statistics import TensorStatistics

__all__ = ["expected_squared_error", "least_squared_error_range"]

_COARSE = 96
_FINE = 16
_ZOOMS = 2
# Smallest scale searched, as a fraction of the one that clips nothing. Below it, fewer than 16 bins are left.
_SMALLEST_RATIO = 2.0**-7
# Smallest width of a bin cut at the smallest or largest value, in bin widths: a density needs a width.
_NARROWEST = 2.0**-10
# Relative decrease that counts as a smaller error, so that rounding in the sums does not change the range.
_BETTER = 1 - 1e-9


def expected_squared_error(stats: TensorStatistics, *, scale: float, zero_point: int, lo: int, hi: int) -> float:
    """Return the mean of (x - r)**2 over all values (zeros included) for r = scale * (q - zero_point).

    q = clamp(RNE(x / scale) + zero_point, lo, hi), and the values are taken as uniform within their bins.
    """
    if stats.nonzero_counts.size == 0:
        return 0.0
    errors = _Errors(stats)(np.array([scale]), np.array([zero_point]), lo=lo, hi=hi)
    return float(errors[0, 0])


def least_squared_error_range(
    stats: TensorStatistics, *, lo: int, hi: int, symmetric: bool, even_zero_point: bool = True
) -> RealRange:
    """Return the range with the least expected squared error. It is never worse than min-max.

    Scales are searched from coarse to fine, each with every zero point that fits the signs seen.
    """
    seen = RealRange(min(stats.min, 0.0), max(stats.max, 0.0))
    widest, widest_zero = affine_parameters(seen, lo=lo, hi=hi, symmetric=symmetric, even_zero_point=even_zero_point)
    if seen.lo == seen.hi:
        return seen
    zero_points = zero_point_candidates(seen, lo=lo, hi=hi, symmetric=symmetric, even=even_zero_point)
    errors = _Errors(stats)
    least = errors(np.array([widest]), np.array([widest_zero]), lo=lo, hi=hi)[0, 0]
    scale, zero_point = widest, widest_zero
    ratios = np.geomspace(1.0, _SMALLEST_RATIO, _COARSE)
    step = float(ratios[1])
    for _ in range(1 + _ZOOMS):
        scales = np.minimum(scale * ratios, widest)
        found = errors(scales, zero_points, lo=lo, hi=hi)
        i, j = np.unravel_index(np.argmin(found), found.shape)
        if found[i, j] < least * _BETTER:
            least, scale, zero_point = found[i, j], float(scales[i]), int(zero_points[j])
        ratios = np.geomspace(1.0 / step, step, 2 * _FINE + 1)
        step **= 1.0 / _FINE
    if (scale, zero_point) == (widest, widest_zero):
        return seen
    if symmetric:
        magnitude = scale * (min(hi, -lo) if lo < 0 else hi)
        return RealRange(-magnitude if lo < 0 else 0.0, magnitude)
    return RealRange(scale * (lo - zero_point), scale * (hi - zero_point))


class _Errors:
    """Mean squared error for many scales and zero points. Internally, lengths are in bin widths."""

    def __init__(self, stats: TensorStatistics) -> None:
        occupied = np.flatnonzero(stats.nonzero_counts)
        first, last = int(occupied[0]), int(occupied[-1])
        counts = stats.nonzero_counts[first : last + 1].astype(np.float64)
        edges = np.arange(stats.first_bin + first, stats.first_bin + last + 2, dtype=np.float64)
        if stats.min != 0.0:
            edges[0] = stats.min / stats.bin_width
        if stats.max != 0.0:
            edges[-1] = stats.max / stats.bin_width
        edges[0] = min(edges[0], edges[1] - _NARROWEST)
        edges[-1] = max(edges[-1], edges[-2] + _NARROWEST)
        self._unit = stats.bin_width
        self._count = stats.count
        self._edges = edges
        self._density = counts / np.diff(edges)
        self._above = _Tail(edges, counts)
        self._below = _Tail(-edges[::-1], counts[::-1])

    def __call__(
        self, scales: NDArray[np.float64], zero_points: NDArray[np.int64], *, lo: int, hi: int
    ) -> NDArray[np.float64]:
        """Return (scales, zero points) mean squared errors."""
        s = scales[:, None] / self._unit
        low, high = s * (lo - zero_points), s * (hi - zero_points)
        rounding = self._rounding(s, np.concatenate([low, high], axis=1))
        inside = rounding[:, zero_points.size :] - rounding[:, : zero_points.size]
        total = self._below.squared(-low) + inside + self._above.squared(high)
        return total * (self._unit * self._unit / self._count)

    def _rounding(self, s: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of squared rounding errors of the values up to x. s: (scales, 1); x: (scales, points)."""
        x = np.clip(x, self._edges[0], self._edges[-1])
        at_edges = _rounding_integral(self._edges, s)
        sums = np.cumsum(self._density * np.diff(at_edges, axis=1), axis=1)
        sums = np.concatenate([np.zeros_like(s), sums], axis=1)
        bins = np.minimum(np.searchsorted(self._edges, x, side="right") - 1, self._density.size - 1)
        partial = _rounding_integral(x, s) - np.take_along_axis(at_edges, bins, axis=1)
        return np.take_along_axis(sums, bins, axis=1) + self._density[bins] * partial


class _Tail:
    """Second moment of the values beyond a point, about that point."""

    def __init__(self, edges: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
        widths = np.diff(edges)
        self._edges = edges
        self._density = np.concatenate([[0.0], counts / widths])  # of the bin that ends at each edge
        # Moments of order 0, 1, 2 of everything above each edge, about that edge.
        self._mass = _sums_above(counts)
        self._first = _sums_above(widths * (self._mass[1:] + counts / 2))
        self._second = _sums_above(widths * (2 * self._first[1:] + widths * (self._mass[1:] + counts / 3)))

    def squared(self, c: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of (x - c)**2 over all values x > c."""
        edge = np.minimum(np.searchsorted(self._edges, c), self._edges.size - 1)
        rest = np.maximum(self._edges[edge] - c, 0.0)
        third = rest * self._density[edge] / 3
        moment: NDArray[np.float64] = rest * (2 * self._first[edge] + rest * (self._mass[edge] + third))
        moment += self._second[edge]
        return moment


def _rounding_integral(x: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral from 0 to x of the squared distance to the nearest multiple of s."""
    u = x / s
    nearest = np.rint(u)
    u -= nearest
    cube = u * u  # NumPy's power of 3 takes many times as long
    cube *= u
    cube /= 3
    nearest /= 12
    cube += nearest
    cube *= s * s * s
    return cube


def _sums_above(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n + 1,) sums of the terms from each position to the end."""
    return np.concatenate([np.cumsum(terms[::-1])[::-1], [0.0]])

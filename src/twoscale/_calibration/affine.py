"""Scale and zero point of a range of real values: r = scale * (q - zero_point), lo <= q <= hi.

Real zero is always represented exactly, so that padding, ReLU and skipped inputs are exact. Zero points are even: some
runtimes add them before rounding to nearest even and some after, and RNE(v + z) = RNE(v) + z holds for even z only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError

__all__ = ["RealRange", "affine_parameters", "zero_point_candidates"]

# A scale below float32's normal numbers would not survive where denormals are flushed to zero.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class RealRange:
    """The real values from ``lo`` <= 0 to ``hi`` >= 0, which the integers represent.

    Raises:
        ConfigurationError: zero is outside, or an end is NaN or infinite.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not (-math.inf < self.lo <= 0 <= self.hi < math.inf):
            raise ConfigurationError(
                f"a range must be finite and contain 0, not go from {self.lo:g} to {self.hi:g}; widen it"
            )


def zero_point_candidates(range_: RealRange, *, lo: int, hi: int, symmetric: bool, even: bool) -> NDArray[np.int64]:
    """Return every zero point that fits the signs in ``range_``, in ascending order.

    For a symmetric quantizer this is only 0. If nothing is negative it is the lowest integer, so that all integers are
    used; if nothing is positive, the highest. Otherwise it is all of [lo, hi].

    Raises:
        ConfigurationError: the integers are too few, or cannot represent the range symmetrically.
    """
    step = 2 if even else 1
    if symmetric:
        if not lo <= 0 < hi or (lo == 0 and range_.lo < 0):
            raise ConfigurationError(
                f"integers {lo}..{hi} with zero point 0 cannot represent {range_.lo:g}..{range_.hi:g}; "
                "use integers of both signs, or a zero point"
            )
        return np.zeros(1, np.int64)
    candidates = np.arange(lo + lo % step, hi + 1, step)
    if candidates.size < 2:
        raise ConfigurationError(f"integers {lo}..{hi} are too few for a scale and a zero point; use at least 4")
    if range_.lo == 0.0:
        return candidates[:1]
    return candidates[-1:] if range_.hi == 0.0 else candidates


def affine_parameters(
    range_: RealRange, *, lo: int, hi: int, symmetric: bool, even_zero_point: bool = True
) -> tuple[float, int]:
    """Return (scale, zero_point): the smallest scale with which lo..hi cover the range.

    Args:
        range_: real values to cover.
        lo: smallest integer, e.g. 0 or -127.
        hi: largest integer, e.g. 255 or 127.
        symmetric: zero point 0, as for weights.
        even_zero_point: allow only even zero points (no effect if symmetric).

    Returns:
        scale > 0, a float32 number (runtimes divide the input by it in float32), and the zero point in
        [lo, hi]. The range (0, 0) gets the scale 1 / (hi - lo); every value becomes the zero point.

    Raises:
        ConfigurationError: the integers are too few, or cannot represent the range symmetrically.
    """
    zero_points = zero_point_candidates(range_, lo=lo, hi=hi, symmetric=symmetric, even=even_zero_point)
    if range_.lo == range_.hi == 0.0:
        return float(np.float32(1.0 / (hi - lo))), int(zero_points[0])
    scales = np.maximum(
        _steps(range_.hi, hi - zero_points),
        _steps(-range_.lo, zero_points - lo),
    )
    best = int(np.argmin(scales))
    return max(float(np.float32(scales[best])), _SMALLEST_SCALE), int(zero_points[best])


def _steps(length: float, integers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the scale at which this many integers span ``length``: 0 for no length, infinity for no integers."""
    if length == 0.0:
        return np.zeros(integers.size)
    steps = np.full(integers.size, np.inf)
    np.divide(length, integers, out=steps, where=integers > 0)
    return steps

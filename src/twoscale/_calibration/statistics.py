"""Statistics of tensors too large to hold: one pass over the values, bounded memory, mergeable.

Moments are combined by the pairwise update of Chan, Golub and LeVeque (1983, "Algorithms for computing the
sample variance"), in float64. The histogram is exact: a bin is [k*w, (k+1)*w) for a whole number k and a
width w that is a power of two, so k*w, value/w and the merging of two neighbours into one are all without
rounding. The width is the smallest that covers 0 and every value seen with the bins allowed, hence a function
of the smallest and largest value alone: batches may be cut, ordered and merged in any way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twoscale._calibration.summaries import Histogram, TensorSummary
from twoscale.errors import CalibrationError, ConfigurationError

__all__ = ["StatisticsAccumulator", "TensorStatistics", "to_summary"]

# Values handled at a time: the temporaries (about 1 MiB) stay in the second-level cache.
_CHUNK = 1 << 16
# Exponents of the widths for which value/width works in float32. With others, 1/width would overflow, or a tiny
# negative value would underflow to -0 and leave its bin.
_FLOAT32_EXPONENTS = range(-126, 1)
_DISPLAY_BINS = 128


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of one tensor over any number of batches, in real units.

    Exact zeros (after a ReLU, about half of all values) are counted separately and are *not* in the histogram:
    every quantizer here represents zero without error, so only the other values decide its range.
    """

    name: str
    count: int
    """Values seen, zeros included."""
    mean: float
    """Over all values, zeros included."""
    std: float
    """Population standard deviation over all values, zeros included."""
    min: float
    max: float
    zeros: int
    """Values that are exactly 0."""
    bin_width: float
    """A power of two; 1.0 if every value is zero."""
    first_bin: int
    """Whole number k <= 0 of the first bin; bin i is [(k + i) * bin_width, (k + i + 1) * bin_width)."""
    nonzero_counts: NDArray[np.int64]
    """(bins,) values in each bin, without exact zeros; (0,) if every value is zero."""

    @property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) edges of the bins; 0 is one of them."""
        whole = np.arange(self.first_bin, self.first_bin + self.nonzero_counts.size + 1, dtype=np.float64)
        return whole * self.bin_width

    @property
    def max_abs(self) -> float:
        """Largest magnitude."""
        return max(-self.min, self.max)


class StatisticsAccumulator:
    """Collects the statistics of one tensor, batch by batch.

    Args:
        name: the tensor, for messages.
        bins: largest number of bins of the histogram, at least 2. More than half of them are in use once a nonzero
        value was seen. Memory is 8 bytes per bin.

    Raises:
        ConfigurationError: fewer than 2 bins.
    """

    def __init__(self, name: str, *, bins: int = 2048) -> None:
        if bins < 2:
            raise ConfigurationError(f"a histogram needs at least 2 bins, one for each sign, not {bins}")
        self.name = name
        self.bins = bins
        self._count = 0
        self._mean = 0.0
        self._m2 = 0.0  # sum of squared differences from the mean
        self._min = math.inf
        self._max = -math.inf
        self._zeros = 0
        self._exponent: int | None = None  # bins are 2**exponent wide; None while only zeros were seen
        self._below = 0  # bins below zero
        self._counts = np.zeros(0, np.int64)

    def update(self, values: ArrayLike) -> None:
        """Add every value of an array of any shape, as float32. An empty array changes nothing.

        Raises:
            CalibrationError: there is NaN or infinity among the values. Nothing is added in that case.
        """
        array = np.asarray(values, dtype=np.float32)
        if array.size == 0:
            return
        lo, hi = float(array.min()), float(array.max())
        if not (math.isfinite(lo) and math.isfinite(hi)):  # min and max propagate NaN
            bad = ~np.isfinite(array)
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise CalibrationError(
                f"{self.name}: {np.count_nonzero(bad)} of {array.size} values are NaN or infinite, "
                f"the first is {array[where]} at index {where}; calibrate with finite values"
            )
        self._cover(lo, hi)
        flat = array.ravel(order="K")  # memory order, so that no dense array is copied
        for start in range(0, flat.size, _CHUNK):
            self._add(flat[start : start + _CHUNK])

    def merge(self, other: StatisticsAccumulator) -> None:
        """Add everything that ``other`` has seen. ``other`` is not changed.

        Raises:
            ConfigurationError: the two allow different numbers of bins.
        """
        if other.bins != self.bins:
            raise ConfigurationError(
                f"{self.name}: cannot merge a histogram of at most {other.bins} bins into one of at most "
                f"{self.bins}; make both with the same number"
            )
        if other._count == 0:
            return
        counts, exponent, below, zeros = other._counts, other._exponent, other._below, other._zeros
        self._add_moments(other._count, other._mean, other._m2)
        self._zeros += zeros
        self._cover(other._min, other._max)
        if exponent is not None and self._exponent is not None:  # the second follows from the first
            counts, below = _coarsen(counts, below, self._exponent - exponent)
            start = self._below - below
            self._counts[start : start + counts.size] += counts

    def finish(self) -> TensorStatistics:
        """Return the statistics of the values seen so far.

        Raises:
            CalibrationError: no value was seen.
        """
        if self._count == 0:
            raise CalibrationError(f"{self.name}: no values were seen; calibrate with at least one image")
        counts = self._counts.copy()
        counts.setflags(write=False)
        constant = self._min == self._max
        return TensorStatistics(
            name=self.name,
            count=self._count,
            # Rounding in the sums must not push the mean outside, nor give a constant a deviation.
            mean=min(max(self._mean, self._min), self._max) + 0.0,
            std=0.0 if constant else math.sqrt(self._m2 / self._count),
            min=self._min + 0.0,
            max=self._max + 0.0,
            zeros=self._zeros,
            bin_width=1.0 if self._exponent is None else math.ldexp(1.0, self._exponent),
            first_bin=-self._below,
            nonzero_counts=counts,
        )

    def _cover(self, lo: float, hi: float) -> None:
        """Widen the bins to the smallest power of two that covers lo, hi and all values before."""
        self._min, self._max = min(self._min, lo), max(self._max, hi)
        lo, hi = min(self._min, 0.0), max(self._max, 0.0)
        extent = max(-lo, hi)
        if extent == 0.0:
            return
        exponent = math.frexp(extent)[1] - self.bins.bit_length()
        while True:
            below = -math.floor(math.ldexp(lo, -exponent))
            above = math.floor(math.ldexp(hi, -exponent)) + 1
            if below + above <= self.bins:
                break
            exponent += 1
        counts = np.zeros(below + above, np.int64)
        if self._exponent is not None:
            old, old_below = _coarsen(self._counts, self._below, exponent - self._exponent)
            counts[below - old_below : below - old_below + old.size] = old
        self._counts, self._exponent, self._below = counts, exponent, below

    def _add(self, chunk: NDArray[np.float32]) -> None:
        """Add values within the bins."""
        zeros = chunk.size - int(np.count_nonzero(chunk != 0.0))
        self._zeros += zeros
        if self._exponent is not None:
            narrow = self._exponent in _FLOAT32_EXPONENTS
            scaled = chunk * (np.float32 if narrow else np.float64)(math.ldexp(1.0, -self._exponent))
            if self._below:  # else the conversion rounds down
                np.floor(scaled, out=scaled)
                scaled += self._below  # whole numbers below 2**24, exact in float32 too
            self._counts += np.bincount(scaled.astype(np.intp), minlength=self._counts.size)
            self._counts[self._below] -= zeros
        values = chunk.astype(np.float64)
        mean = float(values.sum()) / values.size
        values -= mean
        # einsum, since a BLAS dot product starts threads, which costs more than it saves here
        self._add_moments(values.size, mean, float(np.einsum("i,i->", values, values)))

    def _add_moments(self, count: int, mean: float, m2: float) -> None:
        total = self._count + count
        difference = mean - self._mean
        self._mean += difference * (count / total)
        self._m2 += m2 + difference * difference * (self._count * (count / total))
        self._count = total


def to_summary(stats: TensorStatistics, kind: str) -> TensorSummary:
    """Return the record for display: at most 128 bins over the values seen, including exact zeros.

    Args:
        stats: of the tensor.
        kind: "weight", "bias", "input" or "activation".
    """
    counts, first = stats.nonzero_counts.copy(), stats.first_bin
    if stats.zeros:
        if counts.size == 0:
            counts = np.zeros(1, np.int64)
        counts[-first] += stats.zeros
    occupied = np.flatnonzero(counts)
    first, counts = first + int(occupied[0]), counts[occupied[0] : occupied[-1] + 1]
    merged = 1
    while -(-(first % merged + counts.size) // merged) > _DISPLAY_BINS:
        merged *= 2
    front = first % merged
    counts = np.pad(counts, (front, -(front + counts.size) % merged)).reshape(-1, merged).sum(axis=1)
    lo, width = (first - front) * stats.bin_width, merged * stats.bin_width
    return TensorSummary(
        name=stats.name,
        kind=kind,
        count=stats.count,
        mean=stats.mean,
        std=stats.std,
        min=stats.min,
        max=stats.max,
        zeros=stats.zeros,
        histogram=Histogram(lo=lo, hi=lo + counts.size * width, counts=tuple(counts.tolist())),
    )


def _coarsen(counts: NDArray[np.int64], below: int, doublings: int) -> tuple[NDArray[np.int64], int]:
    """Merge neighbouring bins ``doublings`` times; return the counts and the bins below zero."""
    # Once each sign has a single bin, further doublings change nothing.
    doublings = min(doublings, max(below, counts.size - below).bit_length())
    merged = 1 << doublings
    front, back = -below % merged, -(counts.size - below) % merged
    return np.pad(counts, (front, back)).reshape(-1, merged).sum(axis=1), (below + front) // merged

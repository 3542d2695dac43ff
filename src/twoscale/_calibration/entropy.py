"""The range that loses the least information: Kullback-Leibler calibration.

After Migacz, "8-bit inference with TensorRT" (GTC 2017), who searches one threshold on magnitudes with 128 levels. Here
the levels are those of the quantizer of the range, zero point included, so that unsigned, signed, symmetric and affine
quantizers are covered. For each threshold t, the range is the part of [-t, t] that was seen. P is the histogram within
it, with everything outside added to its outermost bins. Q is P after quantization: the mass of each level is spread
evenly over its bins that are not empty in P. The threshold with the least divergence of Q from P is chosen; of several
equal ones, the widest. Exact zeros are lossless and do not count.

Random counts alone add (bins - levels) / (2 * values) to a divergence, on average (Miller and Madow, 1955). This
amount is subtracted. Otherwise tensors of some ten thousand values would be clipped to a range with fewer noisy bins,
with many times the error of min-max. With fewer than 4 values per bin a divergence cannot be estimated, and the range
is everything seen.
"""

from __future__ import annotations

import numpy as np

from twoscale._calibration.affine import RealRange, affine_parameters
from twoscale._calibration.statistics import TensorStatistics

__all__ = ["least_divergence_range"]

_CANDIDATES = 128
_FEWEST_PER_BIN = 4


def least_divergence_range(
    stats: TensorStatistics, *, lo: int, hi: int, symmetric: bool, even_zero_point: bool = True
) -> RealRange:
    """Return the range, within what was seen, whose quantized histogram diverges least from the histogram."""
    seen = RealRange(min(stats.min, 0.0), max(stats.max, 0.0))
    counts = stats.nonzero_counts.astype(np.float64)
    below, above = -stats.first_bin, stats.first_bin + counts.size
    best, least = seen, np.inf
    if counts.sum() < _FEWEST_PER_BIN * counts.size:
        return seen
    widest = max(below, above)
    for threshold in np.unique(np.linspace(widest, 1, _CANDIDATES).round().astype(int))[::-1]:
        reach = threshold * stats.bin_width
        range_ = RealRange(max(seen.lo, -reach), min(seen.hi, reach))
        if range_.lo == range_.hi:
            break
        scale, zero_point = affine_parameters(
            range_, lo=lo, hi=hi, symmetric=symmetric, even_zero_point=even_zero_point
        )
        if scale < stats.bin_width:  # with one level per bin, no loss would be visible
            break
        start, stop = below - min(threshold, below), below + min(threshold, above)
        kept = counts[start:stop]
        p = kept.copy()
        p[0] += counts[:start].sum()
        p[-1] += counts[stop:].sum()
        centres = (np.arange(start, stop) - below + 0.5) * stats.bin_width
        levels = np.clip(np.rint(centres / scale).astype(int) + zero_point, lo, hi) - lo
        occupied = p > 0
        mass = np.bincount(levels, weights=kept, minlength=hi - lo + 1)
        shared_by = np.bincount(levels, weights=occupied, minlength=hi - lo + 1)
        levels, p = levels[occupied], p[occupied]
        # A level without mass in Q that receives only clipped values counts as half a value.
        q = np.maximum(mass[levels], 0.5) / shared_by[levels]
        divergence = float(np.sum(p * np.log(p / q)) / p.sum() - np.log(p.sum() / q.sum()))
        divergence -= (p.size - np.count_nonzero(shared_by)) / (2 * p.sum())
        if divergence < least:
            best, least = range_, divergence
    return best

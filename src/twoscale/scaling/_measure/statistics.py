"""Summary of a few measured times: median, spread, and intervals that state their true coverage."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import Interval, Summary

__all__ = ["mean_interval", "median_interval", "percentile", "student_quantile", "summarize"]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` % of the values do not exceed (nearest rank).

    Args:
        values: at least one.
        percent: above 0, at most 100.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return an interval for the median that assumes nothing of the distribution.

    The k-th smallest and the k-th largest of n independent values enclose the median with probability
    1 - 2 P(B < k), where B is binomial(n, 1/2): each value is below the median with probability 1/2. Takes the
    largest k that still gives ``confidence``; with fewer than six values not even the smallest and largest do
    (for 95%), and the interval states the lower coverage it has.

    Args:
        values: at least one.
        confidence: wanted coverage, 0..1.
    """
    ordered = sorted(values)
    n = len(ordered)

    def coverage(k: int) -> float:
        return 1.0 - sum(math.comb(n, i) for i in range(k)) / float(2 ** (n - 1))

    k = 1
    while k + 1 <= n // 2 and coverage(k + 1) >= confidence:
        k += 1
    return Interval(ordered[k - 1], ordered[n - k], max(0.0, coverage(k)))


def student_quantile(confidence: float, degrees: int) -> float:
    """Return t with P(|T| <= t) = ``confidence`` for Student's distribution.

    By bisection on the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Args:
        confidence: above 0, below 1.
        degrees: of freedom, at least 1.
    """

    def within(t: float) -> float:
        theta = math.atan(t / math.sqrt(degrees))
        sine, cosine = math.sin(theta), math.cos(theta)
        if degrees == 1:
            return 2 * theta / math.pi
        odd = degrees % 2
        term = total = cosine if odd else 1.0
        for i in range(2 + odd, degrees - 1, 2):
            term *= cosine * cosine * (i - 1) / i
            total += term
        return 2 / math.pi * (theta + sine * total) if odd else sine * total

    low, high = 0.0, 1.0
    while within(high) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return Student's interval for the mean, or None for a single value, which says nothing of its spread.

    It takes the values as independent and about normal: right for the means of repeated runs, not for the steps of
    one run.
    """
    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    half = student_quantile(confidence, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean - half, mean + half, confidence)


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Summarize measured values of one quantity, in its own unit.

    Raises:
        ConfigurationError: there are none.
    """
    if not values:
        raise ConfigurationError("nothing was measured: expected at least one value to summarize")
    return Summary(
        n=len(values),
        median=statistics.median(values),
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        min=min(values),
        max=max(values),
        p95=percentile(values, 95),
        median_interval=median_interval(values, confidence),
        mean_interval=mean_interval(values, confidence),
    )

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import Interval
from twoscale.scaling._measure.statistics import mean_interval, median_interval, percentile, student_quantile, summarize


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 9, 10, 30, 101, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_students_quantile_is_scipys(degrees: int, confidence: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-9)


def test_mean_interval_is_scipys() -> None:
    values = [3.0, 4.5, 2.5, 7.0, 3.5]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = mean_interval(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high))
    assert mean_interval([1.0]) is None


def test_median_interval_states_the_coverage_it_has() -> None:
    # Of five values not even all of them cover 95%: both extremes miss the median with 2 / 2**5.
    assert median_interval([5, 1, 4, 2, 3]) == Interval(1, 5, 1 - 2 / 32)
    assert median_interval(range(6)) == Interval(0, 5, 1 - 2 / 64)
    assert median_interval(range(9)) == Interval(1, 7, 1 - 2 * (1 + 9) / 512)
    assert median_interval([2.0]) == Interval(2.0, 2.0, 0.0)


@pytest.mark.parametrize("n", [6, 9, 20])
def test_median_interval_covers_as_often_as_it_says(n: int) -> None:
    generator = np.random.default_rng(3)
    median = math.log(2)  # of the exponential distribution
    intervals = [median_interval(generator.exponential(size=n).tolist()) for _ in range(4000)]
    share = np.mean([i.low <= median <= i.high for i in intervals])
    assert intervals[0].coverage >= 0.95
    assert share == pytest.approx(intervals[0].coverage, abs=0.012)  # 3.5 standard errors


def test_median_interval_is_the_narrowest_of_its_kind() -> None:
    # One value further in on both sides would cover less than 95%.
    for n in range(6, 60):
        found = median_interval(range(n))
        k = int(found.low) + 1
        assert 1 - 2 * stats.binom.cdf(k, n, 0.5) < 0.95 <= found.coverage + 1e-12


def test_percentile_is_the_nearest_rank() -> None:
    values = list(range(1, 21))
    assert percentile(values, 95) == 19
    assert percentile(values, 100) == 20
    assert percentile([7.0], 95) == 7.0


def test_summary() -> None:
    found = summarize([3.0, 1.0, 2.0])
    assert (found.n, found.median, found.mean, found.deviation) == (3, 2.0, 2.0, 1.0)
    assert (found.min, found.max, found.p95) == (1.0, 3.0, 3.0)
    assert summarize([4.0]).deviation is None
    with pytest.raises(ConfigurationError, match="nothing was measured"):
        summarize([])


def test_overlap_of_intervals() -> None:
    assert Interval(0, 1, 0.95).overlaps(Interval(1, 2, 0.95))
    assert not Interval(0, 1, 0.95).overlaps(Interval(1.1, 2, 0.95))

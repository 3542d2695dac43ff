"""Streaming statistics against statistics of all values at once, in exact arithmetic where they should be exact."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from twoscale._calibration import StatisticsAccumulator, TensorStatistics, to_summary
from twoscale.errors import CalibrationError, ConfigurationError

Floats = NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
DENORMAL = float(np.float32(2.0**-149))
EDGES = [0.0, -0.0, 1.0, -1.0, DENORMAL, -DENORMAL, 1e30, -1e30, LARGEST, -LARGEST, 2.0**-126, 0.1]
EDGES += [float(np.nextafter(np.float32(v), np.float32(to))) for v in (1.0, -1.0, 0.5) for to in (-2.0, 2.0)]

any_values = arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(st.sampled_from(EDGES), st.floats(width=32, allow_nan=False, allow_infinity=False)),
)
ordinary_values = arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32))


def collect(*parts: Floats, bins: int = 2048) -> TensorStatistics:
    accumulator = StatisticsAccumulator("tensor", bins=bins)
    for part in parts:
        accumulator.update(part)
    return accumulator.finish()


def assert_same_histogram(a: TensorStatistics, b: TensorStatistics) -> None:
    assert (a.bin_width, a.first_bin, a.zeros, a.count) == (b.bin_width, b.first_bin, b.zeros, b.count)
    assert (a.min, a.max) == (b.min, b.max)
    np.testing.assert_array_equal(a.nonzero_counts, b.nonzero_counts)


@given(any_values, st.integers(2, 40))
def test_every_value_is_in_its_bin_by_exact_arithmetic(values: Floats, bins: int) -> None:
    stats = collect(values, bins=bins)
    exact = [Fraction(float(v)) for v in values]
    assert (stats.min, stats.max) == (float(min(exact)), float(max(exact)))
    assert stats.zeros == sum(v == 0 for v in exact)
    if not any(exact):
        assert stats.nonzero_counts.size == 0
        return
    # The smallest power of two with which this many bins cover 0 and every value.
    lo, hi = min([Fraction(0), *exact]), max([Fraction(0), *exact])
    width = Fraction(2) ** -200
    while math.floor(hi / width) + 1 - math.floor(lo / width) > bins:
        width *= 2
    assert Fraction(stats.bin_width) == width
    assert stats.first_bin == math.floor(lo / width)
    expected = np.zeros(math.floor(hi / width) + 1 - stats.first_bin, np.int64)
    for v in exact:
        if v != 0:
            expected[math.floor(v / width) - stats.first_bin] += 1
    np.testing.assert_array_equal(stats.nonzero_counts, expected)
    assert 2 * stats.nonzero_counts.size > bins


@given(any_values, st.lists(st.integers(0, 60), max_size=5), st.randoms(use_true_random=False))
def test_batches_may_be_cut_and_ordered_in_any_way(values: Floats, cuts: list[int], random: object) -> None:
    whole = collect(values, bins=16)
    parts = np.split(values, sorted(cuts))
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert_same_histogram(collect(*parts, bins=16), whole)


@given(st.lists(ordinary_values, min_size=3, max_size=3))
def test_merging_is_associative_and_equals_the_union(parts: list[Floats]) -> None:
    def merged(order: tuple[int, ...], right_first: bool) -> TensorStatistics:
        a, b, c = (StatisticsAccumulator("tensor", bins=32) for _ in range(3))
        for accumulator, i in zip((a, b, c), order, strict=True):
            accumulator.update(parts[i])
        if right_first:
            b.merge(c)
            a.merge(b)
        else:
            a.merge(b)
            a.merge(c)
        return a.finish()

    union = np.concatenate(parts)
    whole = collect(union, bins=32)
    exact = [Fraction(float(v)) for v in union]
    mean = sum(exact) / len(exact)
    variance = sum((v - mean) ** 2 for v in exact) / len(exact)
    for order, right_first in (((0, 1, 2), True), ((2, 0, 1), False), ((1, 0, 2), False)):
        stats = merged(order, right_first)
        assert_same_histogram(stats, whole)
        scale = max(abs(float(v)) for v in exact)
        assert stats.mean == pytest.approx(float(mean), rel=1e-12, abs=1e-15 * scale)
        assert stats.std**2 == pytest.approx(float(variance), rel=1e-12, abs=1e-28 * scale**2)


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1e6])
def test_moments_and_histogram_of_many_batches(offset: float) -> None:
    rng = np.random.default_rng(1)
    batches = [(rng.normal(offset, 3.0 * 2.0**i, (50, 3, 37))).astype(np.float32) for i in range(9)]
    stats = collect(*batches)
    everything = np.concatenate([b.ravel() for b in batches])
    counts, _ = np.histogram(everything[everything != 0], stats.edges)
    np.testing.assert_array_equal(stats.nonzero_counts, counts)
    exact = everything.astype(np.float64)
    assert stats.mean == pytest.approx(math.fsum(exact) / exact.size, rel=1e-12)
    assert stats.std == pytest.approx(math.sqrt(math.fsum((exact - exact.mean()) ** 2) / exact.size), rel=1e-12)
    assert stats.count == everything.size
    assert 0.0 in stats.edges


def test_a_chunk_boundary_inside_a_batch_changes_nothing() -> None:
    values = np.random.default_rng(2).normal(size=200_001).astype(np.float32)
    values[::3] = 0.0
    whole = collect(values)
    assert_same_histogram(collect(*np.array_split(values, 7)), whole)
    assert whole.zeros == 66_667
    assert whole.nonzero_counts.sum() == 200_001 - 66_667


def test_memory_order_and_views_do_not_matter() -> None:
    values = np.random.default_rng(3).normal(size=(4, 6, 8, 10)).astype(np.float32)
    whole = collect(values)
    assert_same_histogram(collect(np.asfortranarray(values)), whole)
    assert_same_histogram(collect(values.transpose(0, 2, 3, 1)), whole)
    assert_same_histogram(collect(values[..., ::2], values[..., 1::2]), whole)


def test_relu_output_keeps_zeros_apart() -> None:
    values = np.maximum(np.random.default_rng(4).normal(size=10_000), 0).astype(np.float32)
    stats = collect(values)
    assert stats.zeros == np.count_nonzero(values == 0)
    assert stats.nonzero_counts.sum() == np.count_nonzero(values)
    assert stats.first_bin == 0
    assert stats.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-13)


@pytest.mark.parametrize("value", [0.1, -0.1, 1e30, -1e30, DENORMAL, LARGEST, 3.0])
def test_constant(value: float) -> None:
    constant = float(np.float32(value))
    stats = collect(np.full((3, 1000), constant, np.float32), np.full(1, constant, np.float32))
    assert (stats.min, stats.max, stats.mean, stats.std) == (constant, constant, constant, 0.0)
    assert np.count_nonzero(stats.nonzero_counts) == 1
    index = int(np.argmax(stats.nonzero_counts))
    assert stats.edges[index] <= constant < stats.edges[index + 1]


def test_all_zeros_of_both_signs() -> None:
    stats = collect(np.array([0.0, -0.0, 0.0], np.float32))
    assert (stats.count, stats.zeros, stats.min, stats.max, stats.std) == (3, 3, 0.0, 0.0, 0.0)
    assert not math.copysign(1, stats.min) < 0
    summary = to_summary(stats, "activation")
    assert (summary.histogram.lo, summary.histogram.counts) == (0.0, (3,))


def test_zeros_before_and_after_other_values() -> None:
    zeros, others = np.zeros(5, np.float32), np.array([-3.0, 2.0], np.float32)
    assert_same_histogram(collect(zeros, others), collect(others, zeros))
    a, b = StatisticsAccumulator("a"), StatisticsAccumulator("b")
    a.update(zeros)
    b.update(others)
    a.merge(b)
    assert_same_histogram(a.finish(), collect(others, zeros))


def test_merge_leaves_the_other_alone_and_takes_itself() -> None:
    a, b = StatisticsAccumulator("a"), StatisticsAccumulator("b")
    a.update(np.array([1000.0], np.float32))
    b.update(np.array([-1.0, 2.0], np.float32))
    before = b.finish()
    a.merge(b)
    assert_same_histogram(b.finish(), before)
    b.merge(b)
    assert_same_histogram(b.finish(), collect(np.array([-1, 2, -1, 2], np.float32)))
    a.merge(StatisticsAccumulator("empty"))
    assert a.finish().count == 3


def test_finish_is_a_snapshot_that_cannot_be_changed() -> None:
    accumulator = StatisticsAccumulator("x")
    accumulator.update(np.ones(3, np.float32))
    first = accumulator.finish()
    accumulator.update(np.ones(3, np.float32))
    assert first.nonzero_counts.sum() == 3
    with pytest.raises(ValueError, match="read-only"):
        first.nonzero_counts[0] = 1


def test_memory_is_bounded_whatever_comes() -> None:
    accumulator = StatisticsAccumulator("x", bins=64)
    for exponent in (-140, 0, 120, -149, 127):
        accumulator.update(np.array([2.0**exponent, -(2.0**exponent)], np.float32))
        assert accumulator.finish().nonzero_counts.size <= 64
    assert accumulator.finish().nonzero_counts.sum() == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_or_infinity_is_named_and_changes_nothing(bad: float) -> None:
    accumulator = StatisticsAccumulator("conv1")
    accumulator.update(np.array([1.0, 2.0], np.float32))
    values = np.ones((2, 3, 100_000), np.float32)
    values[1, 2, 77_777] = bad
    values[1, 2, 77_778] = bad
    with pytest.raises(CalibrationError, match=r"conv1: 2 of 600000 values are NaN or infinite.*\(1, 2, 77777\)"):
        accumulator.update(values)
    assert_same_histogram(accumulator.finish(), collect(np.array([1.0, 2.0], np.float32)))


def test_nothing_seen_is_an_error() -> None:
    accumulator = StatisticsAccumulator("fc3")
    accumulator.update(np.zeros((0, 10), np.float32))
    with pytest.raises(CalibrationError, match="fc3: no values were seen; calibrate with at least one image"):
        accumulator.finish()


def test_bins_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="at least 2 bins, one for each sign, not 1"):
        StatisticsAccumulator("x", bins=1)
    with pytest.raises(ConfigurationError, match="at most 32 bins into one of at most 64"):
        StatisticsAccumulator("x", bins=64).merge(StatisticsAccumulator("x", bins=32))


@settings(max_examples=60)
@given(any_values)
def test_summary_shows_every_value_in_few_bins(values: Floats) -> None:
    stats = collect(values)
    histogram = to_summary(stats, "activation").histogram
    assert 1 <= len(histogram.counts) <= 128
    assert sum(histogram.counts) == stats.count
    assert histogram.lo <= stats.min <= stats.max <= histogram.hi
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0


def test_summary_counts_are_numpys_with_zeros_in_their_bin() -> None:
    values = np.maximum(np.random.default_rng(5).normal(size=30_000), -0.5).astype(np.float32)
    values[:1000] = 0.0
    stats = collect(values)
    summary = to_summary(stats, "activation")
    h = summary.histogram
    expected, _ = np.histogram(values, bins=len(h.counts), range=(h.lo, h.hi))
    assert h.counts == tuple(expected)
    assert len(h.counts) > 64
    assert (summary.name, summary.kind, summary.zeros) == ("tensor", "activation", stats.zeros)
    assert summary.range == stats.max - stats.min


def test_summary_far_from_zero_is_not_one_bar() -> None:
    values = np.random.default_rng(6).uniform(10.0, 11.0, 10_000).astype(np.float32)
    assert len(to_summary(collect(values), "weight").histogram.counts) > 60


def test_calibration_needs_no_torch() -> None:
    code = "import sys, twoscale._calibration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

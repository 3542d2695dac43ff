"""Range methods, scales and zero points against direct computations on the values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twoscale._calibration import (
    RangeMethod,
    RealRange,
    StatisticsAccumulator,
    TensorStatistics,
    affine_parameters,
    choose_range,
    expected_squared_error,
)
from twoscale.errors import ConfigurationError, UnknownNameError

Doubles = NDArray[np.float64]

METHODS = [RangeMethod.parse(t) for t in ("minmax", "3-sigma", "percentile-99.9", "mse", "entropy")]
FORMATS = [(0, 255, False), (-128, 127, False), (-127, 127, False), (-127, 127, True), (0, 15, False)]


def statistics_of(values: Doubles, bins: int = 2048) -> TensorStatistics:
    accumulator = StatisticsAccumulator("tensor", bins=bins)
    accumulator.update(values.astype(np.float32))
    return accumulator.finish()


def represented(x: Doubles, scale: float, zero_point: int, lo: int, hi: int) -> Doubles:
    q = np.clip(np.rint(x / scale) + zero_point, lo, hi)
    result: Doubles = scale * (q - zero_point)
    return result


def squared_error(x: Doubles, scale: float, zero_point: int, lo: int, hi: int) -> float:
    return float(np.mean((x - represented(x, scale, zero_point, lo, hi)) ** 2))


def sample(kind: str, size: int = 40_000, seed: int = 0) -> Doubles:
    rng = np.random.default_rng(seed)
    drawn: dict[str, Doubles] = {
        "normal": rng.normal(size=size),
        "relu": np.maximum(rng.normal(size=size), 0),
        "laplace": rng.laplace(size=size),
        "skewed": rng.gamma(1.5, size=size) - 1,
        "negative": -rng.gamma(2.0, size=size),
        "heavy": rng.standard_t(3, size=size),
        "shifted": rng.normal(10, 0.5, size=size),
        "box": np.append(rng.uniform(0, 1, size), [3.0]),
        "outlier": np.append(rng.normal(size=size), 100.0),
    }
    return drawn[kind].astype(np.float32).astype(np.float64)


KINDS = ["normal", "relu", "laplace", "skewed", "negative", "heavy", "shifted", "outlier"]


# Names


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("minmax", RangeMethod("minmax")),
        ("mse", RangeMethod("mse")),
        ("entropy", RangeMethod("entropy")),
        ("3-sigma", RangeMethod("sigma", 3.0)),
        ("sigma-2.5", RangeMethod("sigma", 2.5)),
        (" Percentile-99.99 ", RangeMethod("percentile", 99.99)),
    ],
)
def test_methods_have_names(text: str, method: RangeMethod) -> None:
    assert RangeMethod.parse(text) == method


@given(st.sampled_from(["sigma", "percentile"]), st.floats(0, 100, exclude_min=True))
def test_names_round_trip(kind: str, value: float) -> None:
    assume(kind == "sigma" or value > 50)
    method = RangeMethod("sigma" if kind == "sigma" else "percentile", value)
    assert RangeMethod.parse(str(method)) == method


def test_names_are_short() -> None:
    assert [str(m) for m in METHODS] == ["minmax", "3-sigma", "percentile-99.9", "mse", "entropy"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("minmx", UnknownNameError, "unknown range method 'minmx': did you mean 'minmax'.*3-sigma"),
        ("sigma", UnknownNameError, "known names: 3-sigma, entropy, minmax, mse, percentile-99.99"),
        ("percentile--3", UnknownNameError, "unknown range method"),
        ("0-sigma", ConfigurationError, "positive number of standard deviations, such as '3-sigma', not 0"),
        ("percentile-50", ConfigurationError, "above 50 and up to 100, such as 'percentile-99.99', not 50"),
        ("percentile-100.1", ConfigurationError, "above 50 and up to 100"),
    ],
)
def test_wrong_names(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RangeMethod.parse(text)


def test_methods_made_directly_are_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="minmax takes no number, but was given 3"):
        RangeMethod("minmax", 3.0)
    with pytest.raises(ConfigurationError, match="not None"):
        RangeMethod("percentile")
    with pytest.raises(UnknownNameError, match="did you mean 'minmax'"):
        RangeMethod("minmas")  # type: ignore[arg-type]


# Scale and zero point

ends = st.floats(0, 2.0**100, width=32)


@given(ends, ends, st.sampled_from(FORMATS), st.booleans())
def test_scale_is_the_smallest_that_covers_the_range(
    below: float, above: float, integers: tuple[int, int, bool], even: bool
) -> None:
    lo, hi, symmetric = integers
    range_ = RealRange(-below, above)
    scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=symmetric, even_zero_point=even)
    assert lo <= zero_point <= hi
    assert scale > 0
    assert scale == np.float32(scale)
    if symmetric:
        assert zero_point == 0
        candidates = [0]
    else:
        assert zero_point % 2 == 0 or not even
        candidates = [z for z in range(lo, hi + 1) if z % 2 == 0 or not even]
    if below == above == 0:
        return
    needed = []
    for z in candidates:
        if (below and z == lo) or (above and z == hi):
            continue
        needed.append(
            max(
                Fraction(below) / (z - lo) if below else Fraction(0),
                Fraction(above) / (hi - z) if above else Fraction(0),
            )
        )
    assert scale == pytest.approx(max(float(min(needed)), 2.0**-126), rel=1e-7, abs=0)
    # Nothing is clipped: each end is rounded, by at most half a step.
    for end in (-below, above):
        assert abs(float(represented(np.array(end), scale, zero_point, lo, hi)) - end) <= scale * 0.50001


@pytest.mark.parametrize(
    ("range_", "lo", "hi", "expected"),
    [
        (RealRange(0.0, 255.0), 0, 255, (1.0, 0)),
        (RealRange(0.0, 255.0), -128, 127, (1.0, -128)),
        (RealRange(0.0, 253.0), -127, 127, (1.0, -126)),  # -127 is odd
        (RealRange(-254.0, 0.0), 0, 255, (1.0, 254)),
        (RealRange(-1.0, 1.0), 0, 255, (1 / 127, 128)),
        (RealRange(-128.0, 127.0), 0, 255, (1.0, 128)),
    ],
)
def test_known_parameters(range_: RealRange, lo: int, hi: int, expected: tuple[float, int]) -> None:
    scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=False)
    assert (scale, zero_point) == (float(np.float32(expected[0])), expected[1])


@pytest.mark.parametrize(("lo", "hi", "symmetric"), FORMATS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_all_zeros_quantize_to_the_zero_point(lo: int, hi: int, symmetric: bool, method: RangeMethod) -> None:
    stats = statistics_of(np.zeros(100))
    range_ = choose_range(stats, method, lo=lo, hi=hi, symmetric=symmetric)
    assert (range_.lo, range_.hi) == (0.0, 0.0)
    scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=symmetric)
    assert scale == np.float32(1 / (hi - lo))
    assert expected_squared_error(stats, scale=scale, zero_point=zero_point, lo=lo, hi=hi) == 0.0


def test_impossible_integers() -> None:
    with pytest.raises(ConfigurationError, match=r"integers 0\.\.1 are too few"):
        affine_parameters(RealRange(-1, 1), lo=0, hi=1, symmetric=False)
    with pytest.raises(ConfigurationError, match=r"integers 0\.\.255 with zero point 0 cannot represent -1\.\.1"):
        affine_parameters(RealRange(-1, 1), lo=0, hi=255, symmetric=True)
    for method in METHODS:
        with pytest.raises(ConfigurationError, match="cannot represent"):
            choose_range(statistics_of(np.array([-1.0, 1.0])), method, lo=0, hi=255, symmetric=True)


@pytest.mark.parametrize(("lo", "hi"), [(1.0, 2.0), (-2.0, -1.0), (-math.inf, 0.0), (0.0, math.nan)])
def test_ranges_contain_zero_and_are_finite(lo: float, hi: float) -> None:
    with pytest.raises(ConfigurationError, match="must be finite and contain 0"):
        RealRange(lo, hi)


# Methods


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lo", "hi", "symmetric"), [(0, 255, False), (-127, 127, True)])
def test_ranges_are_sane(method: RangeMethod, kind: str, lo: int, hi: int, symmetric: bool) -> None:
    x = sample(kind)
    range_ = choose_range(statistics_of(x), method, lo=lo, hi=hi, symmetric=symmetric)
    if symmetric:
        assert range_.lo == -range_.hi
        assert 0 < range_.hi <= np.abs(x).max() * (1 + 1e-6)
    else:
        scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=False)
        slack = 2 * scale if method.kind == "mse" else 0.0
        assert min(0, x.min()) - slack <= range_.lo <= 0 <= range_.hi <= max(0, x.max()) + slack
        if x.min() >= 0:
            assert zero_point == 0
        if method.kind == "minmax":
            assert (range_.lo, range_.hi) == (min(0, x.min()), max(0, x.max()))


def test_sigma() -> None:
    x = sample("normal")
    range_ = choose_range(statistics_of(x), RangeMethod("sigma", 2.0), lo=0, hi=255, symmetric=False)
    assert range_.lo == pytest.approx(x.mean() - 2 * x.std(), rel=1e-9)
    assert range_.hi == pytest.approx(x.mean() + 2 * x.std(), rel=1e-9)
    shifted = sample("shifted")
    both = choose_range(statistics_of(shifted), RangeMethod("sigma", 1.0), lo=-127, hi=127, symmetric=True)
    assert both.hi == pytest.approx(shifted.mean() + shifted.std(), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [75.0, 99.0, 99.9])
def test_percentile_is_numpys_within_a_bin(kind: str, percent: float) -> None:
    x = sample(kind)
    stats = statistics_of(x)
    method = RangeMethod("percentile", percent)
    affine = choose_range(stats, method, lo=0, hi=255, symmetric=False)
    symmetric = choose_range(stats, method, lo=-127, hi=127, symmetric=True)
    magnitudes = np.abs(x)
    for found, values, rank in (
        (affine.lo, x, 100 - percent),
        (affine.hi, x, percent),
        (symmetric.hi, magnitudes, percent),
    ):
        # Anything between two neighbouring values is a percentile.
        lower, higher = (np.percentile(values, rank, method=m) for m in ("lower", "higher"))
        if values is x:
            lower, higher = (min(0, lower), min(0, higher)) if rank < 50 else (max(0, lower), max(0, higher))
        assert lower - 1.001 * stats.bin_width <= found <= higher + 1.001 * stats.bin_width


def test_percentile_of_nearly_all_zeros_falls_back_to_everything() -> None:
    x = np.zeros(1000)
    x[0] = 5.0
    for symmetric, lo in ((False, 0), (True, -255)):
        range_ = choose_range(statistics_of(x), RangeMethod("percentile", 99.0), lo=lo, hi=255, symmetric=symmetric)
        assert range_.hi == 5.0


# Squared error


def by_integration(stats: TensorStatistics, scale: float, zero_point: int, lo: int, hi: int) -> float:
    """The definition: numerical integration of the squared error over each bin, cut at the smallest and largest
    value."""
    total = 0.0
    for a, b, count in zip(stats.edges[:-1], stats.edges[1:], stats.nonzero_counts, strict=True):
        if count == 0:
            continue
        left = max(a, stats.min) if stats.min != 0 else a
        right = min(b, stats.max) if stats.max != 0 else b
        grid = left + (right - left) * (np.arange(4000) + 0.5) / 4000
        total += count * squared_error(grid, scale, zero_point, lo, hi)
    return total / stats.count


@settings(max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.integers(4, 40),
    st.floats(0.02, 3.0),
    st.sampled_from([(0, 15), (-8, 7), (0, 255)]),
    st.integers(0, 15),
)
def test_expected_error_is_the_integral(
    kind: str, bins: int, relative: float, integers: tuple[int, int], zero: int
) -> None:
    lo, hi = integers
    stats = statistics_of(sample(kind, 200), bins=bins)
    scale = relative * stats.max_abs / (hi - lo)
    expected = by_integration(stats, scale, lo + zero, lo, hi)
    found = expected_squared_error(stats, scale=scale, zero_point=lo + zero, lo=lo, hi=hi)
    assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_error_is_close_to_the_true_one(kind: str) -> None:
    x = sample(kind)
    stats = statistics_of(x)
    for method in METHODS[:4]:
        range_ = choose_range(stats, method, lo=0, hi=255, symmetric=False)
        scale, z = affine_parameters(range_, lo=0, hi=255, symmetric=False)
        if kind == "outlier" and method.kind == "minmax":
            continue  # the step is a few bins long and all values within a few steps
        found = expected_squared_error(stats, scale=scale, zero_point=z, lo=0, hi=255)
        assert found == pytest.approx(squared_error(x, scale, z, 0, 255), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lo", "hi", "symmetric"), [(0, 255, False), (0, 15, False), (-127, 127, True)])
def test_least_squared_error_beats_brute_force_on_the_values(kind: str, lo: int, hi: int, symmetric: bool) -> None:
    x = sample(kind, 4000)
    stats = statistics_of(x)
    range_ = choose_range(stats, RangeMethod("mse"), lo=lo, hi=hi, symmetric=symmetric)
    scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=symmetric)
    found = squared_error(x, scale, zero_point, lo, hi)
    widest = RealRange(min(0.0, x.min()), max(0.0, x.max()))
    largest, _ = affine_parameters(widest, lo=lo, hi=hi, symmetric=symmetric)
    near = range(max(lo, zero_point - 20), min(hi, zero_point + 20) + 1, 2)
    candidates = [0] if symmetric else list(near)
    best = min(squared_error(x, largest * ratio, z, lo, hi) for ratio in np.linspace(0.1, 1, 91) for z in candidates)
    assert found <= best * 1.03


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lo", "hi", "symmetric"), FORMATS)
def test_least_squared_error_is_never_worse_than_minmax(
    kind: str, lo: int, hi: int, symmetric: bool, even: bool
) -> None:
    stats = statistics_of(sample(kind, 500))
    expected, parameters = {}, {}
    for name in ("minmax", "mse"):
        range_ = choose_range(stats, RangeMethod.parse(name), lo=lo, hi=hi, symmetric=symmetric, even_zero_point=even)
        scale, z = affine_parameters(range_, lo=lo, hi=hi, symmetric=symmetric, even_zero_point=even)
        parameters[name] = (scale, z)
        expected[name] = expected_squared_error(stats, scale=scale, zero_point=z, lo=lo, hi=hi)
    # The range gives back the scale to float32, hence the margin.
    assert expected["mse"] <= expected["minmax"] * (1 + 1e-5)
    assert parameters["mse"][0] <= parameters["minmax"][0]


def test_least_squared_error_of_values_on_the_integers_grid_is_minmax() -> None:
    # 8-bit images: min-max represents every value without error, and the method must find that.
    x = np.random.default_rng(7).integers(0, 256, 20_000) / 255
    for bins in (2048, 8192):
        range_ = choose_range(statistics_of(x, bins=bins), RangeMethod("mse"), lo=0, hi=255, symmetric=False)
        assert (range_.lo, range_.hi) == (0.0, 1.0)


@pytest.mark.parametrize("value", [1.0, -3.5, 1e30, 1e-30, 2.0**-149])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(("lo", "hi", "symmetric"), [(0, 255, False), (-127, 127, True)])
def test_constants_are_represented(value: float, method: RangeMethod, lo: int, hi: int, symmetric: bool) -> None:
    x = np.full(100, value)
    range_ = choose_range(statistics_of(x), method, lo=lo, hi=hi, symmetric=symmetric)
    scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=symmetric)
    # 1e-6 of the value, or half of the smallest scale there is
    error = np.abs(represented(x, scale, zero_point, lo, hi) - x).max()
    assert error <= max(abs(value) * 1e-3, 2.0**-127)


# Entropy


def migacz(counts: NDArray[np.int64], levels: int, width: float) -> tuple[int, list[float]]:
    """The published search, literally, for values from 0 on. Return the best number of bins."""
    divergences = {}
    for i in range(levels, counts.size + 1):
        reference = [float(c) for c in counts[:i]]
        reference[-1] += float(counts[i:].sum())
        scale = float(np.float32(i * width / (levels - 1)))
        if scale < width:
            continue
        groups: dict[int, list[int]] = {}
        for j in range(i):
            groups.setdefault(min(round((j + 0.5) * width / scale), levels - 1), []).append(j)
        candidate = [0.0] * i
        noise = 0
        for members in groups.values():
            occupied = [j for j in members if reference[j] > 0]
            for j in occupied:
                candidate[j] = max(sum(float(counts[m]) for m in members), 0.5) / len(occupied)
            noise += max(len(occupied) - 1, 0)
        total_p, total_q = sum(reference), sum(candidate)
        divergences[i] = sum(
            p / total_p * math.log(p / total_p * total_q / q)
            for p, q in zip(reference, candidate, strict=True)
            if p > 0
        ) - noise / (2 * total_p)
    best = max(divergences, key=lambda i: (-divergences[i], i))
    return best, [divergences[best], min(divergences.values())]


@pytest.mark.parametrize("kind", ["relu", "skewed", "box"])
def test_entropy_is_the_published_search(kind: str) -> None:
    x = np.abs(sample(kind, 30_000))
    x[0] = 2.5 * x.max()  # an outlier, so that there is something to clip
    stats = statistics_of(x, bins=64)
    # With 64 bins every threshold is a candidate of both.
    range_ = choose_range(stats, RangeMethod("entropy"), lo=0, hi=15, symmetric=False)
    best, _ = migacz(stats.nonzero_counts, 16, stats.bin_width)
    assert range_.hi == pytest.approx(min(best * stats.bin_width, stats.max))
    assert range_.hi < 0.9 * stats.max


def test_entropy_clips_outliers_but_keeps_the_body() -> None:
    x = sample("outlier", 200_000)
    for lo, hi, symmetric in ((0, 255, False), (-127, 127, True)):
        range_ = choose_range(statistics_of(x), RangeMethod("entropy"), lo=lo, hi=hi, symmetric=symmetric)
        assert 3 < range_.hi < 50


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["relu", "normal", "skewed"])
@pytest.mark.parametrize("size", [300, 10_000])
def test_entropy_of_few_values_is_not_misled_by_noise(kind: str, size: int, seed: int) -> None:
    # Without the correction for noise, the error is up to 60 times that of min-max here.
    x = sample(kind, size, seed)
    errors = {}
    for name in ("minmax", "entropy"):
        range_ = choose_range(statistics_of(x), RangeMethod.parse(name), lo=0, hi=255, symmetric=False)
        scale, z = affine_parameters(range_, lo=0, hi=255, symmetric=False)
        errors[name] = squared_error(x, scale, z, 0, 255)
    assert errors["entropy"] < 3 * errors["minmax"]

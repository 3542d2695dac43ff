"""Scales of weights against brute force on the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twoscale._calibration import RangeMethod, choose_weight_scales
from twoscale.errors import ConfigurationError, QuantizationError

Weights = NDArray[np.float32]

METHODS = [RangeMethod.parse(t) for t in ("minmax", "3-sigma", "percentile-99", "mse", "entropy")]


def random_weights(*shape: int, seed: int = 0, tails: bool = False) -> Weights:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(4, shape) if tails else rng.normal(size=shape)
    return (drawn * rng.uniform(0.01, 1, (shape[0], *[1] * (len(shape) - 1)))).astype(np.float32)


def error(row: NDArray[np.float64], scale: float, hi: int) -> float:
    return float(np.sum((row - scale * np.clip(np.rint(row / scale), -hi, hi)) ** 2))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_shapes_and_bounds(method: RangeMethod, per_channel: bool) -> None:
    weight = random_weights(6, 3, 5, 5)
    scales = choose_weight_scales(weight, method, hi=127, per_channel=per_channel)
    rows = np.abs(weight.reshape(6 if per_channel else 1, -1)).max(axis=1)
    assert scales.dtype == np.float64
    assert scales.shape == ((6,) if per_channel else (1,))
    assert np.all(scales > 0)
    assert np.all(scales <= rows * (1 + 1e-7) / 127)


def test_minmax_sigma_and_percentile_are_what_numpy_says() -> None:
    weight = random_weights(4, 50)
    rows = weight.astype(np.float64)

    def scales(text: str) -> NDArray[np.float64]:
        return choose_weight_scales(weight, RangeMethod.parse(text), hi=127, per_channel=True)

    np.testing.assert_allclose(scales("minmax") * 127, np.abs(rows).max(axis=1), rtol=1e-15)
    expected = np.abs(rows.mean(axis=1)) + 1.5 * rows.std(axis=1)
    np.testing.assert_allclose(scales("1.5-sigma") * 127, expected, rtol=1e-12)
    np.testing.assert_allclose(scales("9-sigma"), scales("minmax"), rtol=1e-15)
    expected = np.percentile(np.abs(rows), 90, axis=1)
    np.testing.assert_allclose(scales("percentile-90") * 127, expected, rtol=1e-12)


@pytest.mark.parametrize("hi", [127, 7, 1])
@pytest.mark.parametrize("tails", [True, False])
def test_mse_is_as_good_as_brute_force(hi: int, tails: bool) -> None:
    weight = random_weights(5, 150, seed=hi, tails=tails)
    scales = choose_weight_scales(weight, RangeMethod("mse"), hi=hi, per_channel=True)
    for row, scale in zip(weight.astype(np.float64), scales, strict=True):
        widest = np.abs(row).max() / hi
        brute = min(error(row, widest * ratio, hi) for ratio in np.linspace(0.02, 1, 2000))
        assert error(row, scale, hi) <= 1.03 * brute
        assert error(row, scale, hi) <= (1 + 1e-5) * error(row, widest, hi)


def test_mse_of_one_scale_sums_over_all_channels_and_blocks() -> None:
    weight = random_weights(70, 1000, tails=True)  # more than two blocks, rows of very different size
    (scale,) = choose_weight_scales(weight, RangeMethod("mse"), hi=127, per_channel=False)
    flat = weight.astype(np.float64).ravel()
    widest = np.abs(flat).max() / 127
    brute = min(error(flat, widest * ratio, 127) for ratio in np.linspace(0.05, 1, 300))
    assert error(flat, scale, 127) <= 1.005 * brute


def test_mse_of_many_rows_does_not_depend_on_its_neighbours() -> None:
    weight = random_weights(90, 800, seed=3)
    together = choose_weight_scales(weight, RangeMethod("mse"), hi=127, per_channel=True)
    alone = [
        choose_weight_scales(weight[i : i + 1], RangeMethod("mse"), hi=127, per_channel=True)[0] for i in (0, 41, 89)
    ]
    np.testing.assert_allclose(together[[0, 41, 89]], alone, rtol=1e-3)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([1, 7, 127]), st.integers(1, 12), st.floats(1e-30, 1e30))
def test_mse_is_never_worse_than_minmax(seed: int, hi: int, size: int, magnitude: float) -> None:
    row = np.random.default_rng(seed).normal(size=(1, size)).astype(np.float32) * np.float32(magnitude)
    (scale,) = choose_weight_scales(row, RangeMethod("mse"), hi=hi, per_channel=True)
    (widest,) = choose_weight_scales(row, RangeMethod("minmax"), hi=hi, per_channel=True)
    exact = row[0].astype(np.float64)
    assert error(exact, scale, hi) <= (1 + 1e-4) * error(exact, widest, hi) + 1e-12 * float(exact @ exact)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_channels_of_zeros_take_the_largest_scale(method: RangeMethod) -> None:
    weight = random_weights(4, 30)
    weight[1] = 0
    scales = choose_weight_scales(weight, method, hi=127, per_channel=True)
    others = choose_weight_scales(weight[[0, 2, 3]], method, hi=127, per_channel=True)
    np.testing.assert_allclose(scales[[0, 2, 3]], others)
    assert scales[1] == scales[[0, 2, 3]].max()
    zeros = np.zeros((3, 5), np.float32)
    np.testing.assert_array_equal(choose_weight_scales(zeros, method, hi=127, per_channel=True), [1 / 127] * 3)


def test_mostly_zero_channel_keeps_its_weights() -> None:
    weight = np.zeros((1, 1000), np.float32)
    weight[0, 0] = 2.0
    (scale,) = choose_weight_scales(weight, RangeMethod("percentile", 99), hi=127, per_channel=True)
    assert scale == 2 / 127


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("value", [2.0**-149, 1e30])
def test_tiny_and_huge_weights(method: RangeMethod, value: float) -> None:
    weight = np.full((2, 9), value, np.float32)
    scales = choose_weight_scales(weight, method, hi=127, per_channel=True)
    assert np.all(np.isfinite(scales))
    assert np.all(scales >= 2.0**-126)
    assert np.abs(np.rint(weight / scales[:, None])).max() <= 127


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_or_infinity_is_named(bad: float) -> None:
    weight = random_weights(4, 3, 5, 5)
    weight[2, 1, 0, 4] = bad
    with pytest.raises(QuantizationError, match=r"conv1\.weight: 1 of 300 weights are NaN or infinite.*\(2, 1, 0, 4\)"):
        choose_weight_scales(weight, RangeMethod("mse"), hi=127, per_channel=True, name="conv1.weight")


def test_other_wrong_input() -> None:
    with pytest.raises(QuantizationError, match=r"fc: there are no weights \(shape \(0, 10\)\)"):
        choose_weight_scales(np.zeros((0, 10), np.float32), RangeMethod("minmax"), hi=127, per_channel=True, name="fc")
    with pytest.raises(ConfigurationError, match="must be positive, not 0"):
        choose_weight_scales(random_weights(2, 2), RangeMethod("minmax"), hi=0, per_channel=True)


@pytest.mark.parametrize("values", [256, 1200])
@pytest.mark.parametrize("hi", [63, 127])
@pytest.mark.parametrize("tails", [False, True])
def test_long_rows_are_as_good_as_brute_force(hi: int, values: int, tails: bool) -> None:
    weight = random_weights(5, values, seed=hi + values, tails=tails)
    scales = choose_weight_scales(weight, RangeMethod("mse"), hi=hi, per_channel=True)
    for row, scale in zip(weight.astype(np.float64), scales, strict=True):
        widest = np.abs(row).max() / hi
        brute = min(error(row, widest * ratio, hi) for ratio in np.linspace(0.02, 1, 2000))
        assert error(row, scale, hi) <= 1.03 * brute


def test_rows_with_zeros_only_and_with_one_value() -> None:
    weight = np.zeros((3, 300), np.float32)
    weight[1, 7] = 0.5
    weight[2] = np.linspace(-1, 1, 300)
    scales = choose_weight_scales(weight, RangeMethod("mse"), hi=127, per_channel=True)
    assert np.isfinite(scales).all()
    assert error(weight[1].astype(np.float64), scales[1], 127) < 1e-12

"""Building integer networks: multipliers, weights and biases against exact fractions and searches by hand."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.quantization.small_models import (
    accumulating,
    built,
    conv,
    float_weight,
    graph_of,
    images,
    linear,
    planned,
)
from twoscale._calibration import RangeMethod, choose_weight_scales
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import MULTIPLIER_LIMIT, rne_ratio
from twoscale._ir.functions import FUNCTIONS
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._quantization import COURSE, DEFAULT, Scheme
from twoscale._quantization.build import _nearest_allowed, build
from twoscale._quantization.scales import quantize_bias, weight_scales
from twoscale.errors import QuantizationError

Float32 = NDArray[np.float32]

RELU = (0.0, math.inf)
PLAIN = dataclasses.replace(DEFAULT, error_feedback=False, bias_correction=False)
MINMAX = dataclasses.replace(PLAIN, weight_range="minmax", activation_range="minmax")


def normal(*shape: int, seed: int = 0, spread: float = 0.2) -> Float32:
    return (spread * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def example(seed: int = 0, *, spread: float = 0.2, channels: int = 6) -> g.FloatGraph:
    """Convolution, ReLU, residual, depthwise convolution, linear: every kind of layer with weights."""
    rng = np.random.default_rng(seed)
    per_channel = np.exp(rng.normal(0, 1, channels)).astype(np.float32)  # channels with different ranges
    return graph_of(
        (3, 8, 8),
        conv(
            "conv",
            "input",
            normal(channels, 3, 3, 3, seed=seed + 1, spread=spread) * per_channel[:, None, None, None],
            (channels, 6, 6),
            normal(channels, seed=seed + 2),
            bounds=RELU,
        ),
        dataclasses.replace(
            conv(
                "joined",
                "conv",
                normal(channels, channels, 3, 3, seed=seed + 3),
                (channels, 6, 6),
                normal(channels, seed=seed + 4),
                padding=(1, 1, 1, 1),
            ),
            inputs=("conv", "conv"),
        ),
        conv("depthwise", "joined", normal(channels, 1, 3, 3, seed=seed + 5), (channels, 4, 4), groups=channels),
        g.Reshape(name="flat", inputs=("depthwise",), shape=(16 * channels,)),
        linear("fc", "flat", normal(5, 16 * channels, seed=seed + 6), normal(5, seed=seed + 7)),
    )


SCHEMES = {
    "default": PLAIN,
    "minmax": MINMAX,
    "one scale per layer": dataclasses.replace(PLAIN, per_channel=False),
    "4 bits": dataclasses.replace(PLAIN, weight_bits=4),
    "symmetric": dataclasses.replace(PLAIN, activations="symmetric"),
}
on_the_grid = pytest.mark.parametrize("how", SCHEMES.values(), ids=SCHEMES)


def exact_scales(network: IntegerNetwork, layer: n.Accumulating) -> list[Fraction]:
    """Return s_x · s_w of each output channel, exactly: m · s_y / 2**shift, or the head's scale."""
    if layer.multiplier is None:
        return [Fraction(layer.output.scale)] * len(layer.bias_o)
    assert layer.multiplier.shift is not None
    integers = np.broadcast_to(layer.multiplier.integers, layer.bias_o.shape)
    return [int(m) * Fraction(layer.output.scale) / 2**layer.multiplier.shift for m in integers]


@on_the_grid
@pytest.mark.parametrize("seed", [0, 1])
def test_weight_scales_are_defined_by_whole_multipliers(how: Scheme, seed: int) -> None:
    graph = example(seed)
    network = built(graph, images(seed, 30), how)
    assert network.on_grid
    for layer in accumulating(network):
        x = network.spec(layer.inputs[0])
        found = np.broadcast_to(weight_scales(layer, x), layer.bias_o.shape)
        for channel, product in enumerate(exact_scales(network, layer)):
            exact = product / Fraction(x.scale)
            assert abs(Fraction(float(found[channel])) / exact - 1) < Fraction(1, 2**50)
        assert (layer.multiplier is None) == (layer.name == "fc")
        per_channel = how.per_channel and layer.multiplier is not None
        assert layer.multiplier is None or len(layer.multiplier.values) == (len(layer.bias_o) if per_channel else 1)


@on_the_grid
def test_weights_and_biases_are_the_nearest_integers(how: Scheme) -> None:
    graph = example(2)
    network = built(graph, images(2, 30), how)
    for layer in accumulating(network):
        x_scale = Fraction(network.spec(layer.inputs[0]).scale)
        weight, bias = float_weight(graph, layer.name), graph[layer.name].bias_o  # type: ignore[attr-defined]
        for channel, product in enumerate(exact_scales(network, layer)):
            in_bias_steps = Fraction(float(bias[channel])) / product
            assert layer.bias_o[channel] == rne_ratio(in_bias_steps.numerator, in_bias_steps.denominator)
            scale = product / x_scale
            for value, integer in zip(weight[channel], layer.weight[channel].reshape(-1), strict=True):
                steps = Fraction(float(value)) / scale
                nearest = rne_ratio(steps.numerator, steps.denominator)
                assert integer == max(-how.weight_limit, min(how.weight_limit, nearest))


def squared_errors(rows: NDArray[np.float64], scale: float, limit: int) -> float:
    total = 0.0
    for row in rows:
        for value in row:
            total += (max(-limit, min(limit, round(value / scale))) * scale - value) ** 2
    return total


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("spread", [0.2, 3.0])
@pytest.mark.parametrize("method", ["mse", "minmax", "percentile-99"])
def test_multipliers_are_the_best_of_the_neighbours(method: str, spread: float, per_channel: bool) -> None:
    how = dataclasses.replace(PLAIN, weight_range=method, per_channel=per_channel)
    graph = example(3, spread=spread, channels=4)
    network = built(graph, images(3, 20), how)
    limit = how.weight_limit
    for layer in accumulating(network)[:-1]:
        assert layer.multiplier is not None
        assert layer.multiplier.shift is not None
        step = layer.output.scale / (2**layer.multiplier.shift * network.spec(layer.inputs[0]).scale)
        weight = float_weight(graph, layer.name)
        wanted = choose_weight_scales(
            weight.astype(np.float32), RangeMethod.parse(method), hi=limit, per_channel=per_channel
        )
        rows = [row[None] for row in weight] if per_channel else [weight]
        for channel, m in enumerate(layer.multiplier.integers):
            up = math.ceil(wanted[channel] / step)
            candidates = [k for k in range(up - 2, up + 2) if k >= 1]
            kept = min(wanted[channel] * limit, np.abs(rows[channel]).max())
            if method != "mse":  # values within the range are not clipped
                candidates = [k for k in candidates if k >= up or kept <= (limit + 0.5) * k * step]
            errors = {k: squared_errors(rows[channel], k * step, limit) for k in candidates}
            assert m in errors
            assert errors[int(m)] <= min(errors.values()) * (1 + 1e-9)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([1e-3, 0.2, 30.0]),
    heavy=st.booleans(),
    bits=st.integers(2, 8),
    per_channel=st.booleans(),
    on_grid=st.booleans(),
)
def test_minmax_clips_no_weight(
    seed: int, spread: float, heavy: bool, bits: int, per_channel: bool, on_grid: bool
) -> None:
    how = dataclasses.replace(MINMAX, weight_bits=bits, per_channel=per_channel, on_grid=on_grid)
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(2, (4, 1200)) if heavy else rng.uniform(-1, 1, (4, 1200))
    graph = graph_of(
        (3, 20, 20),
        g.Reshape(name="flat", inputs=("input",), shape=(1200,)),
        linear("fc1", "flat", weight * spread),
        linear("fc2", "fc1", normal(3, 4)),
    )
    network = built(graph, images(0, 4, 3, 20, 20), how)
    layer = accumulating(network)[0]
    scales = weight_scales(layer, network.spec("flat"))
    steps = np.abs(float_weight(graph, "fc1") / scales[:, None])
    assert steps.max() <= how.weight_limit + 0.5 + 1e-6
    assert np.abs(layer.weight.astype(int)).max() <= how.weight_limit


def test_least_squares_may_clip_where_it_gains() -> None:
    """Clipping the planted outlier costs less than the resolution that it would take from all other weights."""
    weight = normal(4, 1200, spread=0.1)
    weight[:, 0] = 1.0
    flat = g.Reshape(name="flat", inputs=("input",), shape=(1200,))
    graph = graph_of((3, 20, 20), flat, linear("fc1", "flat", weight), linear("fc2", "fc1", normal(3, 4)))
    network = built(graph, images(0, 4, 3, 20, 20), dataclasses.replace(PLAIN, weight_bits=4))
    scales = weight_scales(accumulating(network)[0], network.spec("flat"))
    assert (1.0 / scales > 7.5).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("how", [PLAIN, COURSE], ids=["default", "course"])
def test_weights_stay_within_their_bits(bits: int, how: Scheme) -> None:
    network = built(example(4), images(4, 10), dataclasses.replace(how, weight_bits=bits))
    reached = {int(np.abs(layer.weight.astype(int)).max()) for layer in accumulating(network)}
    assert reached == {2 ** (bits - 1) - 1}  # symmetric, and all integers in use


@pytest.mark.parametrize("bits", range(4, 9))
def test_activations_stay_within_their_bits(bits: int) -> None:
    network = built(example(5), images(5, 20), dataclasses.replace(MINMAX, activation_bits=bits))
    values = ReferenceExecutor(network).run(images(5, 20), [layer.name for layer in network])
    for layer in network:
        if layer.output.dtype != "int32":
            assert 0 <= layer.output.lo <= layer.output.hi <= 2**bits - 1
            assert 0 <= values[layer.name].min() <= values[layer.name].max() <= 2**bits - 1
    # An even zero point may leave out a level at one end.
    assert int(values["input"].max()) - int(values["input"].min()) >= 2**bits - 3


def test_the_course_is_symmetric_one_scale_a_layer_and_off_the_grid() -> None:
    graph = graph_of(
        (3, 8, 8),
        conv("conv", "input", normal(6, 3, 3, 3), (6, 6, 6), normal(6, seed=1), bounds=RELU),
        g.Reshape(name="flat", inputs=("conv",), shape=(216,)),
        linear("fc1", "flat", normal(7, 216)),
        linear("fc2", "fc1", normal(5, 7), normal(5, seed=2)),
    )
    network = built(graph, images(6, 20), COURSE)
    assert not network.on_grid
    for layer in network:
        assert layer.output.zero_point == 0
        assert layer.output.dtype == ("int32" if layer.name == "fc2" else "int8")
    for layer in accumulating(network):
        x = network.spec(layer.inputs[0])
        widest = np.abs(float_weight(graph, layer.name)).max()
        assert np.abs(layer.weight.astype(int)).max() == 127
        if layer.multiplier is None:
            assert layer.output.scale == pytest.approx(x.scale * widest / 127, rel=1e-12)
        else:
            assert layer.multiplier.shift is None
            ratio = np.float32(x.scale * (widest / 127) / layer.output.scale)
            np.testing.assert_allclose(layer.multiplier.values, [ratio], rtol=1.2e-7)


def test_the_head_has_one_scale_for_all_classes() -> None:
    weight = normal(5, 192) * np.array([1, 10, 0.1, 1, 3], np.float32)[:, None]
    flat = g.Reshape(name="flat", inputs=("input",), shape=(192,))
    graph = graph_of((3, 8, 8), flat, linear("fc", "flat", weight))
    network = built(graph, images(7, 10), MINMAX)
    (head,) = accumulating(network)
    assert (head.output.dtype, head.multiplier) == ("int32", None)
    assert head.output.scale == pytest.approx(network.spec("flat").scale * np.abs(weight).max() / 127, rel=1e-12)


def test_a_flattened_convolution_is_a_head() -> None:
    whole = conv("whole", "input", normal(5, 3, 8, 8), (5, 1, 1), normal(5, seed=1))
    graph = graph_of((3, 8, 8), whole, g.Reshape(name="flat", inputs=("whole",), shape=(5,)))
    for how in (PLAIN, COURSE):
        network = built(graph, images(8, 10), how)
        assert network.spec("flat") == dataclasses.replace(network.spec("whole"), shape=(5,))
        x = torch.from_numpy(images(8, 10))
        expected = F.conv2d(x, torch.from_numpy(whole.weight_oihw), torch.from_numpy(whole.bias_o)).flatten(1).numpy()
        np.testing.assert_allclose(network(images(8, 10)), expected, atol=0.03 * np.abs(expected).max())


# Layers without weights: the multiplier nearest to a ratio that is given.


def test_ratios_go_to_the_nearest_multiplier() -> None:
    graph = graph_of(
        (4, 8, 8),
        conv("a", "input", normal(4, 4, 1, 1), (4, 8, 8)),
        conv("b", "input", normal(4, 4, 1, 1, seed=1, spread=0.5), (4, 8, 8), bounds=RELU),
        g.Add(name="sum", inputs=("a", "b"), shape=(4, 8, 8)),
        g.Mul(name="product", inputs=("sum", "b"), shape=(4, 8, 8)),
        g.AveragePool2d(name="mean", inputs=("product",), shape=(4, 4, 4), kernel=(2, 2), stride=(2, 2)),
        g.MaxPool2d(name="most", inputs=("sum",), shape=(4, 4, 4), kernel=(2, 2), stride=(2, 2)),
        g.Concat(name="both", inputs=("mean", "most"), shape=(8, 4, 4), axis=0),
        g.Reshape(name="flat", inputs=("both",), shape=(128,)),
        linear("fc", "flat", normal(5, 128)),
    )
    network = built(graph, images(9, 20, 4, 8, 8), PLAIN)
    scale = {layer.name: Fraction(layer.output.scale) for layer in network}
    total, product, mean, both = network["sum"], network["product"], network["mean"], network["both"]
    assert isinstance(total, n.Add)
    assert isinstance(product, n.Mul)
    assert isinstance(mean, n.AveragePool2d)
    assert isinstance(both, n.Concat)
    wanted: list[tuple[n.Multiplier | None, Fraction, int]] = [
        (total.multipliers[0], scale["a"] / scale["sum"], 14),
        (total.multipliers[1], scale["b"] / scale["sum"], 14),
        (product.multiplier, scale["sum"] * scale["b"] / scale["product"], 16),
        (mean.multiplier, scale["product"] / (4 * scale["mean"]), 16),
        (both.multipliers[0], scale["mean"] / scale["both"], 16),
        (both.multipliers[1], scale["most"] / scale["both"], 16),
    ]
    for multiplier, ratio, shift in wanted:
        if multiplier is None:  # copied, because the scale is shared
            assert ratio == 1
            continue
        assert multiplier.shift == shift
        exact = ratio * 2**shift
        assert multiplier.integers.tolist() == [rne_ratio(exact.numerator, exact.denominator)]
    free = built(graph, images(9, 20, 4, 8, 8), COURSE)
    total = free["sum"]
    assert isinstance(total, n.Add)
    assert total.multipliers[0].values.tolist() == [np.float32(free.spec("a").scale / free.spec("sum").scale)]


def test_a_joined_residual_counts_in_finer_steps() -> None:
    network = built(example(6), images(10, 20), PLAIN)
    joined = network["joined"]
    assert isinstance(joined, n.Conv2d)
    assert joined.multiplier is not None
    assert joined.residual_multiplier is not None
    assert (joined.multiplier.shift, joined.residual_multiplier.shift) == (14, 14)
    ratio = Fraction(network.spec("conv").scale) / Fraction(joined.output.scale) * 2**14
    assert joined.residual_multiplier.integers.tolist() == [rne_ratio(ratio.numerator, ratio.denominator)]


def test_concat_copies_what_has_its_scale_already() -> None:
    graph = graph_of(
        (3, 8, 8),
        g.Concat(name="twice", inputs=("input", "input"), shape=(6, 8, 8), axis=0),
        g.Reshape(name="flat", inputs=("twice",), shape=(384,)),
        linear("fc", "flat", normal(5, 384)),
    )
    twice = built(graph, images(11, 5), MINMAX)["twice"]
    assert isinstance(twice, n.Concat)
    assert twice.multipliers == (None, None)


TORCH_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: F.elu(x, 0.5),
    "celu": lambda x: F.celu(x, 0.5),
    "selu": F.selu,
    "mish": F.mish,
    "softplus": F.softplus,
    "log_sigmoid": F.logsigmoid,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": lambda x: torch.log(x.clamp(min=torch.finfo(torch.float32).tiny)),
    "log1p": lambda x: torch.log((1.0 + x).clamp(min=torch.finfo(torch.float32).tiny)),
    "rsqrt": lambda x: torch.rsqrt(x.clamp(min=torch.finfo(torch.float32).tiny)),
    "sin": torch.sin,
    "cos": torch.cos,
    "reciprocal": torch.reciprocal,
    "expm1": torch.expm1,
    "exp2": torch.exp2,
    "log2": lambda x: torch.log2(x.clamp(min=torch.finfo(torch.float32).tiny)),
    "log10": lambda x: torch.log10(x.clamp(min=torch.finfo(torch.float32).tiny)),
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "erfc": torch.erfc,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "equal": lambda x: (x == 0.0).float(),
    "not_equal": lambda x: (x != 0.0).float(),
    "affine": lambda x: x * 0.25 - 1.5,
    "clamp": lambda x: x.clamp(-0.5, 6.0),
    "greater": lambda x: (x > 0.3).float(),
    "greater_equal": lambda x: (x >= 0.3).float(),
    "less": lambda x: (x < 0.3).float(),
    "less_equal": lambda x: (x <= 0.3).float(),
    "erf": torch.erf,
    "sign": torch.sign,
    "power": lambda x: x**3,
    "threshold": lambda x: F.threshold(x, -0.5, -2.0),
    "hardshrink": lambda x: F.hardshrink(x, 0.5),
    "softshrink": lambda x: F.softshrink(x, 0.5),
    "constant": lambda x: torch.full_like(x, 0.7),
}
PARAMETERS = {
    "leaky_relu": (0.1,),
    "elu": (0.5,),
    "celu": (0.5,),
    "power": (3.0,),
    "threshold": (-0.5, -2.0),
    "hardshrink": (0.5,),
    "softshrink": (0.5,),
    "constant": (0.7,),
    "affine": (0.25, -1.5),
    "clamp": (-0.5, 6.0),
    "greater": (0.3,),
    "greater_equal": (0.3,),
    "less": (0.3,),
    "less_equal": (0.3,),
    "equal": (0.0,),
    "not_equal": (0.0,),
}
STEPS = {
    "constant", "sign", "round", "floor", "ceil", "trunc",
    "equal", "not_equal", "greater", "greater_equal", "less", "less_equal",
}  # fmt: skip
"""Functions of few values."""
OF_POSITIVE = {"log", "log1p", "log2", "log10", "rsqrt", "reciprocal"}
"""Functions without values below 0; their tables have some all the same."""


def test_every_function_is_tested() -> None:
    assert TORCH_FUNCTIONS.keys() == FUNCTIONS.keys()


@pytest.mark.sweep(17)
@pytest.mark.parametrize("function", TORCH_FUNCTIONS)
@pytest.mark.parametrize("how", [PLAIN, COURSE], ids=["default", "course"])
def test_tables_hold_the_nearest_integer_of_every_value(function: str, how: Scheme) -> None:
    graph = graph_of(
        (3, 8, 8),
        g.Elementwise(
            name="f", inputs=("input",), shape=(3, 8, 8), function=function, parameters=PARAMETERS.get(function, ())
        ),
        g.Reshape(name="flat", inputs=("f",), shape=(192,)),
        linear("fc", "flat", normal(5, 192)),
    )
    pixels = images(12, 10, spread=2.0)
    network = built(graph, np.abs(pixels) + np.float32(0.5) if function in OF_POSITIVE else pixels, how)
    x, table = network.spec("input"), network["f"]
    assert isinstance(table, n.Table)
    y = table.output
    codes = np.arange(256) + (0 if x.dtype == "uint8" else -128)
    real = TORCH_FUNCTIONS[function](torch.from_numpy(x.scale * (codes - x.zero_point))).numpy()
    steps = np.clip(real / y.scale + y.zero_point, y.lo, y.hi)
    assert np.abs(table.table - steps).max() <= 0.5 + 1e-9
    # A planted constant would be within its bounds too.
    assert len(set(table.table.tolist())) > 50 or function in STEPS


# Values that do not fit.


def test_biases_at_the_edge_of_int32() -> None:
    scales = np.array([1.0, 1.0, 1.0])
    largest = quantize_bias("fc", np.array([2.0**31 - 1, -(2.0**31) + 1, 0.0]), scales)
    assert largest.dtype == np.int32
    assert largest.tolist() == [2**31 - 1, -(2**31) + 1, 0]
    assert quantize_bias("fc", np.array([0.5, 1.5, -2.5]), scales).tolist() == [0, 2, -2]
    for value in (2.0**31, -(2.0**31), 1e300):
        with pytest.raises(QuantizationError, match=r"layer fc, channel 1: the bias .* beyond int32"):
            quantize_bias("fc", np.array([5.0, value, 7.0]), scales)


@pytest.mark.parametrize("how", [PLAIN, COURSE], ids=["default", "course"])
def test_a_bias_that_does_not_fit_names_layer_and_channel(how: Scheme) -> None:
    flat = g.Reshape(name="flat", inputs=("input",), shape=(192,))
    fc = linear("fc", "flat", normal(3, 192) * np.float32(1e-12), [0.0, 0.0, -7.0])
    message = r"^layer fc, channel 2: the bias -7 is -\d.*e\+\d+ steps of its accumulator, beyond int32; its weights"
    with pytest.raises(QuantizationError, match=message):
        built(graph_of((3, 8, 8), flat, fc), images(13, 5), how)


def test_accumulators_that_overflow_name_layer_and_channel() -> None:
    flat = g.Reshape(name="flat", inputs=("input",), shape=(192,))
    weight = normal(3, 192)
    unit = built(graph_of((3, 8, 8), flat, linear("fc", "flat", weight)), images(14, 5), PLAIN).spec("fc").scale
    fits = linear("fc", "flat", weight, [0.0, 2.0**30 * unit, 0.0])
    assert built(graph_of((3, 8, 8), flat, fits), images(14, 5), PLAIN).bounds[-1].bound > 2**30
    overflows = linear("fc", "flat", weight, [0.0, (2.0**31 - 4096) * unit, 0.0])
    message = r"^layer fc, channel 1: accumulators can reach \d{10}, beyond int32; use fewer weight bits there, or"
    with pytest.raises(QuantizationError, match=message):
        built(graph_of((3, 8, 8), flat, overflows), images(14, 5), PLAIN)


def test_nan_in_weights_names_the_layer() -> None:
    weight = normal(5, 192)
    graph = graph_of((3, 8, 8), g.Reshape(name="flat", inputs=("input",), shape=(192,)), linear("fc", "flat", weight))
    plan = planned(graph, images(15, 5), PLAIN)
    weight[2, 3] = np.nan
    broken = dataclasses.replace(plan, graph=graph.replaced({"fc": linear("fc", "flat", weight)}))
    with pytest.raises(
        QuantizationError, match=re.escape("fc.weight: 1 of 960 weights are NaN or infinite, the first")
    ):
        build(broken)


# Unusual, but right.


def sqnr(reference: Float32, value: Float32) -> float:
    error = np.square(reference.astype(np.float64) - value).sum()
    return math.inf if error == 0 else 10 * math.log10(np.square(reference.astype(np.float64)).sum() / error)


def two_layers(weight: Float32, bias: Float32, seed: int = 0) -> tuple[g.FloatGraph, Float32, Float32]:
    """Return convolution, ReLU and linear layer, images, and the logits computed without a FloatGraph."""
    second, pixels = normal(5, 6 * 36, seed=seed + 1), images(seed, 40)
    graph = graph_of(
        (3, 8, 8),
        conv("conv", "input", weight, (6, 6, 6), bias, bounds=RELU),
        g.Reshape(name="flat", inputs=("conv",), shape=(216,)),
        linear("fc", "flat", second),
    )
    hidden = F.relu(F.conv2d(*(torch.from_numpy(array) for array in (pixels, weight, bias)))).flatten(1)  # type: ignore[call-overload]
    return graph, pixels, (hidden.double() @ torch.from_numpy(second).double().T).numpy()


both_schemes = pytest.mark.parametrize("how", [PLAIN, COURSE], ids=["default", "course"])


@both_schemes
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e20])
def test_tiny_and_huge_weights(scale: float, how: Scheme) -> None:
    factor = np.float32(scale)
    graph, pixels, expected = two_layers(normal(6, 3, 3, 3) * factor, normal(6, seed=1) * factor)
    # One step of 8 bits is 1/127 of the largest value or less, so noise is 30 dB down; a wrong scale leaves none.
    assert sqnr(expected / factor, built(graph, pixels, how)(pixels) / factor) > 28


@both_schemes
def test_channels_of_zeros(how: Scheme) -> None:
    weight, bias = normal(6, 3, 3, 3), normal(6, seed=1)
    weight[1] = weight[4] = 0.0
    bias[4] = 0.0
    graph, pixels, expected = two_layers(weight, bias)
    network = built(graph, pixels, how)
    layer = accumulating(network)[0]
    assert not layer.weight[1].any()
    assert not layer.weight[4].any()
    assert layer.bias_o[4] == 0
    assert sqnr(expected, network(pixels)) > 28


@both_schemes
@pytest.mark.parametrize("with_bias", [True, False])
def test_layers_of_zeros(how: Scheme, with_bias: bool) -> None:
    bias = np.abs(normal(6, seed=1)) * with_bias
    graph, pixels, expected = two_layers(np.zeros((6, 3, 3, 3), np.float32), bias)
    network = built(graph, pixels, how)
    assert not accumulating(network)[0].weight.any()
    logits = network(pixels)
    assert (logits == logits[0]).all()
    if with_bias:
        assert sqnr(expected, logits) > 28
    else:
        assert not logits.any()


@both_schemes
def test_a_relu_that_is_never_reached_is_zero(how: Scheme) -> None:
    graph, pixels, expected = two_layers(normal(6, 3, 3, 3), np.full(6, -50.0, np.float32))
    assert not expected.any()
    assert not built(graph, pixels, how)(pixels).any()


@both_schemes
def test_images_of_zeros(how: Scheme) -> None:
    graph, pixels, _ = two_layers(normal(6, 3, 3, 3), np.abs(normal(6, seed=1)))
    network = built(graph, pixels * 0, how)
    assert network.spec("input").scale > 0
    assert np.isfinite(network(pixels)).all()


def test_one_weight_and_one_pixel() -> None:
    graph = graph_of(
        (1, 1, 1),
        conv("conv", "input", [[[[2.0]]]], (1, 1, 1), [1.0]),
        g.Reshape(name="flat", inputs=("conv",), shape=(1,)),
        linear("fc", "flat", [[1.0], [-1.0]]),
    )
    pixels = images(0, 200, 1, 1, 1)
    expected = (2 * pixels.reshape(-1, 1) + 1) * np.array([1.0, -1.0], np.float32)
    assert sqnr(expected, built(graph, pixels, PLAIN)(pixels)) > 35


def test_the_search_for_allowed_multipliers_ends() -> None:
    """Beyond the grid the nearest is its end; if none is allowed, it is refused instead of searched for ever."""
    limit = MULTIPLIER_LIMIT
    found = _nearest_allowed(np.array([2.0**40, 0.2, 1000.0]), lambda integers: integers % 2 == 1)
    assert found[0].tolist() == [limit - 1, 1, 999]
    assert ((found >= 1) & (found < limit) & (found % 2 == 1)).all()
    with pytest.raises(QuantizationError, match="no float32 weight scale"):
        _nearest_allowed(np.array([5.0]), lambda integers: np.zeros(integers.shape, bool))

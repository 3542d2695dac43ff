"""Plans: scales, zero points and clamps of activations, and the head."""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantization.small_models import conv, graph_of, images, linear, planned
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._ir.layers import TensorSpec
from twoscale._quantization import COURSE, DEFAULT, Scheme
from twoscale._quantization.plan import Plan
from twoscale.errors import QuantizationError

RELU = (0.0, math.inf)
MINMAX = dataclasses.replace(DEFAULT, weight_range="minmax", activation_range="minmax")
METHODS = ["minmax", "3-sigma", "percentile-99.9", "mse", "entropy"]
EXACT_CONV = conv("conv", "input", np.eye(3).reshape(3, 3, 1, 1), (3, 8, 8))  # the identity


def weights(*shape: int, seed: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def own_specs(plan: Plan) -> list[TensorSpec]:
    return [spec for name, spec in plan.specs.items() if name not in plan.heads]


def check_spec(spec: TensorSpec, lo: int, hi: int, dtype: str) -> None:
    assert spec.dtype == dtype
    assert lo <= spec.lo <= spec.zero_point <= spec.hi <= hi
    assert spec.zero_point % 2 == 0
    assert spec.scale > 0
    assert spec.scale == float(np.float32(spec.scale))  # runtimes divide by it in float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("brightest", [3, 180, 254, 255])
@pytest.mark.parametrize("unit", [1, 255])
def test_pixels_are_integers_as_they_are(method: str, brightest: int, unit: int) -> None:
    """Also if no calibration image has the brightest pixels."""
    graph = graph_of((3, 8, 8), EXACT_CONV)
    integers = np.random.default_rng(3).integers(0, brightest + 1, (6, 3, 8, 8))
    integers.flat[0] = brightest
    pixels = (integers / unit).astype(np.float32)
    how = Scheme(activation_range=method)
    spec = planned(graph, pixels, how).specs["input"]
    assert spec.zero_point == 0
    assert (np.rint(np.arange(256, dtype=np.float32) / np.float32(unit) / np.float32(spec.scale)) == range(256)).all()
    other = planned(graph, pixels + np.float32(0.4 / unit), how).specs["input"]
    assert other.scale < (brightest + 1) / 255 / unit  # only pixels are treated as pixels
    fewer = planned(graph, pixels, dataclasses.replace(how, activation_bits=6)).specs["input"]
    assert fewer.hi == 63
    assert fewer.scale * 63 <= brightest / unit * (1 + 1e-6)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    offset=st.floats(-5, 5),
    spread=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    bits=st.integers(4, 8),
    signed=st.booleans(),
    method=st.sampled_from(METHODS),
    bounds=st.sampled_from([g.UNBOUNDED, RELU, (0.0, 6.0), (-1.0, 1.0)]),
)
def test_every_tensor_can_hold_zero(
    seed: int, offset: float, spread: float, bits: int, signed: bool, method: str, bounds: g.Bounds
) -> None:
    how = Scheme(activation_range=method, activation_bits=bits, activations="symmetric" if signed else "asymmetric")
    pixels = images(seed, 3, spread=spread) + np.float32(offset * spread)
    graph = graph_of(
        (3, 8, 8),
        conv("conv", "input", weights(4, 3, 3, 3), (4, 6, 6), bounds=bounds),
        g.Reshape(name="flat", inputs=("conv",), shape=(144,)),
        linear("fc", "flat", weights(5, 144)),
    )
    for spec in own_specs(planned(graph, pixels.astype(np.float32), how)):
        check_spec(spec, *how.activation_limits, how.activation_dtype)
        if signed:
            assert spec.zero_point == 0


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("offset", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_minmax_covers_what_was_seen(offset: float, signed: bool) -> None:
    pixels = images(3, 20) + np.float32(offset)
    graph = graph_of((3, 8, 8), conv("conv", "input", weights(4, 3, 3, 3), (4, 6, 6)), *_head("conv", 144))
    plan = planned(graph, pixels, dataclasses.replace(MINMAX, activations="symmetric" if signed else "asymmetric"))
    convolved = torch.nn.functional.conv2d(torch.from_numpy(pixels), torch.from_numpy(weights(4, 3, 3, 3)))
    seen = {"input": pixels, "conv": convolved.numpy()}
    for name, values in seen.items():
        spec = plan.specs[name]
        lo, hi = float(values.min()), float(values.max())
        slack = 1e-6 * (hi - lo)  # the scale is rounded to float32
        assert spec.scale * (spec.lo - spec.zero_point) <= min(lo, 0) + slack
        assert spec.scale * (spec.hi - spec.zero_point) >= max(hi, 0) - slack
        # Not much wider either: an even zero point costs at most a level or two of 256.
        assert spec.scale * (spec.hi - spec.lo) <= (2 * max(-lo, hi) if signed else max(hi, 0) - min(lo, 0)) * 1.02


@pytest.mark.parametrize("how", [DEFAULT, COURSE, MINMAX], ids=["default", "course", "minmax"])
def test_a_relu_is_a_lower_bound_at_zero(how: Scheme) -> None:
    graph = graph_of((3, 8, 8), dataclasses.replace(EXACT_CONV, bounds=RELU), *_head("conv", 192))
    spec = planned(graph, images(5, 10), how).specs["conv"]
    assert spec.lo == spec.zero_point == 0  # for uint8 all 256 integers are in use
    assert spec.hi == how.activation_limits[1]


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_relu6_ends_at_the_integer_nearest_to_six(bits: int) -> None:
    pixels = images(6, 10, spread=10.0)
    graph = graph_of((3, 8, 8), dataclasses.replace(EXACT_CONV, bounds=(0.0, 6.0)), *_head("conv", 192))
    for how in (dataclasses.replace(MINMAX, activation_bits=bits), Scheme(activation_bits=bits)):
        spec = planned(graph, pixels, how).specs["conv"]
        assert spec.lo == spec.zero_point == 0
        wanted = Fraction(6) / Fraction(spec.scale)
        assert abs(spec.hi - min(wanted, 2**bits - 1)) <= Fraction(1, 2)
    minmax = planned(graph, pixels, dataclasses.replace(MINMAX, activation_bits=bits)).specs["conv"]
    assert minmax.hi == 2**bits - 1


def test_relu6_that_is_never_reached_clamps_nothing() -> None:
    graph = graph_of((3, 8, 8), dataclasses.replace(EXACT_CONV, bounds=(0.0, 6.0)), *_head("conv", 192))
    assert planned(graph, images(7, 4, spread=0.1), MINMAX).specs["conv"].hi == 255


def test_a_clamp_of_its_own_keeps_the_scale() -> None:
    """If other nodes read the unclamped values too, the clamp is a layer and shares its input's scale."""
    graph = graph_of(
        (3, 8, 8),
        EXACT_CONV,
        g.Clamp(name="relu", inputs=("conv",), shape=(3, 8, 8), bounds=RELU),
        g.Clamp(name="relu1", inputs=("conv",), shape=(3, 8, 8), bounds=(0.0, 1.0)),
        g.Add(name="sum", inputs=("conv", "relu"), shape=(3, 8, 8)),
        g.Add(name="sum2", inputs=("sum", "relu1"), shape=(3, 8, 8)),
        *_head("sum2", 192),
    )
    specs = planned(graph, images(8, 10), DEFAULT).specs
    source = specs["conv"]
    assert 0 < source.zero_point < 255
    assert specs["relu"] == dataclasses.replace(source, lo=source.zero_point)
    assert specs["relu1"] == dataclasses.replace(
        source, lo=source.zero_point, hi=source.zero_point + round(1 / source.scale)
    )


@pytest.mark.parametrize("bounds", [(0.1, math.inf), (-3.0, -0.5), (1.0, 6.0)])
@pytest.mark.parametrize("own_layer", [False, True])
def test_a_clamp_without_zero_is_an_error(bounds: g.Bounds, own_layer: bool) -> None:
    clamp = g.Clamp(name="clip", inputs=("conv",), shape=(3, 8, 8), bounds=bounds)
    first = (EXACT_CONV, clamp) if own_layer else (dataclasses.replace(EXACT_CONV, bounds=bounds),)
    graph = graph_of((3, 8, 8), *first, *_head(first[-1].name, 192))
    message = (
        f"layer {first[-1].name}: its output is clamped to [{bounds[0]:g}, {bounds[1]:g}], which leaves out 0, "
        "and integers must represent 0; clamp to bounds with 0 between them"
    )
    with pytest.raises(QuantizationError, match=re.escape(message)):
        planned(graph, images(9, 2), DEFAULT)


def test_moving_values_shares_their_integers() -> None:
    graph = graph_of(
        (3, 8, 8),
        conv("conv", "input", weights(4, 3, 3, 3), (4, 6, 6)),
        g.MaxPool2d(name="pool", inputs=("conv",), shape=(4, 3, 3), kernel=(2, 2), stride=(2, 2)),
        g.Pad(name="pad", inputs=("pool",), shape=(4, 4, 5), widths=((0, 0), (0, 1), (1, 1))),
        g.Permute(name="permute", inputs=("pad",), shape=(4, 5, 4), axes=(1, 2, 0)),
        g.Slice(name="slice", inputs=("permute",), shape=(4, 3, 4), axis=1, start=0, stop=5, step=2),
        g.Reshape(name="flat", inputs=("slice",), shape=(48,)),
        linear("fc", "flat", weights(5, 48)),
    )
    for how in (DEFAULT, COURSE):
        specs = planned(graph, images(10, 10), how).specs
        for name in ("pool", "pad", "permute", "slice", "flat"):
            assert specs[name] == dataclasses.replace(specs["conv"], shape=graph[name].shape)


@pytest.mark.parametrize("side", [16, 24, 96])
def test_a_mean_is_within_half_a_step_also_beside_a_concatenation(side: int) -> None:
    """Of 255 in each of its pixels, since it rounds its multiplier to 65536ths."""
    graph = graph_of(
        (2, side, side),
        conv("conv", "input", np.eye(2).reshape(2, 2, 1, 1), (2, side, side), bounds=RELU),
        g.AveragePool2d(name="mean", inputs=("conv",), shape=(2, 1, 1), kernel=(side, side), stride=(side, side)),
        g.MaxPool2d(name="most", inputs=("conv",), shape=(2, 1, 1), kernel=(side, side), stride=(side, side)),
        g.Concat(name="both", inputs=("mean", "most"), shape=(4, 1, 1), axis=0),
        g.Reshape(name="flat", inputs=("both",), shape=(4,)),
        linear("fc", "flat", weights(5, 4)),
    )
    specs = planned(graph, np.abs(images(12, 8, 2, side, side)), MINMAX).specs
    ratio = Fraction(specs["conv"].scale) / Fraction(specs["mean"].scale) / side**2
    error = abs(Fraction(round(ratio * 65536), 65536) - ratio)
    assert error * 255 * side**2 <= Fraction(1, 2) + Fraction(1, 1000)


def test_a_mean_whose_multiplier_would_be_nothing_is_an_error() -> None:
    graph = graph_of(
        (1, 512, 512),
        g.AveragePool2d(name="mean", inputs=("input",), shape=(1, 1, 1), kernel=(512, 512), stride=(512, 512)),
        g.Reshape(name="flat", inputs=("mean",), shape=(1,)),
        linear("fc", "flat", weights(5, 1)),
    )
    with pytest.raises(QuantizationError, match=r"layer mean: its multiplier is .*, expected at least 2\*\*-16"):
        planned(graph, np.ones((2, 1, 512, 512), dtype=np.float32), MINMAX)


def test_activation_ranges_follow_the_scheme() -> None:
    pixels = images(11, 50)
    pixels[0, 0, 0, 0] = 40.0  # an outlier that only minmax keeps whole
    graph = graph_of((3, 8, 8), *_head("input", 192))
    reach = {}
    for method in ("minmax", "3-sigma", "percentile-99.9"):
        spec = planned(graph, pixels, dataclasses.replace(DEFAULT, activation_range=method)).specs["input"]
        reach[method] = spec.scale * (spec.hi - spec.zero_point)
    assert reach["minmax"] == pytest.approx(40.0, rel=0.02)
    assert reach["3-sigma"] == pytest.approx(pixels.mean() + 3 * pixels.std(), rel=0.03)
    assert reach["percentile-99.9"] == pytest.approx(np.percentile(pixels, 99.9), rel=0.05)


# Heads.


def _head(source: str, features: int) -> tuple[g.Node, ...]:
    return (
        g.Reshape(name="flatten", inputs=(source,), shape=(features,)),
        linear("fc", "flatten", weights(5, features, seed=2)),
    )


def _fc(**options: object) -> g.Linear:
    return linear("fc", "flatten", weights(5, 192), **options)


FLAT = g.Reshape(name="flatten", inputs=("input",), shape=(192,))
WHOLE = conv("whole", "input", weights(5, 3, 8, 8), (5, 1, 1))

HEADS: dict[str, tuple[tuple[g.Node, ...], str]] = {
    "a linear layer": ((FLAT, _fc()), "fc"),
    "a convolution, flattened": ((WHOLE, g.Reshape(name="flat", inputs=("whole",), shape=(5,))), "whole"),
    "a convolution, flattened twice": (
        (
            WHOLE,
            g.Reshape(name="half", inputs=("whole",), shape=(5, 1)),
            g.Reshape(name="flat", inputs=("half",), shape=(5,)),
        ),
        "whole",
    ),
    "a relu at the end": ((FLAT, _fc(bounds=RELU)), ""),
    "a pool at the end": (
        (
            conv("conv", "input", weights(5, 3, 1, 1), (5, 8, 8)),
            g.AveragePool2d(name="mean", inputs=("conv",), shape=(5, 1, 1), kernel=(8, 8), stride=(8, 8)),
            g.Reshape(name="flat", inputs=("mean",), shape=(5,)),
        ),
        "",
    ),
    "a largest value at the end": (
        (
            conv("conv", "input", weights(5, 3, 1, 1), (5, 8, 8)),
            g.MaxPool2d(name="most", inputs=("conv",), shape=(5, 1, 1), kernel=(8, 8), stride=(8, 8)),
            g.Reshape(name="flat", inputs=("most",), shape=(5,)),
        ),
        "",
    ),
    "a sum of two": (
        (
            FLAT,
            _fc(),
            linear("other", "flatten", weights(5, 192, seed=3)),
            g.Add(name="sum", inputs=("fc", "other"), shape=(5,)),
        ),
        "",
    ),
    "logits that are read twice": (
        (
            FLAT,
            _fc(),
            g.Elementwise(name="gate", inputs=("fc",), shape=(5,), function="sigmoid"),
            g.Mul(name="swish", inputs=("fc", "gate"), shape=(5,)),
        ),
        "",
    ),
    "a convolution whose values are read elsewhere too": (
        (
            WHOLE,
            g.Reshape(name="one", inputs=("whole",), shape=(5,)),
            g.Reshape(name="two", inputs=("whole",), shape=(1, 5)),
            g.Reshape(name="flat", inputs=("two",), shape=(5,)),
            g.Add(name="sum", inputs=("one", "flat"), shape=(5,)),
            g.Reshape(name="row", inputs=("sum",), shape=(1, 5)),
            g.Reshape(name="end", inputs=("row",), shape=(5,)),
        ),
        "",
    ),
    "a slice of the logits": (
        (FLAT, _fc(), g.Slice(name="slice", inputs=("fc",), shape=(3,), axis=0, start=0, stop=3, step=1)),
        "",
    ),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("how", [DEFAULT, COURSE], ids=["default", "course"])
def test_the_head_keeps_its_accumulators(case: str, how: Scheme) -> None:
    nodes, head = HEADS[case]
    graph = graph_of((3, 8, 8), *nodes)
    plan = planned(graph, images(12, 4), how)
    assert plan.heads == ({head} if head else set())
    for node in graph:
        after = node.name == head or (head and isinstance(node, g.Reshape) and node.name not in ("flatten",))
        assert (plan.specs[node.name].dtype == "int32") == bool(after), node.name


def test_the_graph_is_what_it_was() -> None:
    """Planning changes nothing: the float graph gives the same logits before and after."""
    graph = graph_of((3, 8, 8), *_head("input", 192))
    pixels = torch.from_numpy(images(13, 4))
    before = GraphModule(graph)(pixels)
    plan = planned(graph, images(13, 4), DEFAULT)
    assert plan.graph is graph
    assert torch.equal(GraphModule(plan.graph)(pixels), before)

"""IntegerNetwork: refusals, conditions of the grid, bounds, and the fingerprint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.integer_networks import random_images, random_network
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators import pooling
from twoscale._ir.operators.attention import exponentials
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.torch import TorchExecutor
from twoscale.errors import QuantizationError

X = n.TensorSpec((2, 4, 4), "uint8", 0.5, 128, 0, 255)
LOGITS = n.TensorSpec((3,), "int32", 0.01)


def grid(*integers: int, shift: int = 16) -> n.Multiplier:
    return n.Multiplier.on_grid(np.array(integers), shift)


def spec(*shape: int, **changes: Any) -> n.TensorSpec:
    return dataclasses.replace(X, shape=shape, **changes)


def sample() -> dict[str, n.Layer]:
    """A network with a layer of every kind, by name."""
    weight = np.random.default_rng(0).integers(-127, 128, (2, 2, 3, 3)).astype(np.int8)
    bias = np.array([5, -7], np.int32)
    conv: dict[str, Any] = {"weight": weight, "bias_o": bias, "padding": (1, 1, 1, 1)}
    layers: list[n.Layer] = [
        n.QuantizeInput(name="input", inputs=(), output=X),
        n.Conv2d(name="conv", inputs=("input",), output=X, multiplier=grid(700, 900), **conv),
        n.Conv2d(
            name="joined", inputs=("conv", "input"), output=X, multiplier=grid(200, shift=14),
            residual_multiplier=grid(8000, shift=14), **conv,
        ),
        n.Add(
            name="add", inputs=("conv", "joined"), output=X,
            multipliers=(grid(9000, shift=14), grid(10000, shift=14)),
        ),
        n.Mul(name="mul", inputs=("add", "conv"), output=X, multiplier=grid(600)),
        n.MaxPool2d(name="max", inputs=("mul",), output=spec(2, 2, 2), kernel=(2, 2), stride=(2, 2)),
        n.AveragePool2d(
            name="mean", inputs=("mul",), output=spec(2, 2, 2), kernel=(2, 2), stride=(2, 2), multiplier=grid(16000)
        ),
        n.Concat(name="cat", inputs=("max", "mean"), output=spec(4, 2, 2), axis=0, multipliers=(None, grid(60000))),
        n.Permute(name="permute", inputs=("cat",), output=spec(2, 4, 2), axes=(1, 0, 2)),
        n.Slice(name="slice", inputs=("permute",), output=spec(2, 2, 2), axis=1, start=1, stop=4, step=2),
        n.Pad(name="pad", inputs=("slice",), output=spec(2, 3, 3), widths=((0, 0), (1, 0), (0, 1))),
        n.Normalize(
            name="normalize", inputs=("pad",), output=spec(2, 3, 3), axes=(2,), epsilon=5, centered=True,
            gain=np.full((1, 1, 3), 32 << 16, np.int32), bias=np.full((1, 1, 3), 3 << 16, np.int32),
        ),
        n.MatMul(name="matmul", inputs=("normalize", "normalize"), output=spec(2, 3, 3), multiplier=grid(900)),
        n.Softmax(
            name="softmax", inputs=("matmul",), output=spec(2, 3, 3, scale=2.0**-8, zero_point=0), axis=1,
            table=exponentials(0.1, 1 << 15),
        ),
        n.SoftmaxMatMul(
            name="attention", inputs=("matmul", "softmax"), output=spec(2, 3, 3), multiplier=grid(30000),
            table=exponentials(0.1, 1 << 15),
        ),
        n.Clamp(name="clamp", inputs=("attention",), output=spec(2, 3, 3, lo=128)),
        n.Table(
            name="table", inputs=("clamp",), output=spec(2, 3, 3, scale=0.25, zero_point=0),
            table=np.arange(255, -1, -1).astype(np.int16),
        ),
        n.Reshape(name="flat", inputs=("table",), output=spec(18, scale=0.25, zero_point=0)),
        n.Linear(
            name="logits", inputs=("flat",), output=LOGITS, multiplier=None,
            weight=np.arange(-27, 27).reshape(3, 18).astype(np.int8), bias_o=np.zeros(3, np.int32),
        ),
    ]  # fmt: skip
    return {layer.name: layer for layer in layers}


def network(layers: dict[str, n.Layer], output: str = "logits") -> IntegerNetwork:
    return IntegerNetwork("sample", tuple(layers.values()), (output,))


def changed(layer: str, /, **fields: Any) -> IntegerNetwork:
    layers = sample()
    layers[layer] = dataclasses.replace(layers[layer], **fields)
    return network(layers)


def test_the_sample_is_a_network() -> None:
    net = network(sample())
    assert net.on_grid
    assert net.off_grid == ()
    assert net.classes == 3
    assert net.input.name == "input"
    assert {type(layer) for layer in net} == {
        kind for kind in vars(n).values()
        if isinstance(kind, type) and issubclass(kind, n.Layer)
        and kind not in (n.Layer, n.Requantize, n.Accumulating, n.FixedPointSoftmax)
    }  # fmt: skip
    images = random_images(np.random.default_rng(0), net, 3)
    names = [layer.name for layer in net]
    expected, found = ReferenceExecutor(net).run(images, names), TorchExecutor(net).run(images, names)
    assert all(np.array_equal(expected[name], found[name]) for name in names)


# What is refused.

REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("layer conv reads nothing, which no earlier layer makes", "conv", {"inputs": ("nothing",)}),
    ("layer conv reads add, which no earlier layer makes", "conv", {"inputs": ("add",)}),
    ("two layers are named input; names must differ", "conv", {"name": "input"}),
    ("layer conv: Conv2d reads 1 tensors, got 2", "conv", {"inputs": ("input", "input")}),
    ("layer joined: Conv2d reads 2 tensors, got 1", "joined", {"inputs": ("conv",)}),
    ("layer add: Add reads 2 tensors, got 1", "add", {"inputs": ("conv",)}),
    ("layer cat: Concat reads 2 tensors, got 3", "cat", {"inputs": ("max", "mean", "max")}),
    ("layer conv: Conv2d makes (2, 4, 4), but says (2, 5, 4)", "conv", {"output": spec(2, 5, 4)}),
    ("layer conv: Conv2d makes (2, 2, 4)", "conv", {"padding": (0, 1, 0, 1)}),
    ("layer conv: Conv2d makes (2, 2, 4)", "conv", {"stride": (2, 1)}),
    ("positive strides", "conv", {"stride": (0, 1)}),
    ("padding of 0 or more", "conv", {"padding": (-1, 1, 1, 1)}),
    ("does not fit its inputs (2, 4, 4): weights (2, 2, 3, 3) in 2 groups", "conv", {"groups": 2}),
    ("weights (2, 2, 3) in 1 groups", "conv", {"weight": np.ones((2, 2, 3), np.int8)}),
    ("weights are int16 and biases int32", "conv", {"weight": np.ones((2, 2, 3, 3), np.int16)}),
    ("weights are int8 and biases int64", "conv", {"bias_o": np.zeros(2, np.int64)}),
    ("biases (3,) do not fit together", "conv", {"bias_o": np.zeros(3, np.int32)}),
    ("layer logits: Linear does not fit its inputs (18,)", "logits", {"weight": np.ones((3, 17), np.int8)}),
    ("layer conv, channel 1: accumulators can reach 2147", "conv", {"bias_o": np.array([0, 2**31 - 1], np.int32)}),
    ("layer conv, channel 0: accumulators can reach 2147", "conv", {"bias_o": np.array([-(2**31), 0], np.int32)}),
    ("multipliers are float32 of shape (3,); expected float32, 1 or 2", "conv", {"multiplier": grid(1, 2, 3)}),
    ("multipliers count 2**-14ths; expected all in 2**-16ths", "conv", {"multiplier": grid(5, shift=14)}),
    ("multipliers count 2**-16ths; expected all in 2**-14ths", "joined", {"multiplier": grid(5)}),
    ("expected all in 2**-14ths", "joined", {"residual_multiplier": n.Multiplier(np.ones(1, np.float32), None)}),
    (
        "multipliers are float32 of shape (2,); expected float32, 1",
        "joined",
        {"residual_multiplier": grid(1, 2, shift=14)},
    ),
    ("multipliers count 2**-16ths", "add", {"multipliers": (grid(5), grid(5))}),
    ("expected two tensors of one shape and two multipliers", "add", {"multipliers": (grid(5, shift=14),)}),
    ("expected two tensors of one shape and two multipliers", "add", {"multipliers": (grid(5, shift=14),) * 3}),
    ("must be positive and finite", "mul", {"multiplier": n.Multiplier(np.zeros(1, np.float32), None)}),
    ("must be positive and finite", "mul", {"multiplier": n.Multiplier(np.array([np.inf], np.float32), None)}),
    ("must be positive and finite", "mul", {"multiplier": n.Multiplier(np.array([np.nan], np.float32), None)}),
    ("whole numbers of 2**-16ths below 2**24", "mul", {"multiplier": n.Multiplier(np.array([2.0**-17], np.float32))}),
    ("whole numbers of 2**-16ths below 2**24", "mul", {"multiplier": n.Multiplier(np.array([256.0], np.float32))}),
    ("Conv2d to uint8 needs a multiplier", "conv", {"multiplier": None}),
    ("Linear to int32 cannot be; only accumulators", "logits", {"multiplier": grid(5)}),
    (
        "a residual joins before requantization",
        "joined",
        {"multiplier": None, "output": dataclasses.replace(LOGITS, shape=(2, 4, 4))},
    ),
    ("a window sees padding only", "max", {"padding": (2, 0, 0, 0), "output": spec(2, 3, 2)}),
    ("layer permute: Permute does not fit its inputs (4, 2, 2): axes (0, 0, 1)", "permute", {"axes": (0, 0, 1)}),
    ("layer slice: Slice does not fit", "slice", {"stop": 5}),
    ("layer slice: Slice does not fit", "slice", {"start": -1}),
    ("layer slice: Slice does not fit", "slice", {"axis": 3}),
    ("layer pad: Pad does not fit", "pad", {"widths": ((0, 0), (1, 0))}),
    ("widths must be 0 or more", "pad", {"widths": ((0, 0), (-1, 2), (0, 1))}),
    ("layer cat: Concat does not fit", "cat", {"axis": 3}),
    ("expected equal shapes but for dimension 0", "cat", {"inputs": ("max", "mul")}),
    ("another number of values", "flat", {"output": spec(17, scale=0.25, zero_point=0)}),
    (
        "Pad passes integers on, so type, scale and zero point must be its input's",
        "pad",
        {"output": spec(2, 3, 3, scale=1.0)},
    ),
    ("must be its input's (uint8, 0.5, 128), not (uint8, 0.5, 126)", "pad", {"output": spec(2, 3, 3, zero_point=126)}),
    ("Concat passes integers on", "cat", {"output": spec(4, 2, 2, scale=1.0)}),
    ("the input's [0, 255] is not within [2, 255]", "pad", {"output": spec(2, 3, 3, lo=2)}),
    ("expected a table of 256 int16 in [0, 255]", "table", {"table": np.zeros(128, np.int16)}),
    ("got int16 (256,) in [0, 256]", "table", {"table": np.array([0] * 255 + [256], np.int16)}),
    ("got int8 (256,)", "table", {"table": np.zeros(256, np.int8)}),
    ("layer conv: Conv2d reads 1 tensors, got 0", "conv", {"inputs": ()}),
    ("scale 0.0 and zero point 128 in [0, 255] cannot represent zero", "input", {"output": spec(2, 4, 4, scale=0.0)}),
    ("cannot represent zero", "input", {"output": spec(2, 4, 4, scale=1e-50)}),
    ("cannot represent zero", "input", {"output": spec(2, 4, 4, scale=1e50)}),
    ("cannot represent zero", "input", {"output": spec(2, 4, 4, scale=float("nan"))}),
    ("cannot represent zero", "input", {"output": spec(2, 4, 4, lo=130)}),
    ("[0, 256] does not fit uint8", "input", {"output": spec(2, 4, 4, hi=256)}),
    ("type float32; expected uint8, int8 or int32", "input", {"output": spec(2, 4, 4, dtype="float32")}),
    ("shape (0, 4, 4) has no values", "input", {"output": spec(0, 4, 4)}),
    (
        "layer pad: shape (2, 40000, 40000) has 3,200,000,000 values; expected at most 2,147,483,647",
        "pad",
        {"output": spec(2, 40000, 40000), "widths": ((0, 0), (39998, 0), (0, 39998))},
    ),
    (
        "layer logits: accumulators with zero point 2 in",
        "logits",
        {"output": dataclasses.replace(LOGITS, zero_point=2)},
    ),
    (
        "in [-2147483648, 5]; expected zero point 0 and the range",
        "logits",
        {"output": dataclasses.replace(LOGITS, hi=5)},
    ),
    (
        "layer mul: a multiplier is 1.84467e+19; expected below 2**64",
        "mul",
        {"multiplier": n.Multiplier(np.array([2.0**64], np.float32), None)},
    ),
]


@pytest.mark.parametrize(("message", "name", "fields"), REFUSED, ids=[f"{name}: {m[:50]}" for m, name, _ in REFUSED])
def test_what_does_not_fit_together_is_refused(message: str, name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError) as caught:
        changed(name, **fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_output_must_be_of_the_network() -> None:
    with pytest.raises(QuantizationError, match="the output nothing is made by no layer"):
        network(sample(), "nothing")
    assert network(sample(), "pad").classes is None
    layers = sample()
    layers["again"] = dataclasses.replace(layers["input"], name="again")
    for wrong in ({}, layers):
        with pytest.raises(QuantizationError, match="expected a QuantizeInput for each input, as the first layers"):
            network(wrong)


def test_accumulators_are_read_by_a_reshape_only() -> None:
    layers = sample()
    layers["after"] = n.Clamp(name="after", inputs=("logits",), output=LOGITS)
    with pytest.raises(QuantizationError, match="layer after: Clamp reads accumulators; only a Reshape may"):
        network(layers, "after")
    layers["after"] = n.Reshape(name="after", inputs=("logits",), output=LOGITS)
    assert network(layers, "after").classes == 3


# What leaves the grid.


def test_an_odd_zero_point_leaves_the_grid() -> None:
    net = changed("add", output=spec(2, 4, 4, zero_point=127))
    assert not net.on_grid
    assert net.off_grid == ("layer add: the zero point 127 is odd",)


def test_a_free_multiplier_leaves_the_grid() -> None:
    free = n.Multiplier(np.array([0.01], np.float32), None)
    net = changed("mul", multiplier=free)
    assert net.off_grid == ("layer mul: a multiplier is a free float, not a whole number on the grid",)
    net = changed("add", multipliers=(free, free))
    assert net.off_grid == ("layer add: a multiplier is a free float, not a whole number on the grid",)


@pytest.mark.parametrize(
    ("m_a", "m_b", "exact"),
    [
        (131072, 131072, True),  # 128 · 131072 = 2**24
        (131073, 131072, False),
        (131073, 98304, True),  # 128 · 98304 = 3·2**22
        (131073, 98305, False),
        (98304, 2**24 - 1, True),
        (2**24 - 1, 2**24 - 1, False),
    ],
)
def test_an_addition_of_large_multipliers_leaves_the_grid(m_a: int, m_b: int, exact: bool) -> None:
    for pair in ((m_a, m_b), (m_b, m_a)):
        net = changed("add", multipliers=(grid(pair[0], shift=14), grid(pair[1], shift=14)))
        assert net.on_grid is exact
        if not exact:
            (reason,) = net.off_grid
            assert reason.startswith("layer add: its operands reach ")
            assert reason.endswith("float32 sums are exact up to 1024 both, or up to 768 one of them")


def test_narrow_operands_allow_larger_multipliers() -> None:
    """The condition uses the actual range of |q − z|, not that of the type: here 128 above zero, 0 below."""
    layers = sample()
    layers["conv"] = dataclasses.replace(layers["conv"], output=spec(2, 4, 4, lo=128, hi=138))
    multipliers = grid(2**20, shift=14), grid(2**17, shift=14)
    layers["add"] = n.Add(name="add", inputs=("conv", "joined"), output=X, multipliers=multipliers)
    assert network(layers).on_grid


def test_a_large_residual_multiplier_leaves_the_grid() -> None:
    """The convolution of the sample can reach beyond 2**24 steps, so the residual must stay within 3·2**22."""
    assert changed("joined", multiplier=grid(2000, shift=14), residual_multiplier=grid(98304, shift=14)).on_grid
    net = changed("joined", multiplier=grid(2000, shift=14), residual_multiplier=grid(98305, shift=14))
    assert not net.on_grid
    assert "layer joined: its operands reach " in net.off_grid[0]
    small = changed("joined", multiplier=grid(1, shift=14), residual_multiplier=grid(131072, shift=14))
    assert small.on_grid  # both products within 2**24


def test_beyond_the_condition_executors_can_differ() -> None:
    """All 65,536 operand pairs of a network that is off the grid for this reason alone, found by search."""
    x = n.TensorSpec((1, 256, 256), "uint8", 1.0, 128, 0, 255)
    images = np.broadcast_to(np.arange(256, dtype=np.float32)[:, None] - 128, (1, 1, 256, 256))
    rng = np.random.default_rng(0)
    different = 0
    for _ in range(60):
        m_a = int(rng.integers(150_000, 260_000))
        m_b = m_a + int(rng.integers(-2000, 2000))
        layers = (
            n.QuantizeInput(name="input", inputs=(), output=x),
            n.Permute(name="turned", inputs=("input",), output=x, axes=(0, 2, 1)),
            n.Add(
                name="add", inputs=("input", "turned"), output=x,
                multipliers=(grid(m_a, shift=ADD_SHIFT), grid(m_b, shift=ADD_SHIFT)),
            ),
            n.Reshape(name="out", inputs=("add",), output=dataclasses.replace(x, shape=(65536,))),
        )  # fmt: skip
        net = IntegerNetwork("sum", layers, ("out",))
        assert not net.on_grid
        expected, found = ReferenceExecutor(net).run(images)["out"], TorchExecutor(net).run(images)["out"]
        different += int((expected != found).sum())
    assert different > 0


# Bounds.


def test_bounds_are_the_formula() -> None:
    net = network(sample())
    by_layer = {bound.layer: bound for bound in net.bounds}
    assert set(by_layer) == {"conv", "joined", "logits"}
    conv = net["conv"]
    assert isinstance(conv, n.Conv2d)
    per_channel = np.abs(conv.weight.astype(int)).sum((1, 2, 3)) * 128 + np.abs(conv.bias_o)
    assert by_layer["conv"].bound == per_channel.max()
    assert by_layer["conv"].float32_exact


def test_no_image_exceeds_the_bounds() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        net = random_network(rng, operators={"conv"}, length=0, output="accumulators")
        found = ReferenceExecutor(net).run(random_images(rng, net, 20))[net.output]
        assert np.abs(found.astype(np.int64)).max() <= max(bound.bound for bound in net.bounds)


@pytest.mark.parametrize(
    ("weights", "safe"),
    [([64, 64, 0, 0], True), ([64, 65, 0, 0], False), ([0, 127, 127, 1], True), ([1, 127, -1, -127], True),
     ([0, 0, -100, 29], False), ([127, 1, 5], True), ([1, 1, 127], True)],
)  # fmt: skip
def test_pairs_that_saturate_16_bits(weights: list[int], safe: bool) -> None:
    flat = n.TensorSpec((len(weights),), "uint8", 1.0, 0, 0, 255)
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=dataclasses.replace(flat, shape=(len(weights), 1, 1))),
        n.Reshape(name="flat", inputs=("input",), output=flat),
        n.Linear(
            name="logits", inputs=("flat",), output=n.TensorSpec((1,), "int32", 1.0), multiplier=None,
            weight=np.array([weights], np.int8), bias_o=np.zeros(1, np.int32),
        ),
    )  # fmt: skip
    assert IntegerNetwork("pairs", layers, ("logits",)).bounds[0].pair_saturation_safe is safe


def test_parameters_counts_weights_and_biases() -> None:
    assert network(sample()).parameters == 36 + 2 + 36 + 2 + 54


# The fingerprint.


def fingerprint(layers: list[n.Layer], output: str = "logits") -> str:
    """The fingerprint of layers that need not fit together."""
    net = object.__new__(IntegerNetwork)
    for field, value in {"name": "x", "layers": tuple(layers), "outputs": (output,)}.items():
        object.__setattr__(net, field, value)
    return net.fingerprint


def variants(value: Any) -> list[Any]:
    """Other values, one for each part of ``value``."""
    match value:
        case str():
            return [value + "x"]
        case int():
            return [value + 1, -value - 5]
        case float():
            return [value * 2, float(np.nextafter(value, 1e9))]
        case None:
            return [grid(77)]
        case np.ndarray():
            last = value.copy()
            last.flat[-1] += 1
            return [last, value.reshape(-1, 1), value.astype(np.int64), value.ravel()[:-1]]
        case n.Multiplier():
            other_shift = n.Multiplier(value.values, None)
            return [n.Multiplier(part, value.shift) for part in variants(value.values)] + [other_shift]
        case n.TensorSpec():
            return [
                dataclasses.replace(value, **{field.name: part})
                for field in dataclasses.fields(value)
                for part in variants(getattr(value, field.name))
            ]
        case tuple():
            changed_parts = [
                (*value[:i], part, *value[i + 1 :]) for i, item in enumerate(value) for part in variants(item)
            ]
            return [*changed_parts, (*value, 1), (value, ())]
    raise AssertionError(f"no variants of {type(value)}")


def test_the_fingerprint_changes_with_every_field() -> None:
    layers = list(sample().values())
    seen = {fingerprint(layers): "itself"}
    count = 1
    for position, layer in enumerate(layers):
        for field in dataclasses.fields(layer):
            for value in variants(getattr(layer, field.name)):
                other = [*layers]
                other[position] = dataclasses.replace(layer, **{field.name: value})
                what = f"{layer.name}.{field.name} = {value}"
                mark = fingerprint(other)
                assert mark not in seen, f"{what} has the fingerprint of {seen[mark]}"
                seen[mark] = what
                count += 1
    assert count > 400
    assert len(seen) == count


def test_the_fingerprint_knows_the_operation() -> None:
    """Layers with the same fields that do different things."""
    layers = list(sample().values())
    for position, layer in enumerate(layers):
        if isinstance(layer, n.Clamp):
            clamp = layer
            other = n.Reshape(name=clamp.name, inputs=clamp.inputs, output=clamp.output)
            changed_layers = [*layers[:position], other, *layers[position + 1 :]]
            assert fingerprint(changed_layers) != fingerprint(layers)
            return
    pytest.fail("the sample has no clamp")


def test_the_fingerprint_knows_order_and_output() -> None:
    layers = list(sample().values())
    assert fingerprint(layers[::-1]) != fingerprint(layers)
    assert fingerprint(layers[:-1]) != fingerprint(layers)
    assert fingerprint(layers, "flat") != fingerprint(layers)


@pytest.mark.parametrize(
    "same",
    [
        lambda spec: dataclasses.replace(spec, scale=np.float64(spec.scale)),
        lambda spec: dataclasses.replace(spec, zero_point=np.int64(spec.zero_point), lo=np.int32(spec.lo)),
        lambda spec: dataclasses.replace(spec, shape=tuple(np.array(spec.shape))),
    ],
)
def test_the_fingerprint_counts_numbers_by_value(same: Callable[[n.TensorSpec], n.TensorSpec]) -> None:
    """A network loaded from a file has Python numbers where it may have had NumPy's."""
    layers = list(sample().values())
    equal = [dataclasses.replace(layer, output=same(layer.output)) for layer in layers]
    assert fingerprint(equal) == fingerprint(layers)


def test_name_scheme_and_metadata_do_not_decide_bits() -> None:
    layers = tuple(sample().values())
    first = IntegerNetwork("a", layers, ("logits",))
    second = IntegerNetwork("b", layers, ("logits",), scheme="course", metadata={"top1": 0.5})
    assert first.fingerprint == second.fingerprint


def test_multipliers_are_equal_by_value() -> None:
    assert grid(5, 6) == grid(5, 6)
    assert grid(5, 6) != grid(5, 7)
    assert grid(5) != grid(5, shift=14)
    assert grid(5) != n.Multiplier(grid(5).values, None)
    assert grid(5, 2**24 - 1).integers.tolist() == [5, 2**24 - 1]
    for wrong in (0, -1, 2**24):
        with pytest.raises(ValueError, match=r"multipliers must be in \(0, 2\*\*24\)"):
            grid(wrong)


# Every sum is bounded.


def pooled(size: int, kernel: int, *, padding: int = 0, **changes: Any) -> IntegerNetwork:
    """An average pool over one channel of size x size, then its output as logits."""
    x = n.TensorSpec((1, size, size), "uint8", 1.0, 0, 0, 255)
    x = dataclasses.replace(x, **changes)
    out = (size + 2 * padding - kernel) // kernel + 1
    y = dataclasses.replace(x, shape=(1, out, out))
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=x),
        n.AveragePool2d(
            name="pool", inputs=("input",), output=y, multiplier=grid(1), kernel=(kernel, kernel),
            stride=(kernel, kernel), padding=(padding,) * 4,
        ),
        n.Reshape(name="flat", inputs=("pool",), output=dataclasses.replace(y, shape=(out * out,))),
    )  # fmt: skip
    return IntegerNetwork("pooled", layers, ("flat",))


def test_sums_over_windows_are_bounded() -> None:
    """2,901 x 2,901 values of 255 stay below 2**31, 2,902 x 2,902 do not."""
    assert 2901**2 * 255 < 2**31 <= 2902**2 * 255
    assert pooled(2901, 2901).on_grid
    with pytest.raises(QuantizationError, match="layer pool: sums over windows of 2902x2902 can reach 2147509020"):
        pooled(2902, 2902)
    with pytest.raises(QuantizationError, match="pool in two steps"):
        pooled(2912, 2912, zero_point=128)  # q - z stays within 128, but some kernels sum q, or q + 128 for int8


def test_padding_adds_nothing_to_the_bound() -> None:
    assert pooled(2900, 2960, padding=30).on_grid


@pytest.mark.parametrize("seed", range(40))
def test_windows_of_padding_only_are_found_as_position_by_position(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(300):
        size, kernel, stride, dilation = (int(rng.integers(1, high)) for high in (9, 6, 9, 14))
        padding = int(rng.integers(0, 24))
        count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        starts = [i * stride - padding for i in range(count)]
        expected = any(not any(0 <= s + t * dilation < size for t in range(kernel)) for s in starts)
        assert pooling._sees_padding_only(size, count, kernel, stride, padding, dilation) == expected
        found.append(expected)
    assert 20 < sum(found) < 280


def test_a_huge_max_pool_is_checked_at_once() -> None:
    """Sizes, kernels and strides of 10**15 take no longer than small ones."""
    large = 10**15
    assert not pooling._sees_padding_only(large, large // 7, 10, 7, 5, 1)
    assert pooling._sees_padding_only(large, large, large, 1, 0, large + 1) is False
    assert pooling._sees_padding_only(3, large, large, 2, large, 7)
    assert not pooling._sees_padding_only(3, large // 3, large, 3, large // 3 * 3, 3)
    x = n.TensorSpec((1, 30_000_000, 1), "uint8", 1.0, 0, 0, 255)
    layer = n.MaxPool2d(
        name="max", inputs=("input",), output=dataclasses.replace(x, shape=(1, 15_000_000, 1)),
        kernel=(15_000_001, 1), stride=(1, 1),
    )  # fmt: skip
    assert layer.output_shape([x]) == (1, 15_000_000, 1)

"""quantize on torch modules of every kind: close to the model in real numbers, and equal integers in every executor.

The floor of 25 dB: uniform noise of an 8-bit tensor that fills ±3σ is 6.02·8 − 7.3 ≈ 41 dB below the signal, and
the half dozen roundings of these small random nets leave 30 to 60 dB of their logits. One wrong zero point, scale,
border or table costs far more (the tests of planted faults show it); so 25 tells right from wrong without being
luck. For the course's scheme, one bit less for ReLUs and no choice of scales by channel, the floor is 22.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from tests.quantization.small_models import Model, images, residual_model, seeded, small_cnn
from twoscale import quantize, verify
from twoscale._calibration.profile import Profile, profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._passes.fold import fold
from twoscale._quantization import COURSE, DEFAULT, SCHEMES, Scheme, quantize_graph
from twoscale._quantization.scales import weight_scales
from twoscale._runtimes import create

Float32 = NDArray[np.float32]
Forward = Callable[[Any, torch.Tensor], torch.Tensor]

FLOORS = {"default": 25.0, "fast": 23.0, "course": 22.0, "tflite": 22.0}

PIXELS = images(31, 100)
FRESH = images(32, 64)


def sqnr(model: nn.Module, network: IntegerNetwork, pixels: Float32) -> float:
    """Return the logits' SQNR, dB, from the model as the user runs it."""
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(pixels).double()).numpy()
    model.float()
    noise = np.square(network(pixels) - expected).sum()
    return math.inf if noise == 0 else float(10 * np.log10(np.square(expected).sum() / noise))


def check(model: nn.Module) -> None:
    """Same as ``quantize`` for each scheme, with the model captured once."""
    captured = capture(model, torch.from_numpy(PIXELS[:1]))
    for scheme in SCHEMES.values():
        graph = fold(captured, join_residuals=scheme.join_residuals)
        network = quantize_graph(graph, profile(graph, [PIXELS]), scheme)
        assert network.scheme == scheme.name
        assert network.on_grid or scheme is COURSE
        if network.on_grid:
            names = [layer.name for layer in network]
            expected, found = (create(name, network).run(FRESH, names) for name in ("reference", "torch"))
            assert not [name for name in names if not np.array_equal(expected[name], found[name])]
        found_sqnr = sqnr(model, network, FRESH)
        assert found_sqnr > FLOORS[scheme.name], f"{scheme.name}: {found_sqnr:.1f} dB"


def between(*middle: nn.Module, channels: int = 6) -> nn.Module:
    """Convolution, the part to test, linear layer."""
    with torch.no_grad():
        size = nn.Sequential(nn.Conv2d(3, channels, 3), *middle).eval()(torch.zeros(1, 3, 8, 8)).numel()
    return nn.Sequential(nn.Conv2d(3, channels, 3), *middle, nn.Flatten(), nn.Linear(size, 5))


def of(forward: Forward, features: int) -> nn.Module:
    """Two convolutions of 6 channels on 8×8, and a linear layer, used by ``forward``."""
    return Model(
        forward,
        a=nn.Conv2d(3, 6, 3, padding=1),
        b=nn.Conv2d(3, 6, 1, bias=False),
        fc=nn.Linear(features, 5),
    )


def squeeze_and_excite(m: Any, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(m.a(x))
    gate = torch.sigmoid(m.narrow(F.relu(m.wide(x.mean((2, 3), keepdim=True)))))
    return torch.as_tensor(m.fc((x * gate).flatten(1)))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "nothing between": lambda: between(),
    "relu": lambda: between(nn.ReLU()),
    "relu6": lambda: between(nn.ReLU6()),
    "hardtanh": lambda: between(nn.Hardtanh(-0.7, 0.4)),
    "sigmoid": lambda: between(nn.Sigmoid()),
    "tanh": lambda: between(nn.Tanh()),
    "hardsigmoid": lambda: between(nn.Hardsigmoid()),
    "hardswish": lambda: between(nn.Hardswish()),
    "silu": lambda: between(nn.SiLU()),
    "gelu": lambda: between(nn.GELU()),
    "gelu by tanh": lambda: between(nn.GELU(approximate="tanh")),
    "leaky relu": lambda: between(nn.LeakyReLU(0.1)),
    "elu": lambda: between(nn.ELU()),
    "batch norm": lambda: between(nn.BatchNorm2d(6), nn.ReLU()),
    "batch norm after relu": lambda: between(nn.ReLU(), nn.BatchNorm2d(6)),
    "dropout": lambda: between(nn.Dropout(0.5)),
    "max pool": lambda: between(nn.MaxPool2d(3, stride=2, padding=1)),
    "max pool, ceil": lambda: between(nn.MaxPool2d(4, ceil_mode=True)),
    "average pool": lambda: between(nn.AvgPool2d(2)),
    "average pool, padded": lambda: between(nn.AvgPool2d(3, stride=1, padding=1)),
    "global average": lambda: between(nn.AdaptiveAvgPool2d(1), channels=12),
    "depthwise": lambda: between(nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.ReLU()),
    "grouped": lambda: between(nn.Conv2d(6, 8, 3, groups=2, stride=2), nn.ReLU()),
    "dilated": lambda: between(nn.Conv2d(6, 4, 3, dilation=2), nn.ReLU()),
    "same padding": lambda: between(nn.Conv2d(6, 4, (5, 3), padding="same", dilation=(1, 2)), nn.ReLU()),
    "zero pad": lambda: between(nn.ReLU(), nn.ZeroPad2d((1, 2, 0, 3))),
    "zero pad before convolution": lambda: between(nn.Sigmoid(), nn.ZeroPad2d((2, 0, 1, 0)), nn.Conv2d(6, 4, 3)),
    "concat": lambda: of(lambda m, x: m.fc(torch.cat([F.relu(m.a(x)), m.b(x), x], 1).flatten(1)), 15 * 64),
    "sum": lambda: of(lambda m, x: m.fc((F.relu(m.a(x)) + F.relu(m.b(x))).flatten(1)), 6 * 64),
    "sum of three": lambda: of(lambda m, x: m.fc((m.a(x) + m.b(x) + F.relu(m.a(x))).flatten(1)), 6 * 64),
    "joined residual": lambda: of(lambda m, x: m.fc(F.relu(m.a(x) + F.relu(m.b(x))).flatten(1)), 6 * 64),
    "product": lambda: of(lambda m, x: m.fc((m.a(x) * torch.sigmoid(m.b(x))).flatten(1)), 6 * 64),
    "square": lambda: of(lambda m, x: m.fc((lambda h: (h * h).flatten(1))(m.a(x))), 6 * 64),
    "slice": lambda: of(lambda m, x: m.fc(F.relu(m.a(x))[:, 1:5, ::2, 2:].flatten(1)), 4 * 4 * 6),
    "chunk": lambda: of(
        lambda m, x: m.fc((lambda a, b: F.relu(a) * torch.sigmoid(b))(*m.a(x).chunk(2, 1)).flatten(1)), 3 * 64
    ),
    "permute": lambda: of(lambda m, x: m.fc(F.relu(m.a(x)).permute(0, 2, 3, 1).flatten(1)), 6 * 64),
    "pad channels": lambda: of(lambda m, x: m.fc((m.a(x) + F.pad(x, (0, 0, 0, 0, 1, 2))).flatten(1)), 6 * 64),
    "relu of the input": lambda: of(lambda m, x: m.fc(F.relu(m.a(F.relu(x))).flatten(1)), 6 * 64),
    "clamp read by two": lambda: of(lambda m, x: m.fc((lambda h: (F.relu(h) + h).flatten(1))(m.a(x))), 6 * 64),
    "constants": lambda: of(lambda m, x: m.fc(F.relu(m.a(x * 0.5 + 0.25) - 0.1).flatten(1) / 3), 6 * 64),
    "squeeze and excite": lambda: Model(
        squeeze_and_excite,
        a=nn.Conv2d(3, 8, 3),
        wide=nn.Conv2d(8, 4, 1),
        narrow=nn.Conv2d(4, 8, 1),
        fc=nn.Linear(8 * 36, 5),
    ),
    "logits of a convolution": lambda: Model(
        lambda m, x: m.head(F.relu(m.a(x))).flatten(1), a=nn.Conv2d(3, 6, 3), head=nn.Conv2d(6, 5, 6)
    ),
    "logits of a pool": lambda: Model(lambda m, x: m.a(x).mean((2, 3)), a=nn.Conv2d(3, 5, 3)),
    "logits of a relu": lambda: of(lambda m, x: F.relu(m.fc(F.relu(m.a(x)).flatten(1))), 6 * 64),
    "logits of a sum": lambda: of(lambda m, x: m.fc(m.a(x).flatten(1)) + m.fc(m.b(x).flatten(1)), 6 * 64),
    "logits scaled": lambda: of(lambda m, x: m.fc(F.relu(m.a(x)).flatten(1)) * -2.5, 6 * 64),
    "linear only": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)),
    "cnn": lambda: small_cnn(4),
    "cnn without biases": lambda: small_cnn(5, bias=False),
    "residual blocks": lambda: residual_model(6),
}


@pytest.mark.sweep(15)
@pytest.mark.parametrize("name", MODULES)
def test_integer_networks_do_what_the_model_does(name: str) -> None:
    with seeded(sum(map(ord, name))):
        model = MODULES[name]().eval()
    if "batch norm" in name:
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        norm.running_mean = torch.linspace(-0.5, 0.5, 6)
        norm.running_var = torch.linspace(0.2, 2.0, 6)
    check(model)


Cnn = tuple[nn.Module, g.FloatGraph, Profile]


@pytest.fixture(scope="module")
def cnn() -> Cnn:
    model = small_cnn(7)
    graph = fold(capture(model, torch.from_numpy(PIXELS[:1])))
    return model, graph, profile(graph, [PIXELS])


def test_every_bit_less_costs_about_six_decibels(cnn: Cnn) -> None:
    """The textbook's 6.02 dB per bit, within 2 dB on average, for weights and activations together."""
    model, graph, seen = cnn
    found = {}
    for b in range(4, 9):
        how = dataclasses.replace(DEFAULT, weight_bits=b, activation_bits=b)
        found[b] = sqnr(model, quantize_graph(graph, seen, how), FRESH)
    for b in range(4, 8):
        assert (found[8] - found[b]) / (8 - b) == pytest.approx(6.02, abs=2.0)


@pytest.mark.parametrize("bits", [2, 3])
def test_two_and_three_bit_weights_work(cnn: Cnn, bits: int) -> None:
    model, graph, seen = cnn
    network = quantize_graph(graph, seen, dataclasses.replace(DEFAULT, weight_bits=bits))
    assert verify(network, [FRESH]).ok
    assert sqnr(model, network, FRESH) > 4 * bits - 4  # far from noise, but also far from right


@pytest.mark.parametrize("method", ["minmax", "4-sigma", "percentile-99.9", "mse", "entropy"])
@pytest.mark.parametrize("base", [DEFAULT, COURSE], ids=["default", "course"])
def test_every_range_method_works(cnn: Cnn, method: str, base: Scheme) -> None:
    model, graph, seen = cnn
    how = dataclasses.replace(base, weight_range=method, activation_range=method)
    assert sqnr(model, quantize_graph(graph, seen, how), FRESH) > 22


@pytest.mark.parametrize("option", ["per_channel", "activations", "on_grid", "join_residuals"])
def test_every_option_is_taken(option: str) -> None:
    other: Any = "symmetric" if option == "activations" else not getattr(DEFAULT, option)
    how = dataclasses.replace(DEFAULT, **{option: other})
    model = residual_model(9)
    network = quantize(model, [PIXELS], scheme=how)
    convolutions = [layer for layer in network if isinstance(layer, n.Conv2d)]
    joined = [layer for layer in convolutions if layer.residual_multiplier is not None]
    assert len(joined) == (2 if how.join_residuals else 0)
    assert sum(isinstance(layer, n.Add) for layer in network) == (0 if how.join_residuals else 2)
    assert network.on_grid == how.on_grid
    assert network.spec("input").dtype == ("int8" if how.symmetric else "uint8")
    assert {len(layer.multiplier.values) > 1 for layer in convolutions if layer.multiplier} == {how.per_channel}
    assert sqnr(model, network, FRESH) > 25
    if how.on_grid:
        assert verify(network, [FRESH]).ok


def test_joining_residuals_saves_a_rounding() -> None:
    """A block's output is within half a step of its exact value by (7b), and within a whole step by (7)."""
    model = residual_model(9)
    farthest = {}
    for join in (True, False):
        network = quantize(model, [PIXELS], scheme=dataclasses.replace(DEFAULT, join_residuals=join, tune_ranges=False))
        q = create("reference", network).run(FRESH, [layer.name for layer in network])
        real = {
            layer.name: (q[layer.name].astype(float) - layer.output.zero_point) * layer.output.scale
            for layer in network
        }
        conv, last = network["b"], network["b" if join else "add"]
        assert isinstance(conv, n.Conv2d)
        scales = weight_scales(conv, network.spec(conv.inputs[0]))
        weight = torch.from_numpy(conv.weight * scales[:, None, None, None])
        bias = torch.from_numpy(conv.bias_o * scales * network.spec(conv.inputs[0]).scale)
        residual = (conv.inputs if join else last.inputs)[1]
        total = F.conv2d(torch.from_numpy(real[conv.inputs[0]]), weight, bias, padding=1).numpy() + real[residual]
        steps = np.clip(total / last.output.scale + last.output.zero_point, last.output.lo, last.output.hi)
        farthest[join] = np.abs(q[last.name] - steps).max()
    assert farthest[True] < 0.52  # the residual's own multiplier is rounded to 2**-14ths
    assert farthest[False] > 0.9


@pytest.mark.parametrize("fault", ["zero point", "scale", "table", "border"])
def test_the_floor_tells_right_from_wrong(fault: str) -> None:
    """Planted faults, the smallest of their kind, fall below 25 dB."""
    with seeded(1):
        model = between(nn.Sigmoid(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()).eval()
    network = quantize(model, [PIXELS])
    layers = list(network.layers)
    at = next(i for i, layer in enumerate(layers) if isinstance(layer, {"table": n.Table}.get(fault, n.Conv2d)))
    layer = layers[at]
    if isinstance(layer, n.Table):
        layers[at] = dataclasses.replace(layer, table=np.roll(layer.table, 16))
    elif fault == "zero point":
        shifted = dataclasses.replace(layer.output, zero_point=layer.output.zero_point + 16)
        layers[at] = dataclasses.replace(layer, output=shifted)
        table = layers[at + 1]
        assert isinstance(table, n.Table)
    elif fault == "scale":
        assert isinstance(layer, n.Conv2d)
        assert layer.multiplier is not None
        doubled = n.Multiplier.on_grid(layer.multiplier.integers * 5 // 4)
        layers[at] = dataclasses.replace(layer, multiplier=doubled)
    else:
        second = next(i for i, other in enumerate(layers) if isinstance(other, n.Conv2d) and any(other.padding))
        padded = layers[second]
        assert isinstance(padded, n.Conv2d)
        # The border of 0 instead of the zero point: a pad of its own with its source's zero point moved.
        source = layers[second - 1]
        assert isinstance(source, n.Table)
        layers[second - 1] = dataclasses.replace(source, output=dataclasses.replace(source.output, zero_point=128))
    broken = dataclasses.replace(network, layers=tuple(layers))
    assert sqnr(model, network, FRESH) > 25
    assert sqnr(model, broken, FRESH) < 25

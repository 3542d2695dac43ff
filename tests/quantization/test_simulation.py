"""The steps between float and integer network, each against an independent computation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from tests.quantization.small_models import (
    Model,
    accumulating,
    built,
    graph_of,
    images,
    linear,
    residual_model,
    seeded,
    small_cnn,
)
from twoscale import data
from twoscale._calibration.profile import profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._passes.fold import fold
from twoscale._quantization import COURSE, DEFAULT, Scheme, quantize_graph
from twoscale._quantization.scales import weight_scales
from twoscale._quantization.simulate import (
    range_records,
    with_activations_quantized,
    with_weights,
    with_weights_quantized,
)
from twoscale._runtimes import create

PIXELS = images(61, 100)
FRESH = torch.from_numpy(images(62, 60))
WITHOUT_BIAS_CORRECTION = dataclasses.replace(DEFAULT, bias_correction=False)


def both(model: nn.Module, how: Scheme) -> tuple[g.FloatGraph, IntegerNetwork]:
    graph = fold(capture(model, torch.from_numpy(PIXELS[:1])), join_residuals=how.join_residuals)
    return graph, quantize_graph(graph, profile(graph, [PIXELS]), how)


def real_weight(network: IntegerNetwork, name: str) -> torch.Tensor:
    layer = network[name]
    assert isinstance(layer, n.Accumulating)
    scales = weight_scales(layer, network.spec(layer.inputs[0]))
    return torch.from_numpy(layer.weight * scales.reshape(-1, *(1,) * (layer.weight.ndim - 1))).float()


@pytest.mark.parametrize("how", [DEFAULT, COURSE], ids=["default", "course"])
def test_only_weights_quantized(how: Scheme) -> None:
    model = small_cnn(1)
    graph, network = both(model, how)
    changed = with_weights_quantized(graph, network)
    for node, before in zip(changed, graph, strict=True):
        if isinstance(node, g.Conv2d | g.Linear):
            assert isinstance(before, g.Conv2d | g.Linear)
            assert np.array_equal(node.bias_o, before.bias_o)  # biases do not change
        else:
            assert node is before
    w = {name: real_weight(network, name) for name in ("conv1", "conv2", "fc1", "fc2")}
    b = {name: value.detach() for name, value in model.named_parameters() if name.endswith("bias")}
    x = F.max_pool2d(F.relu(F.conv2d(FRESH, w["conv1"], b["conv1.bias"], padding=1)), 2)
    x = F.relu(F.conv2d(x, w["conv2"], b["conv2.bias"])).flatten(1)
    expected = F.linear(F.relu(F.linear(x, w["fc1"], b["fc1.bias"])), w["fc2"], b["fc2.bias"])
    torch.testing.assert_close(GraphModule(changed)(FRESH), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [WITHOUT_BIAS_CORRECTION, COURSE], ids=["default", "course"])
@pytest.mark.parametrize("kind", ["cnn", "residual"])
def test_without_biases_quantized_activations_are_the_integer_network(kind: str, how: Scheme) -> None:
    """Only ties and near ties may round differently in float32: a few values, by one step."""
    model = small_cnn(2, bias=False) if kind == "cnn" else without_biases(residual_model(3))
    graph, network = both(model, how)
    simulated = with_activations_quantized(graph, network)(FRESH).numpy()
    integers = create("reference", network).run(FRESH.numpy())[network.output]
    steps = np.abs(simulated / network.spec(network.output).scale - integers)
    limit = np.abs(integers).max()
    assert np.mean(steps < 0.5) > 0.9  # nearly all accumulators are identical
    assert steps.max() < 0.01 * limit


def without_biases(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.zero_()
    return model


def test_quantized_activations_lie_on_their_grids() -> None:
    graph, network = both(residual_model(4), DEFAULT)
    seen: dict[str, NDArray[Any]] = {}
    module = GraphModule(with_weights_quantized(graph, network))

    def quantized(node: g.Node, value: torch.Tensor) -> torch.Tensor:
        spec = network.spec(node.name)
        if spec.dtype == "int32":
            return value
        steps = np.clip(np.rint(value.numpy().astype(np.float64) / spec.scale) + spec.zero_point, spec.lo, spec.hi)
        seen[node.name] = steps
        return torch.from_numpy(((steps - spec.zero_point) * spec.scale).astype(np.float32))

    expected = module.run(FRESH, replace=quantized)[graph.output]
    torch.testing.assert_close(with_activations_quantized(graph, network)(FRESH), expected, rtol=1e-2, atol=1e-2)
    assert set(seen) == {node.name for node in graph} - {network.output}


def test_each_step_costs_something_and_the_last_is_the_network() -> None:
    graph, network = both(small_cnn(5), WITHOUT_BIAS_CORRECTION)
    exact = GraphModule(graph, dtype=torch.float64)(FRESH).numpy()
    weights = GraphModule(with_weights_quantized(graph, network))(FRESH).numpy()
    activations = with_activations_quantized(graph, network)(FRESH).numpy()
    integer = network(FRESH.numpy())
    noise = [float(np.square(logits - exact).sum()) for logits in (weights, activations, integer)]
    assert 0 < noise[0] < noise[1]
    assert noise[2] == pytest.approx(noise[1], rel=0.2)  # rounding biases to int32 costs next to nothing


# Biases: the course's lesson.


def test_a_bias_in_real_units_is_lost() -> None:
    """x = 1: 0.99·1 + 0.5 beats 1·1, until the weights are 127 times larger and the bias is not."""
    flat = g.Reshape(name="flat", inputs=("input",), shape=(1,))
    graph = graph_of((1, 1, 1), flat, linear("fc", "flat", [[1.0], [0.99]], [0.0, 0.5]))
    x = np.ones((1, 1, 1, 1), np.float32)
    network = built(graph, x, COURSE)
    assert network.bounds[0].bound > 127 * 127
    half_way = GraphModule(_half_way(graph, network))(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(half_way, [[127.0, 126.5]])
    assert GraphModule(graph)(torch.from_numpy(x)).argmax() == 1
    assert half_way.argmax() == 0
    assert network(x).argmax() == 1
    np.testing.assert_allclose(network(x), [[1.0, 1.49]], atol=0.01)


def _half_way(graph: g.FloatGraph, network: IntegerNetwork) -> g.FloatGraph:
    """Return the graph with integer weights and nothing requantized; biases stay as they were."""
    return with_weights(graph, {x.name: x.weight.astype(np.float64) for x in network if isinstance(x, n.Accumulating)})


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network for digits whose first bias undoes an offset of the images. Without the bias nothing is right."""

    model: nn.Module
    train: NDArray[np.float32]
    test: NDArray[np.float32]
    labels: NDArray[np.int64]

    def top1(self, logits: Any) -> float:
        return float((np.asarray(logits).argmax(1) == self.labels).mean())


@pytest.fixture(scope="module")
def trained() -> Trained:
    digits = data.load("digits")

    def small(split: data.Split) -> torch.Tensor:
        return torch.from_numpy(split.images[:, :1, 2::4, 2::4].astype(np.float32) / 127.5 - 1.0)

    x, y = small(digits.train), torch.from_numpy(digits.train.labels.astype(np.int64))
    with seeded(0):
        model = Model(lambda m, x: m.fc(F.relu(m.conv(x)).flatten(1)), conv=nn.Conv2d(1, 8, 3), fc=nn.Linear(288, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    offset = 4.0
    with torch.no_grad():
        model.conv.bias -= offset * model.conv.weight.sum((1, 2, 3))  # type: ignore[union-attr,operator]
    return Trained(
        model.eval(),
        (x + offset).numpy(),
        (small(digits.test) + offset).numpy(),
        digits.test.labels.astype(np.int64),
    )


@pytest.mark.parametrize("how", [DEFAULT, COURSE], ids=["default", "course"])
def test_a_bias_at_a_wrong_scale_is_a_collapse_and_ours_is_not(trained: Trained, how: Scheme) -> None:
    """Planted: biases divided by s_w alone, not by s_x·s_w, as in a published solution of the course's lab."""
    graph = fold(capture(trained.model, torch.from_numpy(trained.train[:1])))
    network = quantize_graph(graph, profile(graph, [trained.train]), how)
    with torch.no_grad():
        right = trained.top1(trained.model(torch.from_numpy(trained.test)))
    assert right > 0.9
    assert trained.top1(network(trained.test)) > right - 0.02
    layers = []
    for layer in network:
        if isinstance(layer, n.Accumulating):
            bias = graph[layer.name].bias_o  # type: ignore[attr-defined]
            scales = weight_scales(layer, network.spec(layer.inputs[0]))
            layer = dataclasses.replace(layer, bias_o=np.rint(bias / scales).astype(np.int32))
        layers.append(layer)
    wrong = dataclasses.replace(network, layers=tuple(layers))
    assert trained.top1(wrong(trained.test)) < 0.25
    if not how.per_channel:
        half_way = GraphModule(_half_way(graph, network))(torch.from_numpy(trained.test))
        assert trained.top1(half_way) < 0.25


# Records of the ranges.


@pytest.mark.parametrize(
    "how",
    [DEFAULT, COURSE, dataclasses.replace(DEFAULT, weight_bits=3, layer_weight_bits=(("a", 5),))],
    ids=["default", "course", "fewer bits"],
)
def test_range_records_describe_every_tensor(how: Scheme) -> None:
    graph, network = both(residual_model(6), how)
    records = range_records(graph, network, PIXELS, how)
    by_kind = {kind: [r.name for r in records if r.kind == kind] for kind in ("weight", "input", "activation")}
    assert by_kind["weight"] == [layer.name for layer in accumulating(network)]
    assert by_kind["input"] == ["input"]
    head = accumulating(network)[-1].name
    computed = {node.name for node in graph if not isinstance(node, g.Reshape)}
    assert set(by_kind["activation"]) == computed - {"input", head}
    values: dict[str, NDArray[np.float64]] = {}
    GraphModule(graph).run(
        torch.from_numpy(PIXELS), lambda node, value: values.__setitem__(node.name, value.numpy().astype(np.float64))
    )
    for record in records:
        assert record.method == (how.weight_range if record.kind == "weight" else how.activation_range)
        if record.kind == "weight":
            layer = network[record.name]
            assert isinstance(layer, n.Accumulating)
            limit = 127 if how.weight_bits == 8 else 15 if record.name == "a" else 3
            real = graph[record.name].weight_oihw if layer.weight.ndim == 4 else graph[record.name].weight_oi  # type: ignore[attr-defined]
            integers: NDArray[Any] = layer.weight
            restored = integers * np.array(record.scales).reshape(-1, *(1,) * (layer.weight.ndim - 1))
            assert (record.zero_point, record.lo, record.hi) == (0, -limit, limit)
        else:
            spec, real = network.spec(record.name), values[record.name]
            integers = np.clip(np.rint(real / spec.scale) + spec.zero_point, spec.lo, spec.hi)
            restored = (integers - spec.zero_point) * spec.scale
            assert (record.scales, record.zero_point, record.lo, record.hi) == (
                (spec.scale,), spec.zero_point, spec.lo, spec.hi,
            )  # fmt: skip
        assert (record.seen_lo, record.seen_hi) == (integers.min(), integers.max())
        assert record.lo <= record.seen_lo <= record.seen_hi <= record.hi
        expected = 10 * math.log10(np.square(real).sum() / np.square(real - restored).sum())
        assert record.sqnr_db == pytest.approx(expected, abs=1e-6)
        assert record.histogram is not None
        counts, edges = np.histogram(integers, len(record.histogram.counts), (record.histogram.lo, record.histogram.hi))
        assert record.histogram.counts == tuple(counts)
        assert edges[1] - edges[0] == 1.0  # a bin for each integer

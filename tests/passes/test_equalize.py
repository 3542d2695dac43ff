"""Equalization: the same function, and channels of similar ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.quantization.small_models import Model, conv, graph_of, images, linear, residual_model, seeded, small_cnn
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._passes.equalize import equalize
from twoscale._passes.fold import fold
from twoscale._quantization import Scheme, quantize
from twoscale._verification import verify
from twoscale.errors import UnknownNameError

PIXELS = images(41, 60)


def branches() -> nn.Module:
    """Depthwise, grouped, ReLU6, concatenation, slices, padded channels, a product and a pool."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(m.wide(x))
        y = F.relu6(m.grouped(F.relu(m.depthwise(x))))
        z = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        both = torch.cat([y, z], 1)
        gate = torch.sigmoid(m.gate(both.mean((2, 3), keepdim=True)))
        return torch.as_tensor(m.fc(F.max_pool2d(both * gate, 2).flatten(1)))

    with seeded(8):
        return Model(
            forward,
            wide=nn.Conv2d(3, 6, 3, padding=1),
            depthwise=nn.Conv2d(6, 6, 3, padding=1, groups=6, stride=2),
            grouped=nn.Conv2d(6, 8, 1, groups=2),
            gate=nn.Conv2d(16, 16, 1),
            fc=nn.Linear(64, 5),
        ).eval()


MODELS = {"cnn": small_cnn(4), "residual": residual_model(5), "branches": branches()}


@pytest.mark.parametrize("how", ["weights", "activations"])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_the_function_is_the_same(model: str, joined: bool, how: str) -> None:
    graph = fold(capture(MODELS[model], torch.from_numpy(PIXELS[:1])), join_residuals=joined)
    equal = equalize(graph, how, PIXELS)
    x = torch.from_numpy(PIXELS)
    expected, found = (GraphModule(it, dtype=torch.float64)(x).numpy() for it in (graph, equal))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    changed = [
        node.name
        for node in graph
        if isinstance(node, g.Conv2d | g.Linear)
        and not np.array_equal(node.bias_o, getattr(equal[node.name], "bias_o"))  # noqa: B009
    ]
    assert changed, "nothing was equalized"


def chain() -> g.FloatGraph:
    """Two layers whose channels differ a thousandfold."""
    first = conv("first", "input", [[[[8.0]]], [[[0.125]]]], (2, 2, 2), [4.0, 0.5], bounds=(0.0, float("inf")))
    flat = g.Reshape(name="flat", inputs=("first",), shape=(8,))
    second = linear("second", "flat", [[0.5] * 4 + [32.0] * 4, [-0.25] * 4 + [-16.0] * 4])
    return graph_of((1, 2, 2), first, flat, second)


def test_weights_before_and_after_meet_in_the_middle() -> None:
    equal = equalize(chain(), "weights")
    first, second = equal["first"], equal["second"]
    assert isinstance(first, g.Conv2d)
    assert isinstance(second, g.Linear)
    # Channel by channel √(before · after): √(8 · 0.5) and √(0.125 · 32), both 2.
    np.testing.assert_allclose(first.weight_oihw.ravel(), [2.0, 2.0], rtol=1e-3)
    np.testing.assert_allclose(np.abs(second.weight_oi).max(0), 2.0, rtol=1e-3)
    np.testing.assert_allclose(first.bias_o, [1.0, 8.0], rtol=1e-3)


def test_activations_get_one_range() -> None:
    pixels = np.abs(images(5, 40, 1, 2, 2))
    equal = equalize(chain(), "activations", pixels)
    found: dict[str, Any] = {}
    GraphModule(equal).run(torch.from_numpy(pixels), lambda node, value: found.update({node.name: value.numpy()}))
    largest = found["first"].max((0, 2, 3))
    assert largest[0] == pytest.approx(largest[1], rel=1e-4)


def test_dead_channels_and_bounds_stay() -> None:
    dead = conv("first", "input", [[[[0.0]]], [[[2.0]]]], (2, 2, 2), [0.0, 0.0], bounds=(0.0, 6.0))
    graph = graph_of((1, 2, 2), dead, *chain().nodes[2:])
    equal = equalize(graph, "weights")
    for name, field in (("first", "weight_oihw"), ("second", "weight_oi")):
        np.testing.assert_array_equal(getattr(equal[name], field), getattr(graph[name], field))


def test_verify_knows_that_channels_were_moved() -> None:
    model = residual_model(5)
    network = quantize(model, [PIXELS], scheme=Scheme(equalization="weights"))
    result = verify(network, [PIXELS], executors=("reference", "torch"), model=model)
    assert (result.mismatches, network.metadata["equalization"]) == (0, "weights")
    assert result.sqnr_db is not None
    assert result.sqnr_db > 30
    assert {layer.name for layer in result.layers if layer.sqnr_db is not None} == {"input", network.output}


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown equalization 'weight': did you mean 'weights'"):
        Scheme(equalization="weight")
    with pytest.raises(ValueError, match="needs images"):
        equalize(chain(), "activations")

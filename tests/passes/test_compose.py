"""Chains of functions of one value become one function, and the graph computes the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.passes.test_fold import SHAPE, add, affine, clamp, conv, graph, names
from twoscale import quantize
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._passes.compose import compose
from twoscale._passes.fold import fold
from twoscale._runtimes.torch import TorchExecutor

IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def scalar(name: str, source: str, scale: float, shift: float, bounds: g.Bounds = g.UNBOUNDED) -> g.ChannelAffine:
    return g.ChannelAffine(
        name=name, inputs=(source,), shape=SHAPE, scale_c=np.full(3, scale, np.float32),
        shift_c=np.full(3, shift, np.float32), bounds=bounds,
    )  # fmt: skip


def mul(name: str, first: str, second: str) -> g.Mul:
    return g.Mul(name=name, inputs=(first, second), shape=SHAPE)


def table(name: str, source: str, function: str) -> g.Elementwise:
    return g.Elementwise(name=name, inputs=(source,), shape=SHAPE, function=function)


def same(made: g.FloatGraph, original: g.FloatGraph) -> None:
    found, expected = (GraphModule(one, dtype=torch.float64)(IMAGES) for one in (made, original))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


HARD_SWISH = (
    conv("conv", "input"),
    scalar("plus3", "conv", 1.0, 3.0, bounds=(0.0, 6.0)),
    mul("product", "conv", "plus3"),
    scalar("sixth", "product", 1 / 6, 0.0),
)


def test_a_chain_is_one_function() -> None:
    original = graph(*HARD_SWISH)
    made = compose(original)
    assert names(made) == ["conv", "sixth"]
    assert str(made["sixth"].function) == (  # type: ignore[attr-defined]
        "affine(mul(x, clamp(affine(x, 1, 3), 0, 6)), 0.166667, 0)"
    )
    same(made, original)


def test_two_readers_of_a_chain_get_a_function_each() -> None:
    original = graph(*HARD_SWISH, conv("other", "product"), add("sum", "sixth", "other"))
    made = compose(original)
    assert names(made) == ["conv", "product", "sixth", "other", "sum"]
    assert made["sixth"].inputs == ("conv",)
    same(made, original)


@pytest.mark.parametrize(
    "nodes",
    [
        (conv("conv", "input"), clamp("relu", "conv")),
        (conv("conv", "input"), table("tanh", "conv", "tanh")),
        (conv("conv", "input"), clamp("relu", "conv"), clamp("six", "relu", 0.0, 6.0), table("tanh", "six", "tanh")),
        (conv("a", "input"), conv("b", "a"), add("sum", "a", "b", bounds=(0.0, math.inf))),
        (conv("a", "input"), conv("b", "a"), table("f", "a", "sigmoid"), mul("product", "f", "b")),
        (conv("conv", "input"), add("twice", "conv", "conv")),
        (conv("conv", "input"), affine("norm", "conv"), table("tanh", "norm", "tanh")),  # differs by channel
    ],
    ids=["relu", "one function", "clamps and one function", "residual", "gate", "twice", "per channel"],
)
def test_what_is_no_chain_stays(nodes: tuple[g.Node, ...]) -> None:
    original = graph(*nodes)
    assert compose(original) is original


def test_the_images_may_be_the_value() -> None:
    original = graph(table("tanh", "input", "tanh"), add("sum", "tanh", "input"))
    made = compose(original)
    assert names(made) == ["sum"]
    same(made, original)


def test_a_composition_can_be_composed_further() -> None:
    once = compose(graph(*HARD_SWISH))
    longer = g.FloatGraph(
        "longer",
        (*once.nodes[:-1], table("tanh", "sixth", "tanh"), mul("squared", "tanh", "tanh"),
         g.Reshape(name="logits", inputs=("squared",), shape=(math.prod(SHAPE),))),
        ("logits",),
    )  # fmt: skip
    made = compose(longer)
    assert names(made) == ["conv", "squared"]
    same(made, longer)


class WrittenOut(nn.Module):
    """A classifier of the MobileNetV3 kind whose activations are arithmetic, not modules."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.written_out = written_out
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)])
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one in self.convs:
            x = one(x)
            x = x * torch.clamp(x + 3, 0, 6) / 6 if self.written_out else nn.functional.hardswish(x)
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


def test_a_written_out_activation_costs_no_layers() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        written, plain = WrittenOut(True).eval(), WrittenOut(False).eval()
    plain.load_state_dict(written.state_dict())
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    networks = [quantize(model, [images]) for model in (written, plain)]
    kinds = [[type(layer) for layer in network] for network in networks]
    assert kinds[0] == kinds[1]
    assert kinds[0].count(n.Table) == 3
    graph = fold(capture(written, images[:1]))
    assert not [node for node in graph if isinstance(node, g.Mul | g.ChannelAffine)]
    found = TorchExecutor(networks[0]).run(images.numpy())[networks[0].output]
    reference = networks[0](images.numpy())
    assert np.array_equal(networks[0].logits(found), reference)

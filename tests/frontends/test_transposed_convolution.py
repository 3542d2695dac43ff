"""Transposed convolutions, computed as convolutions of the image with zeros between its values, in every executor."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from twoscale import quantize
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._passes.fold import fold
from twoscale._runtimes import create


class Flat(nn.Module):
    """Modules in order; the result is flattened to logits."""

    def __init__(self, *modules: nn.Module, one_dimension: bool = False) -> None:
        super().__init__()
        self.modules_in_order = nn.Sequential(*modules)
        self.one_dimension = one_dimension

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.modules_in_order(x.flatten(2) if self.one_dimension else x)
        return result.flatten(1)


FORMS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "plain": (lambda: Flat(nn.ConvTranspose2d(3, 4, 3)), ["Conv2d"]),
    "stride": (lambda: Flat(nn.ConvTranspose2d(3, 4, 2, stride=2)), ["Pad", "Conv2d"]),
    "stride beyond the kernel": (
        lambda: Flat(nn.ConvTranspose2d(3, 4, 1, stride=3)), ["Pad", "Slice", "Slice", "Conv2d"]
    ),
    "all options": (
        lambda: Flat(
            nn.ConvTranspose2d(3, 6, (3, 4), (2, 3), (1, 2), (1, 2), groups=3, bias=False),
            nn.ConvTranspose2d(6, 4, (3, 2), (1, 2), (4, 0), groups=2, dilation=(2, 3)),
        ),
        ["Pad", "Conv2d", "Pad", "Conv2d"],
    ),
    "more left out than the kernel reaches": (
        lambda: Flat(nn.ConvTranspose2d(3, 4, 1, stride=2, padding=1)), ["Pad", "Slice", "Slice", "Conv2d"]
    ),
    "depthwise": (lambda: Flat(nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3)), ["Pad", "Conv2d"]),
    "norm and relu": (lambda: Flat(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()), ["Pad", "Conv2d"]),
    "one dimension": (
        lambda: Flat(nn.ConvTranspose1d(3, 4, 5, 3, 1, 1), one_dimension=True), ["Pad", "Conv2d"]
    ),
}  # fmt: skip


def model_of(form: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = FORMS[form][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.linspace(-0.2, 0.3, module.num_features)
            module.running_var = torch.linspace(0.5, 1.5, module.num_features)
    return model.eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 5, 6, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_computes_what_the_model_does(form: str) -> None:
    model, x = model_of(form), images(3)
    with torch.no_grad():
        expected = model(x)
    captured = capture(model, x)
    for graph in (captured, fold(captured)):
        assert torch.allclose(GraphModule(graph)(x), expected, rtol=1e-5, atol=1e-5)
    assert [node.op for node in fold(captured) if not isinstance(node, g.Input | g.Reshape)] == FORMS[form][1]


@pytest.mark.parametrize("form", FORMS)
def test_every_executor_computes_the_same_integers(form: str) -> None:
    model, x = model_of(form), images(16)
    network = quantize(model, [x])
    assert network.on_grid
    names = [layer.name for layer in network]
    expected = create("reference", network).run(x.numpy(), names)
    for executor in ("torch", "onnxruntime"):
        found = create(executor, network).run(x.numpy(), names)
        assert all(np.array_equal(found[name], expected[name]) for name in names), executor
    if shutil.which("cc"):
        found = create("c", network).run(x.numpy())
        assert np.array_equal(found[network.output], expected[network.output])
    with torch.no_grad():
        real = model(x).numpy()
    error = network.logits(expected[network.output]) - real
    assert 10 * np.log10(np.square(real).sum() / np.square(error).sum()) > 30


def test_the_portable_program_computes_it() -> None:
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    from twoscale._runtimes.c import CExecutor

    model, x = model_of("all options"), images(4)
    network = quantize(model, [x])
    found = CExecutor(network, target="portable").run(x.numpy())[network.output]
    assert np.array_equal(found, create("reference", network).run(x.numpy())[network.output])

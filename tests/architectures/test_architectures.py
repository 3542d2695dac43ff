"""Networks of published families: every executor gives the same integers."""

from __future__ import annotations

import functools
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import twoscale
from tests.architectures.families import FAMILIES
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._passes.fold import fold
from twoscale._verification import verify

LEAST_DB = {"DenseNet": 27.0, "DenseNet, running": 27.0}


def structured_images(size: int, count: int, seed: int) -> torch.Tensor:
    """Smooth images with some noise: neighbouring pixels are similar, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(count, 3, 6, 6, generator=generator)
    smooth = F.interpolate(fields, size=size, mode="bilinear")
    return smooth + 0.2 * torch.randn(count, 3, size, size, generator=generator)


@functools.cache
def network_of(family: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with weights and batch statistics like a trained one, and images."""
    make, size = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        model = make()
        images = structured_images(size, 24, 1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.6, 1.4)
                nn.init.uniform_(module.bias, -0.4, 0.6)
                module.momentum = None  # the statistics of exactly these images
        model.train()
        with torch.no_grad():
            model(images)
    return model.eval(), images


@pytest.mark.sweep(8)
@pytest.mark.filterwarnings("ignore:the log_softmax at")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_becomes_the_same_integers_everywhere(family: str) -> None:
    model, images = network_of(family)
    graph = fold(capture(model, images[:1].to(memory_format=torch.channels_last)))
    assert not {node.op for node in graph} & {"ChannelAffine", "WindowAverage2d"}
    with torch.no_grad():
        expected = model(images)
    found = GraphModule(graph)(images)
    if family == "CReLU, FReLU and maxout":
        found = found.log_softmax(1)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    network = twoscale.quantize(model, [images])
    assert network.on_grid
    executors = ["reference", "torch", "onnxruntime"] + (["c"] if shutil.which("cc") or shutil.which("gcc") else [])
    result = verify(network, [images[:3].numpy()], executors=executors, model=graph)
    assert (result.mismatches, result.compared > 0) == (0, True), result.first_divergence
    assert result.sqnr_db is not None
    assert result.sqnr_db > LEAST_DB.get(family, 25.0)


def test_an_enlarging_pool_goes_into_the_weights_after_it() -> None:
    model, images = network_of("VGG")
    graph = fold(capture(model, images[:1]))
    assert graph["classifier.0"].weight_oi.shape == (32, 24)  # type: ignore[attr-defined]  # 24·7·7 before
    assert not any(isinstance(node, g.AveragePool2d) for node in graph)
    model, images = network_of("VGG with a convolutional head")
    assert fold(capture(model, images[:1]))["fc1"].weight_oihw.shape == (24, 12, 4, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("own", "functions"), [(True, {"hardswish"}), (False, {"hardswish", "hardsigmoid"})])
def test_functions_written_out_are_recognized(own: bool, functions: set[str]) -> None:
    # After a linear layer relu6(x + 3) / 6 needs no table, only a bias, a clamp and a scale.
    model, images = network_of("MobileNetV3 with its own functions" if own else "MobileNetV3")
    graph = fold(capture(model, images[:1]))
    assert {node.function for node in graph if isinstance(node, g.Elementwise)} == functions
    assert sum(isinstance(node, g.Mul) for node in graph) == 1  # squeeze and excite


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "family", ["DenseNet", "DenseNet, running", "ShuffleNetV2", "SqueezeNet", "GoogLeNet", "GhostNet"]
)
def test_what_is_concatenated_is_not_rounded_again(family: str) -> None:
    model, images = network_of(family)
    network = twoscale.quantize(model, [images])
    concats = [layer for layer in network if isinstance(layer, n.Concat)]
    copied = [m is None for layer in concats for m in layer.multipliers]
    assert concats
    assert np.mean(copied) >= 0.25  # an operand that a common scale would make much coarser keeps its own


# Networks that strain the scales: the default scheme stays on the grid.


class Strained(nn.Module):
    def __init__(self, residual_gain: float, gamma: float, dead: bool) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.other = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 10)
        nn.init.constant_(self.bn.weight, gamma)
        nn.init.constant_(self.bn0.weight, residual_gain)
        with torch.no_grad():
            if dead:
                self.conv.weight[::2] = 0
                self.bn0.bias[:4] = -100 * residual_gain  # never active after the ReLU
            self.other.weight.copy_(-torch.eye(8)[:, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = x + self.bn(self.conv(x))
        # The difference of large tensors is small.
        x = F.relu6((x + self.other(x)) * 0.01 + x)
        return torch.as_tensor(self.fc(x.mean((2, 3))))


@pytest.mark.sweep
@pytest.mark.parametrize("gain", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("gamma", [0.0, 1e-6, 1.0, 100.0])
@pytest.mark.parametrize("dead", [False, True])
def test_odd_ratios_of_scales_stay_on_the_grid(gain: float, gamma: float, dead: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = Strained(gain, gamma, dead).eval()
    images = structured_images(8, 8, 2)
    network = twoscale.quantize(model, [images])
    assert network.on_grid
    assert verify(network, [images.numpy()], executors=["reference", "torch", "onnxruntime"]).mismatches == 0


def test_a_mean_of_many_pixels_has_the_right_size() -> None:
    """A former fault: a multiplier of two digits, off by a percent."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False)
            with torch.no_grad():
                self.fc.weight.copy_(torch.eye(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.fc(x.mean((2, 3))))

    images = structured_images(96, 6, 5) + 3
    network = twoscale.quantize(Mean(), [images])
    pool = next(layer for layer in network if isinstance(layer, n.AveragePool2d))
    assert pool.multiplier is not None
    ratio = network.spec(pool.inputs[0]).scale / (96 * 96 * pool.output.scale)
    found: NDArray[np.float32] = pool.multiplier.values
    assert abs(float(found[0]) / ratio - 1) < 1e-6

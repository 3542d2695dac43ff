"""Small seeded models and graphs for the tests of quantization, verification and the lab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from twoscale._calibration.profile import Profile, profile
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._quantization.build import build
from twoscale._quantization.plan import Plan, make_plan
from twoscale._quantization.range_tuning import tune_ranges
from twoscale._quantization.ranges import choose_ranges
from twoscale._quantization.scheme import Scheme

__all__ = [
    "Model",
    "accumulating",
    "built",
    "columns",
    "conv",
    "float_weight",
    "graph_of",
    "images",
    "linear",
    "plan_of",
    "planned",
    "residual_model",
    "seeded",
    "small_cnn",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the initial weights of modules made inside, and restore the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Model(nn.Module):
    """Named layers and a function that uses them."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def images(seed: int, count: int, *shape: int, spread: float = 1.0) -> Float32:
    """Return normal images (count, *shape), by default of 3×8×8."""
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((count, *(shape or (3, 8, 8))))).astype(np.float32)


def small_cnn(seed: int = 0, *, bias: bool = True, classes: int = 5) -> nn.Module:
    """Two convolutions, a pool and two linear layers on 3×8×8 images."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(m.conv1(x)), 2)
        x = F.relu(m.conv2(x)).flatten(1)
        return torch.as_tensor(m.fc2(F.relu(m.fc1(x))))

    with seeded(seed):
        return Model(
            forward,
            conv1=nn.Conv2d(3, 6, 3, padding=1, bias=bias),
            conv2=nn.Conv2d(6, 8, 3, bias=bias),
            fc1=nn.Linear(32, 16, bias=bias),
            fc2=nn.Linear(16, classes, bias=bias),
        ).eval()


def residual_model(seed: int = 0) -> nn.Module:
    """A residual block with batch norms, a strided block with a convolution as shortcut, a mean and a linear layer."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(m.bn(m.stem(x)))
        x = F.relu(m.bn2(m.b(F.relu(m.bn1(m.a(x))))) + x)
        x = F.relu(m.d(F.relu(m.c(x))) + m.shortcut(x))
        return torch.as_tensor(m.fc(x.mean((2, 3))))

    with seeded(seed):
        model = Model(
            forward,
            stem=nn.Conv2d(3, 8, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(8),
            a=nn.Conv2d(8, 8, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(8),
            b=nn.Conv2d(8, 8, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(8),
            c=nn.Conv2d(8, 12, 3, stride=2, padding=1),
            d=nn.Conv2d(12, 12, 3, padding=1),
            shortcut=nn.Conv2d(8, 12, 1, stride=2),
            fc=nn.Linear(12, 5),
        )
        for name in ("bn", "bn1", "bn2"):
            norm = getattr(model, name)
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.3, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
        return model.eval()


# Graphs by hand: quick to make, with every number known.


def conv(
    name: str, source: str, weight_oihw: Any, shape: tuple[int, ...], bias: Any = None, **options: Any
) -> g.Conv2d:
    weight = np.asarray(weight_oihw, np.float32)
    bias_o = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)
    return g.Conv2d(name=name, inputs=(source,), shape=shape, weight_oihw=weight, bias_o=bias_o, **options)


def linear(name: str, source: str, weight_oi: Any, bias: Any = None, **options: Any) -> g.Linear:
    weight = np.asarray(weight_oi, np.float32)
    bias_o = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)
    return g.Linear(name=name, inputs=(source,), shape=weight.shape[:1], weight_oi=weight, bias_o=bias_o, **options)


def graph_of(input_shape: tuple[int, ...], *nodes: g.Node) -> g.FloatGraph:
    """Return the graph of an input of that shape and the nodes. The last node is the output."""
    return g.FloatGraph("hand-made", (g.Input(name="input", inputs=(), shape=input_shape), *nodes), (nodes[-1].name,))


def plan_of(graph: g.FloatGraph, found: Profile, scheme: Scheme, *, tuned: bool) -> Plan:
    """Return the plan with the ranges of the method, tuned if the scheme tunes them."""
    ranges = choose_ranges(graph, found.statistics, scheme)
    return make_plan(graph, tune_ranges(ranges, graph, found, scheme) if tuned else ranges, scheme)


def planned(graph: g.FloatGraph, calibration: Float32, scheme: Scheme) -> Plan:
    return plan_of(graph, profile(graph, [calibration]), scheme, tuned=False)


def built(graph: g.FloatGraph, calibration: Float32, scheme: Scheme) -> IntegerNetwork:
    """Return the network without corrections."""
    return build(planned(graph, calibration, scheme))


# For independent computations.


def accumulating(network: IntegerNetwork) -> list[n.Accumulating]:
    """Return the layers with weights."""
    return [layer for layer in network if isinstance(layer, n.Accumulating)]


def float_weight(graph: g.FloatGraph, name: str) -> Float64:
    """Return a layer's float weights, (O, K) in the order in which ``columns`` has its inputs."""
    node = graph[name]
    weight = node.weight_oihw if isinstance(node, g.Conv2d) else getattr(node, "weight_oi")  # noqa: B009
    return np.asarray(weight, np.float64).reshape(len(weight), -1)


def columns(layer: n.Accumulating, x: NDArray[Any]) -> list[Float64]:
    """Return, for each group, the inputs of its K weights: (K, images × positions), by NumPy windows."""
    if not isinstance(layer, n.Conv2d):
        return [np.asarray(x, np.float64).T]
    top, left, bottom, right = layer.padding
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kernel_h, kernel_w), (dilate_h, dilate_w) = layer.weight.shape[2:], layer.dilation
    reach = (dilate_h * (kernel_h - 1) + 1, dilate_w * (kernel_w - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: layer.stride[0], :: layer.stride[1], ::dilate_h, ::dilate_w]  # (N, C, H, W, kh, kw)
    grouped = np.split(windows, layer.groups, axis=1)
    return [part.transpose(1, 4, 5, 0, 2, 3).reshape(layer.weight[0].size, -1) for part in grouped]

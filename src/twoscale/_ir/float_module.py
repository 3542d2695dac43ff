"""Evaluates a FloatGraph in torch, for calibration and for comparisons with integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from twoscale._ir import float_graph as g
from twoscale._ir.interpreter import interpret

__all__ = ["GraphModule", "channels_last", "scales_elements"]

_Run = Callable[[Any, "GraphModule", list[torch.Tensor]], torch.Tensor]

_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "mish": F.mish,
    "softplus": F.softplus,
    "log_sigmoid": F.logsigmoid,
    "abs": torch.abs,
    "erf": torch.erf,
    "sign": torch.sign,
    "power": torch.pow,
    "threshold": F.threshold,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "expm1": torch.expm1,
    "exp2": torch.exp2,
    "log2": torch.log2,
    "log10": torch.log10,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "erfc": torch.erfc,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "sin": torch.sin,
    "cos": torch.cos,
    "affine": lambda x, scale, shift: x * scale + shift,
    "clamp": lambda x, lo, hi: _clamp(x, (lo, hi)),
    "greater": lambda x, limit: (x > limit).to(x.dtype),
    "greater_equal": lambda x, limit: (x >= limit).to(x.dtype),
    "less": lambda x, limit: (x < limit).to(x.dtype),
    "less_equal": lambda x, limit: (x <= limit).to(x.dtype),
    "equal": lambda x, number: (x == number).to(x.dtype),
    "not_equal": lambda x, number: (x != number).to(x.dtype),
    "constant": torch.full_like,
    "add": torch.add,
    "mul": torch.mul,
}


class GraphModule:
    """A FloatGraph as a callable on (N, C, H, W) float32 tensors.

    Args:
        graph: the network.
        device: where to run. Weights are copied there once.
        dtype: float32, or float64 for a reference without float32 rounding.
    """

    def __init__(
        self, graph: g.FloatGraph, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.graph = graph
        self.device = torch.device(device)
        self.dtype = dtype
        self._weights: dict[str, dict[str, torch.Tensor]] = {
            node.name: {
                field: torch.from_numpy(np.ascontiguousarray(value)).to(self.device, dtype)
                for field, value in vars(node).items()
                if isinstance(value, np.ndarray)
            }
            for node in graph
        }

    def weight(self, node: g.Node, field: str) -> torch.Tensor:
        """Return a weight of ``node`` on the device."""
        return self._weights[node.name][field]

    def __call__(self, x_nchw: torch.Tensor) -> torch.Tensor:
        """Return the output, (N, ...): of a classifier the logits (N, classes). Of several outputs it is the first."""
        return self.run(x_nchw)[self.graph.output]

    def run(
        self,
        x_nchw: torch.Tensor,
        visit: Callable[[g.Node, torch.Tensor], None] | None = None,
        replace: Callable[[g.Node, torch.Tensor], torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute every node and return the outputs, by their names.

        Args:
            x_nchw: images, (N, C, H, W); several inputs are in one tensor, see ``InputLayout``.
            visit: called with each node and its output, in order.
            replace: returns the value to use instead of a node's output, such as its quantized values.
        """

        given = self.graph.given(x_nchw)

        def compute(node: g.Node, inputs: list[torch.Tensor]) -> torch.Tensor:
            value = self.compute(node, inputs) if inputs else given[node.name].to(self.device, self.dtype)
            if replace is not None:
                value = replace(node, value)
            if visit is not None:
                visit(node, value)
            return value

        with torch.no_grad():
            return interpret(self.graph.nodes, compute, self.graph.outputs)

    def compute(self, node: g.Node, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Compute one node from its inputs."""
        out = _RUN[type(node)](node, self, inputs)
        bounds = getattr(node, "bounds", g.UNBOUNDED)
        return out if bounds == g.UNBOUNDED else _clamp(out, bounds)


def channels_last(images_nchw: torch.Tensor) -> torch.Tensor:
    """Return the images with the channels of a pixel side by side in memory: torch convolves large images faster so."""
    return images_nchw.contiguous(memory_format=torch.channels_last) if images_nchw.ndim == 4 else images_nchw


def _clamp(x: torch.Tensor, bounds: g.Bounds) -> torch.Tensor:
    lo, hi = bounds
    if hi == math.inf:
        return F.relu(x) if lo == 0.0 else x.clamp(min=lo)
    return x.clamp(min=None if lo == -math.inf else lo, max=hi)


def _zero_pad(x: torch.Tensor, padding: g.Padding, value: float = 0.0) -> torch.Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def scales_elements(weight_oihw: torch.Tensor, groups: int, stride: tuple[int, int], padding: g.Padding) -> bool:
    """Whether a convolution only multiplies each channel by a number. torch's own takes microseconds per channel."""
    return weight_oihw.shape == (groups, 1, 1, 1) and stride == (1, 1) and not any(padding)


def _conv2d(node: g.Conv2d, m: GraphModule, x: list[torch.Tensor]) -> torch.Tensor:
    weight, bias = m.weight(node, "weight_oihw"), m.weight(node, "bias_o")
    if scales_elements(weight, node.groups, node.stride, node.padding):
        out = x[0] * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
        return out + x[1] if len(x) == 2 else out
    top, left, bottom, right = node.padding
    symmetric = top == bottom and left == right
    out = F.conv2d(
        x[0] if symmetric else _zero_pad(x[0], node.padding),
        weight,
        bias,
        node.stride,
        (top, left) if symmetric else (0, 0),
        node.dilation,
        node.groups,
    )
    return out + x[1] if len(x) == 2 else out


def _affine(node: g.ChannelAffine, m: GraphModule, x: list[torch.Tensor]) -> torch.Tensor:
    shape = (-1,) + (1,) * (len(node.shape) - 1)
    return x[0] * m.weight(node, "scale_c").reshape(shape) + m.weight(node, "shift_c").reshape(shape)


def _slice(node: g.Slice, m: GraphModule, x: list[torch.Tensor]) -> torch.Tensor:
    index = [slice(None)] * x[0].ndim
    index[node.axis + 1] = slice(node.start, node.stop, node.step)
    return x[0][tuple(index)]


def _pad(node: g.Pad, m: GraphModule, x: list[torch.Tensor]) -> torch.Tensor:
    return F.pad(x[0], [width for pair in reversed(node.widths) for width in pair], value=node.value)


def _window_average(node: g.WindowAverage2d, m: GraphModule, x: list[torch.Tensor]) -> torch.Tensor:
    rows, columns = (
        torch.from_numpy(g.window_weights(windows, size)).to(x[0])
        for windows, size in zip((node.rows, node.columns), x[0].shape[2:], strict=True)
    )
    return rows @ x[0] @ columns.T


def _elementwise(node: g.Elementwise, m: GraphModule, x: list[torch.Tensor]) -> torch.Tensor:
    if isinstance(node.function, str):
        return _FUNCTIONS[node.function](x[0], *node.parameters)
    values = [x[0]]
    for step in node.function.steps:
        values.append(_FUNCTIONS[step.function](*(values[i] for i in step.inputs), *step.parameters))
    return values[-1]


def _normalize(node: g.Normalize, m: GraphModule, x: list[torch.Tensor]) -> torch.Tensor:
    axes = [axis + 1 for axis in node.axes]
    centered = x[0] - x[0].mean(axes, keepdim=True) if node.centered else x[0]
    deviation = torch.sqrt((centered * centered).mean(axes, keepdim=True) + node.eps)
    return centered / deviation * m.weight(node, "gain") + m.weight(node, "bias")


_RUN: dict[type[g.Node], _Run] = {
    g.Conv2d: _conv2d,
    g.Linear: lambda node, m, x: F.linear(x[0], m.weight(node, "weight_oi"), m.weight(node, "bias_o")),
    g.ChannelAffine: _affine,
    g.Clamp: lambda node, m, x: x[0],  # bounds are applied to all kinds of nodes here
    g.Add: lambda node, m, x: x[0] + x[1],
    g.Mul: lambda node, m, x: x[0] * x[1],
    g.Concat: lambda node, m, x: torch.cat(x, node.axis + 1),
    g.MaxPool2d: lambda node, m, x: F.max_pool2d(
        _zero_pad(x[0], node.padding, -math.inf), node.kernel, node.stride, 0, node.dilation
    ),
    g.AveragePool2d: lambda node, m, x: F.avg_pool2d(_zero_pad(x[0], node.padding), node.kernel, node.stride),
    g.WindowAverage2d: _window_average,
    g.Reshape: lambda node, m, x: x[0].reshape(x[0].shape[0], *node.shape),
    g.Permute: lambda node, m, x: x[0].permute(0, *(axis + 1 for axis in node.axes)),
    g.Slice: _slice,
    g.Pad: _pad,
    g.Elementwise: _elementwise,
    g.MatMul: lambda node, m, x: (x[0] @ x[1]) * node.factor,
    g.Softmax: lambda node, m, x: x[0].softmax(node.axis + 1),
    g.SoftmaxMatMul: lambda node, m, x: x[0].softmax(3) @ x[1],
    g.Normalize: _normalize,
}


def logits(module: GraphModule, images_nchw: NDArray[np.float32], batch_size: int = 500) -> NDArray[np.float32]:
    """Return the logits of all images, (N, classes)."""
    parts = [
        module(torch.from_numpy(images_nchw[i : i + batch_size])).cpu().numpy()
        for i in range(0, len(images_nchw), batch_size)
    ]
    return np.concatenate(parts)

"""nn.Module → FloatGraph: every operator in all its forms, and refusals."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from twoscale._frontends import float_graph as capture
from twoscale._frontends.torch_export.aten.table import TRANSLATIONS
from twoscale._frontends.torch_export.aten.translator import Translator
from twoscale._frontends.torch_export.capture import supported_operators
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._passes.fold import fold
from twoscale.errors import CaptureError, UnsupportedOperatorError
from twoscale.models import Net, NetWithBias

Function = Callable[..., Any]
aten: Any = torch.ops.aten
EXACT = (
    g.Input,
    g.Conv2d,
    g.Linear,
    g.Clamp,
    g.MaxPool2d,
    g.Reshape,
    g.Permute,
    g.Slice,
    g.Pad,
    g.Concat,
    g.Add,
    g.Mul,
)


class Forward(nn.Module):
    """A model whose forward is a function of the model and the images. Keyword arguments become its modules and
    buffers."""

    def __init__(self, function: Function, **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*(shape or (4, 3, 8, 8)), generator=torch.Generator().manual_seed(seed)) * 2


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a model with reproducible weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1 * (name == "weight")
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_var is not None:
            module.running_mean = torch.randn(module.running_var.shape, generator=generator)
            module.running_var = torch.rand(module.running_var.shape, generator=generator) + 0.1
    return model


def captured(model: nn.Module, x: torch.Tensor | None = None) -> g.FloatGraph:
    """Capture a model, check it and its folded form against the model, and return it."""
    x = images() if x is None else x
    graph = capture(seeded(model), x)
    model.eval()
    with torch.no_grad():
        expected = model(x)
    found = GraphModule(graph)(x)
    assert found.shape == expected.shape
    if all(isinstance(node, EXACT) for node in graph):
        assert torch.equal(found, expected)
    for form in (graph, fold(graph), fold(graph, join_residuals=False)):
        assert torch.allclose(GraphModule(form)(x), expected, rtol=1e-5, atol=1e-5), form
        assert_well_formed(form)
    return graph


def assert_well_formed(graph: g.FloatGraph) -> None:
    """Names are unique, inputs come first, and shapes are right."""
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    seen: set[str] = set()
    for node in graph:
        assert seen.issuperset(node.inputs), node
        seen.add(node.name)

    def visit(node: g.Node, value: torch.Tensor) -> None:
        assert tuple(value.shape[1:]) == node.shape, node

    GraphModule(graph).run(images(3, *graph.input.shape), visit)


def kinds(graph: g.FloatGraph) -> list[str]:
    return [node.op for node in graph if not isinstance(node, g.Input | g.Reshape)]


# Every operator, as a module, as a function and in place. The result is flattened to logits.

FORMS: dict[str, tuple[Function, list[str]]] = {
    "conv module": (lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3)), ["Conv2d"]),
    "conv without bias": (lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3, bias=False)), ["Conv2d"]),
    "conv stride, padding": (
        lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(0, 2))), ["Conv2d"]
    ),
    "conv same": (lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3, padding="same")), ["Conv2d"]),
    "conv same, even kernel": (
        lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3))), ["Conv2d"]
    ),
    "conv valid": (lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 2, padding="valid")), ["Conv2d"]),
    "conv dilation": (lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3, dilation=2)), ["Conv2d"]),
    "conv depthwise": (lambda: Forward(lambda m, x: m.c(x), c=nn.Conv2d(3, 6, 3, groups=3)), ["Conv2d"]),
    "conv function": (lambda: Forward(lambda m, x: F.conv2d(x, m.w), w=images(4, 3, 2, 2)), ["Conv2d"]),
    "conv of a computed weight": (
        lambda: Forward(lambda m, x: F.conv2d(x, m.w / m.w.norm(), m.b * 2), w=images(4, 3, 2, 2), b=images(4)),
        ["Conv2d"],
    ),
    "linear": (lambda: Forward(lambda m, x: m.l(x.flatten(1)), l=nn.Linear(192, 5)), ["Linear"]),
    "linear function": (lambda: Forward(lambda m, x: F.linear(x.flatten(1), m.w), w=images(5, 192)), ["Linear"]),
    "batch norm": (lambda: Forward(lambda m, x: m.b(x), b=nn.BatchNorm2d(3)), ["ChannelAffine"]),
    "batch norm of vectors": (
        lambda: Forward(lambda m, x: m.b(x.flatten(1)), b=nn.BatchNorm1d(192)), ["ChannelAffine"]
    ),
    "batch norm, not affine": (
        lambda: Forward(lambda m, x: m.b(x), b=nn.BatchNorm2d(3, affine=False)), ["ChannelAffine"]
    ),
    "batch norm function": (
        lambda: Forward(lambda m, x: F.batch_norm(x, m.u, m.v), u=images(3), v=images(3).abs()), ["ChannelAffine"]
    ),
    "relu module": (lambda: Forward(lambda m, x: m.r(x), r=nn.ReLU()), ["Clamp"]),
    "relu function": (lambda: Forward(lambda m, x: F.relu(x)), ["Clamp"]),
    "relu method": (lambda: Forward(lambda m, x: x.relu()), ["Clamp"]),
    "relu in place": (lambda: Forward(lambda m, x: m.r(x + 1), r=nn.ReLU(inplace=True)), ["ChannelAffine", "Clamp"]),
    "relu6": (lambda: Forward(lambda m, x: m.r(x * 4), r=nn.ReLU6()), ["ChannelAffine", "Clamp"]),
    "relu6 in place": (lambda: Forward(lambda m, x: F.relu6(x * 4, inplace=True)), ["ChannelAffine", "Clamp"]),
    "hardtanh": (lambda: Forward(lambda m, x: F.hardtanh(x, -0.5, 0.7)), ["Clamp"]),
    "clamp": (lambda: Forward(lambda m, x: x.clamp(-0.25, 1)), ["Clamp"]),
    "clamp min": (lambda: Forward(lambda m, x: torch.clamp(x, min=0.5)), ["Elementwise"]),
    "clamp max": (lambda: Forward(lambda m, x: x.clamp_max(0.5)), ["Clamp"]),
    "clamp min in place": (lambda: Forward(lambda m, x: (x + 1).clamp_min_(0)), ["ChannelAffine", "Clamp"]),
    "add": (lambda: Forward(lambda m, x: x + m.c(x), c=nn.Conv2d(3, 3, 1)), ["Conv2d", "Add"]),
    "add in place": (
        lambda: Forward(lambda m, x: m.c(x).add_(x).relu_(), c=nn.Conv2d(3, 3, 1)), ["Conv2d", "Add", "Clamp"]
    ),
    "add operator in place": (lambda: Forward(plus_equals, c=nn.Conv2d(3, 3, 1)), ["Conv2d", "Add", "Clamp"]),
    "add itself": (lambda: Forward(lambda m, x: x + x), ["Add"]),
    "add a number": (lambda: Forward(lambda m, x: 3 + x), ["ChannelAffine"]),
    "add per channel": (lambda: Forward(lambda m, x: x + m.b, b=images(1, 3, 1, 1)), ["ChannelAffine"]),
    "add with alpha": (lambda: Forward(lambda m, x: torch.add(x, m.b, alpha=3), b=images(3, 1, 1)), ["ChannelAffine"]),
    "add to a constant with alpha": (
        lambda: Forward(lambda m, x: torch.add(m.b, x, alpha=3), b=images(3, 1, 1)), ["ChannelAffine"]
    ),
    "subtract and divide": (
        lambda: Forward(lambda m, x: (x - m.u) / m.s, u=images(3, 1, 1), s=images(3, 1, 1).abs() + 0.1),
        ["ChannelAffine", "ChannelAffine"],
    ),
    "subtract from": (lambda: Forward(lambda m, x: 1 - x), ["ChannelAffine"]),
    "subtract from a tensor": (lambda: Forward(lambda m, x: m.u - x, u=images(3, 1, 1)), ["ChannelAffine"]),
    "subtract with alpha": (lambda: Forward(lambda m, x: torch.sub(x, 2, alpha=0.5)), ["ChannelAffine"]),
    "negate": (lambda: Forward(lambda m, x: -x), ["ChannelAffine"]),
    "multiply by a number": (lambda: Forward(lambda m, x: 0.5 * x), ["ChannelAffine"]),
    "multiply a vector": (lambda: Forward(lambda m, x: x.flatten(1) * m.s, s=images(192)), ["ChannelAffine"]),
    "multiply": (lambda: Forward(lambda m, x: x * m.c(x), c=nn.Conv2d(3, 3, 1)), ["Conv2d", "Mul"]),
    "multiply by a gate": (
        lambda: Forward(lambda m, x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))),
        ["AveragePool2d", "Elementwise", "Mul"],
    ),
    "multiply by a gate in place": (
        lambda: Forward(lambda m, x: (x + 0).mul_(x.mean((2, 3), keepdim=True))),
        ["ChannelAffine", "AveragePool2d", "Mul"],
    ),
    "square": (lambda: Forward(lambda m, x: x * x), ["Mul"]),
    "concatenate": (lambda: Forward(lambda m, x: torch.cat([x, x.relu(), x], 1)), ["Clamp", "Concat"]),
    "concatenate rows": (lambda: Forward(lambda m, x: torch.cat((x, x), dim=-2)), ["Concat"]),
    "max pool": (lambda: Forward(lambda m, x: m.p(x), p=nn.MaxPool2d(2)), ["MaxPool2d"]),
    "max pool, padded": (lambda: Forward(lambda m, x: F.max_pool2d(x, 3, 2, 1)), ["MaxPool2d"]),
    "max pool, dilated": (lambda: Forward(lambda m, x: F.max_pool2d(x, (2, 3), 1, 0, 2)), ["MaxPool2d"]),
    "max pool, ceiling": (lambda: Forward(lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True)), ["MaxPool2d"]),
    "max pool, ceiling and padded": (
        lambda: Forward(lambda m, x: F.max_pool2d(x, 3, 3, 1, ceil_mode=True)), ["MaxPool2d"]
    ),
    "adaptive max pool": (lambda: Forward(lambda m, x: F.adaptive_max_pool2d(x, (2, 4))), ["MaxPool2d"]),
    "average pool": (lambda: Forward(lambda m, x: m.p(x), p=nn.AvgPool2d(2)), ["AveragePool2d"]),
    "average pool, padded": (lambda: Forward(lambda m, x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 0))), ["AveragePool2d"]),
    "average pool, ceiling without need": (
        lambda: Forward(lambda m, x: F.avg_pool2d(x, 2, ceil_mode=True)), ["AveragePool2d"]
    ),
    "adaptive average pool": (
        lambda: Forward(lambda m, x: m.p(x), p=nn.AdaptiveAvgPool2d((2, None))), ["AveragePool2d"]
    ),
    "mean": (lambda: Forward(lambda m, x: x.mean((2, 3))), ["AveragePool2d"]),
    "mean, dimensions kept": (lambda: Forward(lambda m, x: x.mean([-1, -2], True)), ["AveragePool2d"]),
    "view": (lambda: Forward(lambda m, x: x.view(-1, 192)), []),
    "view by size": (lambda: Forward(lambda m, x: x.view(x.size(0), 3, 64).unsqueeze(1).squeeze(1)), []),
    "reshape": (lambda: Forward(lambda m, x: x.reshape(x.shape[0], -1, 2, 4)), []),
    "flatten module": (lambda: Forward(lambda m, x: m.f(x), f=nn.Flatten()), []),
    "unflatten": (lambda: Forward(lambda m, x: m.u(x), u=nn.Unflatten(1, (3, 1))), []),
    "permute": (lambda: Forward(lambda m, x: x.permute(0, 2, 3, 1)), ["Permute"]),
    "transpose": (lambda: Forward(lambda m, x: x.transpose(1, -1).contiguous()), ["Permute"]),
    "slice": (lambda: Forward(lambda m, x: x[:, 1:, ::2, -3:-1]), ["Slice", "Slice", "Slice"]),
    "slice that takes all": (lambda: Forward(lambda m, x: x[:, :, 0:8]), []),
    "chunk": (lambda: Forward(shuffled), ["Slice", "Slice", "Concat"]),
    "split": (lambda: Forward(lambda m, x: x.split(2, 1)[1] + x.split([1, 2], 1)[0]), ["Slice", "Slice", "Add"]),
    "pad": (lambda: Forward(lambda m, x: F.pad(x, (1, 2, 0, 3))), ["Pad"]),
    "pad channels": (lambda: Forward(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 1))), ["Pad"]),
    "pad module": (lambda: Forward(lambda m, x: m.p(x), p=nn.ZeroPad2d((0, 1, 0, 1))), ["Pad"]),
    "dropout": (lambda: Forward(lambda m, x: m.d(m.e(x)), d=nn.Dropout(), e=nn.Dropout2d(inplace=True)), []),
    "dropout function": (lambda: Forward(lambda m, x: F.dropout(x, training=m.training)), []),
    "identity": (lambda: Forward(lambda m, x: m.i(x).clone().detach().float().to(x.dtype), i=nn.Identity()), []),
    "sigmoid": (lambda: Forward(lambda m, x: torch.sigmoid(x)), ["Elementwise"]),
    "tanh": (lambda: Forward(lambda m, x: m.t(x), t=nn.Tanh()), ["Elementwise"]),
    "hardsigmoid": (
        lambda: Forward(lambda m, x: m.h(x + 0), h=nn.Hardsigmoid(inplace=True)), ["ChannelAffine", "Elementwise"]
    ),
    "hardswish": (lambda: Forward(lambda m, x: F.hardswish(x)), ["Elementwise"]),
    "silu": (lambda: Forward(lambda m, x: m.s(x + 0), s=nn.SiLU(inplace=True)), ["ChannelAffine", "Elementwise"]),
    "gelu": (lambda: Forward(lambda m, x: m.g(x), g=nn.GELU()), ["Elementwise"]),
    "gelu by tanh": (lambda: Forward(lambda m, x: F.gelu(x, approximate="tanh")), ["Elementwise"]),
    "leaky relu": (lambda: Forward(lambda m, x: F.leaky_relu(x, 0.2)), ["Elementwise"]),
    "other names": (
        lambda: Forward(
            lambda m, x: torch.concat((torch.multiply(x, 2), torch.negative(x), x.divide(4), x.true_divide(3)), 1)
        ),
        ["ChannelAffine", "ChannelAffine", "ChannelAffine", "ChannelAffine", "Concat"],
    ),
    "other kinds of dropout": (
        lambda: Forward(
            lambda m, x: torch.native_dropout(F.feature_alpha_dropout(m.a(x)), 0.5, False)[0], a=nn.AlphaDropout()
        ),
        [],
    ),
    "decomposed operators": (
        lambda: Forward(decomposed, w=images(4, 3, 3, 3), u=images(4), v=images(4).abs()),
        ["Pad", "Conv2d", "ChannelAffine", "MaxPool2d", "AveragePool2d"],
    ),
    "copies": (
        lambda: Forward(lambda m, x: aten._to_copy(aten.alias(aten.lift_fresh_copy(x.type_as(m.u)))), u=images(1)), []
    ),
    "elu": (lambda: Forward(lambda m, x: F.elu(x, 0.7)), ["Elementwise"]),
    "celu": (lambda: Forward(lambda m, x: F.celu(x, 0.7)), ["Elementwise"]),
    "selu": (lambda: Forward(lambda m, x: F.selu(x)), ["Elementwise"]),
    "mish": (lambda: Forward(lambda m, x: F.mish(x)), ["Elementwise"]),
    "softplus": (lambda: Forward(lambda m, x: F.softplus(x, 2, 3)), ["Elementwise"]),
    "log sigmoid": (lambda: Forward(lambda m, x: F.logsigmoid(x)), ["Elementwise"]),
    "absolute and exponential": (lambda: Forward(lambda m, x: (-x.abs()).exp()), [
        "Elementwise", "ChannelAffine", "Elementwise"
    ]),
    "prelu": (lambda: Forward(lambda m, x: m.p(x), p=nn.PReLU()), ["Elementwise"]),
    "prelu per channel": (
        lambda: Forward(lambda m, x: m.p(x), p=nn.PReLU(3)), ["Clamp", "Clamp", "ChannelAffine", "Add"]
    ),
    "squares": (lambda: Forward(lambda m, x: x**2 + x.square()), ["Mul", "Mul", "Add"]),
    "difference": (lambda: Forward(lambda m, x: x - x.relu()), ["Clamp", "ChannelAffine", "Add"]),
    "weighted sum": (lambda: Forward(lambda m, x: torch.add(x, x.relu(), alpha=2)), ["Clamp", "ChannelAffine", "Add"]),
    "one index": (lambda: Forward(lambda m, x: x[:, -1]), ["Slice"]),
    "unbind": (lambda: Forward(lambda m, x: x.unbind(1)[2]), ["Slice"]),
    "narrow": (lambda: Forward(lambda m, x: x.narrow(2, 3, 4)), ["Slice"]),
    "stack": (lambda: Forward(lambda m, x: torch.stack([x, x.relu()], 2)), ["Clamp", "Concat"]),
    "multiply by an expanded gate": (
        lambda: Forward(lambda m, x: x * x.mean((2, 3), keepdim=True).expand_as(x)), ["AveragePool2d", "Mul"]
    ),
    "expand to its own shape": (lambda: Forward(lambda m, x: x.expand(-1, 3, 8, 8)), []),
    "convolution of vectors": (
        lambda: Forward(lambda m, x: m.c(x.flatten(2)), c=nn.Conv1d(3, 6, 4, 2, padding=3, dilation=2, groups=3)),
        ["Conv2d"],
    ),
    "convolution of vectors, same": (
        lambda: Forward(lambda m, x: m.c(x.flatten(2)), c=nn.Conv1d(3, 2, 4, padding="same")), ["Conv2d"]
    ),
    "mean of means": (lambda: Forward(lambda m, x: x.mean(3).mean(2)), ["AveragePool2d", "AveragePool2d"]),
    "mean of rows": (lambda: Forward(lambda m, x: x.mean(2, keepdim=True)), ["AveragePool2d"]),
    "mean of pixels in a row": (lambda: Forward(lambda m, x: x.flatten(2).mean(-1)), ["AveragePool2d"]),
    "average pool without padding": (
        lambda: Forward(lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)), ["WindowAverage2d"]
    ),
    "average pool without the padding that is not there": (
        lambda: Forward(lambda m, x: F.avg_pool2d(x, 2, count_include_pad=False, ceil_mode=True)), ["AveragePool2d"]
    ),
    "average pool of partial windows": (
        lambda: Forward(lambda m, x: F.avg_pool2d(x, 3, 2, ceil_mode=True)), ["WindowAverage2d"]
    ),
    "average pool, padded and partial": (
        lambda: Forward(lambda m, x: F.avg_pool2d(x, 4, 3, 2, ceil_mode=True)), ["WindowAverage2d"]
    ),
    "average pool with a divisor": (
        lambda: Forward(lambda m, x: F.avg_pool2d(x, (3, 2), 2, (1, 0), divisor_override=4)),
        ["AveragePool2d", "ChannelAffine"],
    ),
    "adaptive average pool, uneven": (lambda: Forward(lambda m, x: F.adaptive_avg_pool2d(x, (3, 5))), [
        "WindowAverage2d"
    ]),
    "adaptive average pool that enlarges": (lambda: Forward(lambda m, x: F.adaptive_avg_pool2d(x, (8, 11))), [
        "WindowAverage2d"
    ]),
    "channel shuffle": (
        lambda: Forward(lambda m, x: F.channel_shuffle(m.c(x), 3), c=nn.Conv2d(3, 6, 1)), ["Conv2d", "Permute"]
    ),
    "pixel shuffle": (lambda: Forward(lambda m, x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)), [
        "Permute", "Permute"
    ]),
    "nearest neighbours": (lambda: Forward(lambda m, x: F.interpolate(x, scale_factor=(2, 3))), ["Concat", "Concat"]),
    "nearest neighbours, exact": (
        lambda: Forward(lambda m, x: F.interpolate(x, size=(8, 16), mode="nearest-exact")), ["Concat"]
    ),
    "pad with minus infinity": (
        lambda: Forward(lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 1, 1), value=-math.inf), 3, 2)),
        ["Pad", "MaxPool2d"],
    ),
    "zeros of the batch": (
        lambda: Forward(lambda m, x: torch.cat([x, torch.zeros(x.size(0), 2, 8, 8)], 1)), ["Pad"]
    ),
    "zeros of the same shape": (
        lambda: Forward(lambda m, x: torch.cat([torch.zeros_like(x), x, x.new_zeros(x.shape)], 1)), ["Pad"]
    ),
    "a sum that begins with zeros": (lambda: Forward(accumulated), ["ChannelAffine", "Add"]),
    "the number of a parameter": (lambda: Forward(lambda m, x: x / m.s.item(), s=images(1)), ["ChannelAffine"]),
    "one of two constants": (
        lambda: Forward(lambda m, x: x * torch.var_mean(m.s, 0)[0] + torch.var_mean(m.s, 0)[1], s=images(9)),
        ["ChannelAffine", "ChannelAffine"],
    ),
    "len for the batch size": (lambda: Forward(lambda m, x: x.reshape(len(x), -1)), []),
    "pad by less than nothing": (lambda: Forward(lambda m, x: F.pad(x, (-1, 2, 0, -3))), ["Slice", "Slice", "Pad"]),
    "cut off by padding": (lambda: Forward(lambda m, x: F.pad(x, (-1, -2))), ["Slice"]),
    "pad with ones": (lambda: Forward(lambda m, x: F.pad(x, (1, 1), value=1.0)), [
        "ChannelAffine", "Pad", "ChannelAffine"
    ]),
    "pad around": (lambda: Forward(lambda m, x: F.pad(x, (2, 1, 0, 0), "circular")), ["Slice", "Slice", "Concat"]),
    "sum over pixels": (lambda: Forward(lambda m, x: x.sum((2, 3))), ["AveragePool2d", "ChannelAffine"]),
    "sum of rows of sums": (lambda: Forward(lambda m, x: x.sum(-1).sum(-1)), [
        "AveragePool2d", "ChannelAffine", "AveragePool2d", "ChannelAffine"
    ]),
    "sum of branches": (lambda: Forward(lambda m, x: x.view(-1, 3, 1, 8, 8).sum(1)), [
        "Slice", "Slice", "Slice", "Add", "Add"
    ]),
    "mean and maximum of channels": (
        lambda: Forward(lambda m, x: torch.cat([x.mean(1, True), x.max(1, True)[0], x.amax((1, 3), True) * x], 1)),
        ["AveragePool2d", "MaxPool2d", "MaxPool2d", "MaxPool2d", "Mul", "Concat"],
    ),
    "maximum of pixels": (lambda: Forward(lambda m, x: x.amax((2, 3))), ["MaxPool2d"]),
    "maximum of two": (lambda: Forward(lambda m, x: torch.max(x, -x)), ["ChannelAffine", "Concat", "MaxPool2d"]),
    "maximum with a number": (
        lambda: Forward(lambda m, x: torch.maximum(torch.full_like(x, 0.5), x)), ["Elementwise"]
    ),
    "maximum with a negative number": (lambda: Forward(lambda m, x: torch.max(x, torch.tensor(-0.5))), ["Clamp"]),
    "generalized mean": (  # Radenović et al., 2017, in a common form with a learnt power
        lambda: Forward(lambda m, x: x.clamp(min=1e-6).pow(m.w).mean((2, 3)).pow(1.0 / m.w), w=torch.tensor([3.0])), [
            "Elementwise", "Elementwise", "AveragePool2d", "Elementwise"]),
    "cube and root": (lambda: Forward(lambda m, x: (x**3).abs().sqrt() + 0.0), [
        "Elementwise", "Elementwise", "Elementwise", "ChannelAffine"
    ]),
    "sum that broadcasts": (lambda: Forward(lambda m, x: x - x.mean((2, 3), keepdim=True)), [
        "AveragePool2d", "ChannelAffine", "Concat", "Concat", "Add"
    ]),
    "sum of an expanded tensor": (lambda: Forward(lambda m, x: x + x[:, :1].broadcast_to(-1, 3, 8, 8)), [
        "Slice", "Concat", "Add"
    ]),
    "linear layers of pixels": (
        lambda: Forward(
            lambda m, x: m.b(F.relu(m.a(x.permute(0, 2, 3, 1))) * m.s).permute(0, 3, 1, 2),
            a=nn.Linear(3, 4), b=nn.Linear(4, 2), s=images(4),
        ),
        ["Conv2d", "Clamp", "ChannelAffine", "Conv2d"],
    ),
    "linear layers of rows": (lambda: Forward(lambda m, x: m.l(m.l(x).flatten(1, 2)), l=nn.Linear(8, 8)), [
        "Permute", "Conv2d", "Permute", "Permute", "Conv2d", "Permute"
    ]),
    "matrices": (
        lambda: Forward(
            lambda m, x: (torch.addmm(m.b, x.flatten(1).mm(m.w), m.v) @ m.v).abs(),
            w=images(192, 4) / 20, v=images(4, 4), b=images(4),
        ),
        ["Linear", "Linear", "Linear", "Elementwise"],
    ),
    "a constant for each row": (lambda: Forward(lambda m, x: x * m.w, w=images(8, 1)), [
        "Permute", "ChannelAffine", "Permute"
    ]),
    "a constant for each pixel": (lambda: Forward(lambda m, x: x * m.w + m.b, w=images(8, 8), b=images(1, 3, 8, 8)), [
        "ChannelAffine", "ChannelAffine"
    ]),
    "batch norm of rows": (
        lambda: Forward(lambda m, x: m.i(m.b(x.flatten(2))), b=nn.BatchNorm1d(3),
                        i=nn.InstanceNorm1d(3, track_running_stats=True).eval()),
        ["ChannelAffine", "ChannelAffine"],
    ),
    "repeated": (lambda: Forward(lambda m, x: x.repeat(1, 2, 1, 1).tile(1, 3)), ["Concat", "Concat"]),
    "in another order": (
        lambda: Forward(
            lambda m, x: x[:, [2, 0, 1]].index_select(1, torch.tensor([1, 2])).roll((1, 3), (2, 3)).flip(1)
            .repeat_interleave(2, 1)
        ),
        ["Slice", "Slice", "Concat", "Slice", "Slice", "Slice", "Concat", "Slice", "Slice", "Concat", "Slice", "Slice",
         "Concat", "Slice", "Slice", "Concat"],
    ),
    "other names of orders": (
        lambda: Forward(
            lambda m, x: x.swapaxes(1, 2).swapdims(2, 3).movedim(1, -1).moveaxis((1, 2), (2, 1)).view_as(x)
            .reshape_as(x).tensor_split(2, 1)[0]
        ),
        ["Permute", "Slice"],
    ),
    "other names of sums": (
        lambda: Forward(lambda m, x: torch.concatenate([x.clip(0, 6).subtract(x.absolute()), F.relu(x) + x.erf()], 1)),
        ["Clamp", "Elementwise", "ChannelAffine", "Add", "Clamp", "Elementwise", "Add", "Concat"],
    ),
    "shrinking and thresholds": (
        lambda: Forward(lambda m, x: F.softshrink(F.hardshrink(F.threshold(F.rrelu(x), 0.5, 0.25), 0.3)).sign()),
        ["Elementwise"] * 5,
    ),
    "gated linear unit": (lambda: Forward(lambda m, x: F.glu(x, 2)), ["Slice", "Slice", "Elementwise", "Mul"]),
    "pad by reflection": (lambda: Forward(lambda m, x: F.pad(x, (2, 1, 0, 1), "reflect")), [
        "Slice", "Concat", "Slice", "Slice", "Slice", "Concat"
    ]),
    "pad by replication": (lambda: Forward(lambda m, x: m.p(x), p=nn.ReplicationPad2d((1, 0, 0, 2))), [
        "Slice", "Slice", "Concat", "Slice", "Concat"
    ]),
}  # fmt: skip


def decomposed(m: Any, x: torch.Tensor) -> torch.Tensor:
    """What torch.export writes when asked to decompose."""
    x = aten.constant_pad_nd(x, [1, 0, 0, 1])
    x = aten.convolution(x, m.w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    x = aten._native_batch_norm_legit_no_training(x, None, None, m.u, m.v, 0.1, 1e-5)[0]
    x = aten.max_pool2d_with_indices(x, [3, 3])[0]
    return aten._unsafe_view(aten._adaptive_avg_pool2d(x, [1, 1]), [x.shape[0], 4])  # type: ignore[no-any-return]


def accumulated(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    y += x
    y.add_(x)
    return y


def plus_equals(m: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = m.c(x)
    y += x
    return F.relu(y, inplace=True)


def shuffled(m: Any, x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, 3)
    return torch.cat([right, left], 3)


@pytest.mark.sweep(20)
@pytest.mark.parametrize("form", FORMS)
def test_every_operator_in_every_form(form: str) -> None:
    make, expected = FORMS[form]
    model = make()
    inner = model.function
    model.function = lambda m, x: inner(m, x).flatten(1)
    assert kinds(captured(model)) == expected


def of_attention() -> set[str]:
    """Return the operators of test_capture_attention.py."""
    from tests.frontends.test_capture_attention import OPERATORS

    return OPERATORS


def in_disguise() -> set[str]:
    """Return the operators that test_capture_disguises.py has forms of."""
    from tests.frontends.test_capture_disguises import OPERATORS

    return OPERATORS


def test_every_supported_operator_has_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[str] = set()

    class Spy(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            reached.add(key)
            return super().get(key, default)

    monkeypatch.setattr("twoscale._frontends.torch_export.capture.TRANSLATIONS", Spy(TRANSLATIONS))
    for make, expected in FORMS.values():
        model = make()
        inner = model.function
        model.function = lambda m, x, inner=inner: inner(m, x).flatten(1)
        assert kinds(capture(seeded(model), images())) == expected
    # Other names of the tested forms, and operators with separate tests.
    others = {"expand", "reflection_pad2d", "replication_pad2d", "ones_like", "new_ones", "new_full"}
    others |= {"softmax", "_softmax", "log_softmax", "_log_softmax"}
    others |= of_attention()
    others |= {"gt", "ge", "lt", "le", "where", "log", "log1p", "rsqrt", "sin", "cos"}
    others |= {"conv_transpose1d", "conv_transpose2d", "avg_pool3d"}
    others |= in_disguise()
    assert set(supported_operators()) - reached <= others


# Whole models.


def test_net_is_captured_by_the_names_of_its_modules() -> None:
    for model, bias in ((Net(), 0), (NetWithBias(), 1)):
        graph = captured(model, images(2, 3, 32, 32))
        assert graph.name == type(model).__name__
        folded = fold(graph)
        assert [node.name for node in folded] == [
            "input", "conv1", "pool", "conv2", "pool_2", "view", "fc1", "fc2", "fc3"
        ]  # fmt: skip
        assert graph.output == "fc3"
        assert "net.py" in folded["conv1"].source
        assert "self.conv1(x)" in folded["conv1"].source
        fc3 = folded["fc3"]
        assert isinstance(fc3, g.Linear)
        assert np.count_nonzero(fc3.bias_o) == 10 * bias


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        result: torch.Tensor = self.relu(y)
        return result


def small_resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.Sequential(
        OrderedDict(
            stem=stem,
            layer1=nn.Sequential(Block(4, 4, 1), Block(4, 8, 2)),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(8, 5),
        )
    )


class OptionA(nn.Module):
    """A shortcut that takes every other pixel and pads channels with zeros, as in the CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
        return F.relu(self.conv(x) + shortcut).flatten(1)


class Inverted(nn.Module):
    """Depthwise convolution, squeeze and excitation, hardswish: a block of MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 5, 2, 2, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        result: torch.Tensor = self.head((gate * x).mean([2, 3]))
        return result


class Dense(nn.Module):
    """Batch norm and ReLU before the convolution, concatenation after: a DenseNet layer, with its transition."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)
        return F.avg_pool2d(F.relu(self.last(x)), 2).flatten(1)


class Shuffle(nn.Module):
    """Channels split, shuffled by reshape and transpose, and a depthwise branch: a ShuffleNet unit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w).flatten(1)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "resnet": (
        small_resnet,
        ["stem.0", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.shortcut.0", "layer1.1.conv2",
         "pool", "fc"],
    ),
    "option A": (OptionA, ["slice", "slice_2", "pad", "conv"]),
    "mobilenet": (
        Inverted,
        ["expand.0", "expand.2", "depthwise.0", "mean", "squeeze", "excite", "hardsigmoid", "mul", "mean_2", "head.1"],
    ),
    "densenet": (Dense, ["norm", "conv", "cat", "last", "avg_pool2d"]),
    "shufflenet": (Shuffle, ["stem", "chunk", "chunk_2", "branch.0", "cat", "transpose"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_networks(family: str) -> None:
    make, expected = FAMILIES[family]
    folded = fold(captured(make()))
    found = [node.name for node in folded if not isinstance(node, g.Input | g.Reshape)]
    assert found == expected
    assert not any(isinstance(node, g.ChannelAffine) for node in folded)


def test_shared_modules_keep_their_name_and_weights() -> None:
    model = seeded(Forward(lambda m, x: m.c(m.r(m.c(x))).flatten(1), c=nn.Conv2d(3, 3, 3, padding=1), r=nn.ReLU()))
    graph = captured(model)
    first, second = graph["c"], graph["c_2"]
    assert isinstance(first, g.Conv2d)
    assert isinstance(second, g.Conv2d)
    assert np.array_equal(first.weight_oihw, second.weight_oihw)


def test_a_module_may_be_called_input() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.input(x)
            return result.flatten(1)

    assert [node.name for node in captured(Named())] == ["input", "input_2", "flatten"]


def test_a_name_may_be_given() -> None:
    assert capture(Net(), images(1, 3, 32, 32), name="lab").name == "lab"


def test_one_image_and_other_types_are_good_examples() -> None:
    model = seeded(Net())
    for example in (images(1, 3, 32, 32), torch.zeros(5, 3, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)):
        graph = capture(model, example)
        x = images(3, 3, 32, 32)
        assert torch.allclose(GraphModule(graph)(x), model.eval()(x), atol=1e-5)


def test_heads_that_only_training_uses_are_left_out() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        torch.softmax(m.aux(x), 1)
        m.aux(x).relu_()
        return m.c(x).flatten(1)  # type: ignore[no-any-return]

    graph = captured(Forward(forward, c=nn.Conv2d(3, 2, 1), aux=nn.Conv2d(3, 2, 1)))
    assert [node.name for node in graph] == ["input", "c", "flatten"]


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_a_softmax_at_the_end_is_left_out_and_said(function: str) -> None:
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    end = {"softmax": nn.Softmax(1), "log_softmax": nn.LogSoftmax(-1)}[function]
    with pytest.warns(
        UserWarning, match=rf"the {function} at module 1 \((Log)?Softmax\) is left out of Sequential: .*logits"
    ):
        graph = capture(nn.Sequential(model, end), images())
    assert torch.allclose(GraphModule(graph)(images()), model(images()), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch.compile's own
@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, torch.compile])
def test_wrappers_are_taken_off(wrap: Function) -> None:
    graph = capture(wrap(seeded(Net())), images(1, 3, 32, 32))
    assert (graph.name, graph.nodes[1].name) == ("Net", "conv1")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_types_are_captured_in_float32(dtype: torch.dtype) -> None:
    model = seeded(Net()).eval().double()
    with torch.no_grad():
        expected = model(images(2, 3, 32, 32).double()).float()
    found = GraphModule(capture(model.to(dtype), images(1, 3, 32, 32)))(images(2, 3, 32, 32))
    assert torch.allclose(found, expected, atol=float((4 * torch.finfo(dtype).eps + 1e-6) * expected.abs().max()))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_refused() -> None:
    with pytest.raises(
        CaptureError, match="is TorchScript, which cannot be captured; pass the module that it was made"
    ):
        capture(torch.jit.script(nn.ReLU()), images())


def test_a_buffer_that_counts_calls_is_left_as_it_was() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.calls += 1
        m.last = m.last + 1
        return x.flatten(1)

    model = Forward(forward, calls=torch.zeros(()), last=torch.zeros(2))
    before = dict(model.named_buffers())
    capture(model, images())
    assert not model.get_buffer("calls").any()
    assert model.get_buffer("last") is before["last"]


# In place, and views.


def change_flat_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.c(x)
    y.flatten(1).relu_()
    return y.flatten(1)  # type: ignore[no-any-return]


def change_after_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.b(m.c(x))
    flat = y.view(y.shape[0], -1)
    y.relu_()
    return flat  # type: ignore[no-any-return]


def change_result_of_change(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.c(x)
    z = y.mul_(2)
    z.relu_()
    return (y + z).flatten(1)  # type: ignore[no-any-return]


def change_behind_dropout(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.c(x)
    F.dropout(y, training=False).relu_()
    return y.flatten(1)  # type: ignore[no-any-return]


def change_clone(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.c(x)
    z = y.clone().relu_()
    return (y + 2 * z).flatten(1)  # type: ignore[no-any-return]


def change_images(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.sub_(1).div_(3)
    return m.c(y).flatten(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "forward",
    [change_flat_view, change_after_view, change_result_of_change, change_behind_dropout, change_clone, change_images],
)
def test_changes_in_place_are_seen_through_views(forward: Function) -> None:
    captured(Forward(forward, c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)))


@pytest.mark.parametrize("forward", [change_flat_view, change_after_view, change_behind_dropout])
def test_a_change_that_views_do_not_see_is_noticed(forward: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a change in place reaches only the name that the operator returns."""
    monkeypatch.setattr(Translator, "_changed_in_place", lambda self, node, new: None)
    model = seeded(Forward(forward, c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4))).eval()
    with pytest.raises(CaptureError, match="does not compute what the model does"):
        capture(model, images())


def test_a_capture_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: ReLU treated as the identity."""
    monkeypatch.setitem(TRANSLATIONS, "relu", lambda e, node, a: e.input(a["self"]))
    with pytest.raises(
        CaptureError, match=r"captured graph of Net does not compute what the model does \(logits differ"
    ):
        capture(seeded(Net()), images(1, 3, 32, 32))


# The user's model is not changed.


def test_the_model_is_left_as_it_was() -> None:
    model = small_resnet()
    model.train()
    model.get_submodule("layer1.0").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    capture(model, images())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len({*modes.values()}) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    norm = nn.BatchNorm2d(3)
    model = Forward(lambda m, x: m.b(x) if x.sum() > 0 else x, b=norm)
    model.train()
    with pytest.raises(CaptureError):
        capture(model, images())
    assert model.training
    assert norm.training


def test_later_training_does_not_reach_the_graph() -> None:
    model = seeded(Net())
    graph = capture(model, images(1, 3, 32, 32))
    conv1 = graph["conv1"]
    assert isinstance(conv1, g.Conv2d)
    before = conv1.weight_oihw.copy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert np.array_equal(conv1.weight_oihw, before)


# Models that cannot be captured: one line that says what, where and what to do.

LINE = r"tests/frontends/test_capture\.py:\d+: "


def flat(function: Callable[[torch.Tensor], torch.Tensor]) -> Function:
    return lambda m, x: function(x).flatten(1)


def autocast(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = m.c(x)
    return x.float().flatten(1)


def change_part(m: Any, x: torch.Tensor) -> torch.Tensor:
    x = x + 1
    x[:, 0] = 0
    return x.flatten(1)


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).flatten(1)


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "unsupported operator": (
        Forward(lambda m, x: torch.cumsum(x.flatten(1), 1)),
        r"operator aten\.cumsum\.default at \S+"
        + LINE
        + r".* has no integer form here; replace it by supported operators",
    ),
    "branch on a value": (
        Forward(lambda m, x: x.relu() if x.sum() > 0 else x),
        r"torch\.export cannot capture Forward at \S+" + LINE + r".*x\.relu\(\) if x\.sum.*data-dependent.*no branches",
    ),
    "fixed batch size": (
        Forward(lambda m, x: x.reshape(2, 192)),
        "works only for some batch sizes, expected any; write the batch size as x.shape",
    ),
    "view across images": (
        Forward(lambda m, x: x.view(-1, 96)),
        r"aten\.view\.default at \S+" + LINE + r".* mixes the images of a batch \(result .*first dimension to stay",
    ),
    "mean over the batch": (Forward(flat(lambda x: x - x.mean(0, True))), "mean.dim at .* is over the batch"),
    "mean over everything": (Forward(lambda m, x: x.mean()), "is over the batch; expected images to stay apart"),
    "index of a maximum": (Forward(lambda m, x: x.max(1)[1].flatten(1)), "the index of a maximum .*use its value"),
    "product of activations": (
        Forward(lambda m, x: x.flatten(1) @ x.flatten(1).T),
        "sums over the batch; expected images to stay apart",
    ),
    "flipped batch": (Forward(flat(lambda x: x.flip(0))), "moves images; expected them to stay apart"),
    "part of a tensor changed": (Forward(change_part), r"operator aten.fill_.* at .*build the tensor with torch.cat"),
    "constant of another shape": (
        Forward(lambda m, x: (x[:, :1] + m.w).flatten(1), w=images(3, 1, 1)),
        "a constant of shape .*broadcasts to",
    ),
    "a softmax in one of several outputs": (
        Forward(lambda m, x: (x.relu(), x.flatten(1).softmax(1))),
        "Forward returns 2 tensors, and the softmax at .* is before the end of one; return its input",
    ),
    "nothing": (Forward(lambda m, x: None), "returns something that does not depend on the images"),
    "a constant": (Forward(lambda m, x: m.w, w=images(4, 2)), "returns something that does not depend on"),
    "concatenated images": (Forward(flat(lambda x: torch.cat([x, x]))), "works along the batch"),
    "moved batch": (Forward(lambda m, x: x.permute(1, 0, 2, 3)), "moves the batch; expected it to stay the first"),
    "split batch": (Forward(flat(lambda x: x.chunk(2)[0])), "works only for some batch sizes|splits the batch"),
    "first image": (Forward(flat(lambda x: x[:1])), "mixes the images of a batch"),
    "padded batch": (Forward(flat(lambda x: F.pad(x, (0,) * 7 + (1,)))), "pads the batch"),
    "padding with minus infinity": (
        Forward(flat(lambda x: F.pad(x, (1, 1), value=-math.inf).relu())),
        "padding with -inf has no integer form here",
    ),
    "one image": (Forward(lambda m, x: x[0]), "takes one image; expected images to stay apart"),
    "transposed convolution of volumes": (
        Forward(lambda m, x: m.c(x[:, :, None]).flatten(1), c=nn.ConvTranspose3d(3, 4, 3)),
        "operator aten.conv_transpose3d.*use ConvTranspose2d",
    ),
    "division by zero": (Forward(flat(lambda x: x / 0)), "divides by zero"),
    "clamp by a computed tensor": (
        Forward(lambda m, x: x.clamp(x.sigmoid()).flatten(1)),
        "a clamp with computed bounds .*use torch.maximum and torch.minimum",
    ),
    "dropout that is on": (Forward(flat(F.dropout)), "a dropout that is on in eval mode .*training=self.training"),
    "batch norm that is training": (
        Forward(lambda m, x: F.batch_norm(x, m.u, m.v, training=True).flatten(1), u=images(3), v=images(3).abs()),
        "a batch norm on the statistics of the batch .*training=self.training",
    ),
    "batch norm without statistics": (
        Forward(lambda m, x: m.b(x).flatten(1), b=nn.BatchNorm2d(3, track_running_stats=False)),
        "a batch norm without running statistics .*track_running_stats=True",
    ),
    "noise": (Forward(flat(lambda x: x + torch.rand(3, 1, 1))), "is random; expected the same logits for the same"),
    "noise per image": (Forward(flat(lambda x: x + torch.rand_like(x))), "operator aten.rand_like"),
    "a log_softmax before the end": (
        Forward(lambda m, x: torch.log_softmax(x.flatten(1), 1) * 2),
        r"aten\.log_softmax\.int at \S+" + LINE + ".*: a log_softmax before the end .*may only be the last operation",
    ),
    "a softmax over the batch": (Forward(flat(lambda x: torch.softmax(x, 0))), "takes a softmax over the batch"),
    "a module inside torch's own": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.MaxPool3d(1)), nn.Flatten()),
        r"operator aten\.max_pool3d\.default at module 1\.0 \(MaxPool3d\) has no integer form here; replace it",
    ),
    "autocast": (Forward(autocast, c=nn.Conv2d(3, 4, 1)), "wrap_with_autocast at .*take autocast out of the forward"),
    "more inputs": (TwoInputs(), r"TwoInputs.forward takes \(x.*, y.*\).*, expected images alone; wrap the model"),
    "an unusual call": (
        Forward(lambda m, x: F.conv2d(x, x[:1, :, :3, :3]).flatten(1)),
        "conv2d.default at .*no integer form|mixes",
    ),
    "half precision": (Forward(flat(lambda x: x.half())), "a conversion to torch.float16 .*keep the model in float32"),
    "an error of the model": (
        Forward(lambda m, x: m.l(x), l=nn.Linear(7, 2)),
        r"cannot capture Forward at \S+" + LINE + ".*m.l.*reduction dim",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_captured_is_said_in_one_line(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, message = REFUSED[what]
    with pytest.raises(CaptureError, match=message) as caught:
        capture(model, images())
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert (out, err) == ("", ""), "users must see our line only"


def test_an_unsupported_operator_is_a_kind_of_its_own() -> None:
    with pytest.raises(UnsupportedOperatorError):
        capture(REFUSED["unsupported operator"][0], images())


def test_what_the_model_prints_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        print("mind the gap", file=sys.stderr)
        return x.flatten(1)

    capture(Forward(forward), images())
    assert "mind the gap" in capfd.readouterr().err


@pytest.mark.parametrize("where", ["weight", "bias", "running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(where: str, value: float) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten()))
    tensors = {"weight": model[0].weight, "bias": model[0].bias, "running_var": model[1].running_var}  # type: ignore[index]
    with torch.no_grad():
        tensors[where].view(-1)[1] = value
    with pytest.raises(CaptureError, match=rf"{where} has 1 values that are NaN or infinite; retrain, or load"):
        capture(model, images())


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        ("net", images(), "expected a torch.nn.Module, got str; pass the model itself"),
        (
            Net(), images(3, 32, 32),
            r"torch.export cannot capture Net at .*given inputs \(N, 32, 32\).*pass batches, not single images",
        ),
        (Net(), images(0, 3, 32, 32), r"got \(0, 3, 32, 32\)"),
        (Net(), images(32), r"expected a batch of inputs, .* got \(32,\); .*images\[None\]"),
        (Net(), images(2, 3, 28, 28), "torch.export cannot capture Net at .*net.py"),
        (Net(), images(2, 1, 32, 32), "torch.export cannot capture Net at .*net.py"),
    ],
)  # fmt: skip
def test_bad_arguments(model: Any, example: torch.Tensor, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(model, example)
    assert capfd.readouterr().err == ""

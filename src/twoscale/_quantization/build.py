"""Plan → IntegerNetwork: rounds weights to the nearest integer and scale ratios to the grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._calibration import RangeMethod, choose_weight_scales
from twoscale._ir import float_graph as g
from twoscale._ir import functions
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT
from twoscale._ir.float_scales import weight_scales
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.attention import exponentials, largest_exponential
from twoscale._ir.operators.normalizing import GAIN_LIMIT, LARGEST_EPSILON
from twoscale._progress import report
from twoscale._quantization.plan import Plan
from twoscale._quantization.scales import quantize_bias
from twoscale._quantization.scheme import Scheme
from twoscale.errors import QuantizationError

__all__ = ["build", "build_layers"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_Allowed = Callable[[Float64], NDArray[np.bool_]]
_Make = Callable[["_Builder", Any, dict[str, Any]], n.Layer]

_OFFSETS = (0, -1, 1, -2)
"""Multipliers tried, from the wanted one rounded up. Of equal errors the first counts."""

_FARTHEST = 1 << 10
"""Multipliers tried on each side of the wanted one, if only some are allowed."""

_BLOCK = 1 << 15
"""Weights rounded at a time."""


def build(plan: Plan) -> IntegerNetwork:
    """Make the integer network of a plan.

    Raises:
        QuantizationError: an accumulator or a bias would not fit int32; the message names layer and channel.
    """
    builder = _Builder(plan)
    layers = tuple(builder.layer(node) for node in plan.graph)
    return IntegerNetwork(plan.graph.name, layers, plan.graph.outputs, plan.scheme.name)


def build_layers(plan: Plan, names: Collection[str], base: IntegerNetwork) -> dict[str, n.Layer]:
    """Make only the named layers of a plan. The others are taken from ``base``, made from a plan of the same graph.

    Raises:
        QuantizationError: a bias would not fit int32; the message names layer and channel.
    """
    builder = _Builder(plan)
    builder.specs.update({layer.name: layer.output for layer in base if layer.name not in names})
    return {node.name: builder.layer(node) for node in plan.graph if node.name in names}


class _Builder:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.scheme: Scheme = plan.scheme
        self.specs = dict(plan.specs)
        self._done = 0

    def layer(self, node: g.Node) -> n.Layer:
        report("rounding weights", self._done, len(self.plan.graph.nodes))
        self._done += 1
        common = {"name": node.name, "inputs": node.inputs, "output": self.specs[node.name]}
        layer = _MAKE[type(node)](self, node, common)
        self.specs[node.name] = layer.output
        return layer

    def multiplier(self, ratio: float, shift: int = REQUANTIZE_SHIFT) -> n.Multiplier:
        """Return the multiplier nearest to a fixed ratio of scales."""
        if not self.scheme.on_grid:
            return n.Multiplier(np.array([ratio], np.float32), None)
        return n.Multiplier.on_grid(
            np.clip(np.rint([np.ldexp(ratio, shift)]), 1, MULTIPLIER_LIMIT - 1).astype(np.int64), shift
        )

    def requantizing(self, x: n.TensorSpec, y: n.TensorSpec) -> n.Multiplier:
        """Return the multiplier from one scale to another."""
        if not self.scheme.float32_scales:
            return self.multiplier(x.scale / y.scale)
        wanted = np.rint([np.ldexp(x.scale / y.scale, REQUANTIZE_SHIFT)])
        nearest = _nearest_allowed(wanted, self.allowed(REQUANTIZE_SHIFT, x, y))[0]
        return n.Multiplier.on_grid(nearest.astype(np.int64))

    def allowed(self, shift: int, x: n.TensorSpec, y: n.TensorSpec) -> _Allowed:
        """Return which multipliers are odd, and float32 quotients of scales, (6b)."""
        return lambda integers: (integers % 2 == 1) & ~np.isnan(weight_scales(integers, shift, x.scale, y.scale))

    def accumulating(
        self, node: g.Conv2d | g.Linear, weight: NDArray[np.float32], common: dict[str, Any]
    ) -> dict[str, Any]:
        """Choose weight scales and multipliers together, and round weights and bias."""
        x, y = self.specs[node.inputs[0]], self.specs[node.name]
        is_head = node.name in self.plan.heads
        limit = self.scheme.weight_limit_of(node.name)
        method = RangeMethod.parse(self.scheme.weight_range)
        wanted = choose_weight_scales(
            weight,
            method,
            hi=limit,
            per_channel=self.scheme.per_channel and not is_head,
            name=f"{node.name}.weight",
        )
        rows = weight.reshape(weight.shape[0], -1)
        multiplier: n.Multiplier | None
        if is_head:
            scales, multiplier = wanted, None
            y = n.TensorSpec(node.shape, "int32", float(x.scale * wanted[0]))
        elif self.scheme.on_grid:
            shift = REQUANTIZE_SHIFT if len(node.inputs) == 1 else ADD_SHIFT  # (3) or (7b)
            step = y.scale / (2**shift * x.scale)
            allowed = self.allowed(shift, x, y) if self.scheme.float32_scales else None
            integers = _nearest_on_grid(rows, wanted / step, step, limit, allowed, may_clip=method.kind == "mse")
            scales, multiplier = integers * step, n.Multiplier.on_grid(integers, shift)
        else:
            scales, multiplier = wanted, n.Multiplier((x.scale * wanted / y.scale).astype(np.float32), None)
        return {
            **common,
            "output": y,
            "multiplier": multiplier,
            "weight": _integers(rows, scales, limit).reshape(weight.shape),
            "bias_o": quantize_bias(node.name, node.bias_o.astype(np.float64), x.scale * scales),
        }


def _rounded(rows: Float64, scales: Float64, limit: int) -> Float64:
    rounded = np.rint(rows / scales[:, None])
    return np.clip(rounded, -limit, limit, out=rounded)


def _blocks(rows: Float32) -> Iterator[tuple[slice, Float64]]:
    """Yield rows of weights in float64, a few at a time, so that temporaries stay in the cache."""
    high = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), high):
        part = slice(start, start + high)
        yield part, rows[part].astype(np.float64)


def _integers(rows: Float32, scales: Float64, limit: int) -> NDArray[np.int8]:
    integers = np.empty(rows.shape, np.int8)
    scales = np.broadcast_to(scales, len(rows))
    for part, block in _blocks(rows):
        integers[part] = _rounded(block, scales[part], limit)
    return integers


def _nearest_on_grid(
    rows: Float32, wanted: Float64, step: float, limit: int, allowed: _Allowed | None = None, *, may_clip: bool
) -> NDArray[np.int64]:
    """Return the multipliers near ``wanted`` (in units of the grid) whose weights have the least squared error.

    Rounding up clips no weight that the range method kept. The neighbours are also tried, but unless ``may_clip`` is
    set only if they clip no such weight either.
    """
    up = np.ceil(wanted)
    candidates = np.clip(up + np.array(_OFFSETS)[:, None], 1, MULTIPLIER_LIMIT - 1)
    if allowed is not None:
        candidates = _nearest_allowed(up, allowed)
    errors, widest = np.zeros((len(_OFFSETS), len(rows))), np.empty(len(rows))
    for part, block in _blocks(rows):
        widest[part] = np.abs(block).max(1)
        for candidate, error in zip(candidates, errors, strict=True):
            scales = (candidate if len(candidate) == 1 else candidate[part]) * step
            difference = _rounded(block, scales, limit)
            difference *= scales[:, None]
            difference -= block
            error[part] = np.einsum("ok,ok->o", difference, difference)
    if len(wanted) == 1:
        errors, widest = errors.sum(1, keepdims=True), widest.max(keepdims=True)
    kept = 0.0 if may_clip else np.minimum(widest, wanted * step * limit)
    errors[(candidates < up) & (kept > (limit + 0.5) * candidates * step)] = np.inf
    best: NDArray[np.int64] = candidates[errors.argmin(0), np.arange(len(wanted))].astype(np.int64)
    return best


def _nearest_allowed(wanted: Float64, allowed: _Allowed) -> Float64:
    """Return the allowed multipliers nearest to the wanted ones, (4, channels), the nearest first.

    Raises:
        QuantizationError: there are none within a thousand steps of the grid.
    """
    wanted = np.clip(wanted, 1, MULTIPLIER_LIMIT - 1)
    reach = 16
    while reach <= _FARTHEST:
        offsets = np.array(sorted(range(-reach, reach + 1), key=abs))
        tried = wanted + offsets[:, None]
        bad = (tried < 1) | (tried >= MULTIPLIER_LIMIT) | ~allowed(np.clip(tried, 1, MULTIPLIER_LIMIT - 1))
        if (~bad).sum(0).min() >= len(_OFFSETS):
            order = bad.argsort(0, kind="stable")[: len(_OFFSETS)]
            return np.take_along_axis(tried, order, 0)
        reach *= 2
    raise QuantizationError("no float32 weight scale near the wanted one gives a whole multiplier; use another scheme")


def _conv2d(b: _Builder, node: g.Conv2d, common: dict[str, Any]) -> n.Layer:
    residual = None
    if len(node.inputs) == 2:
        residual = b.multiplier(b.specs[node.inputs[1]].scale / b.specs[node.name].scale, ADD_SHIFT)
    return n.Conv2d(
        **b.accumulating(node, node.weight_oihw, common),
        residual_multiplier=residual,
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        groups=node.groups,
    )


def _add(b: _Builder, node: g.Add, common: dict[str, Any]) -> n.Layer:
    y = b.specs[node.name]
    first, second = (b.multiplier(b.specs[name].scale / y.scale, ADD_SHIFT) for name in node.inputs)
    return n.Add(**common, multipliers=(first, second))


def _mul(b: _Builder, node: g.Mul, common: dict[str, Any]) -> n.Layer:
    first, second = (b.specs[name].scale for name in node.inputs)
    return n.Mul(**common, multiplier=b.multiplier(first * second / b.specs[node.name].scale))


def _average_pool(b: _Builder, node: g.AveragePool2d, common: dict[str, Any]) -> n.Layer:
    count = node.kernel[0] * node.kernel[1]
    ratio = b.specs[node.inputs[0]].scale / (count * b.specs[node.name].scale)
    return n.AveragePool2d(
        **common, multiplier=b.multiplier(ratio), kernel=node.kernel, stride=node.stride, padding=node.padding
    )


def _concat(b: _Builder, node: g.Concat, common: dict[str, Any]) -> n.Layer:
    y = b.specs[node.name]
    sources = [b.specs[name] for name in node.inputs]
    multipliers = tuple(
        None
        if (x.scale, x.zero_point) == (y.scale, y.zero_point) and y.lo <= x.lo <= x.hi <= y.hi
        else b.requantizing(x, y)
        for x in sources
    )
    return n.Concat(**common, axis=node.axis, multipliers=multipliers)


def _reshape(b: _Builder, node: g.Reshape, common: dict[str, Any]) -> n.Layer:
    # The plan has no scale for a head, which may be a flattened convolution.
    spec = dataclasses.replace(b.specs[node.inputs[0]], shape=node.shape)
    return n.Reshape(**{**common, "output": spec})


def _table(b: _Builder, node: g.Elementwise, common: dict[str, Any]) -> n.Layer:
    x, y = b.specs[node.inputs[0]], b.specs[node.name]
    info = np.iinfo(x.dtype)
    codes = np.clip(np.arange(info.min, info.max + 1), x.lo, x.hi)
    real = functions.evaluate(node.function, node.parameters, x.scale * (codes - x.zero_point).astype(np.float64))
    table = np.clip(np.rint(real / y.scale) + y.zero_point, y.lo, y.hi)
    return n.Table(**common, table=table.astype(np.int16))


def _matmul(b: _Builder, node: g.MatMul, common: dict[str, Any]) -> n.Layer:
    first, second = (b.specs[name].scale for name in node.inputs)
    return n.MatMul(**common, multiplier=b.multiplier(first * second * node.factor / b.specs[node.name].scale))


def _softmax_matmul(b: _Builder, node: g.SoftmaxMatMul, common: dict[str, Any]) -> n.Layer:
    scores, values = (b.specs[name] for name in node.inputs)
    largest = largest_exponential(scores.shape[-1], values.reach)
    ratio = values.scale / b.specs[node.name].scale
    return n.SoftmaxMatMul(**common, multiplier=b.multiplier(ratio), table=exponentials(scores.scale, largest))


def _normalize(b: _Builder, node: g.Normalize, common: dict[str, Any]) -> n.Layer:
    x, y = b.specs[node.inputs[0]], b.specs[node.name]
    count = math.prod(x.shape[axis] for axis in node.axes)
    epsilon = int(min(max(round(count * count * node.eps / x.scale**2), 1), LARGEST_EPSILON))
    gain, bias = (
        np.rint(np.ldexp(real.astype(np.float64) / y.scale, REQUANTIZE_SHIFT)) for real in (node.gain, node.bias)
    )
    return n.Normalize(
        **common,
        axes=node.axes,
        epsilon=epsilon,
        centered=node.centered,
        gain=np.clip(gain, 1 - GAIN_LIMIT, GAIN_LIMIT - 1).astype(np.int32),
        bias=np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32),
    )


_MAKE: dict[type[g.Node], _Make] = {
    g.Input: lambda b, node, common: n.QuantizeInput(**common),
    g.Conv2d: _conv2d,
    g.Linear: lambda b, node, common: n.Linear(**b.accumulating(node, node.weight_oi, common)),
    g.Add: _add,
    g.Mul: _mul,
    g.AveragePool2d: _average_pool,
    g.MaxPool2d: lambda b, node, common: n.MaxPool2d(
        **common, kernel=node.kernel, stride=node.stride, padding=node.padding, dilation=node.dilation
    ),
    g.Concat: _concat,
    g.Reshape: _reshape,
    g.Permute: lambda b, node, common: n.Permute(**common, axes=node.axes),
    g.Slice: lambda b, node, common: n.Slice(
        **common, axis=node.axis, start=node.start, stop=node.stop, step=node.step
    ),
    g.Pad: lambda b, node, common: n.Pad(**common, widths=node.widths),
    g.Clamp: lambda b, node, common: n.Clamp(**common),
    g.Elementwise: _table,
    g.MatMul: _matmul,
    g.Softmax: lambda b, node, common: n.Softmax(
        **common, axis=node.axis, table=exponentials(b.specs[node.inputs[0]].scale, 1 << 15)
    ),
    g.SoftmaxMatMul: _softmax_matmul,
    g.Normalize: _normalize,
}

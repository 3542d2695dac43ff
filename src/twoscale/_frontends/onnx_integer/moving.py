"""Operators that move or select integers, applied to the integers or to the real numbers that they represent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from twoscale._frontends.onnx_integer.reader import Reader, padding, pair, reshaped
from twoscale._ir import layers as n

__all__ = ["MOVING"]

_LARGEST_PADDING = 65_536


def _max_pool(reader: Reader, node: onnx.NodeProto) -> None:
    if len(node.output) > 1:
        reader.refuse(node, "its indices are not supported")
    attributes = reader.window(node, dilations=[1, 1], ceil_mode=0, storage_order=0)
    if any(pad >= attributes["kernel_shape"][index % 2] for index, pad in enumerate(attributes["pads"])):
        reader.refuse(node, f"pads = {attributes['pads']}; expected less than the kernel")
    x = reader.integers(node, 0)
    if attributes["ceil_mode"]:
        _round_up(reader, node, x, attributes)
    layer = n.MaxPool2d(
        name=node.output[0],
        inputs=(x.name,),
        output=reshaped(x, (x.output.shape[0], *reader.pooled(node, x, attributes))),
        kernel=pair(attributes["kernel_shape"]),
        stride=pair(attributes["strides"]),
        padding=padding(attributes["pads"]),
        dilation=pair(attributes["dilations"]),
    )
    reader.move(node, layer)


def _round_up(reader: Reader, node: onnx.NodeProto, x: n.Layer, attributes: dict[str, Any]) -> None:
    """Widen the padding so that the windows that end beyond it fit; padding never is a maximum."""
    if attributes["ceil_mode"] != 1:
        reader.refuse(node, f"ceil_mode = {attributes['ceil_mode']}; expected 0 or 1")
    pads = list(attributes["pads"])
    for i, size in enumerate(x.output.shape[1:]):
        kernel, stride, dilation = (attributes[key][i] for key in ("kernel_shape", "strides", "dilations"))
        reach = dilation * (kernel - 1) + 1
        rest = size + pads[i] + pads[i + 2] - reach
        if rest < 0:
            reader.refuse(node, f"its windows of {reach} do not fit {size}")
        last = -(-rest // stride) * stride  # where the last window begins, in the padded tensor
        if last >= size + pads[i]:
            reader.refuse(node, "its last window begins in the padding; expected ceil_mode = 0")
        pads[i + 2] = last + reach - size - pads[i]
    attributes["pads"] = [max(0, pad) for pad in pads]


def _pad(reader: Reader, node: onnx.NodeProto) -> None:
    attributes = reader.attributes(node, mode=b"constant")
    if attributes["mode"] != b"constant":
        reader.refuse(node, f"mode = {attributes['mode'].decode(errors='replace')} is not supported, only constant")
    x = reader.integers(node, 0)
    rank = len(x.output.shape) + 1
    given = [int(width) for width in reader.constant(node, 1).reshape(-1)]
    axes = [int(axis) for axis in reader.constant(node, 3).reshape(-1)] if reader.has(node, 3) else list(range(rank))
    axes = [reader.axis(node, axis, rank) for axis in axes]
    if len(given) != 2 * len(axes) or len(set(axes)) != len(axes):
        reader.refuse(node, f"it has {len(given)} widths for {len(axes)} dimensions")
    widths = {axis: (given[i], given[i + len(axes)]) for i, axis in enumerate(axes)}
    if any(widths.get(0, (0, 0))) or any(
        not 0 <= width <= _LARGEST_PADDING for pair in widths.values() for width in pair
    ):
        reader.refuse(node, f"pads = {given}; expected 0 to {_LARGEST_PADDING:,}, and 0 for the batch")
    value = reader.constant(node, 2) if reader.has(node, 2) else np.zeros(1)
    zero = 0 if node.input[0] in reader.real else x.output.zero_point
    if value.size != 1 or value.item() != zero:
        reader.refuse(node, f"it pads with {value.reshape(-1)[:1].tolist()}; expected what stands for zero ({zero})")
    inner = tuple(widths.get(axis, (0, 0)) for axis in range(1, rank))
    shape = [size + before + after for size, (before, after) in zip(x.output.shape, inner, strict=True)]
    reader.move(node, n.Pad(name=node.output[0], inputs=(x.name,), output=reshaped(x, shape), widths=inner))


def _unsqueeze(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    x = reader.integers(node, 0)
    given = [int(axis) for axis in reader.constant(node, 1).reshape(-1)]
    rank = len(x.output.shape) + 1 + len(given)
    axes = {reader.axis(node, axis, rank) for axis in given}
    if 0 in axes or len(axes) != len(given):
        reader.refuse(node, f"axes {given}; expected different ones, not the batch")
    sizes = iter(x.output.shape)
    shape = [1 if axis in axes else next(sizes) for axis in range(1, rank)]
    reader.move(node, n.Reshape(name=node.output[0], inputs=(x.name,), output=reshaped(x, shape)))


def _reshape(reader: Reader, node: onnx.NodeProto) -> None:
    allowzero = reader.attributes(node, allowzero=0)["allowzero"]
    x = reader.integers(node, 0)
    batch, *target = (int(size) for size in reader.constant(node, 1))
    if allowzero and 0 in (batch, *target):
        reader.refuse(node, f"it reshapes to {(batch, *target)} with allowzero = {allowzero}: no values are left")
    count = math.prod(x.output.shape)
    known = [x.output.shape[i] if size == 0 and i < len(x.output.shape) else size for i, size in enumerate(target)]
    if known.count(-1) == 1 and batch != -1:
        known[known.index(-1)] = count // max(1, -math.prod(known))
    if batch == (reader.batch or reader.any_batch):
        batch = 0
    if batch == 1 and reader.batch != 1:
        reader.refuse(node, "it reshapes to one image, but the batch may be larger; write -1 or 0 for the batch")
    if batch not in (-1, 0, 1) or math.prod(known) != count:
        reader.refuse(node, f"it reshapes {('N', *x.output.shape)} to {(batch, *target)}; the batch must stay")
    reader.move(node, n.Reshape(name=node.output[0], inputs=(x.name,), output=reshaped(x, known)))


def _flatten(reader: Reader, node: onnx.NodeProto) -> None:
    reader.expect(node, reader.attributes(node, axis=1), axis=1)
    x = reader.integers(node, 0)
    shape = (math.prod(x.output.shape),)
    reader.move(node, n.Reshape(name=node.output[0], inputs=(x.name,), output=reshaped(x, shape)))


def _squeeze(reader: Reader, node: onnx.NodeProto) -> None:
    x = reader.integers(node, 0)
    reader.attributes(node)
    rank = len(x.output.shape) + 1
    if reader.has(node, 1):
        axes = {reader.axis(node, int(axis), rank) for axis in reader.constant(node, 1)}
    elif reader.batch == 1:
        reader.refuse(node, "it has no axes and the batch is 1, so that it drops the batch; name the axes")
    else:
        axes = {axis for axis, size in enumerate(x.output.shape, 1) if size == 1}
    if any(axis == 0 or x.output.shape[axis - 1] != 1 for axis in axes):
        reader.refuse(node, f"axes {sorted(axes)} are not all of size 1")
    shape = [size for axis, size in enumerate(x.output.shape, 1) if axis not in axes]
    reader.move(node, n.Reshape(name=node.output[0], inputs=(x.name,), output=reshaped(x, shape)))


def _transpose(reader: Reader, node: onnx.NodeProto) -> None:
    x = reader.integers(node, 0)
    permutation = reader.attributes(node, perm=[])["perm"]
    if sorted(permutation) != list(range(len(x.output.shape) + 1)) or permutation[0] != 0:
        reader.refuse(node, f"perm = {permutation} moves the batch")
    axes = tuple(axis - 1 for axis in permutation[1:])
    spec = reshaped(x, [x.output.shape[axis] for axis in axes])
    reader.move(node, n.Permute(name=node.output[0], inputs=(x.name,), output=spec, axes=axes))


def _slice_axis(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    x = reader.integers(node, 0)
    starts, ends = reader.constant(node, 1), reader.constant(node, 2)
    axes = reader.constant(node, 3) if reader.has(node, 3) else np.arange(len(starts))
    steps = reader.constant(node, 4) if reader.has(node, 4) else np.ones(len(starts), np.int64)
    rank = len(x.output.shape) + 1
    if not len(axes) == len(starts) == len(ends) == len(steps) == 1 or int(axes[0]) in (0, -rank) or steps[0] < 1:
        reader.refuse(node, "only one dimension, not the batch, with a positive step")
    axis = reader.axis(node, int(axes[0]), rank) - 1
    shape = list(x.output.shape)
    start, stop, step = slice(int(starts[0]), int(ends[0]), int(steps[0])).indices(shape[axis])
    shape[axis] = len(range(start, stop, step))
    spec = reshaped(x, shape)
    reader.move(
        node,
        n.Slice(name=node.output[0], inputs=(x.name,), output=spec, axis=axis, start=start, stop=stop, step=step),
    )


def _clip(reader: Reader, node: onnx.NodeProto) -> None:
    x = reader.integers(node, 0)
    if node.input[0] in reader.real:
        reader.refuse(node, "it computes on real numbers")
    reader.attributes(node)
    spec = x.output
    if any(reader.constant(node, index).shape != () for index in (1, 2) if reader.has(node, index)):
        reader.refuse(node, "its bounds are not single numbers")
    lo = reader.constant(node, 1).item() if reader.has(node, 1) else spec.lo
    hi = reader.constant(node, 2).item() if reader.has(node, 2) else spec.hi
    bounds = n.TensorSpec(spec.shape, spec.dtype, spec.scale, spec.zero_point, max(lo, spec.lo), min(hi, spec.hi))
    reader.append(node, n.Clamp(name=node.output[0], inputs=(x.name,), output=bounds))


def _relu(reader: Reader, node: onnx.NodeProto) -> None:
    """Relu of the real numbers s · (q − z) is that of q at z."""
    x = reader.integers(node, 0)
    if node.input[0] not in reader.real:
        reader.refuse(node, "it computes on real numbers, and its input is integers")
    spec = x.output
    bounds = n.TensorSpec(spec.shape, spec.dtype, spec.scale, spec.zero_point, spec.zero_point, spec.hi)
    reader.move(node, n.Clamp(name=node.output[0], inputs=(x.name,), output=bounds))


def _identity(reader: Reader, node: onnx.NodeProto) -> None:
    reader.alias(node, reader.integers(node, 0), real=node.input[0] in reader.real)


MOVING: dict[str, Callable[[Reader, onnx.NodeProto], None]] = {
    "Clip": _clip,
    "Flatten": _flatten,
    "Identity": _identity,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Relu": _relu,
    "Reshape": _reshape,
    "Slice": _slice_axis,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Functions that read a node, by operator."""

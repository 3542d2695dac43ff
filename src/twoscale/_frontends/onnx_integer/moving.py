"""Operators that move or select integers, applied to the integers or to the real numbers that they represent."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from twoscale._frontends.onnx_integer.reader import Reader, padding, pair, reshaped
from twoscale._ir import layers as n

__all__ = ["MOVING"]


def _max_pool(reader: Reader, node: onnx.NodeProto) -> None:
    if len(node.output) > 1:
        reader.refuse(node, "its indices are not supported")
    attributes = reader.window(node, dilations=[1, 1], ceil_mode=0, storage_order=0)
    reader.expect(node, attributes, ceil_mode=0)
    if any(pad >= attributes["kernel_shape"][index % 2] for index, pad in enumerate(attributes["pads"])):
        reader.refuse(node, f"pads = {attributes['pads']}; expected less than the kernel")
    x = reader.integers(node, 0)
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


def _reshape(reader: Reader, node: onnx.NodeProto) -> None:
    reader.expect(node, reader.attributes(node, allowzero=0), allowzero=0)
    x = reader.integers(node, 0)
    batch, *target = (int(size) for size in reader.constant(node, 1))
    count = math.prod(x.output.shape)
    known = [x.output.shape[i] if size == 0 and i < len(x.output.shape) else size for i, size in enumerate(target)]
    if known.count(-1) == 1 and batch != -1:
        known[known.index(-1)] = count // max(1, -math.prod(known))
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


def _identity(reader: Reader, node: onnx.NodeProto) -> None:
    reader.alias(node, reader.integers(node, 0), real=node.input[0] in reader.real)


MOVING: dict[str, Callable[[Reader, onnx.NodeProto], None]] = {
    "Clip": _clip,
    "Flatten": _flatten,
    "Identity": _identity,
    "MaxPool": _max_pool,
    "Reshape": _reshape,
    "Slice": _slice_axis,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
}
"""Functions that read a node, by operator."""

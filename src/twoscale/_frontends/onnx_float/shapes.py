"""Operators that move, copy or drop values."""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._frontends.onnx_float.reader import Operator, Reader

__all__ = ["OPERATORS"]


def _copies(r: Reader, node: onnx.NodeProto) -> str:
    """Tile and Expand: copies along dimensions, but for the batch."""
    at, given, shape = r.at(node), [int(v) for v in r.weights_of_int(node, 1)], (1, *r.shape(node))
    if node.op_type == "Expand":  # to a shape that may have fewer dimensions, or 1 where the tensor has more
        given = [1] * (len(shape) - len(given)) + given
        if given[0] in (r.batch, r.fixed_batch):
            given[0] = 1
        given = given[: len(given) - len(shape)] + [
            wanted if size == 1 else 1 for size, wanted in zip(shape, given[-len(shape) :], strict=True)
        ]
    if len(given) != len(shape) or given[0] != 1 or min(given) < 1:
        raise at.wrong("repeats the images of a batch; expected the first dimension to stay the batch")
    return at.tile(r.input(node), tuple(size * n for size, n in zip(shape[1:], given[1:], strict=True)))


def _reshape(r: Reader, node: onnx.NodeProto) -> str:
    target, shape = [int(v) for v in r.weights_of_int(node, 1)], r.shape(node)
    whole = (r.batch, *shape)
    if not r.attribute(node, "allowzero", 0):
        target = [whole[i] if size == 0 and i < len(whole) else size for i, size in enumerate(target)]
    if target.count(-1) == 1:
        rest = -math.prod(target)
        if rest <= 0 or math.prod(whole) % rest:
            fixed = r.fixed_batch  # a file for a fixed batch size may contain that size
            raise r.at(node).wrong(f"reshapes (N, ...) to {target} for a batch of {fixed}; write -1 or 0 for the batch")
        target[target.index(-1)] = math.prod(whole) // rest
    if target[:1] == [r.fixed_batch] and math.prod(target[1:]) == math.prod(shape):
        target[0] = r.batch
    if target[:1] != [r.batch] or math.prod(target[1:]) != math.prod(shape):
        raise r.at(node).wrong(f"reshapes {('N', *shape)} to {target}; expected the first dimension to stay the batch")
    return r.at(node).reshape(r.input(node), tuple(target[1:]))


def _flatten(r: Reader, node: onnx.NodeProto) -> str:
    shape, axis = r.shape(node), int(r.attribute(node, "axis", 1))
    if axis not in (1, -len(shape)):
        raise r.at(node).wrong(f"flattens at {axis}; expected the first dimension to stay the batch")
    return r.at(node).reshape(r.input(node), (math.prod(shape),))


def _squeeze(r: Reader, node: onnx.NodeProto) -> str:
    shape, given = r.shape(node), r.integers(node, 1, "axes", None)
    if given is None:
        if r.fixed_batch == 1:
            raise r.at(node).wrong("has no axes, so that it drops a batch of one")
        axes = [i for i, size in enumerate(shape) if size == 1]
    else:
        axes = [r.axis(node, axis, len(shape) + 1) for axis in given]
    if any(shape[axis] != 1 for axis in axes):
        raise r.at(node).wrong(f"drops dimensions of {shape} that are not 1")
    return r.at(node).reshape(r.input(node), tuple(size for i, size in enumerate(shape) if i not in axes))


def _unsqueeze(r: Reader, node: onnx.NodeProto) -> str:
    shape, given = list(r.shape(node)), r.integers(node, 1, "axes", None) or []
    rank = 1 + len(shape) + len(given)
    for axis in sorted(r.axis(node, axis, rank) for axis in given):
        shape.insert(axis, 1)
    return r.at(node).reshape(r.input(node), tuple(shape))


def _transpose(r: Reader, node: onnx.NodeProto) -> str:
    rank = 1 + len(r.shape(node))
    order = [int(v) for v in r.attribute(node, "perm", list(range(rank))[::-1])]
    if sorted(order) != list(range(rank)) or order[0] != 0:
        raise r.at(node).wrong("moves the batch; expected it to stay the first dimension")
    return r.at(node).permute(r.input(node), tuple(axis - 1 for axis in order[1:]))


def _concat(r: Reader, node: onnx.NodeProto) -> str:
    parts: list[str | NDArray[np.float32]] = []
    for index in range(len(node.input)):
        if r.is_activation(node, index):
            parts.append(r.input(node, index))
        elif (constant := r.weights(node, index)).shape[:1] == (1,):
            parts.append(constant[0])
        else:
            raise r.at(node).wrong("joins a constant for each image of a batch; expected one for all images")
    shapes = [r.builder[part].shape if isinstance(part, str) else part.shape for part in parts]
    axis = r.axis(node, int(r.attribute(node, "axis", 1)), 1 + len(shapes[0]))
    total = sum(shape[axis] for shape in shapes)
    return r.at(node).concat(parts, axis, (*shapes[0][:axis], total, *shapes[0][axis + 1 :]))


def _slice(r: Reader, node: onnx.NodeProto) -> str:
    shape, name = r.shape(node), r.input(node)
    starts, ends = r.integers(node, 1, "starts", []) or [], r.integers(node, 2, "ends", []) or []
    axes = r.integers(node, 3, "axes", list(range(len(starts)))) or []
    steps = r.integers(node, 4, "steps", [1] * len(starts)) or []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis in (0, -1 - len(shape)) and start == 0 and end >= r.batch and step == 1:
            continue
        axis = r.axis(node, axis, 1 + len(shape))
        size = r.builder[name].shape[axis]
        if step < 1:
            name = r.at(node).gather(name, axis, list(range(*slice(start, end, step).indices(size))))
        else:
            name = r.at(node).slice(name, axis, *slice(start, end, step).indices(size))
    return name


def _split(r: Reader, node: onnx.NodeProto) -> None:
    shape = r.shape(node)
    axis = r.axis(node, int(r.attribute(node, "axis", 0)), 1 + len(shape))
    count = len(node.output)
    part = -(-shape[axis] // count)
    sizes = r.integers(node, 1, "split", None) or [min(part, shape[axis] - i * part) for i in range(count)]
    start = 0
    for name, size in zip(node.output, sizes, strict=True):
        r.tensors[name] = r.at(node).slice(r.input(node), axis, start, start + size)
        start += size


def _gather(r: Reader, node: onnx.NodeProto) -> str:
    shape = r.shape(node)
    axis = r.axis(node, int(r.attribute(node, "axis", 0)), 1 + len(shape))
    indices = r.weights_of_int(node, 1)
    if indices.ndim > 1 or (np.abs(indices) > shape[axis]).any():
        raise r.at(node).unsupported(f"indices of shape {indices.shape}", "use one dimension")
    wanted = [int(i) % shape[axis] for i in indices.reshape(-1)]
    if indices.ndim == 0:
        return r.at(node).select(r.input(node), axis, wanted[0])
    return r.at(node).gather(r.input(node), axis, wanted)


def _pad(r: Reader, node: onnx.NodeProto) -> str:
    at, shape = r.at(node), r.shape(node)
    rank = 1 + len(shape)
    flat = r.integers(node, 1, "pads", []) or []
    given = r.integers(node, 3, "axes", list(range(rank))) or []
    widths = [(0, 0)] * rank
    for position, axis in enumerate(given):
        widths[axis % rank] = (flat[position], flat[position + len(given)])
    if widths[0] != (0, 0):
        raise at.wrong("pads the batch; expected images to stay apart")
    mode = r.attribute(node, "mode", "constant")
    if mode != "constant":
        modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
        return at.pad_with_values(r.input(node), widths[1:], modes[mode])
    value = r.constant(node, 2)
    filling = float(r.attribute(node, "value", 0.0)) if value is None else float(value.reshape(()))
    return at.pad(r.input(node), widths[1:], filling)


def _space_to_depth(r: Reader, node: onnx.NodeProto) -> str:
    (channels, height, width), block = r.shape(node), int(r.attribute(node, "blocksize", 1))
    split = (channels, height // block, block, width // block, block)
    out = (channels * block**2, height // block, width // block)
    axes = (0, 2, 4, 1, 3) if r.attribute(node, "mode", "DCR") == "CRD" else (2, 4, 0, 1, 3)
    return r.at(node).rearrange(r.input(node), split, axes, out)


def _depth_to_space(r: Reader, node: onnx.NodeProto) -> str:
    (channels, height, width), block = r.shape(node), int(r.attribute(node, "blocksize", 1))
    out = (channels // block**2, height * block, width * block)
    if r.attribute(node, "mode", "DCR") == "CRD":
        return r.at(node).rearrange(r.input(node), (out[0], block, block, height, width), (0, 3, 1, 4, 2), out)
    return r.at(node).rearrange(r.input(node), (block, block, out[0], height, width), (2, 3, 0, 4, 1), out)


OPERATORS: dict[str, Operator] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _copies,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _copies,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By name."""

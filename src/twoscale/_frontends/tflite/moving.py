"""Operators that move integers: reshapes, permutations, parts and copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from twoscale._frontends.tflite.file_reader import layer_axis, mixes
from twoscale._frontends.tflite.reader import Reader, Value
from twoscale._frontends.tflite.resizing import nearest_places
from twoscale._ir import layers as n

__all__ = ["MOVING"]

_MOST_COPIES = 1 << 10
"""Of a tensor along one dimension."""


def _reshape(r: Reader) -> None:
    value, tensor = r.flattened(0), r.result
    if tensor.dtype == "float32":
        r.refuse("it reshapes real numbers; expected integers")
    r.require_same(value.layer)
    shape = r.spec().shape
    if np.prod(shape) != np.prod(value.spec.shape):
        r.refuse(f"it makes {shape} of {value.spec.shape}")
    x = value.layer
    if len(shape) == 1 and (value.flattened is not None or (len(x.output.shape) == 3 and mixes(x.output.shape))):
        r.give(r.reshaped(x, shape), x if value.flattened is None else value.flattened)
        return
    x = r.in_order(value)
    if len(x.output.shape) == 3 and mixes(x.output.shape):
        x = r.permuted(x, (1, 2, 0))
    if len(shape) == 3 and mixes(shape):
        x = r.reshaped(x, (shape[1], shape[2], shape[0]))
        r.give(r.permuted(x, (2, 0, 1), tensor))
        return
    r.give(r.reshaped(x, shape, tensor))


def _transpose(r: Reader) -> None:
    x, rank = r.value(0), len(r.tensor(0).shape)
    r.require_same(x)
    r.give(r.permuted(x, r.permutation(rank), r.result))


def _pad(r: Reader) -> None:
    x = r.value(0)
    r.require_same(x)
    widths = r.widths(len(r.tensor(0).shape))
    if r.operator.name == "PADV2" and r.has(2) and int(r.constant(2).ravel()[0]) != x.output.zero_point:
        r.refuse("it pads with another value than 0")
    spec = dataclasses.replace(x.output, shape=r.spec().shape)
    r.compute(lambda name: n.Pad(name=name, inputs=(x.name,), output=spec, widths=widths))


def _slice(r: Reader) -> None:
    x = r.value(0)
    r.require_same(x)
    for cut in r.cuts():
        x = r.part(x, cut.axis, cut.start, cut.stop, cut.step)
    r.give(r.reshaped(x, r.spec().shape))


# ---------------------------------------------------------------- parts


def _split(r: Reader) -> None:
    """SPLIT has the dimension first, SPLIT_V last, after the sizes."""
    place, operand = (0, 1) if r.operator.name == "SPLIT" else (2, 0)
    axes, shape = r.constant(place).ravel(), r.tensor(operand).shape
    axis = int(axes[0]) + (len(shape) if axes[0] < 0 else 0)
    if len(axes) != 1 or not 1 <= axis < len(shape):
        r.refuse(f"it splits along {axes[:8].tolist()} of {len(shape)} dimensions; expected one, and not the batch")
    count = len(r.operator.outputs)
    sizes = [shape[axis] // max(1, count)] * count
    if r.operator.name == "SPLIT_V":
        sizes = [int(size) for size in r.constant(1).ravel()[: count + 1]]
        if sizes.count(-1) == 1:
            sizes[sizes.index(-1)] = shape[axis] - 1 - sum(sizes)
    if len(sizes) != count or sum(sizes) != shape[axis] or min(sizes, default=0) < 1:
        r.refuse(f"it makes parts of {sizes[:8]} of {shape[axis]} values")
    x, start = r.value(operand), 0
    for size, index in zip(sizes, r.operator.outputs, strict=True):
        tensor = r.model.tensors[index] if index >= 0 else r.refuse("an output is missing")
        r.require_same(x, tensor)
        dimension = layer_axis(axis - 1, len(shape) - 1)
        r.set(tensor, Value(r.part(x, dimension, start, start + size, tensor=tensor)))
        start += size


# ---------------------------------------------------------------- copies


def _tile(r: Reader) -> None:
    x, counts = r.value(0), [int(count) for count in r.constant(1).ravel()]
    r.require_same(x)
    rank = len(r.tensor(0).shape)
    if len(counts) != rank or counts[0] != 1 or not all(1 <= count <= _MOST_COPIES for count in counts):
        r.refuse(
            f"it repeats {counts[:8]} times; expected one number for each of {rank} dimensions, and 1 for the batch"
        )
    for place, count in enumerate(counts[1:]):
        if count > 1:
            x = r.repeated(x, layer_axis(place, rank - 1), count)
    r.give(r.whole(x))


def _resize_nearest(r: Reader) -> None:
    x = r.value(0)
    r.require_same(x)
    if len(x.output.shape) != 3:
        r.refuse(f"its input has the shape {x.output.shape} without the batch; expected three dimensions")
    corners, centers = (bool(r.options.number(field, "b")) for field in (0, 1))
    for axis, result in zip((1, 2), r.spec().shape[1:], strict=True):
        size = x.output.shape[axis]
        if max(size, result) > _MOST_COPIES:
            r.refuse(f"it resizes {size} values to {result}; expected at most {_MOST_COPIES}")
        x = _gathered(r, x, axis, nearest_places(size, result, align_corners=corners, half_pixel_centers=centers))
    r.give(r.whole(x))


def _gathered(r: Reader, x: n.Layer, axis: int, places: list[int]) -> n.Layer:
    """Return the entries of a tensor (C, H, W) along one dimension."""
    shape = x.output.shape
    factor = len(places) // shape[axis]
    if places == [i // max(1, factor) for i in range(shape[axis] * factor)]:
        if factor == 1:
            return x
        apart = r.reshaped(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
        copied = r.repeated(apart, axis + 1, factor)
        return r.reshaped(copied, (*shape[:axis], len(places), *shape[axis + 1 :]))
    entries = {place: r.part(x, axis, place, place + 1) for place in dict.fromkeys(places)}
    return r.concatenated([entries[place] for place in places], axis)


# ---------------------------------------------------------------- blocks of pixels


def _depth_to_space(r: Reader) -> None:
    x, block = r.value(0), r.factor(0)
    r.require_same(x)
    channels, height, width = x.output.shape if len(x.output.shape) == 3 else r.refuse("it takes no image")
    out = channels // (block * block)
    if out * block * block != channels:
        r.refuse(f"it makes blocks of {block} from {channels} channels")
    x = r.reshaped(x, (block, block, out, height, width))
    x = r.permuted(x, (2, 3, 0, 4, 1))
    r.give(r.reshaped(x, (out, height * block, width * block), r.result))


def _space_to_depth(r: Reader) -> None:
    x, block = r.value(0), r.factor(0)
    r.require_same(x)
    channels, height, width = x.output.shape if len(x.output.shape) == 3 else r.refuse("it takes no image")
    if height % block or width % block:
        r.refuse(f"it makes blocks of {block} from {height} x {width} pixels")
    x = r.reshaped(x, (channels, height // block, block, width // block, block))
    x = r.permuted(x, (2, 4, 0, 1, 3))
    r.give(r.reshaped(x, (channels * block * block, height // block, width // block), r.result))


MOVING: Mapping[str, Callable[[Reader], None]] = {
    "DEPTH_TO_SPACE": _depth_to_space,
    "EXPAND_DIMS": _reshape,
    "PAD": _pad,
    "PADV2": _pad,
    "RESHAPE": _reshape,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "SLICE": _slice,
    "SPACE_TO_DEPTH": _space_to_depth,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _slice,
    "TILE": _tile,
    "TRANSPOSE": _transpose,
}
"""What is read."""

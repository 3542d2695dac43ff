"""Operands that are constants: depthwise 1x1 convolutions, which multiply and replace integers channel by channel."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.model import Tensor
from twoscale._frontends.tflite.reader import Reader
from twoscale._ir import layers as n

__all__ = ["constant_integers", "times_constant", "within_int8"]

_UNCHANGED = n.FixedPoint.of(1 << 30, 1)
"""A factor of one: it returns every accumulator, equation (18)."""

_MOST_VALUES = 1 << 16
"""Channels of a constant with a value for each position."""


def times_constant(
    r: Reader, x: n.Layer, factors: NDArray[Any], spec: n.TensorSpec, multiplier: n.FixedPoint,
    tensor: Tensor | None = None,
) -> n.Layer:  # fmt: skip
    """Append (q - z) times integer factors, requantized.

    Args:
        r: the reader.
        x: the layer with the integers q.
        factors: less their zero point, in the file's order; they broadcast to ``x``.
        spec: of the result, with the shape of ``x``.
        multiplier: one factor.
        tensor: what the layer computes, if it is a whole tensor of the file.
    """
    image, weight = _per_channel(r, x, factors)
    return _depthwise(r, image, weight, np.zeros(len(weight), np.int64), spec, multiplier, tensor)


def constant_integers(r: Reader, x: n.Layer, integers: NDArray[Any], spec: n.TensorSpec) -> n.Layer:
    """Append integers of the shape of ``x`` that do not depend on the images.

    Args:
        r: the reader.
        x: a layer.
        integers: in the file's order; they broadcast to ``x``.
        spec: of the integers, with the shape of ``x``.
    """
    image, values = _per_channel(r, x, integers)
    return _depthwise(r, image, np.zeros(len(values), np.int64), values - spec.zero_point, spec, _UNCHANGED)


def _per_channel(r: Reader, x: n.Layer, values: NDArray[Any]) -> tuple[n.Layer, NDArray[np.int64]]:
    """Return the layer as an image, and a constant's value for each of its channels."""
    shape = x.output.shape
    rank = len(shape) + 1
    if values.ndim > rank or (values.ndim == rank and len(values) != 1):
        r.refuse(f"it has a constant of shape {values.shape} for an input of {rank} dimensions with the batch 1")
    aligned = values.reshape((1,) * (rank - values.ndim) + values.shape)[0].astype(np.int64)
    if rank == 4:
        aligned = aligned.transpose(2, 0, 1)
    try:
        whole = np.broadcast_to(aligned, shape)
    except ValueError:
        r.refuse(f"it has a constant of shape {values.shape}, which does not broadcast to its input {shape}")
    if rank == 4 and aligned.shape[1:] == (1, 1):
        return x, whole[:, 0, 0].copy()
    if whole.size > _MOST_VALUES:
        r.refuse(f"it has a constant of {whole.size} values; expected one per channel, or at most {_MOST_VALUES}")
    return r.reshaped(x, (whole.size, 1, 1)), whole.ravel().copy()


def _depthwise(
    r: Reader, image: n.Layer, weight: NDArray[np.int64], bias: NDArray[np.int64], spec: n.TensorSpec,
    multiplier: n.FixedPoint, tensor: Tensor | None = None,
) -> n.Layer:  # fmt: skip
    channels = len(weight)
    x, oihw = within_int8(r, image, weight.astype(np.int16).reshape(channels, 1, 1, 1), channels)
    output = dataclasses.replace(spec, shape=image.output.shape)
    same = output.shape == spec.shape
    layer = r.append(
        lambda name: n.Conv2d(
            name=name,
            inputs=(x.name,),
            output=output,
            multiplier=multiplier,
            weight=oihw,
            bias_o=bias.astype(np.int32),
            groups=channels,
        ),
        tensor if same else None,
    )
    return layer if same else r.reshaped(layer, spec.shape, tensor)


def within_int8(r: Reader, x: n.Layer, weight: NDArray[np.int16], groups: int) -> tuple[n.Layer, NDArray[np.int8]]:
    """Return weights of int8 for an input with every channel twice, where weights less their zero point are beyond it.

    A weight is the sum of two, so every accumulator stays what it is.
    """
    limits = np.iinfo(np.int8)
    if weight.min() >= limits.min and weight.max() <= limits.max:
        return x, np.ascontiguousarray(weight.astype(np.int8))
    first = np.clip(weight, limits.min, limits.max)
    shape, spec = x.output.shape, x.output
    apart = r.reshaped(x, (groups, shape[0] // groups, *shape[1:]))
    twice = dataclasses.replace(spec, shape=(groups, 2 * shape[0] // groups, *shape[1:]))
    both = r.append(
        lambda name: n.Concat(
            name=name, inputs=(apart.name, apart.name), output=twice, axis=1, multipliers=(None, None)
        )
    )
    doubled = np.concatenate([first, weight - first], 1).astype(np.int8)
    return r.reshaped(both, (2 * shape[0], *shape[1:])), np.ascontiguousarray(doubled)

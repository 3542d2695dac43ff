"""Nodes that work value by value: scales and shifts, sums, products, functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.builder.base import Shape
from twoscale._ir.builder.moving import MovingPlace
from twoscale._ir.float_graph import Add, Bounds, ChannelAffine, Clamp, Elementwise, Mul, Node, Normalize, Permute

__all__ = ["ValuesPlace"]

Float64 = NDArray[np.float64]


class ValuesPlace(MovingPlace):
    """Appends nodes that compute each value from one value, or from one value of each of two tensors."""

    def affine(self, name: str, scale: Any, shift: Any = 0.0) -> str:
        """Append scale · x + shift, each a number or one value per index of the first dimension."""
        shape = self.shape(name)
        image = shape if len(shape) in (1, 3) else (shape[0], 1, math.prod(shape[1:]))
        scale_c, shift_c = (np.broadcast_to(value, shape[:1]).astype(np.float32) for value in (scale, shift))
        name = self.reshape(name, image)
        name = self.append(ChannelAffine, image, name, scale_c=scale_c, shift_c=shift_c)
        return self.reshape(name, shape)

    def affine_map(self, name: str, scale: Any, shift: Any) -> str:
        """Append scale · x + shift, each a number or an array that broadcasts to the tensor's shape."""
        shape = self.shape(name)
        maps = [np.asarray(value, np.float64).reshape(np.shape(value) or (1,) * len(shape)) for value in (scale, shift)]
        varying = [axis for axis in range(len(shape)) if any(value.shape[axis] != 1 for value in maps)]
        if (norm := self._scaled_norm(name, maps[0], maps[1], varying)) is not None:
            return norm
        if len(varying) > 1:  # one value per pixel: channels of one pixel
            pixels = [np.broadcast_to(value, shape).reshape(-1) for value in maps]
            return self.reshape(self.affine(self.reshape(name, (math.prod(shape), 1, 1)), *pixels), shape)
        axes = tuple(range(len(shape)))
        if varying:  # one value per index of a dimension, which becomes the first
            axes = (varying[0], *(axis for axis in axes if axis != varying[0]))
        name = self.affine(self.permute(name, axes), *(value.reshape(-1) for value in maps))
        return self.permute(name, tuple(int(axis) for axis in np.argsort(axes)))

    def _scaled_norm(self, name: str, scale: Float64, shift: Float64, varying: list[int]) -> str | None:
        """Return a norm with another gain and bias, where a norm is what is scaled and shifted."""
        order = tuple(range(len(self.shape(name))))
        node = self.nodes[name]
        if isinstance(node, Permute):
            order, node = node.axes, self.nodes[node.inputs[0]]
        if not isinstance(node, Normalize) or not {order[axis] for axis in varying} <= set(node.axes):
            return None
        back = tuple(int(axis) for axis in np.argsort(order))
        scale, shift = scale.transpose(back), shift.transpose(back)
        both = node.gain * scale, node.bias * scale + shift
        size = np.broadcast_shapes(*(values.shape for values in both))
        gain, bias = (np.array(np.broadcast_to(values, size), np.float32, order="C") for values in both)
        made = self.append(
            Normalize,
            node.shape,
            *node.inputs,
            axes=node.axes,
            eps=node.eps,
            gain=gain,
            bias=bias,
            centered=node.centered,
        )
        return made if order == tuple(range(len(order))) else self.append(Permute, self.shape(name), made, axes=order)

    def scaled(self, name: str, factor: float) -> str:
        """Return factor · x."""
        return name if factor == 1 else self.affine(name, factor)

    def constant_operand(self, name: str, given: NDArray[Any], result: Shape) -> Float64:
        """Return a constant operand without the batch, of size 1 along dimensions in which it does not change.

        Args:
            name: the tensor that it is added to or multiplied with.
            given: the constant, with or without the batch dimension.
            result: shape of the result.

        Returns:
            float64, so that folding adds no error.
        """
        shape = self.shape(name)
        full = (1,) * (1 + len(shape) - given.ndim) + given.shape
        if len(full) != 1 + len(shape) or full[0] != 1 or result != shape:
            raise self.unsupported(f"a constant of shape {given.shape}", f"use one that broadcasts to {shape}")
        value: Float64 = given.reshape(full[1:]).astype(np.float64)
        for axis in range(len(shape)):
            first = value.take([0], axis)
            if (value == first).all():
                value = first
        return value

    def add(self, left: str, right: str, shape: Shape) -> str:
        """Append a sum of two tensors that broadcast to ``shape``."""
        return self.append(Add, shape, self.tile(left, shape), self.tile(right, shape))

    def mul(self, left: str, right: str, shape: Shape) -> str:
        """Append a product of two tensors that broadcast to ``shape``."""
        return self.append(Mul, shape, left, right)

    def by_value(self, name: str, kind: type[Node], **fields: Any) -> str:
        """Append a function of one value. It is moved before a permutation, so that permutations meet and can be
        merged."""
        source = self.nodes[name]
        if isinstance(source, Permute):
            inner = self.nodes[source.inputs[0]]
            return self.permute(self.append(kind, inner.shape, inner.name, **fields), source.axes)
        return self.append(kind, source.shape, name, **fields)

    def table(self, name: str, function: str, *parameters: float) -> str:
        """Append a function of one value that becomes a table."""
        return self.by_value(name, Elementwise, function=function, parameters=parameters)

    def clamp(self, name: str, bounds: Bounds) -> str:
        """Append min(max(x, lo), hi)."""
        lo, hi = bounds
        if lo > 0 and hi == math.inf:  # an integer range contains 0, so this and the next are tables
            return self.table(name, "threshold", lo, lo)
        if not lo <= 0 <= hi:
            return self.table(name, "clamp", lo, hi)
        return self.by_value(name, Clamp, bounds=bounds)

    def bounded(self, name: str, bound: Any, bounds: Bounds) -> str:
        """Append the larger (bounds (0, ∞)) or the smaller (bounds (−∞, 0)) of a tensor and constants."""
        return self.affine_map(self.clamp(self.affine_map(name, 1.0, -bound), bounds), 1.0, bound)

    def prelu(self, name: str, slopes: NDArray[Any]) -> str:
        """Append max(x, 0) + slope · min(x, 0) with one slope, or one for each channel."""
        if slopes.size == 1:
            slope = float(slopes.reshape(())[()])
            return self.append(Elementwise, self.shape(name), name, function="leaky_relu", parameters=(slope,))
        shape = self.shape(name)
        positive = self.append(Clamp, shape, name, bounds=(0.0, math.inf))
        negative = self.append(Clamp, shape, name, bounds=(-math.inf, 0.0))
        return self.append(Add, shape, positive, self.affine(negative, slopes))

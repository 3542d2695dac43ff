"""Operators that only move integers: reshape, permute, slice and pad, equation (9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.operators.base import Layer, Node, Shape, TensorSpec
from twoscale._ir.operators.operation import operation

__all__ = ["Pad", "PadNode", "Permute", "PermuteNode", "Reshape", "ReshapeNode", "Slice", "SliceNode"]


@operation
class ReshapeNode(Node):
    """The same values in C order under another shape (flatten, view, unsqueeze, squeeze)."""

    moves_values: ClassVar[bool] = True


@operation
class PermuteNode(Node):
    """Dimensions in another order; ``axes`` leave out the batch."""

    moves_values: ClassVar[bool] = True

    axes: tuple[int, ...]


@operation
class SliceNode(Node):
    """x[..., start:stop:step, ...] along one dimension of the input (0 is the channel)."""

    moves_values: ClassVar[bool] = True

    axis: int
    start: int
    stop: int
    step: int


@operation
class PadNode(Node):
    """Padding with one value: (before, after) for each dimension."""

    moves_values: ClassVar[bool] = True

    widths: tuple[tuple[int, int], ...]
    value: float = 0.0
    """0, or −∞ before a max pool, into which it is merged."""


@operation
class Reshape(Layer):
    """The same integers under another shape."""

    moves_values: ClassVar[bool] = True
    reads_accumulators: ClassVar[bool] = True

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the new shape, a field of the layer."""
        if math.prod(inputs[0].shape) != math.prod(self.output.shape):
            raise ValueError(f"another number of values than {self.output.shape}")
        return self.output.shape

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Reshape each image's integers in C order."""
        return x[0].reshape(len(x[0]), *self.output.shape)


@operation
class Permute(Layer):
    """Dimensions in another order; ``axes`` leave out the batch."""

    moves_values: ClassVar[bool] = True

    axes: tuple[int, ...]

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's sizes in the new order."""
        if sorted(self.axes) != list(range(len(inputs[0].shape))):
            raise ValueError(f"axes {self.axes}")
        return tuple(inputs[0].shape[axis] for axis in self.axes)

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Permute all dimensions except the batch."""
        return x[0].transpose(0, *(axis + 1 for axis in self.axes))


@operation
class Slice(Layer):
    """q[..., start:stop:step, ...] along one dimension."""

    moves_values: ClassVar[bool] = True

    axis: int
    start: int
    stop: int
    step: int

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's shape with the slice's size along ``axis``."""
        shape = list(inputs[0].shape)
        if self.axis < 0 or self.start < 0 or self.step < 1 or self.stop > shape[self.axis]:
            raise ValueError(f"{self.start}:{self.stop}:{self.step} of dimension {self.axis}")
        shape[self.axis] = len(range(self.start, self.stop, self.step))
        return tuple(shape)

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Slice along the dimension after the batch and ``axis`` others."""
        index = [slice(None)] * x[0].ndim
        index[self.axis + 1] = slice(self.start, self.stop, self.step)
        return x[0][tuple(index)]


@operation
class Pad(Layer):
    """Padding with zero points: (before, after) for each dimension."""

    moves_values: ClassVar[bool] = True

    widths: tuple[tuple[int, int], ...]

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's sizes with the widths added."""
        if any(width < 0 for pair in self.widths for width in pair):
            raise ValueError("widths must be 0 or more")
        return tuple(size + sum(pair) for size, pair in zip(inputs[0].shape, self.widths, strict=True))

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Pad with the input's zero point."""
        return np.pad(x[0], ((0, 0), *self.widths), constant_values=inputs[0].zero_point)

"""Sums of two tensors, and concatenations. Operands may have different scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.arithmetic import ADD_SHIFT
from twoscale._ir.fixed_point import LEFT_SHIFT
from twoscale._ir.operators.base import Bounded, FixedPoint, Layer, Multiplier, Node, Shape, TensorSpec
from twoscale._ir.operators.operation import operation
from twoscale._ir.operators.vectorized import fixed_point, requantize, rint, rne_shift, saturate, shifted

__all__ = ["Add", "AddNode", "Concat", "ConcatNode"]


@operation
class AddNode(Bounded):
    """Sum of two tensors of the same shape."""


@operation
class ConcatNode(Node):
    """Concatenation along one dimension of ``shape`` (0 is the channel)."""

    axis: int


@operation
class Add(Layer):
    """Sum of two tensors, equation (7). With TensorFlow Lite's arithmetic a third multiplier scales the sum, (19)."""

    multipliers: tuple[Multiplier, ...]

    @property
    def arity(self) -> int:
        """Two."""
        return 2

    @property
    def multiplier_shift(self) -> int:
        """Multipliers on the grid count 2**-multiplier_shift."""
        return ADD_SHIFT

    @property
    def in_fixed_point(self) -> bool:
        """Whether it is TensorFlow Lite's sum, (19)."""
        return bool(self.multipliers) and isinstance(self.multipliers[0], FixedPoint)

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the shape of both operands."""
        if inputs[0].shape != inputs[1].shape or len(self.multipliers) != (3 if self.in_fixed_point else 2):
            raise ValueError("expected two tensors of one shape and two multipliers")
        return inputs[0].shape

    def sum_bounds(self, inputs: Sequence[TensorSpec]) -> tuple[int, int] | None:
        """Return the largest products of (7)."""
        if self.in_fixed_point:
            return None
        first, second = (spec.reach * int(m.integers.max()) for spec, m in zip(inputs, self.multipliers, strict=True))
        return first, second

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (7), or (19); off the grid in float32."""
        a, b = (shifted(q, spec) for q, spec in zip(x, inputs, strict=True))
        m_a, m_b = self.multipliers[:2]
        if isinstance(m_a, FixedPoint) and isinstance(m_b, FixedPoint):
            scaled = fixed_point(a << LEFT_SHIFT, m_a) + fixed_point(b << LEFT_SHIFT, m_b)
            return requantize(scaled, self.multipliers[2], self.output)
        if m_a.shift is None or m_b.shift is None:
            total = a.astype(np.float32) * m_a.values + b.astype(np.float32) * m_b.values
            return saturate(rint(total), self.output)
        return saturate(rne_shift(a * m_a.integers + b * m_b.integers, ADD_SHIFT), self.output)


@operation
class Concat(Layer):
    """Concatenation along ``axis``; each operand is requantized by (3), or copied if its multiplier is None."""

    axis: int
    multipliers: tuple[Multiplier | None, ...]

    @property
    def arity(self) -> int:
        """One per multiplier."""
        return max(1, len(self.multipliers))

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the operands' shape with their sizes along ``axis`` added."""
        shapes = [list(spec.shape) for spec in inputs]
        total = sum(shape[self.axis] for shape in shapes)
        for shape in shapes:
            shape[self.axis] = total
        if self.axis < 0 or any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"expected equal shapes but for dimension {self.axis}")
        return tuple(shapes[0])

    def copied(self, inputs: Sequence[TensorSpec]) -> Sequence[TensorSpec]:
        """Return the operands without a multiplier."""
        return [spec for spec, m in zip(inputs, self.multipliers, strict=True) if m is None]

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (3) of each operand that has a multiplier."""
        parts = [
            q if multiplier is None else requantize(shifted(q, spec), multiplier, self.output)
            for q, spec, multiplier in zip(x, inputs, self.multipliers, strict=True)
        ]
        return np.concatenate(parts, self.axis + 1)

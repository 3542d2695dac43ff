"""Products of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.operators.base import Bounded, Requantize, Shape, TensorSpec
from twoscale._ir.operators.operation import operation
from twoscale._ir.operators.vectorized import finish, shifted

__all__ = ["Mul", "MulNode"]


@operation
class MulNode(Bounded):
    """Product of two tensors; dimensions of size 1 broadcast."""


@operation
class Mul(Requantize):
    """Product of two tensors, dimensions of size 1 broadcast: (3) with acc = (q_a − z_a)·(q_b − z_b)."""

    @property
    def arity(self) -> int:
        """Two."""
        return 2

    def accumulator_reach(self, inputs: Sequence[TensorSpec]) -> NDArray[np.int64]:
        """Return the largest product."""
        return np.array([inputs[0].reach * inputs[1].reach], np.int64)

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the shape that both operands broadcast to."""
        if len(inputs[0].shape) != len(inputs[1].shape):
            raise ValueError("expected as many dimensions")
        return np.broadcast_shapes(inputs[0].shape, inputs[1].shape)

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (3) of the product."""
        a, b = (shifted(q, spec) for q, spec in zip(x, inputs, strict=True))
        return finish(a * b, self)

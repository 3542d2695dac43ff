"""What attention consists of: products of two matrices of activations, softmax, and both in one step.

Matrices are the last two dimensions; the first one counts matrices that are independent of each other (heads).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.arithmetic import FLOAT32_LIMIT, REQUANTIZE_SHIFT
from twoscale._ir.operators.base import Bounded, Layer, Node, Requantize, Shape, TensorSpec
from twoscale._ir.operators.operation import operation
from twoscale._ir.operators.vectorized import Int64, finish, high_product, rint, rounding_shift, saturate, shifted
from twoscale.errors import QuantizationError

__all__ = [
    "MOST_FIXED_POINT_VALUES",
    "MOST_PRODUCTS",
    "FixedPointSoftmax",
    "MatMul",
    "MatMulNode",
    "Softmax",
    "SoftmaxMatMul",
    "SoftmaxMatMulNode",
    "SoftmaxNode",
    "exponentials",
    "largest_exponential",
]

MOST_PRODUCTS = (2**31 - 1) // 255**2
"""Products in one sum of a matrix product, equation (14)."""

MOST_FIXED_POINT_VALUES = (1 << 12) - 1
"""Values in one softmax of TensorFlow Lite, whose sums have 12 integer bits, equation (21)."""

_LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}

_SUM_LIMIT = 1 << 28
"""Bound on the accumulators of equation (16)."""

_TABLE_BITS = 15
_FEWEST_TABLE_BITS = 8


@operation
class MatMulNode(Bounded):
    """y = factor · a @ b for a (B, M, K) and b (B, K, N)."""

    factor: float = 1.0


@operation
class SoftmaxNode(Node):
    """exp(x) / Σ exp(x) along ``axis`` (0 is the first dimension after the batch)."""

    axis: int


@operation
class SoftmaxMatMulNode(Bounded):
    """softmax(scores) @ values for scores (B, M, K) and values (B, K, N)."""


def exponentials(scale: float, largest: int) -> NDArray[np.int32]:
    """Return the table T[d] = RNE(largest · exp(−scale · d)) for d = 0 … 255, of equations (15) and (16)."""
    table: NDArray[np.int32] = np.rint(largest * np.exp(-scale * np.arange(256.0))).astype(np.int32)
    return table


def largest_exponential(count: int, reach: int) -> int:
    """Return the largest T[0], a power of two, with which sums of ``count`` values of magnitude ``reach`` are exact.

    Raises:
        ValueError: there is none; the sums are too long.
    """
    bits = min(_TABLE_BITS, int(math.log2(_SUM_LIMIT // (count * reach))) if count * reach <= _SUM_LIMIT else 0)
    if bits < _FEWEST_TABLE_BITS:
        raise ValueError(f"a softmax over {count} values is too long; expected at most {_SUM_LIMIT >> 8} / {reach}")
    return 1 << bits


def _matrices(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError("expected (matrices, rows, columns)")
    return shape


def _product_shape(inputs: Sequence[TensorSpec]) -> Shape:
    (matrices, rows, inner), (others, inner_b, columns) = (_matrices(spec.shape) for spec in inputs)
    if (matrices, inner) != (others, inner_b):
        raise ValueError("expected as many matrices, and as many columns in the first as rows in the second")
    return (matrices, rows, columns)


def _check_table(layer: Softmax | SoftmaxMatMul) -> None:
    table = layer.table
    falling = table.shape == (256,) and table.dtype == np.int32 and bool((np.diff(table) <= 0).all())
    if not falling or table[-1] < 0 or not 1 <= table[0] <= 1 << _TABLE_BITS:
        raise QuantizationError(
            f"layer {layer.name}: expected a table of 256 int32 that fall from at most {1 << _TABLE_BITS} to at "
            f"least 0, got {table.dtype} {table.shape}"
        )


@operation
class MatMul(Requantize):
    """Products of matrices of activations, equation (14)."""

    @property
    def arity(self) -> int:
        """Two."""
        return 2

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return (B, M, N)."""
        return _product_shape(inputs)

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check that no sum of products can leave int32, equation (14)."""
        if inputs[0].shape[-1] > MOST_PRODUCTS:
            raise QuantizationError(
                f"layer {self.name}: sums of {inputs[0].shape[-1]} products can leave int32; expected at most "
                f"{MOST_PRODUCTS}"
            )

    def exact_type(self, inputs: Sequence[TensorSpec]) -> type[np.float32 | np.float64]:
        """Return the smaller type in which every partial sum is exact."""
        bound = inputs[0].shape[-1] * inputs[0].reach * inputs[1].reach
        return np.float32 if bound <= FLOAT32_LIMIT else np.float64

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (14), with sums in BLAS."""
        kind = self.exact_type(inputs)
        a, b = (shifted(q, spec).astype(kind) for q, spec in zip(x, inputs, strict=True))
        return finish(np.matmul(a, b).astype(np.int64), self)


@operation
class Softmax(Layer):
    """Softmax along one dimension, equation (15). The output's scale is a power of two."""

    axis: int
    table: NDArray[np.int32]

    @property
    def shift(self) -> int:
        """The output counts 2**-shift."""
        return -int(math.log2(self.output.scale))

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's shape."""
        if not 0 <= self.axis < len(inputs[0].shape):
            raise ValueError(f"it has no dimension {self.axis}")
        return inputs[0].shape

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check the table, the length of the sums and the output's scale."""
        _check_table(self)
        scale = self.output.scale
        if not 2.0**-16 <= scale <= 1.0 or math.frexp(scale)[0] != 0.5:
            raise QuantizationError(f"layer {self.name}: its scale is {scale:g}; expected a power of two, 2**-16 to 1")
        if self.axis < len(inputs[0].shape) and inputs[0].shape[self.axis] >= 1 << 16:
            raise QuantizationError(
                f"layer {self.name}: a softmax over {inputs[0].shape[self.axis]} values; expected at most 65535"
            )

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (15)."""
        entries = _entries(self.table, x[0], self.axis + 1)
        return saturate(_rne_ratio(entries << self.shift, entries.sum(self.axis + 1, keepdims=True)), self.output)


@operation
class FixedPointSoftmax(Layer):
    """TensorFlow Lite's softmax along ``axis`` of the input (0 is the first dimension after the batch), (21).

    The output's scale is 2**-8, and its zero point the smallest integer of its type.
    """

    axis: int
    table: NDArray[np.int32]
    """e**(−scale · d) for d = 0 … 255, with 31 fractional bits."""

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's shape."""
        if not 0 <= self.axis < len(inputs[0].shape):
            raise ValueError(f"there is no dimension {self.axis}")
        return inputs[0].shape

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check the table, the output's scale, and that sums have 12 integer bits."""
        table, out = self.table, self.output
        if table.shape != (256,) or table.dtype != np.int32 or table.min() < 0 or table[0] < 1 << 30:
            raise QuantizationError(
                f"layer {self.name}: expected a table of 256 int32 of at least 0, the first at least {1 << 30}, got "
                f"{table.dtype} {table.shape}"
            )
        if (out.scale, out.zero_point, out.lo, out.hi) != (2.0**-8, out.lo, *_LIMITS.get(out.dtype, (0, 0))):
            raise QuantizationError(
                f"layer {self.name}: scale {out.scale:g} and zero point {out.zero_point} in [{out.lo}, {out.hi}]; "
                "TensorFlow Lite's softmax has the scale 1/256 and the whole range of its type"
            )
        if 0 <= self.axis < len(inputs[0].shape) and inputs[0].shape[self.axis] > MOST_FIXED_POINT_VALUES:
            raise QuantizationError(
                f"layer {self.name}: a softmax over {inputs[0].shape[self.axis]} values; the sums of TensorFlow Lite's "
                f"have 12 integer bits, which is enough for {MOST_FIXED_POINT_VALUES}"
            )

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (21)."""
        entries = _entries(self.table, x[0], self.axis + 1)
        total = rounding_shift(entries, 12).sum(self.axis + 1, keepdims=True)
        bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)
        half = ((total << (32 - bits)) - (1 << 31) + (1 << 31)) >> 1  # of the denominator
        inverse = 1515870810 + high_product(half, -1010580540)
        for _ in range(3):
            inverse += high_product(inverse, (1 << 29) - high_product(half, inverse)) << 2
        inverse = np.minimum(inverse << 1, (1 << 31) - 1)
        probability = rounding_shift(high_product(inverse, entries), 12 - (32 - bits) + 31 - 8)
        return np.clip(probability, 0, 255) + self.output.lo


@operation
class SoftmaxMatMul(Requantize):
    """Means of values, weighted by a softmax of scores along the last dimension, equation (16)."""

    table: NDArray[np.int32]

    @property
    def arity(self) -> int:
        """Two."""
        return 2

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return (B, M, N)."""
        return _product_shape(inputs)

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check the table, and that every sum is exact."""
        _check_table(self)
        if inputs[0].shape[-1] * int(self.table[0]) * inputs[1].reach > _SUM_LIMIT:
            raise QuantizationError(
                f"layer {self.name}: sums of {inputs[0].shape[-1]} weighted values are beyond 2**28; expected a table "
                "with smaller entries"
            )
        if self.multiplier is None:
            raise QuantizationError(f"layer {self.name}: a softmax with a product needs a multiplier")

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (16), with sums in BLAS."""
        entries = _entries(self.table, x[0], 3)
        values = shifted(x[1], inputs[1]).astype(np.float64)
        acc = entries.astype(np.float64) @ values
        total = entries.sum(3, keepdims=True)
        assert self.multiplier is not None
        if self.multiplier.shift is None:
            return saturate(
                rint((acc * self.multiplier.values.astype(np.float64) / total).astype(np.float64)), self.output
            )
        numerator = acc.astype(np.int64) * self.multiplier.integers
        return saturate(_rne_ratio(numerator, total << REQUANTIZE_SHIFT), self.output)


def _entries(table: NDArray[np.int32], q: NDArray[Any], axis: int) -> Int64:
    """Return T[q_max − q] along an axis."""
    wide = q.astype(np.int64)
    entries: Int64 = table.astype(np.int64)[wide.max(axis, keepdims=True) - wide]
    return entries


def _rne_ratio(numerator: Int64, denominator: Int64) -> Int64:
    """Return RNE(numerator / denominator); the denominator is positive."""
    floor = numerator // denominator
    twice = 2 * (numerator - floor * denominator)
    floor += (twice > denominator) | ((twice == denominator) & (floor % 2 == 1))
    return floor

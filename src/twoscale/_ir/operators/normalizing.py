"""Norms whose statistics are those of the image itself: LayerNorm, RMSNorm, GroupNorm, InstanceNorm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.arithmetic import NORM_BITS, NORM_RECIPROCAL_BITS, REQUANTIZE_SHIFT, normalize_shift
from twoscale._ir.operators.base import Bounded, Float32, Layer, Shape, TensorSpec
from twoscale._ir.operators.operation import operation
from twoscale._ir.operators.vectorized import rne_shift, saturate, shifted
from twoscale.errors import QuantizationError

__all__ = ["GAIN_LIMIT", "LARGEST_EPSILON", "MOST_NORMALIZED", "Normalize", "NormalizeNode"]

MOST_NORMALIZED = 1 << 17
"""Values that are normalized together, equation (17)."""

LARGEST_EPSILON = 1 << 50
GAIN_LIMIT = 1 << 28


@operation
class NormalizeNode(Bounded):
    """y = (x − mean) / √(variance + eps) · gain + bias over the dimensions ``axes``; RMSNorm has no mean.

    ``gain`` and ``bias`` have as many dimensions as the input, of its sizes or 1.
    """

    axes: tuple[int, ...]
    eps: float
    gain: Float32
    bias: Float32
    centered: bool = True


@operation
class Normalize(Layer):
    """Values normalized over the dimensions ``axes``, equation (17)."""

    axes: tuple[int, ...]
    epsilon: int
    """In units of V."""
    centered: bool
    """Whether the mean is subtracted; RMSNorm does not."""
    gain: NDArray[np.int32]
    """In units of 2**-16 output steps; as many dimensions as the input, of its sizes or 1."""
    bias: NDArray[np.int32]
    """In units of 2**-16 output steps, of the gain's shape."""

    def count(self, x: TensorSpec) -> int:
        """Return how many values are normalized together."""
        return math.prod(x.shape[axis] for axis in self.axes)

    def deviation_shift(self, x: TensorSpec) -> int:
        """Return t: square roots count 2**-t."""
        return normalize_shift(self.count(x), x.reach, self.epsilon)

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's shape."""
        shape = inputs[0].shape
        if sorted(set(self.axes)) != list(self.axes) or not self.axes or not 0 <= min(self.axes) <= max(self.axes):
            raise ValueError(f"axes {self.axes}")
        if max(self.axes) >= len(shape):
            raise ValueError(f"axes {self.axes}")
        if len(self.gain.shape) != len(shape) or any(
            size not in (1, whole) for size, whole in zip(self.gain.shape, shape, strict=True)
        ):
            raise ValueError(f"gains of shape {self.gain.shape}")
        return shape

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check gains and biases, and that every intermediate is exact."""
        gain, bias = self.gain, self.bias
        if gain.dtype != np.int32 or bias.dtype != np.int32 or gain.shape != bias.shape or not gain.size:
            raise QuantizationError(
                f"layer {self.name}: gains are {gain.dtype} {gain.shape} and biases {bias.dtype} {bias.shape}; "
                "expected int32 of one shape"
            )
        if np.abs(gain.astype(np.int64)).max() >= GAIN_LIMIT or not 1 <= self.epsilon <= LARGEST_EPSILON:
            raise QuantizationError(
                f"layer {self.name}: expected gains below 2**28 and an epsilon from 1 to 2**50, got "
                f"{np.abs(gain.astype(np.int64)).max()} and {self.epsilon}"
            )
        shape = inputs[0].shape
        if all(0 <= axis < len(shape) for axis in self.axes) and self.count(inputs[0]) > MOST_NORMALIZED:
            raise QuantizationError(
                f"layer {self.name}: {self.count(inputs[0])} values are normalized together; expected at most "
                f"{MOST_NORMALIZED}: use more groups, or smaller images"
            )

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (17)."""
        values, axes = shifted(x[0], inputs[0]), tuple(axis + 1 for axis in self.axes)
        count, t = self.count(inputs[0]), self.deviation_shift(inputs[0])
        squares = (values * values).sum(axes, keepdims=True)
        total = values.sum(axes, keepdims=True) * int(self.centered)
        variance = count * squares - total * total + self.epsilon
        # The square root of an integer below 2**52 in float64, rounded down, is that integer's.
        deviation = np.floor(np.sqrt((variance << (2 * t)).astype(np.float64))).astype(np.int64)
        reciprocal = (1 << NORM_RECIPROCAL_BITS) // deviation
        normalized = rne_shift((count * values - total) * reciprocal, NORM_RECIPROCAL_BITS - NORM_BITS - t)
        real = normalized * self.gain + (self.bias.astype(np.int64) << NORM_BITS)
        return saturate(rne_shift(real, NORM_BITS + REQUANTIZE_SHIFT), self.output)

"""Means and maxima over windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.operators.base import (
    Bounded,
    Layer,
    Node,
    Padding,
    Requantize,
    Shape,
    TensorSpec,
    WindowQuotient,
    window_shape,
)
from twoscale._ir.operators.operation import operation
from twoscale._ir.operators.vectorized import finish, padded, windows
from twoscale.errors import QuantizationError

__all__ = [
    "AveragePool2d",
    "AveragePool2dNode",
    "MaxPool2d",
    "MaxPool2dNode",
    "WindowAverage2dNode",
    "Windows",
    "window_weights",
]

Windows = tuple[tuple[int, int, int], ...]
"""(start, stop, divisor) of each output position along one dimension."""


@operation
class MaxPool2dNode(Node):
    """Maximum over windows; padding never wins."""

    moves_values: ClassVar[bool] = True

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


@operation
class AveragePool2dNode(Bounded):
    """Mean over windows; zero padding counts as values."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)


@operation
class WindowAverage2dNode(Node):
    """Mean over windows of different sizes. ``fold`` replaces it.

    y[i, j] = Σ x[h, w] / (d_i · d_j) over h in [start_i, stop_i) and w in [start_j, stop_j): adaptive pools whose sizes
    do not divide, pools that do not count padding, partial windows.
    """

    rows: Windows
    columns: Windows


def window_weights(windows: Windows, size: int) -> NDArray[np.float64]:
    """Return the weights of windows along a dimension of ``size`` inputs as a matrix (outputs, inputs)."""
    weights = np.zeros((len(windows), size))
    for row, (start, stop, divisor) in zip(weights, windows, strict=True):
        row[start:stop] = 1.0 / divisor
    return weights


@operation
class AveragePool2d(Requantize):
    """Mean over windows: (3) with acc = Σ (q − z), the divisor being part of the multiplier, equation (8)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return (C, rows, columns)."""
        shape = inputs[0].shape
        return (shape[0], *window_shape(shape, self.kernel, self.stride, self.padding))

    def accumulator_reach(self, inputs: Sequence[TensorSpec]) -> NDArray[np.int64]:
        """Return the largest sum over a window."""
        return np.array([self.kernel[0] * self.kernel[1] * inputs[0].reach], np.int64)

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check that no sum over a window can leave int32, whether or not a kernel subtracts zero points, equation
        (13)."""
        if len(inputs[0].shape) != 3:
            return  # output_shape refuses it
        same = (self.output.dtype, self.output.scale, self.output.zero_point)
        if (
            isinstance(self.multiplier, WindowQuotient)
            and (inputs[0].dtype, inputs[0].scale, inputs[0].zero_point) != same
        ):
            raise QuantizationError(
                f"layer {self.name}: a mean of integers has the type, scale and zero point of its input"
            )
        _, height, width = inputs[0].shape
        values = min(self.kernel[0], height) * min(self.kernel[1], width)  # padding adds nothing
        bound = values * 255
        if bound >= 2**31:
            raise QuantizationError(
                f"layer {self.name}: sums over windows of {self.kernel[0]}x{self.kernel[1]} can reach {bound}, beyond "
                "int32; pool in two steps, or use smaller images"
            )

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (8), or (20)."""
        if isinstance(self.multiplier, WindowQuotient):
            return self._quotients(x[0])
        q = padded(x[0], inputs[0], self.padding, 0)
        down = windows(q, (self.kernel[0], 1), (self.stride[0], 1)).sum((4, 5))
        return finish(windows(down, (1, self.kernel[1]), (1, self.stride[1])).sum((4, 5)), self)

    def _quotients(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the means of the windows' values, without padding, ties away from zero."""
        top, left, bottom, right = self.padding
        border = ((0, 0), (0, 0), (top, bottom), (left, right))
        q, inside = np.pad(x.astype(np.int64), border), np.pad(np.ones((1, 1, *x.shape[2:]), np.int64), border)
        total, count = (windows(part, self.kernel, self.stride).sum((4, 5)) for part in (q, inside))
        means = np.sign(total) * ((np.abs(total) + count // 2) // count)
        result: NDArray[Any] = np.clip(means, self.output.lo, self.output.hi)
        return result


@operation
class MaxPool2d(Layer):
    """Maximum over windows; padding never wins, equation (9)."""

    moves_values: ClassVar[bool] = True

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return (C, rows, columns); every window must see a value."""
        channels, *size = inputs[0].shape
        shape = window_shape(inputs[0].shape, self.kernel, self.stride, self.padding, self.dilation)
        for axis in (0, 1):
            if _sees_padding_only(
                size[axis], shape[axis], self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis]
            ):
                raise ValueError("a window sees padding only")
        return (channels, *shape)

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the maximum of each window."""
        top, left, bottom, right = self.padding
        lowest = np.iinfo(x[0].dtype).min  # never more than a value, and every window has one
        q = np.pad(x[0], ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=lowest)
        down = windows(q, (self.kernel[0], 1), (self.stride[0], 1), (self.dilation[0], 1)).max((4, 5))
        across = windows(down, (1, self.kernel[1]), (1, self.stride[1]), (1, self.dilation[1]))
        result: NDArray[Any] = across.max((4, 5))
        return result


def _sees_padding_only(size: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Tell whether one of ``count`` windows along a dimension holds none of its ``size`` values.

    The taps of window i are at i·stride − padding + t·dilation, t < kernel.
    """
    if count < 1:
        return False
    if (count - 1) * stride - padding >= size:
        return True  # the last window begins after the last value
    if padding > dilation * (kernel - 1):
        return True  # the first window ends before the first value
    # A window that begins before the first value holds one if its first tap from there on is within the size; that
    # tap is at the start modulo the dilation.
    before = min(count, -(-padding // stride))
    return dilation > size and _residues_from(before, stride, -padding % dilation, dilation, size) > 0


def _residues_from(count: int, step: int, first: int, modulus: int, least: int) -> int:
    """Return how many of (first + i·step) mod ``modulus``, i < count, are at least ``least`` (0 < least ≤ modulus)."""
    return _floor_sum(count, modulus, step, first + modulus - least) - _floor_sum(count, modulus, step, first)


def _floor_sum(count: int, modulus: int, step: int, first: int) -> int:
    """Return Σ ⌊(first + i·step) / modulus⌋ over i < count, in as many steps as Euclid's algorithm takes."""
    total = 0
    while count > 0:
        total += (step // modulus) * (count * (count - 1) // 2) + (first // modulus) * count
        step, first = step % modulus, first % modulus
        count, first = divmod(step * count + first, modulus)
        step, modulus = modulus, step
    return total

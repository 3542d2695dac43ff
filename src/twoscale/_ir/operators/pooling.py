"""Means and maxima over windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.operators.base import Bounded, Layer, Node, Padding, Requantize, Shape, TensorSpec, window_shape
from twoscale._ir.operators.vectorized import Int64, finish, padded, windows

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


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool2dNode(Node):
    """Maximum over windows; padding never wins."""

    moves_values: ClassVar[bool] = True

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool2dNode(Bounded):
    """Mean over windows; zero padding counts as values."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowAverage2dNode(Node):
    """Mean over windows that differ from place to place; ``fold`` leaves none.

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


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool2d(Requantize):
    """Mean over windows: (3) with acc = Σ (q − z), the divisor being part of the multiplier, equation (8)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return (C, rows, columns)."""
        shape = inputs[0].shape
        return (shape[0], *window_shape(shape, self.kernel, self.stride, self.padding))

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equation (8)."""
        q = padded(x[0], inputs[0], self.padding, 0)
        return finish(windows(q, self.kernel, self.stride).sum((4, 5)), self)


@dataclass(frozen=True, kw_only=True, eq=False)
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
            for position in range(shape[axis]):
                start = position * self.stride[axis] - self.padding[axis]
                taps = (start + tap * self.dilation[axis] for tap in range(self.kernel[axis]))
                if not any(0 <= tap < size[axis] for tap in taps):
                    raise ValueError("a window sees padding only")
        return (channels, *shape)

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the maximum of each window."""
        q = padded(x[0], inputs[0], self.padding, -(2**31))
        result: Int64 = windows(q, self.kernel, self.stride, self.dilation).max((4, 5)) + inputs[0].zero_point
        return result

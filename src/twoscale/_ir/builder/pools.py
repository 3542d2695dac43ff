"""Means, maxima and sums over several values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twoscale._ir.builder.base import Shape
from twoscale._ir.builder.joining import JoiningPlace
from twoscale._ir.float_graph import Add, AveragePool2d, Concat, MaxPool2d, Padding, WindowAverage2d, Windows

__all__ = ["PoolsPlace"]


class PoolsPlace(JoiningPlace):
    """Appends means, maxima and sums over windows and over whole dimensions."""

    def max_pool(
        self,
        name: str,
        shape: Shape,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: Padding = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        *,
        ceil_mode: bool = False,
    ) -> str:
        """Append a maximum over windows of an image. With ``ceil_mode`` some windows reach beyond the padding."""
        if ceil_mode:
            padding = _reaching(self.shape(name), shape, kernel, stride, padding, dilation)
        return self.append(MaxPool2d, shape, name, kernel=kernel, stride=stride, padding=padding, dilation=dilation)

    def average_pool(
        self,
        name: str,
        shape: Shape,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: Padding,
        *,
        counts_padding: bool,
        divisor: int | None = None,
    ) -> str:
        """Append a mean over windows of an image.

        Args:
            name: the image.
            shape: of the result. If it has more windows than fit, the last ones reach beyond the padding.
            kernel: of the windows.
            stride: of the windows.
            padding: zeros around.
            counts_padding: whether the padding counts as values.
            divisor: of the sums, instead of the number of values.
        """
        size = self.shape(name)[1:]
        rows, columns = (
            tuple(
                (start, stop, count if divisor is None else kernel[i])
                for start, stop, count in _pool_windows(
                    size[i], shape[i + 1], kernel[i], stride[i], padding[i], padding[i + 2], counts_padding
                )
            )
            for i in (0, 1)
        )
        if all(window[2] == kernel[0] for window in rows) and all(window[2] == kernel[1] for window in columns):
            reaching = _reaching((0, *size), shape, kernel, stride, padding)
            name = self.append(AveragePool2d, shape, name, kernel=kernel, stride=stride, padding=reaching)
        else:
            name = self.append(WindowAverage2d, shape, name, rows=rows, columns=columns)
        if divisor and divisor != kernel[0] * kernel[1]:
            name = self.affine(name, kernel[0] * kernel[1] / divisor)
        return name

    def adaptive_average_pool(self, name: str, shape: Shape) -> str:
        """Append a mean over windows whose sizes follow from the size of the result."""
        (_, *size), (_, *out) = self.shape(name), shape
        if size[0] % out[0] or size[1] % out[1]:
            rows, columns = (
                tuple((start, stop, stop - start) for start, stop in _adaptive_windows(n, m))
                for n, m in zip(size, out, strict=True)
            )
            return self.append(WindowAverage2d, shape, name, rows=rows, columns=columns)
        kernel = (size[0] // out[0], size[1] // out[1])
        return self.append(AveragePool2d, shape, name, kernel=kernel, stride=kernel)

    def adaptive_max_pool(self, name: str, shape: Shape) -> str:
        """Append a maximum over windows whose sizes follow from the size of the result."""
        (channels, *size), (_, *out) = self.shape(name), shape
        if not (size[0] % out[0] or size[1] % out[1]):
            kernel = (size[0] // out[0], size[1] // out[1])
            return self.append(MaxPool2d, shape, name, kernel=kernel, stride=kernel)
        for axis in (0, 1):  # windows of different sizes, each apart
            found = []
            for start, stop in _adaptive_windows(size[axis], out[axis]):
                kernel = (stop - start, 1) if axis == 0 else (1, stop - start)
                size[axis] = 1
                window = self.slice(name, 1 + axis, start, stop)
                found.append(self.append(MaxPool2d, (channels, *size), window, kernel=kernel, stride=kernel))
            size[axis] = out[axis]
            name = self.append(Concat, (channels, *size), *found, axis=1 + axis)
        return name

    def reduce(self, name: str, axes: Sequence[int], kind: type[AveragePool2d | MaxPool2d], shape: Shape) -> str:
        """Pool over whole dimensions, adjacent ones together.

        Args:
            name: the tensor.
            axes: of the tensor, in order.
            kind: mean or maximum.
            shape: of the result: the reduced dimensions are 1, or left out.
        """
        size, axes = list(self.shape(name)), list(axes)
        if axes == [1, 2] or (len(size) == 3 and axes in ([1], [2])):
            kernel = (size[1] if 1 in axes else 1, size[2] if 2 in axes else 1)
            pooled = (size[0], size[1] // kernel[0], size[2] // kernel[1])
            return self.reshape(self.append(kind, pooled, name, kernel=kernel, stride=kernel), shape)
        while axes:
            run = [axis for position, axis in enumerate(axes) if axis == axes[0] + position]
            axes = axes[len(run) :]
            before, count, after = (
                math.prod(size[start:stop]) for start, stop in ((0, run[0]), (run[0], run[-1] + 1), (run[-1] + 1, None))
            )
            name = self.reshape(name, (before, count, after))
            name = self.append(kind, (before, 1, after), name, kernel=(count, 1), stride=(count, 1))
            size[run[0] : run[-1] + 1] = [1] * len(run)
        return self.reshape(name, shape)

    def total(self, name: str, axes: Sequence[int], shape: Shape) -> str:
        """Sum over whole dimensions: a mean times the number of values. A few values are added one by one."""
        size, axes = self.shape(name), list(axes)
        count = math.prod(size[axis] for axis in axes)
        if len(axes) == 1 and count <= 8 and axes[0] < len(size) - 2:  # branches of one block
            first, *terms = [self.slice(name, axes[0], index, index + 1) for index in range(count)]
            for term in terms:
                first = self.append(Add, self.shape(term), first, term)
            return self.reshape(first, shape)
        return self.affine(self.reduce(name, axes, AveragePool2d, shape), count)

    def minimum(self, left: str, right: str, shape: Shape) -> str:
        """Append the smaller of two tensors."""
        return self.affine(self.maximum(self.affine(left, -1.0), self.affine(right, -1.0), shape), -1.0)

    def maximum(self, left: str, right: str, shape: Shape) -> str:
        """Append the larger of two tensors: a pool over the two."""
        size = math.prod(shape)
        rows = [self.reshape(self.tile(name, shape), (1, 1, size)) for name in (left, right)]
        name = self.append(Concat, (1, 2, size), *rows, axis=1)
        name = self.append(MaxPool2d, (1, 1, size), name, kernel=(2, 1), stride=(2, 1))
        return self.reshape(name, shape)


def _adaptive_windows(size: int, count: int) -> list[tuple[int, int]]:
    """Return (start, stop) of the windows of an adaptive pool along one dimension."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _reaching(
    shape: Shape,
    out: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int] = (1, 1),
) -> Padding:
    """Return the padding with which the output has the size ``out`` and all windows fit."""
    more = [
        max(
            0,
            (out[i + 1] - 1) * stride[i]
            + dilation[i] * (kernel[i] - 1)
            + 1
            - shape[i + 1]
            - padding[i]
            - padding[i + 2],
        )
        for i in (0, 1)
    ]
    return (padding[0], padding[1], padding[2] + more[0], padding[3] + more[1])


def _pool_windows(
    size: int, out: int, kernel: int, stride: int, before: int, after: int, counts_padding: bool
) -> Windows:
    """Return the windows of an average pool along one dimension, with their divisors."""
    windows = []
    for position in range(out):
        start = position * stride - before
        stop = min(start + kernel, size + after)  # positions beyond the padding never count
        count = stop - start
        start, stop = max(start, 0), min(stop, size)
        windows.append((start, stop, count if counts_padding else stop - start))
    return tuple(windows)

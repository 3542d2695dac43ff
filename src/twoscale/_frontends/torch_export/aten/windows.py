"""Windows taken out of a tensor, and put back: unfold, im2col and col2im."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, pair
from twoscale._frontends.torch_export.aten.shapes import axis_of
from twoscale._ir.float_graph import Concat


def unfold(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Windows along one dimension, whose entries become the last dimension."""
    at, name, shape = e.at(node), e.input(a["self"]), e.input_shape(a["self"])
    axis, size, step = axis_of(e, node, a["self"], a["dimension"]), int(a["size"]), int(a["step"])
    count = (shape[axis] - size) // step + 1
    out = (*shape[:axis], count, *shape[axis + 1 :], size)
    if step == size and count * size == shape[axis]:
        split = (*shape[:axis], count, size, *shape[axis + 1 :])
        axes = (*(i for i in range(len(split)) if i != axis + 1), axis + 1)
        return at.permute(at.reshape(name, split), axes)
    entries = [at.slice(name, axis, first, first + (count - 1) * step + 1, step) for first in range(size)]
    return at.append(Concat, out, *[at.reshape(entry, (*out[:-1], 1)) for entry in entries], axis=len(shape))


def im2col(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The windows of an image as columns: (C·k_h·k_w, windows)."""
    at, (channels, *size), shape = e.at(node), e.input_shape(a["self"]), e.shape(node)
    kernel, dilation, padding, stride = (pair(a[key]) for key in ("kernel_size", "dilation", "padding", "stride"))
    name = at.pad(e.input(a["self"]), [(0, 0), *((width, width) for width in padding)])
    size = [length + 2 * width for length, width in zip(size, padding, strict=True)]
    rows, columns = _counts(size, kernel, dilation, stride)
    if stride == kernel and dilation == (1, 1) and [rows * kernel[0], columns * kernel[1]] == size:
        split = (channels, rows, kernel[0], columns, kernel[1])
        return at.rearrange(name, split, (0, 2, 4, 1, 3), shape)
    taps = []
    for row, column in itertools.product(range(kernel[0]), range(kernel[1])):
        top, left = row * dilation[0], column * dilation[1]
        tap = at.slice(name, 1, top, top + (rows - 1) * stride[0] + 1, stride[0])
        taps.append(at.slice(tap, 2, left, left + (columns - 1) * stride[1] + 1, stride[1]))
    parts = [at.reshape(tap, (channels, 1, rows, columns)) for tap in taps]
    return at.reshape(at.append(Concat, (channels, len(taps), rows, columns), *parts, axis=1), shape)


def col2im(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Columns back to an image, where overlapping windows are added: a transposed convolution with ones."""
    at, name, shape = e.at(node), e.input(a["self"]), e.shape(node)
    kernel, dilation, padding, stride = (pair(a[key]) for key in ("kernel_size", "dilation", "padding", "stride"))
    channels, taps = shape[0], math.prod(kernel)
    size = [length + 2 * width for length, width in zip(shape[1:], padding, strict=True)]
    rows, columns = _counts(size, kernel, dilation, stride)
    if (
        stride == kernel
        and dilation == (1, 1)
        and padding == (0, 0)
        and [rows * kernel[0], columns * kernel[1]] == size
    ):
        return at.rearrange(name, (channels, *kernel, rows, columns), (0, 3, 1, 4, 2), shape)
    ones = np.tile(np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel), (channels, 1, 1, 1))
    return at.transposed_convolution(
        at.reshape(name, (channels * taps, rows, columns)),
        shape,
        ones,
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=channels,
    )


def _counts(
    size: list[int], kernel: tuple[int, int], dilation: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
    """Return the number of windows of a padded image, down and across."""
    rows, columns = (
        (length - d * (k - 1) - 1) // s + 1 for length, k, d, s in zip(size, kernel, dilation, stride, strict=True)
    )
    return rows, columns

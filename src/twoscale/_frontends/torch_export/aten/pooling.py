"""Maxima and averages over windows, and over whole images."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, pair, symmetric, unsupported
from twoscale._frontends.torch_export.aten.sums import maximum
from twoscale._ir.float_graph import Add, AveragePool2d, MaxPool2d, Padding, Slice, WindowAverage2d, Windows
from twoscale.errors import CaptureError


def max_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A maximum over windows."""
    kernel = pair(a["kernel_size"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    padding = symmetric(pair(a["padding"]))
    fields = e.common(node, a["self"])
    if a["ceil_mode"]:
        padding = _ceil_padding(e.input_shape(a["self"]), fields["shape"], kernel, stride, padding, pair(a["dilation"]))
    e.add(
        node,
        MaxPool2d(**fields, kernel=kernel, stride=stride, padding=padding, dilation=pair(a["dilation"])),
    )


def _ceil_padding(
    shape: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int] = (1, 1),
) -> Padding:
    """Return the padding that gives ceil mode's output size without it."""
    more = [
        max(
            0,
            (out[i + 1] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - shape[i + 1] - 2 * padding[i],
        )
        for i in (0, 1)
    ]
    return (padding[0], padding[1], padding[0] + more[0], padding[1] + more[1])


def avg_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A mean over windows, whatever the options make of their sizes at the borders."""
    kernel = pair(a["kernel_size"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    padding = pair(a["padding"])
    shape, size = e.shape(node), e.input_shape(a["self"])[1:]
    name, override = e.input(a["self"]), a["divisor_override"]
    counts_padding = bool(a["count_include_pad"] or override)
    rows, columns = (
        _pool_windows(size[i], shape[i + 1], kernel[i], stride[i], padding[i], counts_padding and not override)
        if not override
        else tuple(
            (start, stop, kernel[i])
            for start, stop, _ in _pool_windows(size[i], shape[i + 1], kernel[i], stride[i], padding[i], False)
        )
        for i in (0, 1)
    )
    if all(window[2] == kernel[0] for window in rows) and all(window[2] == kernel[1] for window in columns):
        partial = _ceil_padding((0, *size), shape, kernel, stride, symmetric(padding))
        name = e.derive(node, AveragePool2d, shape, name, kernel=kernel, stride=stride, padding=partial)
    else:
        name = e.derive(node, WindowAverage2d, shape, name, rows=rows, columns=columns)
    if override and int(override) != kernel[0] * kernel[1]:
        e.affine(node, name, kernel[0] * kernel[1] / int(override))


def _pool_windows(size: int, out: int, kernel: int, stride: int, padding: int, counts_padding: bool) -> Windows:
    """Return the windows of an average pool along one dimension, and what torch divides by."""
    windows = []
    for position in range(out):
        start = position * stride - padding
        stop = min(start + kernel, size + padding)  # what ceil mode adds beyond the padding never counts
        count = stop - start
        start, stop = max(start, 0), min(stop, size)
        windows.append((start, stop, count if counts_padding else stop - start))
    return tuple(windows)


def adaptive_avg_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A mean over windows whose sizes follow from the size of the result."""
    (_, *size), (_, *out) = e.input_shape(a["self"]), e.shape(node)
    if size[0] % out[0] or size[1] % out[1]:
        rows, columns = (
            tuple((i * n // m, -(-(i + 1) * n // m), -(-(i + 1) * n // m) - i * n // m) for i in range(m))
            for n, m in zip(size, out, strict=True)
        )
        e.add(node, WindowAverage2d(**e.common(node, a["self"]), rows=rows, columns=columns))
        return
    kernel = (size[0] // out[0], size[1] // out[1])
    e.add(node, AveragePool2d(**e.common(node, a["self"]), kernel=kernel, stride=kernel))


def adaptive_max_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A maximum over windows whose sizes follow from the size of the result."""
    kernel = _adaptive_kernel(e, node, a["self"])
    e.add(node, MaxPool2d(**e.common(node, a["self"]), kernel=kernel, stride=kernel))


def _adaptive_kernel(e: Emitter, node: fx.Node, argument: fx.Node) -> tuple[int, int]:
    (_, h, w), (_, out_h, out_w) = e.input_shape(argument), e.shape(node)
    if h % out_h or w % out_w:
        raise unsupported(e, node, f"adaptive pooling of {h}x{w} to {out_h}x{out_w}", "choose sizes that divide evenly")
    return (h // out_h, w // out_w)


def mean(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A mean over any dimensions but the batch."""
    _reduced(e, node, a, AveragePool2d)


def total(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A sum is a mean times the number of values; few things are added one by one."""
    shape, axes = e.input_shape(a["self"]), _reduced_axes(e, node, a)
    count = math.prod(shape[axis] for axis in axes)
    if len(axes) == 1 and count <= 8 and axes[0] < len(shape) - 2:  # branches of one block
        part = (*shape[: axes[0]], 1, *shape[axes[0] + 1 :])
        name, *terms = (
            e.derive(node, Slice, part, e.input(a["self"]), axis=axes[0], start=index, stop=index + 1, step=1)
            for index in range(count)
        )
        for term in terms:
            name = e.derive(node, Add, part, name, term)
        e.reshape(node, name, e.shape(node))
        return
    name = _reduced(e, node, a, AveragePool2d)
    e.affine(node, name, count)


def largest(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A maximum over any dimensions but the batch; ``max.other`` is of two tensors."""
    if "other" in a:
        maximum(e, node, a)
    elif any(user.args[1] != 0 for user in node.users if user.target is operator.getitem):
        raise unsupported(e, node, "the index of a maximum", "use its value")
    else:
        _reduced(e, node, a, MaxPool2d)


def _reduced_axes(e: Emitter, node: fx.Node, a: dict[str, Any]) -> list[int]:
    rank = 1 + len(e.input_shape(a["self"]))
    dims = a.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
    axes = sorted(int(dim) % rank - 1 for dim in dims)
    if axes[0] < 0:
        raise CaptureError(f"{node.target} at {e.source(node)} is over the batch; expected images to stay apart")
    return axes


def _reduced(e: Emitter, node: fx.Node, a: dict[str, Any], kind: type[AveragePool2d | MaxPool2d]) -> str:
    """Pool over dimensions, neighbours together; return the name of the result."""
    shape, axes = list(e.input_shape(a["self"])), _reduced_axes(e, node, a)
    name = e.input(a["self"])
    if axes == [1, 2] or (len(shape) == 3 and axes in ([1], [2])):
        kernel = (shape[1] if 1 in axes else 1, shape[2] if 2 in axes else 1)
        pooled = (shape[0], shape[1] // kernel[0], shape[2] // kernel[1])
        name = e.derive(node, kind, pooled, name, kernel=kernel, stride=kernel)
        return e.reshape(node, name, e.shape(node))
    while axes:
        run = [axis for position, axis in enumerate(axes) if axis == axes[0] + position]
        axes = axes[len(run) :]
        before, count, after = (
            math.prod(shape[start:stop]) for start, stop in ((0, run[0]), (run[0], run[-1] + 1), (run[-1] + 1, None))
        )
        name = e.reshape(node, name, (before, count, after))
        name = e.derive(node, kind, (before, 1, after), name, kernel=(count, 1), stride=(count, 1))
        shape[run[0] : run[-1] + 1] = [1] * len(run)
    return e.reshape(node, name, e.shape(node))

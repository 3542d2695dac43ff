"""Building a FloatGraph node by node; every front-end appends its nodes here.

A front-end makes one ``FloatGraphBuilder`` for each network and asks it for a ``Place`` for each operator that it
translates. A place knows the operator's name and the user's line. Its methods append nodes and return the name of the
resulting tensor. Shapes leave out the batch dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.float_graph import (
    Add,
    AveragePool2d,
    Bounds,
    ChannelAffine,
    Clamp,
    Concat,
    Conv2d,
    Elementwise,
    FloatGraph,
    Input,
    Linear,
    MaxPool2d,
    Mul,
    Node,
    Pad,
    Padding,
    Permute,
    Reshape,
    Slice,
    WindowAverage2d,
    Windows,
)
from twoscale.errors import CaptureError, UnsupportedOperatorError

__all__ = ["FloatGraphBuilder", "Place"]

Shape = tuple[int, ...]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class FloatGraphBuilder:
    """The nodes of one graph, in the order in which they were appended.

    Args:
        name: of the graph.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: dict[str, Node] = {}

    def input(self, shape: Shape) -> str:
        """Append the images; return their name."""
        self._nodes["input"] = Input(name="input", inputs=(), shape=shape)
        return "input"

    def place(self, path: str, operator: str, source: str) -> Place:
        """Return where the nodes of one operator are appended.

        Args:
            path: the name of its first node, in the user's terms; later ones get "_2", "_3" and so on.
            operator: what the front-end calls it, for messages.
            source: the user's line, for messages.
        """
        return Place(self, path, operator, source)

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def append(self, node: Node) -> str:
        """Append a node, whose name must be free; return its name."""
        assert node.name not in self._nodes
        self._nodes[node.name] = node
        return node.name

    def free_name(self, path: str) -> str:
        """Return ``path``, with a number behind it if it is taken."""
        name, count = path, 1
        while name in self._nodes:
            count += 1
            name = f"{path}_{count}"
        return name

    def graph(self, output: str) -> FloatGraph:
        """Return the graph of ``output``: the nodes that it needs, and the input."""
        needed = {output, "input"}
        for node in reversed(self._nodes.values()):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = tuple(node for node in self._nodes.values() if node.name in needed)
        return FloatGraph(name=self.name, nodes=nodes, output=output)


@dataclass(frozen=True)
class Place:
    """One operator of the user's network; what it appends has this operator's name and source."""

    builder: FloatGraphBuilder
    path: str
    operator: str
    source: str

    def unsupported(self, what: str, remedy: str) -> UnsupportedOperatorError:
        """Return the error about an operator whose options have no integer form."""
        return UnsupportedOperatorError(f"{self.operator} at {self.source}: {what} has no integer form here; {remedy}")

    def wrong(self, what: str) -> CaptureError:
        """Return the error about an operator that no classifier of single images has."""
        return CaptureError(f"{self.operator} at {self.source} {what}")

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor."""
        return self.builder[name].shape

    def append(self, kind: type[Node], shape: Shape, *inputs: str, **fields: Any) -> str:
        """Append one node."""
        name = self.builder.free_name(self.path)
        return self.builder.append(kind(name=name, inputs=inputs, shape=shape, source=self.source, **fields))

    # Values that only move.

    def reshape(self, name: str, shape: Shape) -> str:
        """Append a Reshape, unless the tensor has that shape; reshapes do not pile up."""
        source = self.builder[name]
        while isinstance(source, Reshape) and source.shape != shape:
            source = self.builder[source.inputs[0]]
        return source.name if source.shape == shape else self.append(Reshape, shape, source.name)

    def permute(self, name: str, axes: tuple[int, ...]) -> str:
        """Append a Permute, unless it changes nothing; permutes do not pile up."""
        source = self.builder[name]
        if isinstance(source, Permute):
            axes = tuple(source.axes[axis] for axis in axes)
            source = self.builder[source.inputs[0]]
        if axes == tuple(range(len(axes))):
            return source.name
        return self.append(Permute, tuple(source.shape[axis] for axis in axes), source.name, axes=axes)

    def rearrange(self, name: str, split: Shape, axes: tuple[int, ...], shape: Shape) -> str:
        """Append a reshape to ``split``, a permute by ``axes`` and a reshape to ``shape``."""
        name = self.reshape(name, split)
        name = self.append(Permute, tuple(split[axis] for axis in axes), name, axes=axes)
        return self.reshape(name, shape)

    def tile(self, name: str, shape: Shape) -> str:
        """Append concatenations of copies; each dimension of ``shape`` is a multiple of the tensor's."""
        size = self.shape(name)
        size = (1,) * (len(shape) - len(size)) + size
        if size != shape:
            name = self.reshape(name, size)
        for axis, whole in enumerate(shape):
            if (part := size[axis]) != whole:
                size = resized(size, axis, whole)
                name = self.append(Concat, size, *[name] * (whole // part), axis=axis)
        return name

    def upsample(self, name: str, factors: tuple[int, int]) -> str:
        """Repeat every pixel by whole factors of height and width: copies along new dimensions."""
        channels, height, width = self.shape(name)
        shape = [channels, height, 1, width, 1]
        name = self.reshape(name, tuple(shape))
        for axis, factor in zip((2, 4), factors, strict=True):
            if factor > 1:
                shape[axis] = factor
                name = self.append(Concat, tuple(shape), *[name] * factor, axis=axis)
        return self.reshape(name, (channels, height * factors[0], width * factors[1]))

    def slice(self, name: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """Append a Slice; the bounds lie within the dimension."""
        shape = resized(self.shape(name), axis, len(range(start, stop, step)))
        return self.append(Slice, shape, name, axis=axis, start=start, stop=stop, step=step)

    def select(self, name: str, axis: int, index: int) -> str:
        """Take one index along ``axis``, which is dropped."""
        shape = self.shape(name)
        return self.reshape(self.slice(name, axis, index, index + 1), (*shape[:axis], *shape[axis + 1 :]))

    def gather(self, name: str, axis: int, indices: Sequence[int]) -> str:
        """Append slices and a concatenation: the entries ``indices`` along ``axis``."""
        shape = self.shape(name)
        parts: list[str] = []
        position = 0
        while position < len(indices):
            start, count = int(indices[position]), 1
            while position + count < len(indices) and indices[position + count] == start + count:
                count += 1
            position += count
            whole = count == shape[axis]
            parts.append(name if whole else self.slice(name, axis, start, start + count))
        if len(parts) == 1:
            return parts[0]
        return self.append(Concat, resized(shape, axis, len(indices)), *parts, axis=axis)

    def concat(self, parts: Sequence[str | Float32], axis: int, shape: Shape) -> str:
        """Append a concatenation of tensors; zeros at the ends are padding.

        Args:
            parts: tensors, or constants without the batch dimension.
            axis: of ``shape``.
            shape: of the result.
        """
        first, *_, last = [index for index, part in enumerate(parts) if isinstance(part, str)] * 2
        ends = [[part for part in end if not isinstance(part, str)] for end in (parts[:first], parts[last + 1 :])]
        names = [part for part in parts[first : last + 1] if isinstance(part, str)]
        if len(names) != last + 1 - first or any(part.any() for end in ends for part in end):
            made = [part if isinstance(part, str) else self.constant(names[0], part) for part in parts]
            return self.append(Concat, shape, *made, axis=axis)
        before, after = (sum(part.shape[axis] for part in end) for end in ends)
        inner = resized(shape, axis, shape[axis] - before - after)
        name = names[0] if len(names) == 1 else self.append(Concat, inner, *names, axis=axis)
        if not before and not after:
            return name
        widths = tuple((before, after) if index == axis else (0, 0) for index in range(len(shape)))
        return self.append(Pad, shape, name, widths=widths)

    def constant(self, like: str, values: Float32) -> str:
        """Return a constant as a tensor, whatever the tensor ``like`` is."""
        one = like
        for axis in range(len(self.shape(like))):
            one = self.slice(one, axis, 0, 1)
        one = self.table(self.reshape(one, (1,)), "constant", 1.0)
        return self.affine_map(self.tile(one, values.shape), values, 0.0)

    # Padding.

    def pad(self, name: str, widths: Sequence[tuple[int, int]], value: float = 0.0) -> str:
        """Pad with one value, (before, after) for each dimension; negative widths cut off.

        Args:
            name: the tensor.
            widths: of each dimension.
            value: finite, or −∞ before a max pool.
        """
        size = self.shape(name)
        for axis, (before, after) in enumerate(widths):
            if before < 0 or after < 0:
                name = self.slice(name, axis, max(0, -before), size[axis] + min(0, after))
        widths = tuple((max(0, before), max(0, after)) for before, after in widths)
        padded = tuple(size + sum(pair) for size, pair in zip(self.shape(name), widths, strict=True))
        if value == -math.inf:
            return self.append(Pad, padded, name, widths=widths, value=value)
        if padded == self.shape(name):
            return name
        if value == 0.0:
            return self.append(Pad, padded, name, widths=widths)
        name = self.affine(name, 1.0, -value)  # zeros around x − value
        return self.affine(self.append(Pad, padded, name, widths=widths), 1.0, value)

    def pad_with_values(self, name: str, widths: Sequence[tuple[int, int]], mode: str) -> str:
        """Pad with values of the tensor itself.

        Args:
            name: the tensor.
            widths: (before, after) of each dimension.
            mode: "reflect", "replicate" or "circular".
        """
        for axis, ((before, after), size) in enumerate(zip(widths, self.shape(name), strict=True)):
            if before or after:
                positions = np.arange(-before, size + after)
                last = size - 1
                inside = {
                    "reflect": last - np.abs(last - np.abs(positions)),
                    "replicate": np.clip(positions, 0, last),
                    "circular": positions % size,
                }[mode]
                name = self.gather(name, axis, inside.tolist())
        return name

    # Products with weights.

    def affine(self, name: str, scale: Any, shift: Any = 0.0) -> str:
        """Append scale · x + shift, each a number or one value per index of the first dimension."""
        shape = self.shape(name)
        image = shape if len(shape) in (1, 3) else (shape[0], math.prod(shape[1:]), 1)
        scale_c, shift_c = (np.broadcast_to(value, shape[:1]).astype(np.float32) for value in (scale, shift))
        name = self.reshape(name, image)
        name = self.append(ChannelAffine, image, name, scale_c=scale_c, shift_c=shift_c)
        return self.reshape(name, shape)

    def affine_map(self, name: str, scale: Any, shift: Any) -> str:
        """Append scale · x + shift, each a number or an array that broadcasts to the tensor's shape."""
        shape = self.shape(name)
        maps = [np.asarray(value, np.float64).reshape(np.shape(value) or (1,) * len(shape)) for value in (scale, shift)]
        varying = [axis for axis in range(len(shape)) if any(value.shape[axis] != 1 for value in maps)]
        if len(varying) > 1:  # one value per pixel: channels of one pixel
            pixels = [np.broadcast_to(value, shape).reshape(-1) for value in maps]
            return self.reshape(self.affine(self.reshape(name, (math.prod(shape), 1, 1)), *pixels), shape)
        axes = tuple(range(len(shape)))
        if varying:  # one value per index of a dimension, which is made the first
            axes = (varying[0], *(axis for axis in axes if axis != varying[0]))
        name = self.affine(self.permute(name, axes), *(value.reshape(-1) for value in maps))
        return self.permute(name, tuple(int(axis) for axis in np.argsort(axes)))

    def constant_operand(self, name: str, given: NDArray[Any], result: Shape) -> Float64:
        """Return a constant operand without the batch, of size 1 along dimensions in which it does not change.

        Args:
            name: the tensor that it is added to or multiplied with.
            given: the constant, with or without the batch dimension.
            result: shape of the result.

        Returns:
            float64, so that folding adds no error.
        """
        shape = self.shape(name)
        full = (1,) * (1 + len(shape) - given.ndim) + given.shape
        if len(full) != 1 + len(shape) or full[0] != 1 or result != shape:
            raise self.unsupported(f"a constant of shape {given.shape}", f"use one that broadcasts to {shape}")
        value: Float64 = given.reshape(full[1:]).astype(np.float64)
        for axis in range(len(shape)):
            first = value.take([0], axis)
            if (value == first).all():
                value = first
        return value

    def linear(self, name: str, weight_oi: Float32, bias_o: Float32 | None = None) -> str:
        """Append a linear layer; over the last of several dimensions it is a 1×1 convolution."""
        *rest, features = self.shape(name)
        out, last = len(weight_oi), len(rest)
        bias_o = np.zeros(out, np.float32) if bias_o is None else bias_o
        if not rest:
            return self.append(Linear, (out,), name, weight_oi=weight_oi, bias_o=bias_o)
        name = self.permute(name, (last, *range(last)))
        image = (1,) * (2 - last) + tuple(rest) if last < 3 else (rest[0], math.prod(rest[1:]))
        name = self.reshape(name, (features, *image))
        name = self.append(Conv2d, (out, *image), name, weight_oihw=weight_oi[:, :, None, None], bias_o=bias_o)
        name = self.reshape(name, (out, *rest))
        return self.permute(name, (*range(1, last + 1), 0))

    def convolution(
        self,
        name: str,
        shape: Shape,
        weight: Float32,
        bias_o: Float32 | None,
        *,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> str:
        """Append a convolution of one or two dimensions; one dimension is an image of one row.

        Args:
            name: (C, H, W) or (C, L).
            shape: of the result.
            weight: (O, I/groups, kernel...).
            bias_o: (O,), or None.
            stride: of each dimension.
            padding: (before, after) of each dimension.
            dilation: of each dimension.
            groups: of channels.
        """
        size = self.shape(name)
        flat = len(size) == 2
        if flat:
            weight = weight[:, :, None]
            stride, dilation, padding = (1, *stride), (1, *dilation), ((0, 0), *padding)
            name = self.reshape(name, (size[0], 1, size[1]))
        (top, bottom), (left, right) = padding
        name = self.append(
            Conv2d,
            (shape[0], 1, shape[1]) if flat else shape,
            name,
            weight_oihw=weight,
            bias_o=np.zeros(len(weight), np.float32) if bias_o is None else bias_o,
            stride=tuple(stride),
            padding=(top, left, bottom, right),
            dilation=tuple(dilation),
            groups=groups,
        )
        return self.reshape(name, shape) if flat else name

    def transposed_convolution(
        self,
        name: str,
        shape: Shape,
        weight: Float32,
        bias_o: Float32 | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> str:
        """Append a transposed convolution: a convolution of the tensor with stride - 1 zeros after every value.

        Args:
            name: (C, H, W) or (C, L).
            shape: of the result.
            weight: (I, O/groups, kernel...), as torch and ONNX have it.
            bias_o: (O,), or None.
            stride: of each dimension.
            padding: what the transposed convolution leaves out at each end of a dimension.
            dilation: of each dimension.
            groups: of channels.
        """
        channels, *size = self.shape(name)
        spread = [value for length in size for value in (length, 1)]
        zeros = [width for step in stride for width in ((0, 0), (0, step - 1))]
        if any(step > 1 for step in stride):
            name = self.pad(self.reshape(name, (channels, *spread)), [(0, 0), *zeros])
            name = self.reshape(name, (channels, *(n * step for n, step in zip(size, stride, strict=True))))
        inputs, outputs, *kernel = weight.shape
        grouped = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
        flipped = np.flip(grouped.reshape(groups * outputs, inputs // groups, *kernel), tuple(range(2, weight.ndim)))
        widths = []
        for whole, out, k, d, left_out in zip(self.shape(name)[1:], shape[1:], kernel, dilation, padding, strict=True):
            before = d * (k - 1) - left_out
            widths.append((before, out + d * (k - 1) - before - whole))
        # A convolution cannot have negative padding: what it would leave out is cut off before.
        name = self.pad(name, [(0, 0), *((min(0, before), min(0, after)) for before, after in widths)])
        return self.convolution(
            name, shape, np.ascontiguousarray(flipped), bias_o, stride=[1] * len(size),
            padding=[(max(0, before), max(0, after)) for before, after in widths], dilation=dilation, groups=groups,
        )  # fmt: skip

    def batch_norm(
        self, name: str, gamma: Float32 | None, beta: Float32 | None, mean: Float32, variance: Float32, epsilon: float
    ) -> str:
        """Append a batch norm with its statistics fixed: a scale and a shift per channel."""
        # float64: folding must not add error of its own.
        scale = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)
        if gamma is not None:
            scale = scale * gamma
        return self.affine(name, scale, -mean * scale if beta is None else beta - mean * scale)

    # Sums and products of two tensors.

    def scaled(self, name: str, factor: float) -> str:
        """Return factor · x."""
        return name if factor == 1 else self.affine(name, factor)

    def add(self, left: str, right: str, shape: Shape) -> str:
        """Append a sum of two tensors that broadcast to ``shape``."""
        return self.append(Add, shape, self.tile(left, shape), self.tile(right, shape))

    def mul(self, left: str, right: str, shape: Shape) -> str:
        """Append a product of two tensors that broadcast to ``shape``."""
        return self.append(Mul, shape, left, right)

    def maximum(self, left: str, right: str, shape: Shape) -> str:
        """Append the larger of two tensors: a pool over the two."""
        size = math.prod(shape)
        rows = [self.reshape(self.tile(name, shape), (1, 1, size)) for name in (left, right)]
        name = self.append(Concat, (1, 2, size), *rows, axis=1)
        name = self.append(MaxPool2d, (1, 1, size), name, kernel=(2, 1), stride=(2, 1))
        return self.reshape(name, shape)

    # Functions of one value.

    def by_value(self, name: str, kind: type[Node], **fields: Any) -> str:
        """Append a function of one value; it comes before a change of the order of dimensions, so that those meet."""
        source = self.builder[name]
        if isinstance(source, Permute):
            inner = self.builder[source.inputs[0]]
            return self.permute(self.append(kind, inner.shape, inner.name, **fields), source.axes)
        return self.append(kind, source.shape, name, **fields)

    def table(self, name: str, function: str, *parameters: float) -> str:
        """Append a function of one value that becomes a table."""
        return self.by_value(name, Elementwise, function=function, parameters=parameters)

    def clamp(self, name: str, bounds: Bounds) -> str:
        """Append min(max(x, lo), hi)."""
        lo, hi = bounds
        if lo > 0 and hi == math.inf:  # integers keep a 0, so this is a table
            return self.table(name, "threshold", lo, lo)
        if not lo <= 0 <= hi:
            raise self.unsupported("a clamp to a range without 0", "clamp to bounds with 0 between them")
        return self.by_value(name, Clamp, bounds=bounds)

    def prelu(self, name: str, slopes: NDArray[Any]) -> str:
        """Append max(x, 0) + slope · min(x, 0) with one slope, or one for each channel."""
        if slopes.size == 1:
            slope = float(slopes.reshape(())[()])
            return self.append(Elementwise, self.shape(name), name, function="leaky_relu", parameters=(slope,))
        shape = self.shape(name)
        positive = self.append(Clamp, shape, name, bounds=(0.0, math.inf))
        negative = self.append(Clamp, shape, name, bounds=(-math.inf, 0.0))
        return self.append(Add, shape, positive, self.affine(negative, slopes))

    # Pools.

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
        """Append a maximum over windows of an image; with ``ceil_mode`` some reach beyond the padding."""
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
            shape: of the result; where it asks for more windows than fit, the last reach beyond the padding.
            kernel: of the windows.
            stride: of the windows.
            padding: zeros around.
            counts_padding: whether the padding, as far as it goes, counts as values.
            divisor: what sums are divided by, instead of the number of values.
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
                tuple((i * n // m, -(-(i + 1) * n // m), -(-(i + 1) * n // m) - i * n // m) for i in range(m))
                for n, m in zip(size, out, strict=True)
            )
            return self.append(WindowAverage2d, shape, name, rows=rows, columns=columns)
        kernel = (size[0] // out[0], size[1] // out[1])
        return self.append(AveragePool2d, shape, name, kernel=kernel, stride=kernel)

    def adaptive_max_pool(self, name: str, shape: Shape) -> str:
        """Append a maximum over windows whose sizes follow from the size of the result and divide evenly."""
        (_, h, w), (_, out_h, out_w) = self.shape(name), shape
        if h % out_h or w % out_w:
            raise self.unsupported(f"adaptive pooling of {h}x{w} to {out_h}x{out_w}", "choose sizes that divide evenly")
        kernel = (h // out_h, w // out_w)
        return self.append(MaxPool2d, shape, name, kernel=kernel, stride=kernel)

    def reduce(self, name: str, axes: Sequence[int], kind: type[AveragePool2d | MaxPool2d], shape: Shape) -> str:
        """Pool over whole dimensions, neighbours together.

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
        """Sum over whole dimensions: a mean times the number of values; few values are added one by one."""
        size, axes = self.shape(name), list(axes)
        count = math.prod(size[axis] for axis in axes)
        if len(axes) == 1 and count <= 8 and axes[0] < len(size) - 2:  # branches of one block
            first, *terms = [self.slice(name, axes[0], index, index + 1) for index in range(count)]
            for term in terms:
                first = self.append(Add, self.shape(term), first, term)
            return self.reshape(first, shape)
        return self.affine(self.reduce(name, axes, AveragePool2d, shape), count)


def resized(shape: Shape, axis: int, size: int) -> Shape:
    """Return a shape with another size of one dimension."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def _reaching(
    shape: Shape,
    out: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int] = (1, 1),
) -> Padding:
    """Return the padding with which windows that fit entirely give the output size ``out``."""
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
    """Return the windows of an average pool along one dimension, and what sums are divided by."""
    windows = []
    for position in range(out):
        start = position * stride - before
        stop = min(start + kernel, size + after)  # what lies beyond the padding never counts
        count = stop - start
        start, stop = max(start, 0), min(stop, size)
        windows.append((start, stop, count if counts_padding else stop - start))
    return tuple(windows)

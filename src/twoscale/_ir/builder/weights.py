"""Layers with weights: linear layers, convolutions, batch norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.builder.base import Shape
from twoscale._ir.builder.joining import JoiningPlace
from twoscale._ir.float_graph import Conv2d, Linear

__all__ = ["WeightsPlace"]

Float32 = NDArray[np.float32]


class WeightsPlace(JoiningPlace):
    """Appends layers that have weights."""

    def linear(self, name: str, weight_oi: Float32, bias_o: Float32 | None = None) -> str:
        """Append a linear layer. Over the last of several dimensions it is a 1×1 convolution."""
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
        """Append a convolution of one or two dimensions. With one dimension, the tensor is an image of one row.

        Args:
            name: (C, H, W) or (C, L).
            shape: of the result.
            weight: (O, I/groups, kernel...).
            bias_o: (O,), or None.
            stride: of each dimension.
            padding: (before, after) of each dimension.
            dilation: of each dimension.
            groups: of channels.

        Raises:
            CaptureError: the biases are not one per output channel.
        """
        if bias_o is not None and bias_o.shape != (len(weight),):
            raise self.wrong(f"has biases of shape {bias_o.shape}; expected ({len(weight)},), one per output channel")
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
            padding: number of results left out at each end of a dimension.
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
        # A convolution cannot have negative padding, so the tensor is cropped first.
        name = self.pad(name, [(0, 0), *((min(0, before), min(0, after)) for before, after in widths)])
        return self.convolution(
            name, shape, np.ascontiguousarray(flipped), bias_o, stride=[1] * len(size),
            padding=[(max(0, before), max(0, after)) for before, after in widths], dilation=dilation, groups=groups,
        )  # fmt: skip

    def along(self, name: str, axis: int, matrix_oi: Float32, bias_o: Float32 | None = None) -> str:
        """Append the product of a matrix with every vector along one dimension of a tensor, plus a bias."""
        axes = [other for other in range(len(self.shape(name))) if other != axis]
        made = self.linear(self.permute(name, (*axes, axis)), matrix_oi, bias_o)
        return self.permute(made, (*range(axis), len(axes), *range(axis, len(axes))))

    def batch_norm(
        self,
        name: str,
        gamma: Float32 | None,
        beta: Float32 | None,
        mean: Float32,
        variance: Float32,
        epsilon: float,
        axis: int = 0,
    ) -> str:
        """Append a batch norm with its statistics fixed: a scale and a shift for each index of dimension ``axis``."""
        # float64, so that folding adds no error.
        scale = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)
        if gamma is not None:
            scale = scale * gamma
        shift = -mean * scale if beta is None else beta - mean * scale
        if not axis:
            return self.affine(name, scale, shift)
        along = [1] * len(self.shape(name))
        along[axis] = -1
        return self.affine_map(name, scale.reshape(along), shift.reshape(along))

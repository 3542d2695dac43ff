"""Products of two matrices of activations, softmax, attention, and norms by the statistics of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.builder.values import ValuesPlace
from twoscale._ir.float_graph import ChannelAffine, MatMul, Normalize, Permute, Reshape, Softmax

__all__ = ["AttentionPlace"]

_LEAST_MASK = -32.0
"""What a mask of −∞ becomes: e⁻³² is nothing beside other weights, and 8 bits have to span it."""


class AttentionPlace(ValuesPlace):
    """Appends what attention consists of, and norms."""

    def matmul(self, left: str, right: str, factor: float = 1.0) -> str:
        """Append factor · left @ right for tensors (..., M, K) and (..., K, N) that broadcast."""
        (left, by_left), (right, by_right) = self._without_factor(left), self._without_factor(right)
        (*first, rows, inner), (*second, _, columns) = self.shape(left), self.shape(right)
        leading = tuple(np.broadcast_shapes(tuple(first), tuple(second)))
        count = math.prod(leading)
        a, b = (
            self.reshape(self.tile(name, (*leading, *size)), (count, *size))
            for name, size in ((left, (rows, inner)), (right, (inner, columns)))
        )
        made = self.append(MatMul, (count, rows, columns), a, b, factor=factor * by_left * by_right)
        return self.reshape(made, (*leading, rows, columns))

    def _without_factor(self, name: str) -> tuple[str, float]:
        """Return a tensor without a constant factor before it, and the factor; reshapes may lie between."""
        node = self.nodes[name]
        if isinstance(node, Reshape | Permute):
            inner, factor = self._without_factor(node.inputs[0])
            if factor == 1.0:
                return name, 1.0
            moved = self.permute(inner, node.axes) if isinstance(node, Permute) else self.reshape(inner, node.shape)
            return moved, factor
        if isinstance(node, ChannelAffine) and not node.shift_c.any():
            factor = float(node.scale_c[0])
            if factor > 0 and (node.scale_c == node.scale_c[0]).all():
                return node.inputs[0], factor
        return name, 1.0

    def softmax(self, name: str, axis: int) -> str:
        """Append a softmax along one dimension."""
        shape = self.shape(name)
        if axis != len(shape) - 1 or len(shape) < 3:
            return self.append(Softmax, shape, name, axis=axis)
        flat = (math.prod(shape[:-2]), *shape[-2:])  # the form that a product reads
        return self.reshape(self.append(Softmax, flat, self.reshape(name, flat), axis=2), shape)

    def attention(self, query: str, key: str, value: str, factor: float, mask: NDArray[Any] | str | None = None) -> str:
        """Append softmax(factor · query @ keyᵀ + mask) @ value.

        Args:
            query: (..., T, d).
            key: (..., S, d).
            value: (..., S, e).
            factor: of the scores.
            mask: a tensor, or constants that broadcast to the scores (..., T, S); −∞ where a key is left out.
        """
        rank = len(self.shape(key))
        transposed = self.permute(key, (*range(rank - 2), rank - 1, rank - 2))
        scores = self.matmul(query, transposed, factor)
        if isinstance(mask, str):
            scores = self.add(scores, mask, self.shape(scores))
        elif mask is not None:
            shape = self.shape(scores)
            finite = np.maximum(mask, _LEAST_MASK)
            finite = finite.reshape((1,) * (len(shape) + 1 - finite.ndim) + finite.shape)
            scores = self.affine_map(scores, 1.0, self.constant_operand(scores, finite, shape))
        return self.matmul(self.softmax(scores, len(self.shape(scores)) - 1), value)

    def normalize(
        self,
        name: str,
        axes: Sequence[int],
        eps: float,
        gain: NDArray[Any] | None,
        bias: NDArray[Any] | None,
        *,
        centered: bool = True,
    ) -> str:
        """Append a norm over some dimensions. It is moved before a permutation, so that permutations meet.

        Args:
            name: the tensor.
            axes: the dimensions that are normalized together.
            eps: added to the variance.
            gain: broadcasts to the tensor, with as many dimensions; None is 1.
            bias: as the gain; None is 0.
            centered: whether the mean is subtracted.
        """
        source, shape = self.nodes[name], self.shape(name)
        one = (1,) * len(shape)
        gain = np.ones(one) if gain is None else gain
        bias = np.zeros(one) if bias is None else bias
        if isinstance(source, Permute):
            back = tuple(int(axis) for axis in np.argsort(source.axes))
            inner = [source.axes[axis] for axis in axes]
            made = self.normalize(
                source.inputs[0], inner, eps, gain.transpose(back), bias.transpose(back), centered=centered
            )
            return self.permute(made, source.axes)
        both = np.broadcast_shapes(gain.shape, bias.shape)
        gain, bias = (np.array(np.broadcast_to(values, both), np.float32, order="C") for values in (gain, bias))
        return self.append(
            Normalize, shape, name, axes=tuple(sorted(axes)), eps=eps, gain=gain, bias=bias, centered=centered
        )

    def group_norm(
        self, name: str, groups: int, eps: float, gain_c: NDArray[Any] | None, bias_c: NDArray[Any] | None
    ) -> str:
        """Append a norm over groups of channels and all positions, with one gain and one bias for each channel.

        Args:
            name: (C, ...).
            groups: of channels; as many as channels for an instance norm.
            eps: added to the variance.
            gain_c: (C,), or None.
            bias_c: (C,), or None.
        """
        channels, *rest = shape = self.shape(name)
        split = (groups, channels // groups, *rest)
        if groups in (1, channels):
            split = shape
        first = 0 if groups == 1 else 1
        size = (*split[: len(split) - len(rest)], *[1] * len(rest))
        gain, bias = (None if values is None else values.reshape(size) for values in (gain_c, bias_c))
        made = self.normalize(self.reshape(name, split), range(first, len(split)), eps, gain, bias)
        return self.reshape(made, shape)

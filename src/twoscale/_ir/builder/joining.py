"""Concatenations and padding, also with values other than 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.builder.base import Shape, resized
from twoscale._ir.builder.values import ValuesPlace
from twoscale._ir.float_graph import Concat, Pad, Permute

__all__ = ["JoiningPlace"]

Float32 = NDArray[np.float32]


class JoiningPlace(ValuesPlace):
    """Appends concatenations and padding; constants among them become tensors."""

    def concat(self, parts: Sequence[str | Float32], axis: int, shape: Shape) -> str:
        """Append a concatenation of tensors. Zeros at the ends become padding.

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
        """Append a constant tensor. It is computed from ``like`` but does not depend on its values."""
        one = like
        for axis in range(len(self.shape(like))):
            one = self.slice(one, axis, 0, 1)
        one = self.table(self.reshape(one, (1,)), "constant", 1.0)
        return self.affine_map(self.tile(one, values.shape), values, 0.0)

    def pad(self, name: str, widths: Sequence[tuple[int, int]], value: float = 0.0) -> str:
        """Pad with one value, (before, after) for each dimension. Negative widths crop.

        It is moved before a permutation, so that permutations meet.

        Args:
            name: the tensor.
            widths: of each dimension.
            value: finite, or −∞ before a max pool.
        """
        source = self.nodes[name]
        if isinstance(source, Permute):
            inner = [widths[source.axes.index(axis)] for axis in range(len(widths))]
            return self.permute(self.pad(source.inputs[0], inner, value), source.axes)
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

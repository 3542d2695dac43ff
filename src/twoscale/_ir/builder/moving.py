"""Nodes that only move values: reshapes, permutations, slices, copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twoscale._ir.builder.base import BasePlace, Shape, resized
from twoscale._ir.float_graph import Concat, Permute, Reshape, Slice

__all__ = ["MovingPlace"]


class MovingPlace(BasePlace):
    """Appends nodes that only move values."""

    def reshape(self, name: str, shape: Shape) -> str:
        """Append a Reshape, unless the tensor has that shape. Successive reshapes are merged."""
        source = self.nodes[name]
        while isinstance(source, Reshape) and source.shape != shape:
            source = self.nodes[source.inputs[0]]
        return source.name if source.shape == shape else self.append(Reshape, shape, source.name)

    def permute(self, name: str, axes: tuple[int, ...]) -> str:
        """Append a Permute, unless it changes nothing. Successive permutations are merged."""
        source = self.nodes[name]
        if isinstance(source, Permute):
            axes = tuple(source.axes[axis] for axis in axes)
            source = self.nodes[source.inputs[0]]
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
        """Append a Slice. The bounds must lie within the dimension."""
        shape = resized(self.shape(name), axis, len(range(start, stop, step)))
        return self.append(Slice, shape, name, axis=axis, start=start, stop=stop, step=step)

    def select(self, name: str, axis: int, index: int) -> str:
        """Take one index along ``axis``, which is dropped."""
        shape = self.shape(name)
        return self.reshape(self.slice(name, axis, index, index + 1), (*shape[:axis], *shape[axis + 1 :]))

    def gather(self, name: str, axis: int, indices: Sequence[int]) -> str:
        """Append slices and a concatenation: the entries ``indices`` along ``axis``."""
        shape = self.shape(name)
        step = int(indices[1]) - int(indices[0]) if len(indices) > 1 else 1
        if step > 1 and list(indices) == list(range(indices[0], indices[-1] + 1, step)):
            return self.slice(name, axis, indices[0], indices[-1] + 1, step)
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

    def copies(self, name: str, axis: int, indices: Sequence[int]) -> str:
        """Append the entries ``indices`` along ``axis``: nearest neighbours, upsampled if each occurs equally often."""
        size = self.shape(name)[axis]
        factor = len(indices) // size
        whole = list(indices) == [i // factor for i in range(size * factor)]
        if whole and factor > 1 and axis in (1, 2) and len(self.shape(name)) == 3:
            return self.upsample(name, (factor, 1) if axis == 1 else (1, factor))
        return self.gather(name, axis, indices)

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

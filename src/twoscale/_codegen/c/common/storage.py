"""The order of a tensor's elements in memory, and copies between such orders.

Images (C, H, W) are stored in H, W, C order, which suits dot products over channels. Tensors of more dimensions also
have their last two first. Vectors and matrices are stored in C order. Shapes leave out the batch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Move", "memory_axes", "memory_order", "memory_steps", "reshape_move"]


def memory_axes(rank: int) -> tuple[int, ...]:
    """Return the dimensions of a tensor from the slowest in memory to the fastest."""
    return (rank - 2, rank - 1, *range(rank - 2)) if rank > 2 else tuple(range(rank))


def memory_order(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the index of the element (in C order) at each place in memory; (size,)."""
    elements = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    return elements.transpose(memory_axes(len(shape))).ravel()


def memory_steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many places in memory one step along each dimension is."""
    steps = [0] * len(shape)
    step = 1
    for axis in reversed(memory_axes(len(shape))):
        steps[axis] = step
        step *= shape[axis]
    return tuple(steps)


@dataclass(frozen=True)
class Move:
    """A copy of elements from one regular pattern to another: nested loops, the last one the fastest.

    There are as few loops as possible: loops of one element are left out, and loops that form one are joined.
    """

    sizes: tuple[int, ...]
    from_steps: tuple[int, ...]
    to_steps: tuple[int, ...]
    from_offset: int = 0
    to_offset: int = 0

    @staticmethod
    def of(
        sizes: tuple[int, ...],
        from_steps: tuple[int, ...],
        to_steps: tuple[int, ...],
        from_offset: int = 0,
        to_offset: int = 0,
    ) -> Move:
        """Make the shortest form of the copy; dimensions may come in any order."""
        loops: list[tuple[int, int, int]] = []
        for size, source, target in sorted(zip(sizes, from_steps, to_steps, strict=True), key=lambda d: -d[2]):
            if size == 1:
                continue
            if loops and loops[-1][1:] == (size * source, size * target):
                loops[-1] = (loops[-1][0] * size, source, target)
            else:
                loops.append((size, source, target))
        return Move(
            tuple(loop[0] for loop in loops),
            tuple(loop[1] for loop in loops),
            tuple(loop[2] for loop in loops),
            from_offset,
            to_offset,
        )

    @property
    def is_plain(self) -> bool:
        """Whether it copies one block."""
        return self.from_steps == self.to_steps and self.from_steps in {(), (1,)}


def reshape_move(source: tuple[int, ...], target: tuple[int, ...]) -> Move | None:
    """Return the copy that keeps the C order of elements while the shape changes, or None if it takes two.

    Both shapes are split into common factors, which is possible if each stride in C order divides the next.
    """
    strides = sorted(set(_suffix_products(source)) | set(_suffix_products(target)))
    pairs = list(itertools.pairwise(strides))
    if any(large % small for small, large in pairs):
        return None
    return Move.of(
        tuple(large // small for small, large in pairs),
        tuple(_step_of(source, small) for small, _ in pairs),
        tuple(_step_of(target, small) for small, _ in pairs),
    )


def _suffix_products(shape: tuple[int, ...]) -> list[int]:
    """Return 1, d_n, d_n·d_(n−1), …, the size: the strides in C order."""
    return list(itertools.accumulate(reversed(shape), lambda a, b: a * b, initial=1))


def _step_of(shape: tuple[int, ...], stride: int) -> int:
    """Return how far in memory one step of ``stride`` elements in C order is."""
    inner = 1
    for size, step in zip(reversed(shape), reversed(memory_steps(shape)), strict=True):
        if inner <= stride < inner * size:
            return step * (stride // inner)
        inner *= size
    raise AssertionError("a stride beyond the tensor")

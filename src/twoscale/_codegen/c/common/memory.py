"""The memory plan: the bytes of the arena that each tensor uses, and when."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Buffer", "MemoryPlan", "plan_memory"]


@dataclass(frozen=True)
class Buffer:
    """Bytes that are live from step ``first`` to step ``last``, inclusive."""

    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are live at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """The offset of each buffer."""

    offsets: tuple[int, ...]
    """In the order of the buffers, in bytes."""
    size: int
    """Total bytes."""
    bound: int
    """Lower bound for any plan: the most bytes that one step needs."""


_TRIES = 500


def plan_memory(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Place buffers so that those needed at one step do not overlap.

    Buffers are placed one after the other, each into the smallest sufficient gap between the buffers placed before that
    are live at the same time (best fit). The result depends on the order. Descending size is nearly always best. If it
    misses the lower bound, other orders are tried, many of them random (seeded), until one reaches it.
    """
    bound = max((_live(buffers, step) for step in {b.first for b in buffers}), default=0)
    best = MemoryPlan((), -1, bound)
    for order in _orders(buffers):
        offsets = _place(buffers, order)
        size = max((offset + b.size for offset, b in zip(offsets, buffers, strict=True)), default=0)
        if best.size < 0 or size < best.size:
            best = MemoryPlan(offsets, size, bound)
        if best.size == bound:
            break
    return best


def _orders(buffers: Sequence[Buffer]) -> Iterator[list[int]]:
    order = list(range(len(buffers)))
    yield sorted(order, key=lambda i: (-buffers[i].size, buffers[i].first))
    yield sorted(order, key=lambda i: (buffers[i].first - buffers[i].last, -buffers[i].size))
    yield sorted(order, key=lambda i: (buffers[i].first, -buffers[i].size))
    rng = random.Random(0)
    for _ in range(_TRIES):
        rng.shuffle(order)
        yield order


def _live(buffers: Sequence[Buffer], step: int) -> int:
    return sum(b.size for b in buffers if b.first <= step <= b.last)


def _place(buffers: Sequence[Buffer], order: Sequence[int]) -> tuple[int, ...]:
    offsets: dict[int, int] = {}
    for index in order:
        buffer = buffers[index]
        met = sorted((offsets[i], offsets[i] + buffers[i].size) for i in offsets if buffers[i].meets(buffer))
        best, best_gap, end = None, 0, 0
        for start, stop in met:
            gap = start - end
            if gap >= buffer.size and (best is None or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, stop)
        offsets[index] = end if best is None else best
    return tuple(offsets[i] for i in range(len(buffers)))

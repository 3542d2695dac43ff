"""The memory plan: which bytes of the arena each tensor uses, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Buffer", "MemoryPlan", "plan_memory"]


@dataclass(frozen=True)
class Buffer:
    """Bytes that are needed from one step to another, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at one step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Where each buffer lies."""

    offsets: tuple[int, ...]
    """In the order of the buffers, in bytes."""
    size: int
    """Bytes that all of it takes."""
    bound: int
    """No plan is smaller: the most bytes that one step needs."""


_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.size, b.first),
    lambda b: (-b.size * (b.last - b.first + 1), b.first),
    lambda b: (b.first - b.last, -b.size),
    lambda b: (b.first, -b.size),
)


def plan_memory(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Place buffers so that those needed at one step do not overlap.

    Greedy: one after the other, each into the smallest gap that is large enough between the buffers placed
    before that it meets (best fit). This is done for several orders, by size first; the smallest plan is kept.
    """
    bound = max((_live(buffers, step) for step in {b.first for b in buffers}), default=0)
    plans = []
    for order in _ORDERS:
        offsets = _place(buffers, sorted(range(len(buffers)), key=lambda i, order=order: order(buffers[i])))  # type: ignore[misc]
        size = max((offsets[i] + b.size for i, b in enumerate(buffers)), default=0)
        plans.append(MemoryPlan(tuple(offsets[i] for i in range(len(buffers))), size, bound))
    return min(plans, key=lambda plan: plan.size)


def _live(buffers: Sequence[Buffer], step: int) -> int:
    return sum(b.size for b in buffers if b.first <= step <= b.last)


def _place(buffers: Sequence[Buffer], order: Sequence[int]) -> dict[int, int]:
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
    return offsets

"""Which layers compute row by row to save RAM, and how many rows of each tensor are kept.

Neighbouring layers form a segment. In a segment each row is computed when it is first needed. A tensor that only the
segment reads is a ring of a few rows. An output of the segment may overwrite rows of a tensor that is last read in it.
A segment may also be a single layer that computes a whole tensor, as every layer does without this plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from twoscale._codegen.c.common.arrange import Arrangement
from twoscale._codegen.c.common.storage import memory_order
from twoscale._codegen.c.common.tensors import Place
from twoscale._ir import layers as n

__all__ = ["Segment", "Window", "plan_segments", "windows_of"]

_LONGEST = 40
"""Largest number of layers in a segment; it bounds the time of planning."""


@dataclass(frozen=True)
class Window:
    """The rows of an input that a layer needs for its row r: ``extent`` rows from r · stride − above on."""

    stride: int = 1
    above: int = 0
    extent: int = 1

    def needed(self, row: int, in_rows: int) -> int:
        """Return how many rows of the tensor must have been computed."""
        return min(in_rows, max(0, row * self.stride - self.above + self.extent))

    def first(self, row: int) -> int:
        """Return the first row of the tensor that is read."""
        return max(0, row * self.stride - self.above)


def windows_of(arrangement: Arrangement, layer: n.Layer) -> tuple[Window, ...] | None:
    """Return the rows that a layer needs of each input; None if it cannot compute row by row."""
    tensors = [arrangement.tensors[name] for name in (layer.name, *layer.inputs)]
    for tensor in tensors:
        plain = len(tensor.spec.shape) == 3 and tensor.item == 1
        if not plain or not np.array_equal(tensor.order, memory_order(tensor.spec.shape)):
            return None
    match layer:
        case n.Conv2d():
            window = Window(layer.stride[0], layer.padding[0], (layer.weight.shape[2] - 1) * layer.dilation[0] + 1)
            return (window, Window())[: len(layer.inputs)]
        case n.MaxPool2d():
            return (Window(layer.stride[0], layer.padding[0], (layer.kernel[0] - 1) * layer.dilation[0] + 1),)
        case n.AveragePool2d():
            return (Window(layer.stride[0], layer.padding[0], layer.kernel[0]),)
        case n.Add() | n.Clamp() | n.Table():
            return (Window(),) * len(layer.inputs)
        case n.Slice():
            return (Window(layer.step, -layer.start) if layer.axis == 1 else Window(),)
        case n.Pad():
            return (Window(1, layer.widths[1][0]),)
    return None


@dataclass(frozen=True)
class Segment:
    """The layers with indices first..last (inclusive), which compute together."""

    first: int
    last: int
    order: tuple[int, ...] = ()
    """The layer that computes its next row, for each turn; empty if the segment is one layer that computes a whole
    tensor."""
    kept: Mapping[str, int] = field(default_factory=dict)
    """Rows kept of each tensor that nothing outside reads."""
    over: tuple[str, str, int] | None = None
    """(tensor read last here, tensor made here, b): the second may begin at most b bytes after the start of the
    first."""
    bytes: int = 0
    """Bytes of the arena that the segment needs, without gaps between tensors."""
    saved: int = 0
    """Additional bytes without ``over``."""


class _Planner:
    """The facts about a network that planning needs."""

    def __init__(self, arrangement: Arrangement, places: Mapping[str, Place]) -> None:
        self.arrangement = arrangement
        self.layers = [arranged.layer for arranged in arrangement.layers]
        self.windows = [
            windows_of(arrangement, arranged.layer) if arranged.view_of is None else None
            for arranged in arrangement.layers
        ]
        self.height = {x.name: x.output.shape[1] for x in self.layers if len(x.output.shape) == 3}
        self.size = {layer.name: arrangement.tensors[layer.name].size for layer in self.layers}
        self.root = arrangement.roots
        self.made: dict[str, int] = {}
        self.read: dict[str, int] = {}
        """The steps at which tensors in the arena are written and last read."""
        for index, layer in enumerate(self.layers):
            for used in (*layer.inputs, layer.name):
                if places[used].where == "arena":
                    self.made.setdefault(self.root[used], index)
                    self.read[self.root[used]] = index

    def alive_before(self, first: int) -> int:
        """Return the bytes of tensors that are live when layer ``first`` begins."""
        return sum(self.size[x] for x in self.made if self.made[x] < first <= self.read[x])

    def whole(self, index: int) -> Segment:
        """Return the segment of one layer that computes whole tensors."""
        step = self.arrangement.layers[index]
        name = step.layer.name
        need = self.alive_before(index) + sum(scratch.size for scratch in step.scratch)
        over = None
        if self.made.get(name) == index:
            others = [self.root[x] for x in step.layer.inputs]
            for x in (self.root[x] for x in step.in_place_of):
                if self.read.get(x) == index and self.size[x] >= self.size[name] and others.count(x) == 1:
                    over = (x, name, 0)
            need += 0 if over else self.size[name]
        return Segment(index, index, over=over, bytes=need, saved=self.size[name] if over else 0)

    def streamed(self, first: int, last: int) -> Segment:
        """Return the segment of layers first..last row by row."""
        made = range(first, last + 1)
        inside = [x for x in self.made if self.made[x] in made and self.read[x] <= last]
        leaving = [x for x in self.made if self.made[x] in made and self.read[x] > last]
        leaving += [x.name for x in self.layers[first : last + 1] if x.name not in self.made]
        dying = [x for x in self.made if self.made[x] < first <= self.read[x] <= last]
        kept, room, order = self.simulate(first, last, dying, leaving)
        rings = {x: kept[x] for x in inside}
        need = self.alive_before(first) + sum(rows * self.row_bytes(x) for x, rows in rings.items())
        need += sum(self.size[x] for x in leaving if x in self.made)
        over, saved = None, 0
        for (x, y), room_after_begin in room.items():
            if y in self.made:
                begin = min(0, room_after_begin)
                together = max(self.size[x], begin + self.size[y]) - begin
                if self.size[x] + self.size[y] - together > saved:
                    over, saved = (x, y, begin), self.size[x] + self.size[y] - together
        return Segment(first, last, order, rings, over, need - saved, saved)

    def row_bytes(self, name: str) -> int:
        """Return the bytes of a row of a tensor (C, H, W)."""
        return self.size[name] // self.height[name]

    def simulate(
        self, first: int, last: int, dying: Sequence[str], leaving: Sequence[str]
    ) -> tuple[dict[str, int], dict[tuple[str, str], int], tuple[int, ...]]:
        """Run layers first..last row by row, each row when it is first needed.

        Returns:
            The largest number of rows of each tensor needed at once; for each pair (tensor last read here, output), the
            largest distance in bytes from the start of the first to the start of the second; and the layers in the
            order of their rows.
        """
        layers = self.layers[first : last + 1]
        height = self.height
        index = {layer.name: i for i, layer in enumerate(layers, first)}
        own = set(index)
        needs = {}
        readers: dict[str, list[tuple[str, Window]]] = {name: [] for name in (*own, *dying)}
        for layer, windows in zip(layers, self.windows[first : last + 1], strict=True):
            assert windows is not None
            pairs = list(zip(layer.inputs, windows, strict=True))
            needs[layer.name] = [(x, window) for x, window in pairs if x in own]
            for x, window in pairs:
                if x in readers:
                    readers[x].append((layer.name, window))
        done = dict.fromkeys(own, 0)
        kept = dict.fromkeys(own, 1)
        order: list[int] = []
        aligned = [x for x in dying if all(x in layer.inputs for layer in layers if self.reads(layer, x))]
        room = {(x, y): self.size[x] for x in aligned for y in leaving}

        def oldest(x: str, newest: int) -> int:
            return min((w.first(done[r]) for r, w in readers[x] if done[r] < height[r]), default=newest)

        def compute_next(name: str) -> None:
            row = done[name]
            for x, window in needs[name]:
                while done[x] < window.needed(row, height[x]):
                    compute_next(x)
            for x, y in room:
                if y == name:
                    free = min(oldest(x, height[x]), height[x]) * self.row_bytes(x)
                    room[x, y] = min(room[x, y], free - (row + 1) * self.row_bytes(y))
            kept[name] = max(kept[name], row + 1 - min(oldest(name, row), row))
            done[name] += 1
            order.append(index[name])

        for layer in (layers[-1], *layers):
            while done[layer.name] < height[layer.name]:
                compute_next(layer.name)
        return kept, room, tuple(order)

    def reads(self, layer: n.Layer, x: str) -> bool:
        """Whether a layer reads the bytes of x, also through a view."""
        return any(self.root[used] == x for used in layer.inputs)


def plan_segments(arrangement: Arrangement, places: Mapping[str, Place]) -> list[Segment]:
    """Cut the layers into segments to minimize the arena bytes of the segment that needs the most.

    Among plans that need equally many, it chooses the one with the fewest layers row by row. ``places`` has the places
    of whole tensors; it decides which of them are in the arena.
    """
    planner = _Planner(arrangement, places)
    count = len(arrangement.layers)
    best: list[tuple[int, int, tuple[Segment, ...]]] = [(0, 0, ())]
    for end in range(count):
        most, streamed, segments = best[end]
        segment = planner.whole(end)
        choices = [(max(most, segment.bytes), streamed, (*segments, segment))]
        for start in range(end, max(-1, end - _LONGEST), -1):
            if planner.windows[start] is None:
                break
            most, streamed, segments = best[start]
            segment = planner.streamed(start, end)
            choices.append((max(most, segment.bytes), streamed + end - start + 1, (*segments, segment)))
        best.append(min(choices, key=lambda choice: choice[:2]))
    return list(best[count][2])

"""IntegerNetwork → RowProgram: the calls for little RAM and the place of every tensor, but no text."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twoscale._codegen.c.common.arrange import ArrangedLayer, Arrangement, Copy, arrange
from twoscale._codegen.c.common.calls import Call, Operand
from twoscale._codegen.c.common.memory import MemoryPlan
from twoscale._codegen.c.common.placement import place
from twoscale._codegen.c.common.program import Constants
from twoscale._codegen.c.common.storage import Move, memory_order, memory_steps
from twoscale._codegen.c.common.tensors import Place, Tensor
from twoscale._codegen.c.portable import parameters as k
from twoscale._codegen.c.portable.calls import Faster, PortableCalls, copy_call
from twoscale._codegen.c.portable.lowering import Program
from twoscale._codegen.c.small_ram.segments import Segment, plan_segments
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["RowProgram", "lower"]

_TRIES = 300


@dataclass(frozen=True, eq=False)
class RowProgram(Program):
    """A program whose layers compute row by row where that saves memory.

    The steps of such layers have the calls for one row. The operands are then the row of the layer's output and the
    input row of the same number. ``conv2d_row`` and the pools take all rows of their inputs that are in memory.
    """

    segments: tuple[Segment, ...]
    kept: Mapping[str, int]
    """Rows of the tensors that are rings. Other tensors are kept whole."""

    def rows_of(self, name: str) -> tuple[int, int]:
        """Return how many rows of a tensor (C, H, W) are kept, and the bytes of one."""
        height = self.tensors[name].spec.shape[1]
        return self.kept.get(name, height), self.tensors[name].size // height

    def bytes_kept(self, name: str) -> int:
        """Return the bytes that a tensor takes."""
        if name not in self.kept:
            return super().bytes_kept(name)
        rows, row_bytes = self.rows_of(name)
        return rows * row_bytes


def lower(network: IntegerNetwork, faster: Faster | None = None) -> RowProgram:
    """Turn a network into calls that need little RAM.

    Args:
        network: on the grid.
        faster: kernels that take the place of portable ones.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    arrangement = arrange(network)
    whole = place(arrangement)
    segments = tuple(plan_segments(arrangement, whole.places))
    kept = {name: rows for segment in segments for name, rows in segment.kept.items()}
    places, size = _place(arrangement, whole.places, segments, kept)
    plan = MemoryPlan((), size, max(segment.bytes for segment in segments))
    live = tuple(segment.bytes for segment in segments for _ in range(segment.first, segment.last + 1))
    if size >= whole.plan.size:  # no gain
        segments, kept = tuple(Segment(i, i) for i in range(len(arrangement.layers))), {}
        places, plan, live = dict(whole.places), whole.plan, whole.live_bytes
    streamed = {index for segment in segments for index in segment.order}
    rows = _RowCalls(arrangement, Constants(), faster=faster)
    steps = tuple(rows.step(layer, rows.of_a_row if layer.index in streamed else None) for layer in arrangement.layers)
    return RowProgram(network, arrangement.tensors, steps, places, plan, live, segments, kept)


class _RowCalls(PortableCalls):
    """Also makes the calls that compute layers row by row."""

    def of_a_row(self, arranged: ArrangedLayer) -> tuple[Call, ...]:
        """Return the calls that compute one row of a layer."""
        made = self.faster.row(self, arranged.layer) if self.faster else None
        return _ROW[type(arranged.layer)](self, arranged.layer) if made is None else made

    def conv2d_row(self, layer: n.Conv2d) -> Call:
        """Return the call of one row of a convolution."""
        return k.Conv2dTilesRow(*self.conv2d(layer)) if self.in_tiles(layer) else k.Conv2dRow(*self.conv2d(layer))

    def row_size(self, layer: n.Layer) -> int:
        """Return the bytes of a row of a layer's output."""
        return self.tensor(layer).size // layer.output.shape[1]


def _slice(rows: _RowCalls, layer: n.Slice) -> tuple[Call, ...]:
    x, y = _row(rows.arrangement.inputs(layer)[0]), _row(rows.tensor(layer))
    to_steps, from_steps = memory_steps(y.spec.shape), list(memory_steps(x.spec.shape))
    offset = 0
    if layer.axis != 1:
        offset = layer.start * from_steps[layer.axis]
        from_steps[layer.axis] *= layer.step
    move = Move.of(y.spec.shape, tuple(from_steps), to_steps, offset)
    return (copy_call(Copy.of(rows.arrangement.network, x, y, move)),)


def _pad(rows: _RowCalls, layer: n.Pad) -> tuple[Call, ...]:
    x, y = _row(rows.arrangement.inputs(layer)[0]), _row(rows.tensor(layer))
    to_steps = memory_steps(y.spec.shape)
    offset = sum(layer.widths[axis][0] * to_steps[axis] for axis in (0, 2))
    move = Move.of(x.spec.shape, memory_steps(x.spec.shape), to_steps, 0, offset)
    return (
        k.Memset(Operand(layer.name), x.zero, y.size),
        copy_call(Copy.of(rows.arrangement.network, x, y, move)),
    )


_ROW: dict[type[n.Layer], Callable[[_RowCalls, Any], tuple[Call, ...]]] = {
    n.Add: lambda rows, layer: (rows.add(layer, rows.row_size(layer)),),
    n.AveragePool2d: lambda rows, layer: (k.AveragePool2dRow(*rows.average_pool(layer)),),
    n.Clamp: lambda rows, layer: (rows.clamp(layer, rows.row_size(layer)),),
    n.Conv2d: lambda rows, layer: (rows.conv2d_row(layer),),
    n.MaxPool2d: lambda rows, layer: (k.MaxPool2dRow(*rows.max_pool(layer)),),
    n.Pad: _pad,
    n.Slice: _slice,
    n.Table: lambda rows, layer: (rows.look_up(layer, rows.row_size(layer)),),
}
"""The layers that ``segments.windows_of`` knows."""


def _row(tensor: Tensor) -> Tensor:
    """Return one row of a tensor (C, H, W) as a tensor."""
    channels, _, width = tensor.spec.shape
    shape = (channels, 1, width)
    return Tensor(tensor.name, replace(tensor.spec, shape=shape), memory_order(shape))


@dataclass(frozen=True)
class _Part:
    """A tensor in a body: bytes at ``begin``, live from segment ``first`` to segment ``last``."""

    name: str
    begin: int
    size: int
    first: int
    last: int

    def at(self, offset: int) -> _Part:
        return replace(self, begin=self.begin + offset)

    def collides(self, other: _Part) -> bool:
        meet = self.first <= other.last and other.first <= self.last
        return meet and self.begin < other.begin + other.size and other.begin < self.begin + self.size


def _place(
    arrangement: Arrangement, whole: Mapping[str, Place], segments: Sequence[Segment], kept: Mapping[str, int]
) -> tuple[dict[str, Place], int]:
    """Lay out the arena, given the places of whole tensors.

    Tensors that may share bytes have fixed distances from each other and are placed together.
    """
    bound = max((segment.bytes for segment in segments), default=0)
    # Tensors that need not share bytes are easier to place one by one.
    hungry = [replace(s, over=s.over if s.bytes + s.saved > bound else None) for s in segments]
    best: list[_Part] = []
    best_size = -1
    for order in _orders(*(_bodies(arrangement, whole, ways, kept) for ways in (hungry, segments))):
        placed: list[_Part] = []
        for body in order:
            ends = sorted({0, *(p.begin + p.size - part.begin for p in placed for part in body)})
            offset = next(
                end for end in ends if end >= 0 and not any(part.at(end).collides(p) for part in body for p in placed)
            )
            placed += [part.at(offset) for part in body]
        size = max((part.begin + part.size for part in placed), default=0)
        if best_size < 0 or size < best_size:
            best, best_size = placed, size
        if best_size <= bound:
            break
    offsets = {part.name: part.begin for part in best}
    places: dict[str, Place] = {}
    for step in arrangement.layers:
        name = step.layer.name
        for scratch in step.scratch:
            places[scratch.name] = Place("arena", offsets[scratch.name])
        if step.view_of is not None:
            places[name] = places[step.view_of]
        elif whole[name].where == "arena":
            places[name] = Place("arena", offsets[name])
        else:
            places[name] = whole[name]
    return places, best_size


def _bodies(
    arrangement: Arrangement, whole: Mapping[str, Place], segments: Sequence[Segment], kept: Mapping[str, int]
) -> list[list[_Part]]:
    """Return the groups of tensors that are placed together."""
    segment_of = {i: number for number, s in enumerate(segments) for i in range(s.first, s.last + 1)}
    root: dict[str, str] = {}
    made: dict[str, int] = {}
    read: dict[str, int] = {}
    size: dict[str, int] = {}
    for step in arrangement.layers:
        name, now = step.layer.name, segment_of[step.index]
        root[name] = name if step.view_of is None else root[step.view_of]
        if whole[name].where == "arena" and root[name] == name:
            made[name], size[name] = now, arrangement.tensors[name].size
            if name in kept:
                size[name] = kept[name] * (size[name] // step.layer.output.shape[1])
        for scratch in step.scratch:
            made[scratch.name], read[scratch.name], size[scratch.name] = now, now, scratch.size
        for used in (*step.layer.inputs, name):
            if root[used] in made:
                read[root[used]] = now
    bodies: dict[str, list[_Part]] = {}
    for name in made:
        bodies[name] = [_Part(name, 0, size[name], made[name], read[name])]
    for segment in segments:
        if segment.over is not None:
            x, y, begin = segment.over
            offset = next(part.begin for part in bodies[x] if part.name == x) + begin
            (own,) = bodies[y]
            bodies[x].append(own.at(offset))
            for part in bodies[x]:
                bodies[part.name] = bodies[x]
    found = []
    for body in {id(body): body for body in bodies.values()}.values():
        lowest = min(part.begin for part in body)
        found.append([part.at(-lowest) for part in body])
    return found


def _orders(*ways: list[list[_Part]]) -> Iterator[list[list[_Part]]]:
    """Yield orders in which to place bodies: by size, by time, then at random (seeded)."""
    for bodies in ways:
        yield sorted(bodies, key=lambda body: -max(part.begin + part.size for part in body))
        yield sorted(bodies, key=lambda body: min(part.first for part in body))
    rng = random.Random(0)
    for _ in range(_TRIES):
        for bodies in ways:
            yield rng.sample(bodies, len(bodies))

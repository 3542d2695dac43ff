"""Arrangement → Placement: which tensors share bytes, and where in the arena each lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twoscale._codegen.c.common.arrange import ArrangedLayer, Arrangement
from twoscale._codegen.c.common.memory import Buffer, MemoryPlan, plan_memory
from twoscale._codegen.c.common.tensors import Place, outputs_layout

__all__ = ["Placement", "place"]


@dataclass(frozen=True)
class Placement:
    """The places of tensors."""

    places: Mapping[str, Place]
    plan: MemoryPlan
    live_bytes: tuple[int, ...]
    """Bytes of the arena that each layer needs."""


@dataclass
class _Group:
    """Tensors that share bytes."""

    size: int
    first: int
    last: int
    where: str = "arena"
    offset: int = 0


def place(arrangement: Arrangement) -> Placement:
    """Decide which tensors share bytes, and lay out the arena, for kernels that compute whole tensors of one image.

    The inputs and the outputs are in the caller's buffers. An int8 input is first converted to bytes in the arena.
    """
    network, tensors = arrangement.network, arrangement.tensors
    groups: dict[str, _Group] = {}
    for step in arrangement.layers:
        name = step.layer.name
        if step.view_of is not None:
            groups[name] = groups[step.view_of]
        else:
            groups[name] = _Group(tensors[name].size, step.index, step.index)
        for used in (*step.layer.inputs, *(t.name for t in step.scratch)):
            group = groups.setdefault(used, _Group(tensors[used].size, step.index, step.index))
            group.last = step.index
    for entry, offset in zip(network.inputs, network.input_layout.offsets, strict=True):
        if not tensors[entry.name].shift:
            groups[entry.name].where, groups[entry.name].offset = "image", offset
    layout = outputs_layout([tensors[name].spec for name in network.outputs])
    for output, offset in zip(network.outputs, layout.offsets, strict=True):
        groups[output].where, groups[output].offset = "output", offset

    for step in arrangement.layers:
        _share_in_place(step, groups)
    arena = list({id(g): g for g in groups.values() if g.where == "arena"}.values())
    buffers = [Buffer(g.size, g.first, g.last) for g in arena]
    plan = plan_memory(buffers)
    for group, offset in zip(arena, plan.offsets, strict=True):
        group.offset = offset
    places = {name: Place(group.where, group.offset) for name, group in groups.items()}
    live = tuple(sum(b.size for b in buffers if b.first <= step.index <= b.last) for step in arrangement.layers)
    return Placement(places, plan, live)


def _share_in_place(step: ArrangedLayer, groups: dict[str, _Group]) -> None:
    """Let a step's result overwrite an operand that is read there for the last time, if the kernel allows it."""
    mine = groups[step.layer.name]
    for candidate in step.in_place_of:
        theirs = groups[candidate]
        others = {name for name in step.layer.inputs if name != candidate}
        if (
            mine.where == theirs.where == "arena"
            and mine is not theirs
            and theirs.last == step.index
            and mine.size <= theirs.size
            and all(groups[name] is not theirs for name in others)
        ):
            theirs.last = max(theirs.last, mine.last)
            for name, group in groups.items():
                if group is mine:
                    groups[name] = theirs
            return

"""IntegerNetwork → VectorProgram: calls of vector kernels and the place of every tensor, but no text.

Images are in H, W, C order as in the portable C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twoscale._codegen.c.common.arrange import Arrangement, arrange
from twoscale._codegen.c.common.memory import Buffer, MemoryPlan, plan_memory
from twoscale._codegen.c.common.program import Lowered, Step
from twoscale._codegen.c.common.tensors import Place
from twoscale._codegen.c.vector.calls import VectorCalls
from twoscale._codegen.c.vector.layout import Rows
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["VectorProgram", "lower"]

_ALIGNMENT = 64
_SLACK = 64
"""Bytes after each tensor that vector loads may read."""
_BLOCK_BYTES = 2 * 1024 * 1024
"""Bytes of a core's second-level cache, which the arenas of a block of images must fit."""
_LARGEST_BLOCK = 16
_LATE_BLOCK = 4
"""Images of a block whose first layers are computed one image at a time."""


@dataclass(frozen=True, eq=False)
class VectorProgram(Lowered):
    """A network as calls of kernels for a block of images.

    Places are those of a tensor's first row in one image's part of the arena. ``live_bytes`` refer to that part too.
    """

    rows: Mapping[str, Rows]
    """Rows of each tensor."""
    image_bytes: int
    """Bytes of one image's part of the arena."""
    block: int
    """Images computed together."""
    alone: int
    """Steps that are computed for one image of a block after the other, because the images together do not fit the
    second-level cache there. Weights of later steps are read once for all images."""

    @property
    def arena_bytes(self) -> int:
        """Size of one thread's arena, with the bytes lost to alignment and those that vectors read beyond the last
        tensor."""
        beyond = max(
            (4 * layer.groups * layer.dilation[1] for layer in self.network if isinstance(layer, n.Conv2d)), default=0
        )
        return self.image_bytes * self.block + _ALIGNMENT + _SLACK + beyond


def lower(
    network: IntegerNetwork, *, pairs: bool, matrices: bool, always_matrices: bool, signed: bool
) -> VectorProgram:
    """Turn a network into calls of vector kernels and plan its memory.

    Args:
        network: on the grid.
        pairs: whether an instruction set adds products of bytes in pairs that may saturate.
        matrices: whether an instruction set multiplies matrices of bytes.
        always_matrices: whether all do, except the plain C.
        signed: whether an instruction set multiplies activations as signed bytes.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    arrangement = arrange(network)
    vector = VectorCalls(arrangement, pairs=pairs, matrices=matrices, always_matrices=always_matrices, signed=signed)
    steps = tuple(vector.portable.step(layer, vector.of) for layer in arrangement.layers)
    rows, tensors = vector.rows, vector.tensors
    places, plan, live = _place(arrangement, rows, steps)
    image_bytes = _aligned(max(plan.size, 1) + _SLACK)
    if image_bytes % 4096 == 0:  # otherwise images would compete for the same sets of the first-level cache
        image_bytes += _ALIGNMENT
    block, alone = min(_LARGEST_BLOCK, _BLOCK_BYTES // image_bytes), 0
    if block < _LATE_BLOCK:
        large = [index for index, size in enumerate(live) if size * _LATE_BLOCK > _BLOCK_BYTES]
        block, alone = _LATE_BLOCK, large[-1] + 1 if large else 0
    return VectorProgram(network, tensors, steps, places, plan, live, rows, image_bytes, block, alone)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _place(
    arrangement: Arrangement, rows: Mapping[str, Rows], steps: Sequence[Step]
) -> tuple[dict[str, Place], MemoryPlan, tuple[int, ...]]:
    """Lay out one image's part of the arena."""
    roots = dict(arrangement.roots)
    spans: dict[str, tuple[int, int]] = {}
    for step in steps:
        name = step.layer.name
        used = [operand.tensor for call in step.calls for operand in call.operands]
        for tensor in (name, *used, *step.layer.inputs):
            root = roots.setdefault(tensor, tensor)
            first, _ = spans.get(root, (step.index, step.index))
            spans[root] = (first, step.index)
    for output in arrangement.network.outputs:  # read once more when they are copied to the caller
        root = roots[output]
        spans[root] = (spans[root][0], len(steps))
    buffers = [Buffer(_aligned(rows[name].size + _SLACK), *span) for name, span in spans.items()]
    plan = plan_memory(buffers)
    placed = dict(zip(spans, plan.offsets, strict=True))
    live = tuple(sum(b.size for b in buffers if b.first <= step.index <= b.last) for step in steps)
    places = {name: Place("arena", placed[root] + rows[name].first) for name, root in roots.items()}
    return places, plan, live

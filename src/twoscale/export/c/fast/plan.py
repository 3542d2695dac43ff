"""IntegerNetwork → FastProgram: vector kernels on rows of bytes, several images at a time. No text yet.

Images lie in H, W, C order like those of the portable C, but a tensor that a convolution reads has a border of zero
points, so that windows need no bounds checks: rows are further apart than they are long. What has no vector kernel
keeps its portable one, image after image, on tensors without a border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twoscale.export.c.lowering import Constant, Fields, Operand, Place, Program, Step, Tensor, lower
from twoscale.export.c.memory import Buffer, MemoryPlan, plan_memory
from twoscale.export.c.text import decimal
from twoscale.network import layers as n
from twoscale.network.network import IntegerNetwork

__all__ = ["FastCall", "FastProgram", "FastStep", "Rows", "lower_fast"]

_ALIGNMENT = 64
_SLACK = 64
"""Bytes after each tensor that vector loads may touch."""
_BLOCK_BYTES = 768 * 1024
"""Arenas of a block of images are to stay in a core's second-level cache."""
_LARGEST_BLOCK = 16


@dataclass(frozen=True)
class Rows:
    """Where the bytes of one image's tensor lie: rows of equal length, equally far apart."""

    count: int
    length: int
    """Bytes of a row."""
    stride: int
    """Bytes from one row to the next."""
    first: int = 0
    """Bytes before the first row."""
    size: int = 0
    """Bytes of all of it, border included."""

    @staticmethod
    def dense(size: int) -> Rows:
        """One row."""
        return Rows(1, size, size, 0, size)

    @property
    def has_border(self) -> bool:
        """Whether there is anything around the rows."""
        return self.size != self.count * self.length


@dataclass(frozen=True)
class FastCall:
    """One call of a kernel for a block of images.

    Kernels of the portable C (``portable``) take one image; others take the block.
    """

    kernel: str
    arguments: tuple[Operand | int | str, ...]
    fields: Fields | None = None
    portable: bool = False


@dataclass(frozen=True, eq=False)
class FastStep:
    """What one layer does."""

    index: int
    layer: n.Layer
    identifier: str
    calls: tuple[FastCall, ...]
    constants: tuple[Constant, ...]
    view_of: str | None
    macs: int


@dataclass(frozen=True, eq=False)
class FastProgram:
    """A network as calls of kernels for a block of images."""

    network: IntegerNetwork
    tensors: Mapping[str, Tensor]
    rows: Mapping[str, Rows]
    """By tensor."""
    offsets: Mapping[str, int]
    """Where in an image's part of the arena each tensor begins, border included."""
    steps: tuple[FastStep, ...]
    plan: MemoryPlan
    live_bytes: tuple[int, ...]
    """Bytes of an image's part of the arena that each step needs."""
    image_bytes: int
    """An image's part of the arena."""
    block: int
    """Images that are computed together."""

    @property
    def input(self) -> Tensor:
        """The quantized image."""
        return self.tensors[self.network.input.name]

    @property
    def output(self) -> Tensor:
        """What the network gives."""
        return self.tensors[self.network.output]

    @property
    def places(self) -> Mapping[str, Place]:
        """Where in an image's part of the arena each tensor's rows begin."""
        return {name: Place("arena", self.offsets[name] + self.rows[name].first) for name in self.offsets}

    @property
    def arena_bytes(self) -> int:
        """Size of the arena of one thread, with what alignment takes."""
        return self.image_bytes * self.block + 2 * _ALIGNMENT


def lower_fast(network: IntegerNetwork) -> FastProgram:
    """Turn a network into calls of vector kernels and plan its memory.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    program = lower(network)
    steps = tuple(_step(program, step) for step in program.steps)
    rows = {name: Rows.dense(tensor.size) for name, tensor in program.tensors.items()}
    offsets, plan, live = _place(program, rows, steps)
    image_bytes = _aligned(max(plan.size, 1) + _SLACK)
    if image_bytes % 4096 == 0:  # images then would compete for the same sets of the first-level cache
        image_bytes += _ALIGNMENT
    block = max(1, min(_LARGEST_BLOCK, _BLOCK_BYTES // image_bytes))
    return FastProgram(network, program.tensors, rows, offsets, steps, plan, live, image_bytes, block)


def _step(program: Program, step: Step) -> FastStep:
    calls = tuple(FastCall(call.kernel, call.arguments, call.fields, portable=True) for call in step.calls)
    constants = step.constants
    if isinstance(step.layer, n.QuantizeInput):
        calls, constants = (_read_images(program),), ()
    return FastStep(step.index, step.layer, step.identifier, calls, constants, step.view_of, step.macs)


def _read_images(program: Program) -> FastCall:
    x = program.input
    spec = x.spec
    channels, height, width = spec.shape if len(spec.shape) == 3 else (1, 1, len(x.order))
    fields = {
        "in_h": height,
        "in_w": width,
        "in_c": channels,
        "row_stride": width * channels,
        "scale": f"{decimal(np.float32(spec.scale))}f",
        "lo": f"{spec.lo - spec.zero_point}.0f",
        "hi": f"{spec.hi - spec.zero_point}.0f",
        "zero": x.zero,
        "shift": x.shift,
    }
    return FastCall("read_images", ("b", Operand(x.name)), fields)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _place(
    program: Program, rows: Mapping[str, Rows], steps: Sequence[FastStep]
) -> tuple[dict[str, int], MemoryPlan, tuple[int, ...]]:
    """Lay out one image's part of the arena."""
    roots: dict[str, str] = {}
    spans: dict[str, tuple[int, int]] = {}
    for step in steps:
        name = step.layer.name
        roots[name] = name if step.view_of is None else roots[step.view_of]
        used = {a.tensor for call in step.calls for a in call.arguments if isinstance(a, Operand)}
        for tensor in {name, *used, *step.layer.inputs}:
            root = roots.setdefault(tensor, tensor)
            first, _ = spans.get(root, (step.index, step.index))
            spans[root] = (first, step.index)
    root = roots[program.network.output]
    spans[root] = (spans[root][0], len(steps))  # read once more, when outputs are handed over
    buffers = [Buffer(_aligned(rows[name].size + _SLACK), *span) for name, span in spans.items()]
    plan = plan_memory(buffers)
    placed = dict(zip(spans, plan.offsets, strict=True))
    live = tuple(sum(b.size for b in buffers if b.first <= step.index <= b.last) for step in steps)
    return {name: placed[root] for name, root in roots.items()}, plan, live

"""How threads share one image: the phases of a network, and a model of what sharing costs and gains.

A phase is some calls that need nothing from each other. All threads wait after each phase. Within a phase each of ``n``
threads computes one of ``n`` equal parts: rows of the result, or groups of its channels. With

    c   cycles of the call on one thread, from the model of tiles, from that of matrices if the target always multiplies
        these, or from the rates below,
    s   the largest part, as a fraction of the whole,
    w   bytes of the weights, which every thread reads in full if rows are shared,
    x   half of the bytes of the input and of the result: where channels are shared, that much is read by the thread
        that has not written it, here and in the next layer,

a convolution takes c·s + w / WEIGHT_BYTES cycles if rows are shared, and c·s + x / REMOTE_BYTES if channels are. It
shares what takes less. If both threads write a cache line of every pixel, channels take BOUNCE cycles more per pixel. A
phase is shared
if that gains more than HANDOVER, which is what reading the other core's results costs. A network is shared if all
phases together, with a BARRIER after each, take less than GAIN of the time of one thread; otherwise each image is
computed by one thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._codegen.c.common.calls import Call
from twoscale._codegen.c.common.program import Step
from twoscale._codegen.c.vector import block_calls as k
from twoscale._codegen.c.vector.matrices import matrix_cycles
from twoscale._codegen.c.vector.tiles import LANES, Tile, tile_cycles

__all__ = ["Phase", "is_shared", "phases_of", "shares_channels"]

_THREADS = 2
"""The model compares one thread with two. More threads get parts of the same kind."""
_REMOTE_BYTES = 3
"""Bytes per cycle that a core reads from another core's cache."""
_CACHE_LINE = 64
"""Bytes."""
_BOUNCE = 50
_HANDOVER = 6000
_BARRIER = 2000
_GAIN = 0.75
_CYCLES_PER_TAP = 0.06
"""Of a depthwise convolution, per byte of the result."""
_CYCLES_PER_PIXEL = 0.4
"""Of reading images, per number."""
_CYCLES_PER_JOINED = 0.5
"""Of a sum or a product, per byte of the result."""
_CYCLES_PER_COPIED = 0.1
"""Of a copy or a table, per byte."""
_CYCLES_PER_MAXIMUM = 0.1
"""Of a max pool, per byte of a window."""
_WEIGHT_BYTES = 10
"""Bytes of weights per cycle that a core reads. They come from memory or from a cache that all cores share."""


@dataclass(frozen=True)
class Phase:
    """Calls that need nothing from each other."""

    calls: tuple[tuple[Call, str], ...]
    """Each with the name of its parameters."""
    ends: Step | None
    """The step whose last calls these are, if they are."""
    cycles: float
    """Of one thread."""
    shared_cycles: float
    """Of two threads."""
    most: int
    """Threads that can share it; 0 if there is nothing to compute."""


def shares_channels(
    params: k.ConvParams, tile: Tile, bits: int, weight_bytes: int, image_bytes: int, *, matrices: bool
) -> bool:
    """Whether threads that share an image compute channels of a convolution each, not rows.

    Args:
        params: of the convolution.
        tile: what the kernel computes at a time.
        bits: of a stored weight.
        weight_bytes: of all weights.
        image_bytes: of the input and the result.
        matrices: whether the target always multiplies matrices.
    """
    cycles = _conv_cycles(params, tile, bits, matrices)
    groups = _groups(params, tile.vectors)
    boundary = groups // _THREADS * tile.vectors * LANES
    rows = cycles * _largest_of_rows(params.out_h, _tile_rows(params, tile, matrices)) + weight_bytes / _WEIGHT_BYTES
    channels = cycles * _largest(groups) + image_bytes / 2 / _REMOTE_BYTES
    if params.out_c % _CACHE_LINE or boundary % _CACHE_LINE:
        channels += _BOUNCE * params.out_h * params.out_w
    return channels < rows


def phases_of(steps: Sequence[Step], instances: Sequence[Sequence[str]], *, matrices: bool) -> list[Phase]:
    """Return the phases of all steps, in order.

    Args:
        steps: of the program.
        instances: names of the parameters of each step's calls.
        matrices: whether the target always multiplies matrices.
    """
    phases: list[Phase] = []
    for step, names in zip(steps, instances, strict=True):
        groups: list[list[tuple[Call, str]]] = [[]]
        for call, name in zip(step.calls, names, strict=True):
            if groups[-1] and not _joins(call, [other for other, _ in groups[-1]]):
                groups.append([])
            groups[-1].append((call, name))
        phases += [_phase(group, step if group is groups[-1] else None, matrices) for group in groups]
    return phases


def is_shared(phases: Sequence[Phase]) -> bool:
    """Whether threads share one image."""
    alone = sum(phase.cycles for phase in phases)
    together = sum(phase.shared_cycles + _BARRIER for phase in phases if phase.most)
    return together < _GAIN * alone


def _joins(call: Call, others: Sequence[Call]) -> bool:
    """Whether a call needs nothing from the others of a phase, and all of them can be shared."""
    if not all(isinstance(one, k.BlockCall) and one.kernel.is_shared for one in (call, *others)):
        return False
    written = {other.operands[-1].tensor for other in others}
    return not written.intersection(_read(call))


def _read(call: Call) -> list[str]:
    """Return the tensors that a call reads. The last operand is the result."""
    return [operand.tensor for operand in call.operands[:-1]]


def _phase(group: Sequence[tuple[Call, str]], ends: Step | None, matrices: bool) -> Phase:
    calls = [call for call, _ in group]
    each = [_cycles(call, matrices) for call in calls]
    cycles = sum(each)
    shared = sum(one * _largest_part(call, matrices) for one, call in zip(each, calls, strict=True))
    most = _units(calls[each.index(max(each))], matrices) if calls else 0
    if cycles - shared <= _HANDOVER:
        return Phase(tuple(group), ends, cycles, cycles, min(most, 1))
    return Phase(tuple(group), ends, cycles, shared + _HANDOVER, most)


def _largest(units: int) -> float:
    """Return the largest part of so many units."""
    return math.ceil(units / _THREADS) / units if units else 1.0


def _largest_of_rows(out_h: int, tile_rows: int) -> float:
    """Return the largest part of a convolution's rows, which are computed in tiles."""
    if out_h < _THREADS * tile_rows:
        return 1.0
    return min(1.0, math.ceil(math.ceil(out_h / _THREADS) / tile_rows) * tile_rows / out_h)


def _largest_part(call: Call, matrices: bool) -> float:
    if isinstance(call, k.Conv) and not call.parameters.by_channels:
        return _largest_of_rows(call.parameters.out_h, _tile_rows(call.parameters, call.tile, matrices))
    return _largest(_units(call, matrices))


def _tile_rows(params: k.ConvParams, tile: Tile | k.ConvInstance, matrices: bool) -> int:
    """Return the rows that a convolution computes together."""
    return 1 if matrices and params.matrix_words else tile.rows


def _groups(params: k.ConvParams, vectors: int) -> int:
    return math.ceil(params.out_c / (LANES * vectors))


def _units(call: Call, matrices: bool) -> int:
    """Return into how many parts a call can be divided."""
    match call:
        case k.Conv(parameters=conv, tile=tile):
            rows = _tile_rows(conv, tile, matrices)
            return _groups(conv, tile.vectors) if conv.by_channels else max(1, conv.out_h // rows)
        case k.Linear(parameters=linear, compiled_for=tile):
            return _groups(linear, tile.vectors)
        case k.Depthwise(parameters=depthwise):
            return depthwise.out_h
        case k.MaxPool(parameters=pool):
            return pool.out_h
        case k.ReadImages(parameters=image):
            return image.in_h
        case k.AddRows(parameters=join) | k.MultiplyRows(parameters=join):
            return join.rows
        case k.AddFixedRows(parameters=fixed):
            return fixed.rows
        case k.LookUpRows(parameters=table):
            return table.rows
        case k.CopyRows(parameters=copy):
            return copy.rows
        case k.FillBorder(parameters=border):
            return border.rows
    return 1


def _conv_cycles(params: k.ConvParams, tile: Tile, bits: int, matrices: bool) -> float:
    vectors, words = _groups(params, tile.vectors) * tile.vectors, params.segments * params.words * 8 // bits
    if matrices and params.matrix_words is not None and params.matrix_pixels is not None:
        return matrix_cycles(
            params.out_h,
            params.out_w,
            vectors,
            steps=words // params.matrix_words,
            pixels=params.matrix_pixels,
            row_pixels=params.row_pixels or 0,
        )
    return tile_cycles(tile, params.out_h, params.out_w, vectors, words)


def _cycles(call: Call, matrices: bool) -> float:
    """Return the cycles of a call for one image on one thread."""
    match call:
        case k.Conv(parameters=conv, tile=tile):
            return _conv_cycles(conv, Tile(tile.pixels, tile.rows, tile.vectors), tile.bits, matrices)
        case k.Linear(parameters=linear):
            return linear.weight.size / _WEIGHT_BYTES
        case k.Depthwise(parameters=depthwise, compiled_for=taps):
            taps_of_byte = taps.height * taps.fours * 4
            return depthwise.out_h * depthwise.runs * depthwise.run_bytes * taps_of_byte * _CYCLES_PER_TAP
        case k.MaxPool(parameters=pool) | k.AveragePool(parameters=pool):
            return pool.out_h * pool.out_w * pool.channels * pool.kernel_h * pool.kernel_w * _CYCLES_PER_MAXIMUM
        case k.ReadImages(parameters=image):
            return image.in_h * image.in_w * image.in_c * _CYCLES_PER_PIXEL
        case k.AddRows(parameters=join) | k.MultiplyRows(parameters=join):
            return join.rows * join.row_bytes * _CYCLES_PER_JOINED
        case k.AddFixedRows(parameters=fixed):
            return fixed.rows * fixed.row_bytes * _CYCLES_PER_JOINED
        case k.LookUpRows(parameters=table):
            return table.rows * table.row_bytes * _CYCLES_PER_COPIED
        case k.CopyRows(parameters=copy):
            return copy.rows * copy.row_bytes * _CYCLES_PER_COPIED
    return 0.0

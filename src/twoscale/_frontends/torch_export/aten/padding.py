"""Padding, by a value or by pixels that are there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, unsupported
from twoscale._ir.float_graph import Pad, Slice
from twoscale.errors import CaptureError


def pad(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Padding of any dimension but the batch."""
    argument = a["self"] if "self" in a else a["input"]
    rank = len(e.input_shape(argument))
    padding = a["pad"] if "pad" in a else a["padding"]
    flat = [int(n) for n in padding]
    widths = [(0, 0)] * rank
    for i in range(len(flat) // 2):  # torch lists the last dimension first
        if i >= rank and (flat[2 * i] or flat[2 * i + 1]):
            raise CaptureError(f"{node.target} at {e.source(node)} pads the batch; expected images to stay apart")
        widths[rank - 1 - i] = (flat[2 * i], flat[2 * i + 1])
    target = str(node.target)
    mode = "reflect" if "reflection" in target else "replicate" if "replication" in target else a.get("mode")
    if mode in ("reflect", "replicate", "circular"):
        _pad_with_values(e, node, argument, widths, mode)
        return
    name = e.input(argument)
    shape = list(e.input_shape(argument))
    for axis, (before, after) in enumerate(widths):
        if before < 0 or after < 0:  # what is cut off
            start, stop = max(0, -before), shape[axis] + min(0, after)
            shape[axis] = stop - start
            name = e.derive(node, Slice, tuple(shape), name, axis=axis, start=start, stop=stop, step=1)
    widths = [(max(0, before), max(0, after)) for before, after in widths]
    value = float(a.get("value") or 0.0)
    lowest = value == -math.inf or value <= -3e38
    if (mode or "constant") != "constant" or not (
        math.isfinite(value) or (lowest and widths[0] == (0, 0) and _read_by_max_pools(node))
    ):
        raise unsupported(
            e, node, f"padding with {mode if (mode or 'constant') != 'constant' else value}", "pad with zeros"
        )
    if lowest:
        e.derive(node, Pad, e.shape(node), name, widths=tuple(widths), value=-math.inf)
    elif not any(any(pair) for pair in widths):
        e.tensors[node] = name
    elif value == 0.0:
        e.derive(node, Pad, e.shape(node), name, widths=tuple(widths))
    else:  # zeros around x − value
        name = e.affine(node, name, 1.0, -value)
        name = e.derive(node, Pad, e.shape(node), name, widths=tuple(widths))
        e.affine(node, name, 1.0, value)


def _read_by_max_pools(node: fx.Node) -> bool:
    readers = {str(getattr(user.target, "_opname", user.target)) for user in node.users}
    return len(node.users) == 1 and readers <= {"max_pool2d", "max_pool2d_with_indices"}


def _pad_with_values(e: Emitter, node: fx.Node, argument: fx.Node, widths: list[tuple[int, int]], mode: str) -> None:
    """Reflection, replication and wrapping around: rows and columns that are there already, taken once more."""
    name = e.input(argument)
    for axis, ((before, after), size) in enumerate(zip(widths, e.input_shape(argument), strict=True)):
        if before or after:
            positions = np.arange(-before, size + after)
            last = size - 1
            inside = {
                "reflect": last - np.abs(last - np.abs(positions)),
                "replicate": np.clip(positions, 0, last),
                "circular": positions % size,
            }[mode]
            name = e.gather(node, name, axis, [int(i) for i in inside])
    e.tensors[node] = name

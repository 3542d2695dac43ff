"""Padding, by a value or by pixels that are there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from twoscale.errors import CaptureError
from twoscale.graph.aten.translator import Translator, unsupported
from twoscale.graph.nodes import Pad


def pad(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """Padding of any dimension but the batch."""
    argument = a["self"] if "self" in a else a["input"]
    rank = len(t.input_shape(argument))
    padding = a["pad"] if "pad" in a else a["padding"]
    flat = [int(n) for n in padding]
    widths = [(0, 0)] * rank
    for i in range(len(flat) // 2):  # torch lists the last dimension first
        if i >= rank and (flat[2 * i] or flat[2 * i + 1]):
            raise CaptureError(f"{node.target} at {t.source(node)} pads the batch; expected images to stay apart")
        widths[rank - 1 - i] = (flat[2 * i], flat[2 * i + 1])
    target = str(node.target)
    mode = "reflect" if "reflection" in target else "replicate" if "replication" in target else a.get("mode")
    if mode in ("reflect", "replicate"):
        _pad_with_values(t, node, argument, widths, reflects=mode == "reflect")
        return
    value = float(a.get("value") or 0.0)
    lowest = value == -math.inf or value <= -3e38
    if (mode or "constant") != "constant" or (
        value != 0.0 and not (lowest and widths[0] == (0, 0) and _read_by_max_pools(node))
    ):
        raise unsupported(t, node, f"padding with {value if value else mode}", "pad with zeros")
    if any(n < 0 for pair in widths for n in pair):
        raise unsupported(t, node, "negative padding", "slice instead")
    fields = t.common(node, argument)
    t.add(node, Pad(**fields, widths=tuple(widths), value=-math.inf if lowest else 0.0))


def _read_by_max_pools(node: fx.Node) -> bool:
    readers = {str(getattr(user.target, "_opname", user.target)) for user in node.users}
    return len(node.users) == 1 and readers <= {"max_pool2d", "max_pool2d_with_indices"}


def _pad_with_values(
    t: Translator, node: fx.Node, argument: fx.Node, widths: list[tuple[int, int]], *, reflects: bool
) -> None:
    """Reflection and replication: rows and columns that are there already, taken once more."""
    name = t.input(argument)
    for axis, ((before, after), size) in enumerate(zip(widths, t.input_shape(argument), strict=True)):
        if before or after:
            positions = np.arange(-before, size + after)
            inside = np.abs(positions) if reflects else np.maximum(positions, 0)
            last = size - 1
            inside = np.where(positions > last, 2 * last - positions if reflects else last, inside)
            name = t.gather(node, name, axis, [int(i) for i in inside])
    t.tensors[node] = name

"""Padding with a value or with existing pixels."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter


def pad(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Padding of any dimension but the batch."""
    at, argument = e.at(node), a["self"] if "self" in a else a["input"]
    flat = [int(n) for n in (a["pad"] if "pad" in a else a["padding"])]
    widths = [(0, 0)] * len(e.input_shape(argument))
    for i in range(len(flat) // 2):  # torch lists the last dimension first
        width = (flat[2 * i], flat[2 * i + 1])
        if width != (0, 0):
            axis = e.axis(argument, -1 - i)
            if axis < 0:
                raise at.wrong("pads the batch; expected images to stay apart")
            widths[axis] = width
    target = str(node.target)
    mode = "reflect" if "reflection" in target else "replicate" if "replication" in target else a.get("mode")
    if mode in ("reflect", "replicate", "circular"):
        return at.pad_with_values(e.input(argument), widths, mode)
    value = float(a.get("value") or 0.0)
    lowest = value == -math.inf or value <= -3e38
    inner = [(max(0, before), max(0, after)) for before, after in widths]
    if (mode or "constant") != "constant" or not (
        math.isfinite(value) or (lowest and inner[0] == (0, 0) and _read_by_max_pools(node))
    ):
        raise at.unsupported(f"padding with {mode if (mode or 'constant') != 'constant' else value}", "pad with zeros")
    return at.pad(e.input(argument), widths, -math.inf if lowest else value)


def _read_by_max_pools(node: fx.Node) -> bool:
    readers = {str(getattr(user.target, "_opname", user.target)) for user in node.users}
    return len(node.users) == 1 and readers <= {"max_pool2d", "max_pool2d_with_indices"}

"""Functions of one value: clamps, and what becomes a table."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, Translation, remedy


def relu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """max(x, 0)."""
    return e.at(node).clamp(e.input(a["self"]), (0.0, math.inf))


def relu6(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """min(max(x, 0), 6)."""
    return e.at(node).clamp(e.input(a["self"]), (0.0, 6.0))


def clamp(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A clamp by numbers."""
    at = e.at(node)
    lo = a.get("min_val", a.get("min"))
    hi = a.get("max_val", a.get("max"))
    if isinstance(lo, fx.Node) or isinstance(hi, fx.Node):
        raise at.unsupported("a clamp with tensor bounds", "use numbers")
    bounds = (-math.inf if lo is None else float(lo), math.inf if hi is None else float(hi))
    return at.clamp(e.input(a["self"]), bounds)


def table_of(name: str, *names: str) -> Translation:
    """Return the translation of a function in twoscale._ir.functions, whose parameters ATen calls ``names``."""

    def translation(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
        return e.at(node).table(e.input(a["self"]), name, *(float(a[parameter]) for parameter in names))

    return translation


def prelu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Return max(x, 0) + slope · min(x, 0); one slope is a leaky ReLU."""
    slopes = e.array(a["weight"])
    assert slopes is not None
    return e.at(node).prelu(e.input(a["self"]), slopes)


def gelu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Its exact form, or the one by tanh."""
    return e.at(node).table(e.input(a["self"]), "gelu_tanh" if a.get("approximate") == "tanh" else "gelu")


def softmax(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A softmax over the classes at the end changes no order: its input is the logits."""
    function = str(node.target._opname).strip("_")  # type: ignore[union-attr]
    rank = 1 + len(e.input_shape(a["self"]))
    at_the_end = rank == 2 and int(a["dim"]) % rank == 1 and all(user.op == "output" for user in node.users)
    if not at_the_end:
        raise e.at(node).unsupported(f"a {function} before the end", remedy(function))
    e.left_out = (function, e.source(node))
    return e.input(a["self"])


def rrelu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """In eval mode, a leaky ReLU with the mean of the random slopes."""
    if a.get("training"):
        raise e.at(node).unsupported("a random slope in eval mode", "pass training=self.training")
    return e.at(node).table(e.input(a["self"]), "leaky_relu", (float(a["lower"]) + float(a["upper"])) / 2)


def glu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """One half of a dimension, gated by the other."""
    at, name, shape = e.at(node), e.input(a["self"]), e.shape(node)
    axis = int(a["dim"]) % (1 + len(shape)) - 1
    half = shape[axis]
    value, gate = at.slice(name, axis, 0, half), at.slice(name, axis, half, 2 * half)
    return at.mul(value, at.table(gate, "sigmoid"), shape)


def sqrt(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The power 1/2."""
    return e.at(node).table(e.input(a["self"]), "power", 0.5)

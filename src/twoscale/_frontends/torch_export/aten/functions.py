"""Functions of one value: clamps and tables."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, Translation, remedy
from twoscale._ir.float_graph import ChannelAffine, Elementwise

OPPOSITES = {
    "greater": "less_equal",
    "less_equal": "greater",
    "greater_equal": "less",
    "less": "greater_equal",
}
"""Comparisons with a number, and the opposite of each."""


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
    """A softmax over the classes at the end does not change their order, so its input is used as the logits."""
    function = str(node.target._opname).strip("_")  # type: ignore[union-attr]
    shape = (1, *e.input_shape(a["self"]))
    of_classes = shape[int(a["dim"]) % len(shape)] == math.prod(shape)
    if not of_classes or not _reaches_the_output(node):
        raise e.at(node).unsupported(f"a {function} before the end", remedy(function))
    e.left_out = (function, e.source(node))
    return e.input(a["self"])


def _reaches_the_output(node: fx.Node) -> bool:
    """Whether a node's values are the model's output, perhaps in another shape."""
    while all(user.op != "output" for user in node.users):
        if len(node.users) != 1:
            return False
        (node,) = node.users
        if str(getattr(node.target, "_opname", "")).rstrip("_") not in _KEEPS_VALUES:
            return False
    return all(user.op == "output" for user in node.users)


_KEEPS_VALUES = {
    "alias", "clone", "contiguous", "detach", "dropout", "flatten", "reshape", "squeeze", "to", "unflatten",
    "unsqueeze", "view", "_unsafe_view", "_to_copy",
}  # fmt: skip


def compared(function: str) -> Translation:
    """Return the translation of a comparison with a number: 1 if it holds, else 0."""

    def translation(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
        if not isinstance(a["other"], int | float):
            raise e.at(node).unsupported("a comparison of two tensors", "compare with a number")
        return e.at(node).table(e.input(a["self"]), function, float(a["other"]))

    return translation


def where(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """One of two tensors or numbers where a comparison with a number holds, the other elsewhere."""
    at, shape = e.at(node), e.shape(node)
    name = e.input(a["condition"])
    condition = e.builder[name]
    if not isinstance(condition, Elementwise) or condition.function not in OPPOSITES:
        raise at.unsupported("a choice by anything but a comparison with a number", "compare with a number")
    if e.is_activation(a["self"]) and e.input(a["self"]) == condition.inputs[0] and e.is_activation(a["other"]):
        slope = _slope(e, condition, a["other"])
        if slope is not None:
            return at.table(condition.inputs[0], "leaky_relu", slope)
    opposite = at.append(
        Elementwise,
        condition.shape,
        *condition.inputs,
        function=OPPOSITES[condition.function],
        parameters=condition.parameters,
    )
    parts: list[str] = []
    for mask, value in ((name, a["self"]), (opposite, a["other"])):
        if not e.is_activation(value):
            given = e.array(value)
            assert given is not None
            mask = at.tile(mask, shape)
            if given.any():
                parts.append(at.affine_map(mask, at.constant_operand(mask, given, shape), 0.0))
        else:
            parts.append(at.mul(mask, at.tile(e.input(value), shape), shape))
    return parts[0] if len(parts) == 1 else at.add(parts[0], parts[1], shape)


def _slope(e: Emitter, condition: Elementwise, value: Any) -> float | None:
    """Return a where ``value`` is a · x of the x that is compared with 0, and the other value is x itself."""
    made = e.builder[e.input(value)]
    of_x = isinstance(made, ChannelAffine) and made.inputs == condition.inputs and not made.shift_c.any()
    if not of_x or condition.function not in ("greater", "greater_equal") or condition.parameters != (0.0,):
        return None
    assert isinstance(made, ChannelAffine)
    return float(made.scale_c[0]) if (made.scale_c == made.scale_c[0]).all() else None


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

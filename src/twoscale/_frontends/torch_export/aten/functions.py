"""Functions of one value: clamps and tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, Translation, remedy
from twoscale._frontends.torch_export.aten.sums import clamped, mul, sub
from twoscale._ir.float_graph import ChannelAffine, Elementwise

OPPOSITES = {
    "greater": "less_equal",
    "less_equal": "greater",
    "greater_equal": "less",
    "less": "greater_equal",
    "equal": "not_equal",
    "not_equal": "equal",
}
"""Comparisons with a number, and the opposite of each."""


def relu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """max(x, 0)."""
    return e.at(node).clamp(e.input(a["self"]), (0.0, math.inf))


def relu6(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """min(max(x, 0), 6)."""
    return e.at(node).clamp(e.input(a["self"]), (0.0, 6.0))


def clamp(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A clamp by numbers or constants."""
    return clamped(e, node, a["self"], a.get("min_val", a.get("min")), a.get("max_val", a.get("max")))


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
    axis, shape = e.axis(a["self"], a["dim"]), e.input_shape(a["self"])
    if axis < 0:
        raise e.at(node).wrong("takes a softmax over the batch; expected images to stay apart")
    if shape[axis] != math.prod(shape) or not _reaches_the_output(node):
        if function != "softmax":
            raise e.at(node).unsupported(f"a {function} before the end", remedy(function))
        return e.at(node).softmax(e.input(a["self"]), axis)
    e.left_out = (function, e.source(node))
    return e.input(a["self"])


def _reaches_the_output(node: fx.Node) -> bool:
    """Whether a node's values are the model's output, perhaps in another shape."""
    while all(user.op != "output" for user in node.users):
        readers = [user for user in node.users if "_assert" not in str(user.target)]
        if len(readers) != 1:
            return False
        (node,) = readers
        if str(getattr(node.target, "_opname", "")).rstrip("_") not in _KEEPS_VALUES:
            return False
    return all(user.op == "output" for user in node.users)


_KEEPS_VALUES = {
    "alias", "clone", "contiguous", "detach", "dropout", "flatten", "reshape", "squeeze", "to", "unflatten",
    "unsqueeze", "view", "_unsafe_view", "_to_copy",
}  # fmt: skip


def compared(function: str) -> Translation:
    """Return the translation of a comparison with a number or a tensor: 1 where it holds, else 0."""

    def translation(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
        at, other = e.at(node), a["other"]
        if isinstance(other, int | float) and e.is_activation(a["self"]):
            return at.table(e.input(a["self"]), function, float(other))
        return at.table(sub(e, node, {**a, "alpha": 1}), function, 0.0)

    return translation


def negation(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """1 where a condition does not hold, else 0."""
    return _opposite(e, node, e.input(a["self"]))


def _opposite(e: Emitter, node: fx.Node, name: str) -> str:
    condition = e.builder[name]
    if not isinstance(condition, Elementwise) or condition.function not in OPPOSITES:
        return e.at(node).affine_map(name, -1.0, 1.0)
    return e.at(node).append(
        Elementwise,
        condition.shape,
        *condition.inputs,
        function=OPPOSITES[condition.function],
        parameters=condition.parameters,
    )


def both(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Return 1 where two conditions hold, else 0."""
    return mul(e, node, a)


def either(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """1 where one of two conditions holds or both do: what is left out where neither does."""
    if not (e.is_activation(a["self"]) and e.is_activation(a["other"])):
        raise e.at(node).unsupported("a choice between a condition and a constant", "multiply by a mask")
    left, right = (_opposite(e, node, e.input(a[key])) for key in ("self", "other"))
    return e.at(node).affine_map(e.at(node).mul(left, right, e.shape(node)), -1.0, 1.0)


def rounding(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The nearest integer, ties to even."""
    if a.get("decimals"):
        raise e.at(node).unsupported("rounding to decimals", "round to integers")
    return e.at(node).table(e.input(a["self"]), "round")


def where(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Of two tensors or numbers, one where a condition holds, the other elsewhere."""
    return _choice(e, node, a["condition"], a["self"], a["other"])


def masked_fill(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A number where a condition holds, a tensor elsewhere."""
    return _choice(e, node, a["mask"], a["value"], a["self"])


def _choice(e: Emitter, node: fx.Node, given: Any, holds: Any, fails: Any) -> str:
    at, shape = e.at(node), e.shape(node)
    masks: list[str | NDArray[np.float32]]
    if e.is_activation(given):
        condition = e.builder[e.input(given)]
        if isinstance(condition, Elementwise) and e.is_activation(holds) and e.is_activation(fails):
            slope = _slope(e, condition, fails) if e.input(holds) == condition.inputs[0] else None
            if slope is not None:
                return at.table(condition.inputs[0], "leaky_relu", slope)
        masks = [condition.name, _opposite(e, node, condition.name)]
    else:
        mask = e.array(given)
        assert mask is not None
        masks = [mask, 1 - mask]
    parts: list[str] = []
    constant: NDArray[np.float32] | None = None
    for chosen, value in zip(masks, (holds, fails), strict=True):
        of_mask, of_value = isinstance(chosen, str), e.is_activation(value)
        if of_mask and of_value:
            parts.append(at.mul(at.tile(str(chosen), shape), at.tile(e.input(value), shape), shape))
            continue
        factor = e.array(value) if of_mask else np.asarray(chosen)
        assert factor is not None
        if not of_mask and not of_value:
            chosen_value = e.array(value)
            assert chosen_value is not None
            constant = factor * chosen_value
        elif factor.any():
            whole = at.tile(str(chosen) if of_mask else e.input(value), shape)
            parts.append(at.affine_map(whole, at.constant_operand(whole, factor, shape), 0.0))
    name = parts[0] if len(parts) == 1 else at.add(parts[0], parts[1], shape)
    return name if constant is None else at.affine_map(name, 1.0, at.constant_operand(name, constant, shape))


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
    axis = e.axis(a["self"], a["dim"])
    if axis < 0:
        raise at.wrong("works along the batch; expected images to stay apart")
    half = shape[axis]
    value, gate = at.slice(name, axis, 0, half), at.slice(name, axis, half, 2 * half)
    return at.mul(value, at.table(gate, "sigmoid"), shape)


def sqrt(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The power 1/2."""
    return e.at(node).table(e.input(a["self"]), "power", 0.5)

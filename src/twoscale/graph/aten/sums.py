"""Sums, products and quotients: of two activations, or of one and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from twoscale.errors import CaptureError
from twoscale.graph.aten.translator import Translator, unsupported
from twoscale.graph.nodes import Add, ChannelAffine, Mul


def _affine(t: Translator, node: fx.Node, x: fx.Node, scale: Any, shift: Any) -> None:
    """Add scale · x + shift, each a number or one value a channel."""
    channels = t.input_shape(x)[0]
    t.add(
        node,
        ChannelAffine(
            **t.common(node, x),
            scale_c=np.broadcast_to(scale, (channels,)).astype(np.float32),
            shift_c=np.broadcast_to(shift, (channels,)).astype(np.float32),
        ),
    )


def _per_channel(t: Translator, node: fx.Node, x: fx.Node, constant: Any) -> NDArray[np.float64]:
    """Return a constant operand as (1,) or (channels,) values; float64, so that folding adds no error."""
    value = t.array(constant)
    assert value is not None
    shape = t.input_shape(x)
    full = (1,) * (1 + len(shape) - value.ndim) + value.shape
    if len(full) != 1 + len(shape) or any(n != 1 for i, n in enumerate(full) if i != 1) or full[1] not in (1, shape[0]):
        raise unsupported(t, node, f"a constant of shape {value.shape}", "use one value, or one a channel")
    return value.reshape(-1).astype(np.float64)


def _sum(t: Translator, node: fx.Node, left: Any, right: Any, left_factor: float, right_factor: float) -> None:
    """Add left_factor · left + right_factor · right, where at least one is an activation."""
    if not t.is_activation(right):
        _affine(t, node, left, left_factor, right_factor * _per_channel(t, node, left, right))
    elif not t.is_activation(left):
        _affine(t, node, right, right_factor, left_factor * _per_channel(t, node, right, left))
    elif t.input_shape(left) != t.input_shape(right):
        raise unsupported(t, node, "a sum of tensors of different shapes", "make the shapes equal")
    else:
        terms = _scaled(t, node, left, left_factor), _scaled(t, node, right, right_factor)
        t.derive(node, Add, t.shape(node), *terms)


def _scaled(t: Translator, node: fx.Node, x: fx.Node, factor: float) -> str:
    """Return the name of factor · x."""
    name, shape = t.input(x), t.input_shape(x)
    if factor == 1:
        return name
    scale = np.full(shape[0], factor, np.float32)
    return t.derive(node, ChannelAffine, shape, name, scale_c=scale, shift_c=np.zeros_like(scale))


def add(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """left + alpha · right."""
    _sum(t, node, a["self"], a["other"], 1, a.get("alpha", 1))


def sub(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """left − alpha · right."""
    _sum(t, node, a["self"], a["other"], 1, -a.get("alpha", 1))


def rsub(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """right − alpha · left."""
    _sum(t, node, a["other"], a["self"], 1, -a.get("alpha", 1))


def neg(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """−x."""
    _affine(t, node, a["self"], -1.0, 0.0)


def mul(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """A product of activations, or a scale."""
    left, right = a["self"], a["other"]
    if not t.is_activation(left):
        left, right = right, left
    if t.is_activation(right):
        t.add(node, Mul(**t.common(node, left, right)))
    else:
        _affine(t, node, left, _per_channel(t, node, left, right), 0.0)


def div(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """A division by constants."""
    if t.is_activation(a["other"]) or a.get("rounding_mode"):
        raise unsupported(t, node, "a quotient of activations", "divide by a constant")
    divisor = _per_channel(t, node, a["self"], a["other"])
    if not divisor.all():
        raise CaptureError(f"{node.target} at {t.source(node)} divides by zero")
    _affine(t, node, a["self"], 1.0 / divisor, 0.0)


def power(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """A square."""
    if a.get("exponent") != 2 or not t.is_activation(a["self"]):
        raise unsupported(t, node, "a power other than the square", "multiply instead")
    t.add(node, Mul(**t.common(node, a["self"], a["self"])))


def square(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """x · x."""
    t.add(node, Mul(**t.common(node, a["self"], a["self"])))


def expand(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """Products broadcast by themselves; nothing else may read an expanded tensor."""
    readers = {str(getattr(user.target, "_opname", user.target)).rstrip("_") for user in node.users}
    if t.shape(node) != t.input_shape(a["self"]) and (
        not readers <= {"mul", "multiply"} or len(t.shape(node)) != len(t.input_shape(a["self"]))
    ):
        raise unsupported(t, node, "an expanded tensor", "only products may broadcast; concatenate copies")
    t.same(node, a["self"])

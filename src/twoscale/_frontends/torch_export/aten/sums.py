"""Sums, products and quotients: of two activations, or of one and constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter


def _constant(e: Emitter, node: fx.Node, x: fx.Node, constant: Any) -> NDArray[np.float64]:
    """Return a constant operand of x; see Place.constant_operand."""
    given = e.array(constant)
    assert given is not None
    return e.at(node).constant_operand(e.input(x), given, e.shape(node))


def _sum(e: Emitter, node: fx.Node, left: Any, right: Any, left_factor: float, right_factor: float) -> str:
    """Append left_factor · left + right_factor · right, where at least one is an activation."""
    at = e.at(node)
    if not e.is_activation(right):
        return at.affine_map(e.input(left), left_factor, right_factor * _constant(e, node, left, right))
    if not e.is_activation(left):
        return at.affine_map(e.input(right), right_factor, left_factor * _constant(e, node, right, left))
    shape = e.shape(node)
    return at.add(at.scaled(e.input(left), left_factor), at.scaled(e.input(right), right_factor), shape)


def add(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """left + alpha · right."""
    return _sum(e, node, a["self"], a["other"], 1, a.get("alpha", 1))


def sub(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """left − alpha · right."""
    return _sum(e, node, a["self"], a["other"], 1, -a.get("alpha", 1))


def rsub(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """right − alpha · left."""
    return _sum(e, node, a["other"], a["self"], 1, -a.get("alpha", 1))


def neg(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """−x."""
    return e.at(node).affine_map(e.input(a["self"]), -1.0, 0.0)


def mul(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A product of activations, or a scale."""
    left, right = a["self"], a["other"]
    if not e.is_activation(left):
        left, right = right, left
    if e.is_activation(right):
        return e.at(node).mul(e.input(left), e.input(right), e.shape(node))
    return e.at(node).affine_map(e.input(left), _constant(e, node, left, right), 0.0)


def div(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A division by constants."""
    at = e.at(node)
    if e.is_activation(a["other"]) or a.get("rounding_mode"):
        raise at.unsupported("a quotient of activations", "divide by a constant")
    divisor = _constant(e, node, a["self"], a["other"])
    if not divisor.all():
        raise at.wrong("divides by zero")
    return at.affine_map(e.input(a["self"]), 1.0 / divisor, 0.0)


def power(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A square is a product, any other power a table."""
    at, exponent = e.at(node), a.get("exponent")
    if isinstance(exponent, fx.Node) and not e.is_activation(exponent):
        values = e.array(exponent)
        exponent = None if values is None or values.size != 1 else float(values.reshape(()))
    if not e.is_activation(a["self"]) or not isinstance(exponent, int | float) or exponent <= 0:
        raise at.unsupported("a power that is not one positive number", "multiply instead")
    return square(e, node, a) if exponent == 2 else at.table(e.input(a["self"]), "power", float(exponent))


def square(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """x · x."""
    return e.at(node).mul(e.input(a["self"]), e.input(a["self"]), e.shape(node))


def expand(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Products broadcast one operand; other cases make copies."""
    shape = e.shape(node)
    readers = {str(getattr(user.target, "_opname", user.target)).rstrip("_") for user in node.users}
    if readers <= {"mul", "multiply"} and len(shape) == len(e.input_shape(a["self"])):
        return e.input(a["self"])
    return e.at(node).tile(e.input(a["self"]), shape)


def matmul(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A product with a matrix of weights is a linear layer."""
    at = e.at(node)
    left, right = (a[key] for key in ("mat1", "mat2")) if "mat1" in a else (a["self"], a.get("other", a.get("mat2")))
    weight = None if e.is_activation(right) else e.array(right)
    if (
        isinstance(right, fx.Node)
        and "mat1" not in a
        and e.is_activation(right)
        and not e.is_activation(left)
        and len(e.input_shape(right)) == 2
    ):
        left_weight = e.array(left)  # weights times columns
        if left_weight is not None and left_weight.ndim == 2:
            return at.permute(at.linear(at.permute(e.input(right), (1, 0)), left_weight), (1, 0))
    if weight is None or weight.ndim != 2:
        raise at.unsupported("a product of matrices that are not weights", "use convolutions and linear layers")
    bias = np.zeros(weight.shape[1], np.float32)
    if "mat1" in a:  # addmm
        added = e.array(a["self"])
        if added is None or a["beta"] != 1 or a["alpha"] != 1:
            raise at.unsupported("a sum with factors", "use a linear layer")
        bias = np.broadcast_to(added.reshape(-1), bias.shape).copy()
    return at.linear(e.input(left), np.ascontiguousarray(weight.T), bias)


def maximum(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The larger of two activations is a pool over the two; of one and a number, a clamp."""
    at = e.at(node)
    left, right = (a["self"], a["other"]) if e.is_activation(a["self"]) else (a["other"], a["self"])
    if e.is_activation(right):
        return at.maximum(e.input(left), e.input(right), e.shape(node))
    bound = _constant(e, node, left, right)
    if bound.size != 1:
        raise at.unsupported("a maximum with constants that differ", "use one number")
    return at.clamp(e.input(left), (float(bound.reshape(-1)[0]), math.inf))

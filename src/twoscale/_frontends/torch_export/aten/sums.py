"""Sums, products and quotients: of two activations, or of one and constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, unsupported
from twoscale._frontends.torch_export.aten.functions import clamp_to
from twoscale._ir.float_graph import Add, Concat, Elementwise, MaxPool2d, Mul
from twoscale.errors import CaptureError


def _affine(e: Emitter, node: fx.Node, x: fx.Node, scale: Any, shift: Any) -> None:
    """Add scale · x + shift, each a number or an array that broadcasts to an image's shape."""
    name, shape = e.input(x), e.input_shape(x)
    maps = [np.asarray(value, np.float64).reshape(np.shape(value) or (1,) * len(shape)) for value in (scale, shift)]
    varying = [axis for axis in range(len(shape)) if any(value.shape[axis] != 1 for value in maps)]
    axes = tuple(range(len(shape)))
    if len(varying) == 1:  # one value an index of a dimension, which is made the first
        axes = (varying[0], *(axis for axis in axes if axis != varying[0]))
    elif varying:  # one value a pixel: channels of one pixel
        maps = [np.broadcast_to(value, shape) for value in maps]
        name = e.reshape(node, name, (math.prod(shape), 1, 1))
    name = e.permute(node, name, axes) if len(varying) < 2 else name
    name = e.affine(node, name, *(value.reshape(-1) for value in maps))
    if len(varying) < 2:
        e.permute(node, name, tuple(int(axis) for axis in np.argsort(axes)))
    else:
        e.reshape(node, name, shape)


def _constant(e: Emitter, node: fx.Node, x: fx.Node, constant: Any) -> NDArray[np.float64]:
    """Return a constant operand without the batch, of size 1 along dimensions that it is the same along.

    float64, so that folding adds no error.
    """
    given = e.array(constant)
    assert given is not None
    shape = e.input_shape(x)
    full = (1,) * (1 + len(shape) - given.ndim) + given.shape
    if len(full) != 1 + len(shape) or full[0] != 1 or e.shape(node) != shape:
        raise unsupported(e, node, f"a constant of shape {given.shape}", f"use one that broadcasts to {shape}")
    value: NDArray[np.float64] = given.reshape(full[1:]).astype(np.float64)
    for axis in range(len(shape)):
        first = value.take([0], axis)
        if (value == first).all():
            value = first
    return value


def _sum(e: Emitter, node: fx.Node, left: Any, right: Any, left_factor: float, right_factor: float) -> None:
    """Add left_factor · left + right_factor · right, where at least one is an activation."""
    if not e.is_activation(right):
        _affine(e, node, left, left_factor, right_factor * _constant(e, node, left, right))
    elif not e.is_activation(left):
        _affine(e, node, right, right_factor, left_factor * _constant(e, node, right, left))
    else:
        shape = e.shape(node)
        terms = _scaled(e, node, left, left_factor), _scaled(e, node, right, right_factor)
        e.derive(node, Add, shape, *(e.broadcast(node, term, shape) for term in terms))


def _scaled(e: Emitter, node: fx.Node, x: fx.Node, factor: float) -> str:
    """Return the name of factor · x."""
    return e.input(x) if factor == 1 else e.affine(node, e.input(x), factor)


def add(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """left + alpha · right."""
    _sum(e, node, a["self"], a["other"], 1, a.get("alpha", 1))


def sub(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """left − alpha · right."""
    _sum(e, node, a["self"], a["other"], 1, -a.get("alpha", 1))


def rsub(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """right − alpha · left."""
    _sum(e, node, a["other"], a["self"], 1, -a.get("alpha", 1))


def neg(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """−x."""
    _affine(e, node, a["self"], -1.0, 0.0)


def mul(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A product of activations, or a scale."""
    left, right = a["self"], a["other"]
    if not e.is_activation(left):
        left, right = right, left
    if e.is_activation(right):
        e.add(node, Mul(**e.common(node, left, right)))
    else:
        _affine(e, node, left, _constant(e, node, left, right), 0.0)


def div(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A division by constants."""
    if e.is_activation(a["other"]) or a.get("rounding_mode"):
        raise unsupported(e, node, "a quotient of activations", "divide by a constant")
    divisor = _constant(e, node, a["self"], a["other"])
    if not divisor.all():
        raise CaptureError(f"{node.target} at {e.source(node)} divides by zero")
    _affine(e, node, a["self"], 1.0 / divisor, 0.0)


def power(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A square is a product, any other power a table."""
    exponent = a.get("exponent")
    if isinstance(exponent, fx.Node) and not e.is_activation(exponent):
        values = e.array(exponent)
        exponent = None if values is None or values.size != 1 else float(values.reshape(()))
    if not e.is_activation(a["self"]) or not isinstance(exponent, int | float) or exponent <= 0:
        raise unsupported(e, node, "a power that is not one positive number", "multiply instead")
    if exponent == 2:
        e.add(node, Mul(**e.common(node, a["self"], a["self"])))
    else:
        e.add(node, Elementwise(**e.common(node, a["self"]), function="power", parameters=(float(exponent),)))


def square(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """x · x."""
    e.add(node, Mul(**e.common(node, a["self"], a["self"])))


def expand(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Products broadcast by themselves; for anything else, copies."""
    shape = e.shape(node)
    readers = {str(getattr(user.target, "_opname", user.target)).rstrip("_") for user in node.users}
    if readers <= {"mul", "multiply"} and len(shape) == len(e.input_shape(a["self"])):
        e.same(node, a["self"])
    else:
        e.tensors[node] = e.broadcast(node, e.input(a["self"]), shape)


def matmul(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A product with a matrix of weights is a linear layer."""
    left, right = (a[key] for key in ("mat1", "mat2")) if "mat1" in a else (a["self"], a.get("other", a.get("mat2")))
    weight = None if e.is_activation(right) else e.array(right)
    if weight is None or weight.ndim != 2:
        raise unsupported(e, node, "a product of matrices that are not weights", "use convolutions and linear layers")
    bias = np.zeros(weight.shape[1], np.float32)
    if "mat1" in a:  # addmm
        added = e.array(a["self"])
        if added is None or a["beta"] != 1 or a["alpha"] != 1:
            raise unsupported(e, node, "a sum with factors", "use a linear layer")
        bias = np.broadcast_to(added.reshape(-1), bias.shape).copy()
    e.linear(node, left, np.ascontiguousarray(weight.T), bias)


def maximum(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """The larger of two activations is a pool over the two; of one and a number, a clamp."""
    left, right = (a["self"], a["other"]) if e.is_activation(a["self"]) else (a["other"], a["self"])
    shape = e.shape(node)
    if not e.is_activation(right):
        bound = _constant(e, node, left, right)
        if bound.size != 1:
            raise unsupported(e, node, "a maximum with constants that differ", "use one number")
        clamp_to(e, node, left, (float(bound.reshape(-1)[0]), math.inf))
        return
    size = math.prod(shape)
    rows = [e.reshape(node, e.broadcast(node, e.input(x), shape), (1, 1, size)) for x in (left, right)]
    name = e.derive(node, Concat, (1, 2, size), *rows, axis=1)
    name = e.derive(node, MaxPool2d, (1, 1, size), name, kernel=(2, 1), stride=(2, 1))
    e.reshape(node, name, shape)

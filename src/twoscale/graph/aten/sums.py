"""Sums, products and quotients: of two activations, or of one and constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from twoscale.errors import CaptureError
from twoscale.graph.aten.translator import Translator, unsupported
from twoscale.graph.nodes import Add, ChannelAffine, Clamp, Concat, Elementwise, MaxPool2d, Mul


def _affine(t: Translator, node: fx.Node, x: fx.Node, scale: Any, shift: Any) -> None:
    """Add scale · x + shift, each a number or an array that broadcasts to an image's shape."""
    name, shape = t.input(x), t.input_shape(x)
    maps = [np.asarray(value, np.float64).reshape(np.shape(value) or (1,) * len(shape)) for value in (scale, shift)]
    varying = [axis for axis in range(len(shape)) if any(value.shape[axis] != 1 for value in maps)]
    axes = tuple(range(len(shape)))
    if len(varying) == 1:  # one value an index of a dimension, which is made the first
        axes = (varying[0], *(axis for axis in axes if axis != varying[0]))
    elif varying:  # one value a pixel: channels of one pixel
        maps = [np.broadcast_to(value, shape) for value in maps]
        name = t.reshape(node, name, (math.prod(shape), 1, 1))
    name = t.permute(node, name, axes) if len(varying) < 2 else name
    inner = t.made(name).shape
    scale_c, shift_c = (np.broadcast_to(value.reshape(-1), inner[:1]).astype(np.float32) for value in maps)
    name = t.derive(node, ChannelAffine, inner, name, scale_c=scale_c, shift_c=shift_c)
    if len(varying) < 2:
        t.permute(node, name, tuple(int(axis) for axis in np.argsort(axes)))
    else:
        t.reshape(node, name, shape)


def _constant(t: Translator, node: fx.Node, x: fx.Node, constant: Any) -> NDArray[np.float64]:
    """Return a constant operand without the batch, of size 1 along dimensions that it is the same along.

    float64, so that folding adds no error.
    """
    given = t.array(constant)
    assert given is not None
    shape = t.input_shape(x)
    full = (1,) * (1 + len(shape) - given.ndim) + given.shape
    if len(full) != 1 + len(shape) or full[0] != 1 or t.shape(node) != shape:
        raise unsupported(t, node, f"a constant of shape {given.shape}", f"use one that broadcasts to {shape}")
    value: NDArray[np.float64] = given.reshape(full[1:]).astype(np.float64)
    for axis in range(len(shape)):
        first = value.take([0], axis)
        if (value == first).all():
            value = first
    return value


def _sum(t: Translator, node: fx.Node, left: Any, right: Any, left_factor: float, right_factor: float) -> None:
    """Add left_factor · left + right_factor · right, where at least one is an activation."""
    if not t.is_activation(right):
        _affine(t, node, left, left_factor, right_factor * _constant(t, node, left, right))
    elif not t.is_activation(left):
        _affine(t, node, right, right_factor, left_factor * _constant(t, node, right, left))
    else:
        shape = t.shape(node)
        terms = _scaled(t, node, left, left_factor), _scaled(t, node, right, right_factor)
        t.derive(node, Add, shape, *(t.broadcast(node, term, shape) for term in terms))


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
        _affine(t, node, left, _constant(t, node, left, right), 0.0)


def div(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """A division by constants."""
    if t.is_activation(a["other"]) or a.get("rounding_mode"):
        raise unsupported(t, node, "a quotient of activations", "divide by a constant")
    divisor = _constant(t, node, a["self"], a["other"])
    if not divisor.all():
        raise CaptureError(f"{node.target} at {t.source(node)} divides by zero")
    _affine(t, node, a["self"], 1.0 / divisor, 0.0)


def power(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """A square is a product, any other power a table."""
    exponent = a.get("exponent")
    if not t.is_activation(a["self"]) or not isinstance(exponent, int | float) or exponent <= 0:
        raise unsupported(t, node, "a power that is not a positive number", "multiply instead")
    if exponent == 2:
        t.add(node, Mul(**t.common(node, a["self"], a["self"])))
    else:
        t.add(node, Elementwise(**t.common(node, a["self"]), function="power", parameters=(float(exponent),)))


def square(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """x · x."""
    t.add(node, Mul(**t.common(node, a["self"], a["self"])))


def expand(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """Products broadcast by themselves; for anything else, copies."""
    shape = t.shape(node)
    readers = {str(getattr(user.target, "_opname", user.target)).rstrip("_") for user in node.users}
    if readers <= {"mul", "multiply"} and len(shape) == len(t.input_shape(a["self"])):
        t.same(node, a["self"])
    else:
        t.tensors[node] = t.broadcast(node, t.input(a["self"]), shape)


def matmul(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """A product with a matrix of weights is a linear layer."""
    left, right = (a[key] for key in ("mat1", "mat2")) if "mat1" in a else (a["self"], a.get("other", a.get("mat2")))
    weight = None if t.is_activation(right) else t.array(right)
    if weight is None or weight.ndim != 2:
        raise unsupported(t, node, "a product of matrices that are not weights", "use convolutions and linear layers")
    bias = np.zeros(weight.shape[1], np.float32)
    if "mat1" in a:  # addmm
        added = t.array(a["self"])
        if added is None or a["beta"] != 1 or a["alpha"] != 1:
            raise unsupported(t, node, "a sum with factors", "use a linear layer")
        bias = np.broadcast_to(added.reshape(-1), bias.shape).copy()
    t.linear(node, left, np.ascontiguousarray(weight.T), bias)


def maximum(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """The larger of two activations is a pool over the two; of one and a number, a clamp."""
    left, right = (a["self"], a["other"]) if t.is_activation(a["self"]) else (a["other"], a["self"])
    shape = t.shape(node)
    if not t.is_activation(right):
        bound = _constant(t, node, left, right)
        if bound.size != 1:
            raise unsupported(t, node, "a maximum with constants that differ", "use one number")
        t.add(node, Clamp(**t.common(node, left), bounds=(float(bound.reshape(-1)[0]), math.inf)))
        return
    size = math.prod(shape)
    rows = [t.reshape(node, t.broadcast(node, t.input(x), shape), (1, 1, size)) for x in (left, right)]
    name = t.derive(node, Concat, (1, 2, size), *rows, axis=1)
    name = t.derive(node, MaxPool2d, (1, 1, size), name, kernel=(2, 1), stride=(2, 1))
    t.reshape(node, name, shape)

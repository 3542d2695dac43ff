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
    position, parts = e.batch_of(x)
    position = 0 if parts > 1 else position  # the parts of an image are a dimension like the others
    if position and given.ndim == len(x.meta["val"].shape):
        given = np.moveaxis(given, position, 0)
    elif position and given.ndim > len(x.meta["val"].shape) - position - 1:
        given = given.squeeze(position - len(x.meta["val"].shape) + given.ndim)
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
    """A division by constants is a product; by an activation, a product with its reciprocal, which is a table."""
    at = e.at(node)
    if a.get("rounding_mode"):
        raise at.unsupported("a division with rounding", "divide, and round the result")
    if e.is_activation(a["other"]):
        inverse = at.table(e.input(a["other"]), "reciprocal")
        if e.is_activation(a["self"]):
            return at.mul(e.input(a["self"]), inverse, e.shape(node))
        return at.affine_map(inverse, _constant(e, node, a["other"], a["self"]), 0.0)
    divisor = _constant(e, node, a["self"], a["other"])
    if not divisor.all():
        raise at.wrong("divides by zero")
    return at.affine_map(e.input(a["self"]), 1.0 / divisor, 0.0)


def power(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A square is a product, any other power of an activation or of a number a table."""
    at, exponent = e.at(node), a.get("exponent")
    if e.is_activation(exponent):
        base = None if e.is_activation(a["self"]) else e.array(a["self"])
        if base is None or base.size != 1 or not base.reshape(-1)[0] > 0:
            raise at.unsupported("a power with a computed exponent", "use one positive number as the base")
        return at.table(at.affine(e.input(exponent), math.log(float(base.reshape(-1)[0]))), "exp")
    if isinstance(exponent, fx.Node):
        values = e.array(exponent)
        exponent = None if values is None or values.size != 1 else float(values.reshape(()))
    if not isinstance(exponent, int | float) or exponent == 0:
        raise at.unsupported("a power that is not one number other than 0", "multiply instead")
    if exponent == 2:
        return square(e, node, a)
    name = e.input(a["self"])
    name = name if abs(exponent) == 1 else at.table(name, "power", abs(float(exponent)))
    return at.table(name, "reciprocal") if exponent < 0 else name


def square(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """x · x."""
    return e.at(node).mul(e.input(a["self"]), e.input(a["self"]), e.shape(node))


def expand(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Products broadcast one operand; other cases make copies."""
    shape = e.shape(node)
    readers = {str(getattr(user.target, "_opname", user.target)).rstrip("_") for user in node.users}
    if readers <= {"mul", "multiply", "div", "divide", "true_divide"} and len(shape) == len(e.input_shape(a["self"])):
        return e.input(a["self"])
    return e.at(node).tile(e.input(a["self"]), shape)


def matmul(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A product with a matrix of weights is a linear layer; with several matrices, a grouped convolution."""
    at = e.at(node)
    left, right = (a[key] for key in ("mat1", "mat2")) if "mat1" in a else (a["self"], a.get("other", a.get("mat2")))
    x: Any
    x, given = (left, right) if e.is_activation(left) else (right, left)
    weight = None if e.is_activation(given) else e.array(given)
    if weight is None or weight.ndim < 2:
        raise at.unsupported("a product of matrices that are not weights", "use convolutions and linear layers")
    if weight.ndim == 3 and e.is_batch(weight.shape[0]):
        weight = weight[:1]  # copies for every image
    axis = e.axis(x, -1 if x is left else -2)
    if axis < 0:
        raise at.wrong("sums over the batch; expected images to stay apart")
    matrices = weight if x is right else weight.swapaxes(-1, -2)  # (..., O, I)
    bias = None
    if "mat1" in a:  # addmm
        added = e.array(a["self"])
        if added is None or x is right or a["beta"] != 1 or a["alpha"] != 1:
            raise at.unsupported("a sum with factors", "use a linear layer")
        bias = np.broadcast_to(added.reshape(-1), matrices.shape[-2:-1]).copy()
    if weight.size != math.prod(weight.shape[-2:]):
        return _grouped(e, node, x, axis, matrices)
    return at.along(e.input(x), axis, np.ascontiguousarray(matrices.reshape(matrices.shape[-2:])), bias)


def _grouped(e: Emitter, node: fx.Node, x: fx.Node, axis: int, matrices: NDArray[np.float32]) -> str:
    """Append products with k matrices (k, O, I), each with its part of a tensor of k parts."""
    at, shape = e.at(node), e.input_shape(x)
    position, _ = e.batch_of(x)
    if position == 0 or matrices.ndim != 3 or len(shape) not in (2, 3) or matrices.shape[0] != shape[0]:
        raise at.unsupported("a product with a stack of matrices", "use convolutions and linear layers")
    parts, out, features = matrices.shape
    name = e.input(x)
    if len(shape) == 3 and axis == 2:
        name = at.permute(name, (0, 2, 1))
    size = math.prod(shape) // (parts * features)
    name = at.convolution(
        at.reshape(name, (parts * features, size, 1)),
        (parts * out, size, 1),
        np.ascontiguousarray(matrices.reshape(parts * out, features, 1, 1)),
        None,
        stride=(1, 1),
        padding=((0, 0), (0, 0)),
        dilation=(1, 1),
        groups=parts,
    )
    name = at.reshape(name, (parts, out, size))
    return at.reshape(at.permute(name, (0, 2, 1)) if axis == len(shape) - 1 else name, e.shape(node))


def maximum(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The larger of two activations is a pool over the two; of one and constants, a clamp."""
    return _extreme(e, node, a, largest=True)


def minimum(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The smaller of two activations, or of one and constants."""
    return _extreme(e, node, a, largest=False)


def _extreme(e: Emitter, node: fx.Node, a: dict[str, Any], *, largest: bool) -> str:
    at = e.at(node)
    left, right = (a["self"], a["other"]) if e.is_activation(a["self"]) else (a["other"], a["self"])
    if e.is_activation(right):
        return (at.maximum if largest else at.minimum)(e.input(left), e.input(right), e.shape(node))
    return clamped(e, node, left, right if largest else None, None if largest else right)


def clamped(e: Emitter, node: fx.Node, x: fx.Node, lo: Any, hi: Any) -> str:
    """Append a clamp by numbers or constant tensors; None is no bound."""
    at, name = e.at(node), e.input(x)
    numbers = []
    for bound, none, direction in ((lo, -math.inf, (0.0, math.inf)), (hi, math.inf, (-math.inf, 0.0))):
        if isinstance(bound, int | float) or bound is None:
            numbers.append(none if bound is None else float(bound))
        elif e.is_activation(bound):
            raise at.unsupported("a clamp with computed bounds", "use torch.maximum and torch.minimum")
        else:
            values = _constant(e, node, x, bound)
            if values.size > 1:
                name = at.bounded(name, values, direction)
            numbers.append(float(values.reshape(-1)[0]) if values.size == 1 else none)
    return name if numbers == [-math.inf, math.inf] else at.clamp(name, (numbers[0], numbers[1]))


def lerp(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Return (1 − weight) · self + weight · end, with a number as the weight."""
    weight = a["weight"]
    if isinstance(weight, fx.Node):
        values = None if e.is_activation(weight) else e.array(weight)
        if values is None or values.size != 1:
            raise e.at(node).unsupported("an interpolation with several weights", "write a + weight * (b - a)")
        weight = float(values.reshape(()))
    return _sum(e, node, a["self"], a["end"], 1 - weight, weight)

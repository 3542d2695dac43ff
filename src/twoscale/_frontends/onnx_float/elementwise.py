"""Operators on single values, and on those at the same place of several tensors."""

from __future__ import annotations

import math

import numpy as np
import onnx

from twoscale._frontends.onnx_float import attention, decomposed
from twoscale._frontends.onnx_float.reader import Operator, Reader

__all__ = ["OPERATORS"]


def _result(r: Reader, node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the shape to which the operands broadcast, without the batch."""
    shapes = []
    for index in range(len(node.input)):
        if r.is_activation(node, index):
            shapes.append((1, *r.shape(node, index)))
        else:
            shapes.append(r.weights(node, index).shape)
    result = np.broadcast_shapes(*shapes)
    if result[0] != 1 or any(len(s) != len(result) for i, s in enumerate(shapes) if r.is_activation(node, i)):
        raise r.at(node).wrong("mixes the images of a batch; expected the first dimension to stay the batch")
    return result[1:]


def _sum(left: float, right: float) -> Operator:
    def read(r: Reader, node: onnx.NodeProto) -> str:
        at, shape = r.at(node), _result(r, node)
        if not r.is_activation(node, 1):
            shift = right * at.constant_operand(r.input(node), r.weights(node, 1), shape)
            return at.affine_map(r.input(node), left, shift)
        if not r.is_activation(node, 0):
            shift = left * at.constant_operand(r.input(node, 1), r.weights(node, 0), shape)
            return at.affine_map(r.input(node, 1), right, shift)
        return at.add(at.scaled(r.input(node), left), at.scaled(r.input(node, 1), right), shape)

    return read


def _sum_of_all(r: Reader, node: onnx.NodeProto) -> str:
    """Add any number of tensors, one after the other."""
    at = r.at(node)
    places = range(len(node.input))
    activations = [r.input(node, index) for index in places if r.is_activation(node, index)]
    shape = _result(r, node)
    total = activations[0]
    for name in activations[1:]:
        total = at.add(total, name, shape)
    for index in places:
        if not r.is_activation(node, index):
            total = at.affine_map(total, 1.0, at.constant_operand(total, r.weights(node, index), shape))
    return total


def _mul(r: Reader, node: onnx.NodeProto) -> str:
    at, shape = r.at(node), _result(r, node)
    if r.is_activation(node, 0) and r.is_activation(node, 1):
        for values, factor in (node.input, reversed(node.input)):
            inverse = r.made_by(factor, "Reciprocal")
            if inverse and (name := decomposed.norm(r, node, values, inverse.input[0])):
                return name
        return at.mul(r.input(node), r.input(node, 1), shape)
    x, constant = (0, 1) if r.is_activation(node, 0) else (1, 0)
    return at.affine_map(r.input(node, x), at.constant_operand(r.input(node, x), r.weights(node, constant), shape), 0.0)


def _div(r: Reader, node: onnx.NodeProto) -> str:
    at, shape = r.at(node), _result(r, node)
    if r.is_activation(node, 1):
        if r.is_activation(node, 0) and (name := decomposed.norm(r, node, *node.input)):
            return name
        inverse = at.table(r.input(node, 1), "reciprocal")
        if r.is_activation(node, 0):
            return at.mul(r.input(node), inverse, shape)
        return at.affine_map(inverse, at.constant_operand(inverse, r.weights(node, 0), shape), 0.0)
    divisor = at.constant_operand(r.input(node), r.weights(node, 1), shape)
    if not divisor.all():
        raise at.wrong("divides by zero")
    return at.affine_map(r.input(node), 1.0 / divisor, 0.0)


def _table(function: str, **parameters: float) -> Operator:
    def read(r: Reader, node: onnx.NodeProto) -> str:
        values = (float(r.attribute(node, key, default)) for key, default in parameters.items())
        return r.at(node).table(r.input(node), function, *values)

    return read


def _relu(r: Reader, node: onnx.NodeProto) -> str:
    return r.at(node).clamp(r.input(node), (0.0, math.inf))


def _clip(r: Reader, node: onnx.NodeProto) -> str:
    lo, hi = r.bound(node, 1, "min", -math.inf), r.bound(node, 2, "max", math.inf)
    if lo == math.inf or hi == -math.inf:
        raise r.at(node).wrong("makes every value infinite; expected a bound that leaves some as they are")
    # The largest float32 stands for no bound, but a lower bound that large is one.
    return r.at(node).clamp(r.input(node), (-math.inf if lo < -3e38 else lo, math.inf if hi > 3e38 else hi))


def _celu(r: Reader, node: onnx.NodeProto) -> str:
    alpha = float(r.attribute(node, "alpha", 1.0))
    if not 2.0**-20 <= abs(alpha) <= 2.0**20:  # beyond, α·(exp(x/α) − 1) in float32 is mostly rounding
        raise r.at(node).unsupported(f"alpha = {alpha:g}", "use a value of about 1")
    return r.at(node).table(r.input(node), "celu", alpha)


def _hard_sigmoid(r: Reader, node: onnx.NodeProto) -> str:
    alpha, beta = r.attribute(node, "alpha", 0.2), r.attribute(node, "beta", 0.5)
    if not (math.isclose(alpha, 1 / 6, rel_tol=1e-6) and math.isclose(beta, 0.5, rel_tol=1e-6)):
        return r.at(node).clamp(r.at(node).affine_map(r.input(node), alpha, beta), (0.0, 1.0))
    return r.at(node).table(r.input(node), "hardsigmoid")


def _selu(r: Reader, node: onnx.NodeProto) -> str:
    alpha, gamma = (float(r.attribute(node, key, default)) for key, default in (("alpha", _ALPHA), ("gamma", _GAMMA)))
    if not (math.isclose(alpha, _ALPHA, rel_tol=1e-5) and math.isclose(gamma, _GAMMA, rel_tol=1e-5)):
        return r.at(node).affine(r.at(node).table(r.input(node), "elu", alpha), gamma)
    return r.at(node).table(r.input(node), "selu")


_ALPHA, _GAMMA = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017


def _thresholded_relu(r: Reader, node: onnx.NodeProto) -> str:
    return r.at(node).table(r.input(node), "threshold", float(r.attribute(node, "alpha", 1.0)), 0.0)


def _shrink(r: Reader, node: onnx.NodeProto) -> str:
    limit, bias = float(r.attribute(node, "lambd", 0.5)), float(r.attribute(node, "bias", 0.0))
    if bias not in (0.0, limit) or limit < 0:
        raise r.at(node).unsupported(f"bias = {bias:g} with lambd = {limit:g}", "use 0 or the same number")
    return r.at(node).table(r.input(node), "softshrink" if bias else "hardshrink", limit)


def _prelu(r: Reader, node: onnx.NodeProto) -> str:
    at, name = r.at(node), r.input(node)
    slopes = at.constant_operand(name, r.weights(node, 1), r.shape(node))
    if slopes.size in (1, slopes.shape[0]):
        return at.prelu(name, slopes.reshape(-1))
    positive, negative = at.clamp(name, (0.0, math.inf)), at.clamp(name, (-math.inf, 0.0))
    return at.add(positive, at.affine_map(negative, slopes, 0.0), r.shape(node))


def _gelu(r: Reader, node: onnx.NodeProto) -> str:
    return r.at(node).table(
        r.input(node), "gelu_tanh" if r.attribute(node, "approximate", "none") == "tanh" else "gelu"
    )


def _power(r: Reader, node: onnx.NodeProto) -> str:
    at = r.at(node)
    if r.is_activation(node, 1) or r.weights(node, 1).size != 1:
        raise at.unsupported("a power that is not one number", "multiply instead")
    exponent = float(r.weights(node, 1).reshape(()))
    if not exponent or exponent < -16:
        raise at.unsupported(f"the power {exponent:g}", "use a number from -16 on, other than 0")
    name = r.input(node)
    if exponent == 2:
        return at.mul(name, name, r.shape(node))
    return at.table(name, "power", exponent)


def _sqrt(r: Reader, node: onnx.NodeProto) -> str:
    return r.at(node).table(r.input(node), "power", 0.5)


def _neg(r: Reader, node: onnx.NodeProto) -> str:
    return r.at(node).affine_map(r.input(node), -1.0, 0.0)


def _softmax(r: Reader, node: onnx.NodeProto) -> str:
    at, shape = r.at(node), (1, *r.shape(node))
    axis = int(r.attribute(node, "axis", -1 if r.opset >= 13 else 1))
    count = math.prod(shape[axis % len(shape) :]) if r.opset < 13 else shape[axis % len(shape)]
    last = node.output[0] in r.outputs or _leads_to_output(r, node.output[0])
    if axis % len(shape) == 0 or count != math.prod(shape) or not last:
        if node.op_type == "Softmax":
            return attention.softmax(r, node)
        raise at.unsupported("a softmax before the end", "a softmax may only be the last operation, over the classes")
    return r.input(node)


def _leads_to_output(r: Reader, name: str) -> bool:
    """Whether only changes of shape follow the node."""
    while name not in r.outputs:
        readers = [node for node in r.nodes if name in node.input]
        if len(readers) != 1 or readers[0].op_type not in ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return False
        name = readers[0].output[0]
    return not any(name in node.input for node in r.nodes)


def _identity(r: Reader, node: onnx.NodeProto) -> str:
    return r.input(node)


def _dropout(r: Reader, node: onnx.NodeProto) -> str:
    training = r.constant(node, 2)
    if training is not None and bool(training.any()):
        raise r.at(node).unsupported("a dropout in training mode", "export the model in eval mode")
    return r.input(node)


def _extreme(largest: bool) -> Operator:
    """The largest or smallest of any number of tensors and constants."""

    def read(r: Reader, node: onnx.NodeProto) -> str:
        at, shape, bounds = r.at(node), _result(r, node), (0.0, math.inf) if largest else (-math.inf, 0.0)
        places = range(len(node.input))
        name, *others = [r.input(node, index) for index in places if r.is_activation(node, index)]
        for other in others:
            name = at.maximum(name, other, shape) if largest else at.minimum(name, other, shape)
        for bound in (r.weights(node, index) for index in places if not r.is_activation(node, index)):
            if bound.size > 1:
                name = at.bounded(name, at.constant_operand(name, bound, shape), bounds)
            else:
                value = float(bound.reshape(()))
                name = at.clamp(name, (value, math.inf) if largest else (-math.inf, value))
        return name

    return read


OPERATORS: dict[str, Operator] = {
    "Abs": _table("abs"),
    "Add": _sum(1, 1),
    "Atan": _table("atan"),
    "Asinh": _table("asinh"),
    "Ceil": _table("ceil"),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _table("cos"),
    "Cosh": _table("cosh"),
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _table("elu", alpha=1.0),
    "Erf": _table("erf"),
    "Exp": _table("exp"),
    "Floor": _table("floor"),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _table("hardswish"),
    "Identity": _identity,
    "LeakyRelu": _table("leaky_relu", alpha=0.01),
    "Log": _table("log"),
    "LogSoftmax": _softmax,
    "Max": _extreme(True),
    "Min": _extreme(False),
    "Mish": _table("mish"),
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": _table("reciprocal"),
    "Relu": _relu,
    "Round": _table("round"),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _table("sigmoid"),
    "Sign": _table("sign"),
    "Sin": _table("sin"),
    "Sinh": _table("sinh"),
    "Softmax": _softmax,
    "Softplus": _table("softplus"),
    "Sqrt": _sqrt,
    "Sub": _sum(1, -1),
    "Sum": _sum_of_all,
    "Tanh": _table("tanh"),
    "ThresholdedRelu": _thresholded_relu,
}
"""By name."""

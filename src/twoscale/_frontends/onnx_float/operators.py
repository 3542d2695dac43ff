"""One function per operator. It appends the operator's nodes and returns the name of the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._frontends.onnx_float import attention, decomposed
from twoscale._frontends.onnx_float.reader import Reader
from twoscale._frontends.onnx_float.resizing import resize
from twoscale._ir.builder import Place
from twoscale._ir.float_graph import AveragePool2d, MaxPool2d, Padding

__all__ = ["OPERATORS"]

Operator = Callable[[Reader, onnx.NodeProto], str | None]


def _pads(r: Reader, node: onnx.NodeProto, size: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) of each dimension from pads or auto_pad."""
    rank, auto = len(size), r.attribute(node, "auto_pad", "NOTSET")
    pads = [int(v) for v in r.attribute(node, "pads", [0] * 2 * rank)]
    if auto in ("NOTSET", "VALID"):
        return [(0, 0)] * rank if auto == "VALID" else [(pads[i], pads[i + rank]) for i in range(rank)]
    strides, dilations = (r.attribute(node, key, [1] * rank) for key in ("strides", "dilations"))
    found = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found


def _windows(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilations: Sequence[int],
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """Return the number of windows along each dimension."""
    counts = []
    for n, k, s, (before, after), d in zip(size, kernel, strides, pads, dilations, strict=True):
        span = n + before + after - d * (k - 1) - 1
        count = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (count - 1) * s >= n + before:  # a window must start within the image or the padding before
            count -= 1
        counts.append(count)
    return tuple(counts)


def _conv(r: Reader, node: onnx.NodeProto) -> str:
    at, (channels, *size), weight = r.at(node), r.shape(node), r.weights(node, 1)
    rank = len(size)
    if rank not in (1, 2) or weight.ndim != rank + 2:
        raise at.unsupported(f"a convolution of {rank} dimensions", "use one or two")
    strides, dilations = (list(r.attribute(node, key, [1] * rank)) for key in ("strides", "dilations"))
    groups, pads = int(r.attribute(node, "group", 1)), _pads(r, node, size, weight.shape[2:])
    if weight.shape[1] * groups != channels:
        raise at.wrong(f"has weights {weight.shape} for {channels} channels")
    shape = (len(weight), *_windows(size, weight.shape[2:], strides, pads, dilations))
    bias = None if r.constant(node, 2) is None else r.weights(node, 2)
    return at.convolution(
        r.input(node), shape, weight, bias, stride=strides, padding=pads, dilation=dilations, groups=groups
    )


def _conv_transpose(r: Reader, node: onnx.NodeProto) -> str:
    at, (channels, *size), weight = r.at(node), r.shape(node), r.weights(node, 1)
    rank, auto = len(size), r.attribute(node, "auto_pad", "NOTSET")
    if rank not in (1, 2) or weight.ndim != rank + 2:
        raise at.unsupported(f"a transposed convolution of {rank} dimensions", "use one or two")
    groups = int(r.attribute(node, "group", 1))
    if len(weight) != channels or groups < 1 or channels % groups:
        raise at.wrong(f"has weights {weight.shape} in {groups} groups for {channels} channels")
    strides, dilations = (list(r.attribute(node, key, [1] * rank)) for key in ("strides", "dilations"))
    extra, pads = r.attribute(node, "output_padding", [0] * rank), r.attribute(node, "pads", [0] * 2 * rank)
    wanted = r.attribute(node, "output_shape", None)
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(size, strides, strict=True)]
    out, left_out = [], []
    for i, (n, k, s, d) in enumerate(zip(size, weight.shape[2:], strides, dilations, strict=True)):
        whole = s * (n - 1) + int(extra[i]) + d * (k - 1) + 1
        before, after = (0, 0) if auto == "VALID" else (int(pads[i]), int(pads[i + rank]))
        if wanted is not None:
            total = whole - int(wanted[i])
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
            after = total - before
        out.append(whole - before - after)
        left_out.append(before)
    if min(out) < 1:
        raise at.wrong(f"has a result of size {out}")
    return at.transposed_convolution(
        r.input(node),
        (weight.shape[1] * groups, *out),
        weight,
        None if r.constant(node, 2) is None else r.weights(node, 2),
        stride=strides,
        padding=left_out,
        dilation=dilations,
        groups=groups,
    )


def _gemm(r: Reader, node: onnx.NodeProto) -> str:
    at, alpha, beta = r.at(node), r.attribute(node, "alpha", 1.0), r.attribute(node, "beta", 1.0)
    if r.attribute(node, "transA", 0) or len(r.shape(node)) != 1:
        raise at.unsupported("a product along the batch", "use transA = 0")
    weight = r.weights(node, 1)
    weight = weight if r.attribute(node, "transB", 0) else weight.T
    bias = r.constant(node, 2)
    if bias is not None:
        bias = np.broadcast_to(beta * bias.astype(np.float32), (1, len(weight))).reshape(-1).copy()
    weight = np.ascontiguousarray(weight if alpha == 1 else np.float32(alpha) * weight)
    return at.linear(r.input(node), weight, None if bias is None else np.ascontiguousarray(bias, np.float32))


def _matmul(r: Reader, node: onnx.NodeProto) -> str:
    at = r.at(node)
    if r.is_activation(node, 0) and r.is_activation(node, 1):
        return attention.matmul(r, node)
    weight = r.weights(node, 1 if r.is_activation(node, 0) else 0)
    if weight.ndim != 2:
        raise at.unsupported(f"a product with weights of shape {weight.shape}", "use a matrix")
    if r.is_activation(node, 0):
        return at.linear(r.input(node), np.ascontiguousarray(weight.T))
    if len(r.shape(node, 1)) != 2:
        raise at.unsupported("a product along the batch", "exchange the operands")
    return at.permute(at.linear(at.permute(r.input(node, 1), (1, 0)), weight), (1, 0))


def _batch_norm(r: Reader, node: onnx.NodeProto) -> str:
    if r.attribute(node, "training_mode", 0) or len([name for name in node.output if name]) > 1:
        raise r.at(node).unsupported("a batch norm in training mode", "export the model in eval mode")
    gamma, beta, mean, variance = (r.weights(node, index) for index in range(1, 5))
    return r.at(node).batch_norm(r.input(node), gamma, beta, mean, variance, r.attribute(node, "epsilon", 1e-5))


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


def _max_pool(r: Reader, node: onnx.NodeProto) -> str:
    if r.reads_more_than_the_first(node):
        raise r.at(node).unsupported("the index of a maximum", "use its value")
    pool = _pool(r, node)
    ceil_mode = bool(r.attribute(node, "ceil_mode", 0))
    name = r.at(node).max_pool(
        pool.image, pool.shape, pool.kernel, pool.strides, pool.padding, pool.dilations, ceil_mode=ceil_mode
    )
    return r.at(node).reshape(name, pool.result)


def _average_pool(r: Reader, node: onnx.NodeProto) -> str:
    pool = _pool(r, node)
    if pool.dilations != (1, 1):
        raise r.at(node).unsupported("a dilated mean", "use dilations of 1")
    counts = bool(r.attribute(node, "count_include_pad", 0))
    name = r.at(node).average_pool(
        pool.image, pool.shape, pool.kernel, pool.strides, pool.padding, counts_padding=counts
    )
    return r.at(node).reshape(name, pool.result)


@dataclass(frozen=True)
class _Pool:
    """A pool over windows. Sequences are images of one column."""

    image: str
    """Name of the input as (C, H, W)."""
    shape: tuple[int, ...]
    """Of the pooled image."""
    result: tuple[int, ...]
    """Of the node's result."""
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: Padding
    dilations: tuple[int, int]


def _pool(r: Reader, node: onnx.NodeProto) -> _Pool:
    (channels, *size) = r.shape(node)
    rank = len(size)
    if rank not in (1, 2):
        raise r.at(node).unsupported(f"a pool over {rank} dimensions", "use one or two")
    kernel = [int(v) for v in r.attribute(node, "kernel_shape", [])]
    strides, dilations = ([int(v) for v in r.attribute(node, key, [1] * rank)] for key in ("strides", "dilations"))
    pads = _pads(r, node, size, kernel)
    windows = _windows(size, kernel, strides, pads, dilations, bool(r.attribute(node, "ceil_mode", 0)))
    result = (channels, *windows)
    if rank == 1:
        size, windows, pads = [*size, 1], (*windows, 1), [*pads, (0, 0)]
        kernel, strides, dilations = ([*values, 1] for values in (kernel, strides, dilations))
    return _Pool(
        image=r.at(node).reshape(r.input(node), (channels, *size)),
        shape=(channels, *windows),
        result=result,
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        padding=(pads[0][0], pads[1][0], pads[0][1], pads[1][1]),
        dilations=(dilations[0], dilations[1]),
    )


def _global_pool(kind: type[AveragePool2d | MaxPool2d]) -> Operator:
    def read(r: Reader, node: onnx.NodeProto) -> str:
        channels, *size = r.shape(node)
        axes = list(range(1, 1 + len(size)))
        return r.at(node).reduce(r.input(node), axes, kind, (channels, *(1,) * len(size)))

    return read


def _reduce(
    kind: type[AveragePool2d | MaxPool2d] | None, first: Callable[[Place, str], str] = lambda at, name: name
) -> Callable[[Reader, onnx.NodeProto], str]:
    """A mean, a maximum or a sum (None) of what ``first`` makes of the values."""

    def read(r: Reader, node: onnx.NodeProto) -> str:
        shape = r.shape(node)
        given = r.integers(node, 1, "axes", None)
        if not given:
            raise r.at(node).wrong("is over the batch; expected images to stay apart")
        axes = sorted(r.axis(node, axis, len(shape) + 1) for axis in given)
        keep = bool(r.attribute(node, "keepdims", 1))
        result = tuple(1 if i in axes else size for i, size in enumerate(shape) if keep or i not in axes)
        values = first(r.at(node), r.input(node))
        if kind is None:
            return r.at(node).total(values, axes, result)
        return r.at(node).reduce(values, axes, kind, result)

    return read


def _least(r: Reader, node: onnx.NodeProto) -> str:
    return r.at(node).affine(_reduce(MaxPool2d, lambda at, name: at.affine(name, -1.0))(r, node), -1.0)


def _root_of_squares(r: Reader, node: onnx.NodeProto) -> str:
    return r.at(node).table(_reduce(None, _squared)(r, node), "power", 0.5)


def _squared(at: Place, name: str) -> str:
    return at.mul(name, name, at.shape(name))


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


def _copies(r: Reader, node: onnx.NodeProto) -> str:
    """Tile and Expand: copies along dimensions, but for the batch."""
    at, given, shape = r.at(node), [int(v) for v in r.weights_of_int(node, 1)], (1, *r.shape(node))
    if node.op_type == "Expand":  # to a shape that may have fewer dimensions, or 1 where the tensor has more
        given = [1] * (len(shape) - len(given)) + given
        if given[0] in (r.batch, r.fixed_batch):
            given[0] = 1
        given = given[: len(given) - len(shape)] + [
            wanted if size == 1 else 1 for size, wanted in zip(shape, given[-len(shape) :], strict=True)
        ]
    if len(given) != len(shape) or given[0] != 1 or min(given) < 1:
        raise at.wrong("repeats the images of a batch; expected the first dimension to stay the batch")
    return at.tile(r.input(node), tuple(size * n for size, n in zip(shape[1:], given[1:], strict=True)))


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


def _local_response_norm(r: Reader, node: onnx.NodeProto) -> str:
    """x · (bias + alpha · m)^-beta, where m is the mean of the squares of neighbouring channels, zeros included."""
    at, name, shape = r.at(node), r.input(node), r.shape(node)
    size, bias = int(r.attribute(node, "size", 1)), float(r.attribute(node, "bias", 1.0))
    alpha, beta = float(r.attribute(node, "alpha", 1e-4)), float(r.attribute(node, "beta", 0.75))
    if size < 1 or bias <= 0 or alpha < 0 or not 0 < beta <= 16:
        raise at.wrong(f"has size {size}, bias {bias:g}, alpha {alpha:g} and beta {beta:g}; expected positive numbers")
    image, before = (1, shape[0], math.prod(shape[1:])), (size - 1) // 2
    mean = at.average_pool(
        at.reshape(at.mul(name, name, shape), image),
        image,
        (size, 1),
        (1, 1),
        (before, 0, size - 1 - before, 0),
        counts_padding=True,
    )
    factor = at.table(at.affine(mean, alpha, bias), "power", -beta)
    return at.mul(name, at.reshape(factor, shape), shape)


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


def _reshape(r: Reader, node: onnx.NodeProto) -> str:
    target, shape = [int(v) for v in r.weights_of_int(node, 1)], r.shape(node)
    whole = (r.batch, *shape)
    if not r.attribute(node, "allowzero", 0):
        target = [whole[i] if size == 0 and i < len(whole) else size for i, size in enumerate(target)]
    if target.count(-1) == 1:
        rest = -math.prod(target)
        if rest <= 0 or math.prod(whole) % rest:
            fixed = r.fixed_batch  # a file for a fixed batch size may contain that size
            raise r.at(node).wrong(f"reshapes (N, ...) to {target} for a batch of {fixed}; write -1 or 0 for the batch")
        target[target.index(-1)] = math.prod(whole) // rest
    if target[:1] == [r.fixed_batch] and math.prod(target[1:]) == math.prod(shape):
        target[0] = r.batch
    if target[:1] != [r.batch] or math.prod(target[1:]) != math.prod(shape):
        raise r.at(node).wrong(f"reshapes {('N', *shape)} to {target}; expected the first dimension to stay the batch")
    return r.at(node).reshape(r.input(node), tuple(target[1:]))


def _flatten(r: Reader, node: onnx.NodeProto) -> str:
    shape, axis = r.shape(node), int(r.attribute(node, "axis", 1))
    if axis not in (1, -len(shape)):
        raise r.at(node).wrong(f"flattens at {axis}; expected the first dimension to stay the batch")
    return r.at(node).reshape(r.input(node), (math.prod(shape),))


def _squeeze(r: Reader, node: onnx.NodeProto) -> str:
    shape, given = r.shape(node), r.integers(node, 1, "axes", None)
    if given is None:
        if r.fixed_batch == 1:
            raise r.at(node).wrong("has no axes, so that it drops a batch of one")
        axes = [i for i, size in enumerate(shape) if size == 1]
    else:
        axes = [r.axis(node, axis, len(shape) + 1) for axis in given]
    if any(shape[axis] != 1 for axis in axes):
        raise r.at(node).wrong(f"drops dimensions of {shape} that are not 1")
    return r.at(node).reshape(r.input(node), tuple(size for i, size in enumerate(shape) if i not in axes))


def _unsqueeze(r: Reader, node: onnx.NodeProto) -> str:
    shape, given = list(r.shape(node)), r.integers(node, 1, "axes", None) or []
    rank = 1 + len(shape) + len(given)
    for axis in sorted(r.axis(node, axis, rank) for axis in given):
        shape.insert(axis, 1)
    return r.at(node).reshape(r.input(node), tuple(shape))


def _transpose(r: Reader, node: onnx.NodeProto) -> str:
    rank = 1 + len(r.shape(node))
    order = [int(v) for v in r.attribute(node, "perm", list(range(rank))[::-1])]
    if sorted(order) != list(range(rank)) or order[0] != 0:
        raise r.at(node).wrong("moves the batch; expected it to stay the first dimension")
    return r.at(node).permute(r.input(node), tuple(axis - 1 for axis in order[1:]))


def _concat(r: Reader, node: onnx.NodeProto) -> str:
    parts: list[str | NDArray[np.float32]] = []
    for index in range(len(node.input)):
        if r.is_activation(node, index):
            parts.append(r.input(node, index))
        elif (constant := r.weights(node, index)).shape[:1] == (1,):
            parts.append(constant[0])
        else:
            raise r.at(node).wrong("joins a constant for each image of a batch; expected one for all images")
    shapes = [r.builder[part].shape if isinstance(part, str) else part.shape for part in parts]
    axis = r.axis(node, int(r.attribute(node, "axis", 1)), 1 + len(shapes[0]))
    total = sum(shape[axis] for shape in shapes)
    return r.at(node).concat(parts, axis, (*shapes[0][:axis], total, *shapes[0][axis + 1 :]))


def _slice(r: Reader, node: onnx.NodeProto) -> str:
    shape, name = r.shape(node), r.input(node)
    starts, ends = r.integers(node, 1, "starts", []) or [], r.integers(node, 2, "ends", []) or []
    axes = r.integers(node, 3, "axes", list(range(len(starts)))) or []
    steps = r.integers(node, 4, "steps", [1] * len(starts)) or []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis in (0, -1 - len(shape)) and start == 0 and end >= r.batch and step == 1:
            continue
        axis = r.axis(node, axis, 1 + len(shape))
        size = r.builder[name].shape[axis]
        if step < 1:
            name = r.at(node).gather(name, axis, list(range(*slice(start, end, step).indices(size))))
        else:
            name = r.at(node).slice(name, axis, *slice(start, end, step).indices(size))
    return name


def _split(r: Reader, node: onnx.NodeProto) -> None:
    shape = r.shape(node)
    axis = r.axis(node, int(r.attribute(node, "axis", 0)), 1 + len(shape))
    count = len(node.output)
    part = -(-shape[axis] // count)
    sizes = r.integers(node, 1, "split", None) or [min(part, shape[axis] - i * part) for i in range(count)]
    start = 0
    for name, size in zip(node.output, sizes, strict=True):
        r.tensors[name] = r.at(node).slice(r.input(node), axis, start, start + size)
        start += size


def _gather(r: Reader, node: onnx.NodeProto) -> str:
    shape = r.shape(node)
    axis = r.axis(node, int(r.attribute(node, "axis", 0)), 1 + len(shape))
    indices = r.weights_of_int(node, 1)
    if indices.ndim > 1 or (np.abs(indices) > shape[axis]).any():
        raise r.at(node).unsupported(f"indices of shape {indices.shape}", "use one dimension")
    wanted = [int(i) % shape[axis] for i in indices.reshape(-1)]
    if indices.ndim == 0:
        return r.at(node).select(r.input(node), axis, wanted[0])
    return r.at(node).gather(r.input(node), axis, wanted)


def _pad(r: Reader, node: onnx.NodeProto) -> str:
    at, shape = r.at(node), r.shape(node)
    rank = 1 + len(shape)
    flat = r.integers(node, 1, "pads", []) or []
    given = r.integers(node, 3, "axes", list(range(rank))) or []
    widths = [(0, 0)] * rank
    for position, axis in enumerate(given):
        widths[axis % rank] = (flat[position], flat[position + len(given)])
    if widths[0] != (0, 0):
        raise at.wrong("pads the batch; expected images to stay apart")
    mode = r.attribute(node, "mode", "constant")
    if mode != "constant":
        modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
        return at.pad_with_values(r.input(node), widths[1:], modes[mode])
    value = r.constant(node, 2)
    filling = float(r.attribute(node, "value", 0.0)) if value is None else float(value.reshape(()))
    return at.pad(r.input(node), widths[1:], filling)


def _space_to_depth(r: Reader, node: onnx.NodeProto) -> str:
    (channels, height, width), block = r.shape(node), int(r.attribute(node, "blocksize", 1))
    split = (channels, height // block, block, width // block, block)
    out = (channels * block**2, height // block, width // block)
    axes = (0, 2, 4, 1, 3) if r.attribute(node, "mode", "DCR") == "CRD" else (2, 4, 0, 1, 3)
    return r.at(node).rearrange(r.input(node), split, axes, out)


def _depth_to_space(r: Reader, node: onnx.NodeProto) -> str:
    (channels, height, width), block = r.shape(node), int(r.attribute(node, "blocksize", 1))
    out = (channels // block**2, height * block, width * block)
    if r.attribute(node, "mode", "DCR") == "CRD":
        return r.at(node).rearrange(r.input(node), (out[0], block, block, height, width), (0, 3, 1, 4, 2), out)
    return r.at(node).rearrange(r.input(node), (block, block, out[0], height, width), (2, 3, 0, 4, 1), out)


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
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Ceil": _table("ceil"),
    "Celu": _celu,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _table("cos"),
    "Cosh": _table("cosh"),
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _table("elu", alpha=1.0),
    "Erf": _table("erf"),
    "Exp": _table("exp"),
    "Expand": _copies,
    "Flatten": _flatten,
    "Floor": _table("floor"),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(AveragePool2d),
    "GlobalMaxPool": _global_pool(MaxPool2d),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _table("hardswish"),
    "Identity": _identity,
    "LRN": _local_response_norm,
    "LeakyRelu": _table("leaky_relu", alpha=0.01),
    "Log": _table("log"),
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "LayerNormalization": attention.layer_norm,
    "RMSNormalization": attention.layer_norm,
    "GroupNormalization": attention.group_norm,
    "InstanceNormalization": attention.instance_norm,
    "Max": _extreme(True),
    "MaxPool": _max_pool,
    "Min": _extreme(False),
    "Mish": _table("mish"),
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _power,
    "Reciprocal": _table("reciprocal"),
    "ReduceL1": _reduce(None, lambda at, name: at.table(name, "abs")),
    "ReduceL2": _root_of_squares,
    "ReduceMax": _reduce(MaxPool2d),
    "ReduceMean": _reduce(AveragePool2d),
    "ReduceMin": _least,
    "ReduceSum": _reduce(None),
    "ReduceSumSquare": _reduce(None, _squared),
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": resize,
    "Round": _table("round"),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _table("sigmoid"),
    "Sign": _table("sign"),
    "Sin": _table("sin"),
    "Sinh": _table("sinh"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _table("softplus"),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _sqrt,
    "Squeeze": _squeeze,
    "Sub": _sum(1, -1),
    "Sum": _sum_of_all,
    "Tanh": _table("tanh"),
    "ThresholdedRelu": _thresholded_relu,
    "Tile": _copies,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": resize,
}
"""Functions that read a node, by operator."""

"""Operators with weights or windows: products, convolutions, normalizations, pools, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from twoscale._frontends.onnx_float import attention
from twoscale._frontends.onnx_float.reader import Operator, Reader
from twoscale._ir.builder import Place
from twoscale._ir.float_graph import AveragePool2d, MaxPool2d, Padding

__all__ = ["OPERATORS"]


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


OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(AveragePool2d),
    "GlobalMaxPool": _global_pool(MaxPool2d),
    "LRN": _local_response_norm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "ReduceL1": _reduce(None, lambda at, name: at.table(name, "abs")),
    "ReduceL2": _root_of_squares,
    "ReduceMax": _reduce(MaxPool2d),
    "ReduceMean": _reduce(AveragePool2d),
    "ReduceMin": _least,
    "ReduceSum": _reduce(None),
    "ReduceSumSquare": _reduce(None, _squared),
}
"""By name."""

"""Operators that compute new integers: QuantizeLinear, the QLinear operators, tables."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._frontends.onnx_integer.reader import Reader, padding, pair
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT

__all__ = ["COMPUTING"]


def _quantize(reader: Reader, node: onnx.NodeProto) -> None:
    reader.expect(node, reader.attributes(node, axis=1, saturate=1, block_size=0, output_dtype=0, precision=0))
    name = node.output[0]
    if node.input[0] == reader.image_input:
        reader.append(node, n.QuantizeInput(name=name, inputs=(), output=reader.spec(node, 1, reader.image_shape)))
        return
    x = reader.integers(node, 0)
    spec = reader.spec(node, 1, x.output.shape)
    if (spec.scale, spec.zero_point, spec.dtype) == (x.output.scale, x.output.zero_point, x.output.dtype):
        reader.alias(node, x, real=False)
        return
    factor = np.float32(x.output.scale) / np.float32(spec.scale)
    reader.append(node, n.Concat(name=name, inputs=(x.name,), output=spec, axis=0, multipliers=(_multiplier(factor),)))


def _dequantize(reader: Reader, node: onnx.NodeProto) -> None:
    if node.input[0] in reader.constants:
        return  # whatever reads it computes in floating point, and is refused
    reader.alias(node, reader.operand(node, 0), real=True)


def _qlinear_conv(reader: Reader, node: onnx.NodeProto) -> None:
    x = reader.operand(node, 0)
    weight = reader.weights(node, 3, 0)
    if weight.ndim != 4 or len(x.output.shape) != 3:
        reader.refuse(node, f"weights {weight.shape} on {x.output.shape}; only two-dimensional convolutions")
    attributes = reader.window(node, weight.shape[2:], dilations=[1, 1], group=1)
    channels = len(weight)
    shape = (channels, *reader.pooled(node, x, attributes))
    spec = reader.spec(node, 6, shape)
    factors = np.float32(x.output.scale) * reader.weight_scales(node, 4, channels) / np.float32(spec.scale)
    reader.append(
        node,
        n.Conv2d(
            name=node.output[0],
            inputs=(x.name,),
            output=spec,
            multiplier=_multiplier(factors),
            weight=weight,
            bias_o=reader.bias(node, 8, channels),
            stride=pair(attributes["strides"]),
            padding=padding(attributes["pads"]),
            dilation=pair(attributes["dilations"]),
            groups=attributes["group"],
        ),
    )


def _qgemm(reader: Reader, node: onnx.NodeProto) -> None:
    attributes = reader.attributes(node, alpha=1.0, transA=0, transB=0)
    reader.expect(node, attributes, transA=0)
    x = reader.operand(node, 0)
    weight = reader.weights(node, 3, 0 if attributes["transB"] else 1)
    _linear(reader, node, x, weight if attributes["transB"] else weight.T, 6, 7, np.float32(attributes["alpha"]))


def _qlinear_matmul(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    x = reader.operand(node, 0)
    _linear(reader, node, x, reader.weights(node, 3, 1).T, None, 6, np.float32(1))


def _linear(
    reader: Reader,
    node: onnx.NodeProto,
    x: n.Layer,
    weight: NDArray[np.int8],
    bias: int | None,
    output: int,
    alpha: np.float32,
) -> None:
    if weight.ndim != 2 or len(x.output.shape) != 1:
        reader.refuse(node, f"weights {weight.T.shape} on {x.output.shape}; only vectors times a matrix")
    channels = len(weight)
    scales = alpha * np.float32(x.output.scale) * reader.weight_scales(node, 4, channels)
    multiplier: n.Multiplier | None = None
    if reader.has(node, output):
        spec = reader.spec(node, output, (channels,))
        multiplier = _multiplier(scales / np.float32(spec.scale))
    elif scales.size == 1:
        spec = n.TensorSpec((channels,), "int32", float(scales[0]))
        reader.real.add(node.output[0])
    else:
        reader.refuse(node, "it has real outputs of several scales; accumulators that leave need one for all classes")
    layer = n.Linear(
        name=node.output[0],
        inputs=(x.name,),
        output=spec,
        multiplier=multiplier,
        weight=np.ascontiguousarray(weight),
        bias_o=np.zeros(channels, np.int32) if bias is None else reader.bias(node, bias, channels),
    )
    reader.append(node, layer)


def _qlinear_add(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    a, b = reader.operand(node, 0), reader.operand(node, 3)
    spec = reader.spec(node, 6, a.output.shape)
    factors = [np.float32(x.output.scale) / np.float32(spec.scale) for x in (a, b)]
    m_a, m_b = (_multiplier(factor, ADD_SHIFT) for factor in factors)
    if (m_a.shift is None) != (m_b.shift is None):
        m_a, m_b = n.Multiplier(m_a.values, None), n.Multiplier(m_b.values, None)
    reader.append(node, n.Add(name=node.output[0], inputs=(a.name, b.name), output=spec, multipliers=(m_a, m_b)))


def _qlinear_mul(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    a, b = reader.operand(node, 0), reader.operand(node, 3)
    shapes = a.output.shape, b.output.shape
    if len(shapes[0]) != len(shapes[1]):
        reader.refuse(node, f"it multiplies tensors of shapes {shapes[0]} and {shapes[1]}")
    spec = reader.spec(node, 6, np.broadcast_shapes(*shapes))
    factor = np.float32(a.output.scale) * np.float32(b.output.scale) / np.float32(spec.scale)
    reader.append(
        node, n.Mul(name=node.output[0], inputs=(a.name, b.name), output=spec, multiplier=_multiplier(factor))
    )


def _global_average_pool(reader: Reader, node: onnx.NodeProto) -> None:
    reader.expect(node, reader.attributes(node, channels_last=0), channels_last=0)
    x = reader.operand(node, 0)
    if len(x.output.shape) != 3:
        reader.refuse(node, f"its input has shape {x.output.shape}, expected (C, H, W)")
    channels, height, width = x.output.shape
    _average(reader, node, x, (channels, 1, 1), (height, width), (1, 1), (0, 0, 0, 0))


def _average_pool(reader: Reader, node: onnx.NodeProto) -> None:
    attributes = reader.window(node, count_include_pad=0, ceil_mode=0, channels_last=0)
    reader.expect(node, attributes, ceil_mode=0, channels_last=0)
    if any(attributes["pads"]) and not attributes["count_include_pad"]:
        reader.refuse(node, "padding that does not count in the mean (count_include_pad = 0) is not supported")
    x = reader.operand(node, 0)
    shape = (x.output.shape[0], *reader.pooled(node, x, attributes))
    kernel, stride = pair(attributes["kernel_shape"]), pair(attributes["strides"])
    _average(reader, node, x, shape, kernel, stride, padding(attributes["pads"]))


def _average(
    reader: Reader,
    node: onnx.NodeProto,
    x: n.Layer,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: n.Padding,
) -> None:
    spec = reader.spec(node, 3, shape)
    factor = np.float32(x.output.scale) / (np.float32(spec.scale) * np.float32(math.prod(kernel)))
    layer = n.AveragePool2d(
        name=node.output[0],
        inputs=(x.name,),
        output=spec,
        multiplier=_multiplier(factor),
        kernel=kernel,
        stride=stride,
        padding=padding,
    )
    reader.append(node, layer)


def _qlinear_concat(reader: Reader, node: onnx.NodeProto) -> None:
    axis = reader.attributes(node, axis=None)["axis"]
    operands = [reader.operand(node, index) for index in range(2, len(node.input), 3)]
    rank = len(operands[0].output.shape)
    axis = axis + rank + 1 if axis < 0 else axis
    if not 1 <= axis <= rank or any(len(x.output.shape) != rank for x in operands):
        reader.refuse(node, f"axis = {axis} does not fit its inputs")
    shape = list(operands[0].output.shape)
    shape[axis - 1] = sum(x.output.shape[axis - 1] for x in operands)
    spec = reader.spec(node, 0, shape)
    same = [(x.output.scale, x.output.zero_point) == (spec.scale, spec.zero_point) for x in operands]
    multipliers = tuple(
        None if equal else _multiplier(np.float32(x.output.scale) / np.float32(spec.scale))
        for x, equal in zip(operands, same, strict=True)
    )
    free = any(m is not None and m.shift is None for m in multipliers)
    reader.append(
        node,
        n.Concat(
            name=node.output[0],
            inputs=tuple(x.name for x in operands),
            output=spec,
            axis=axis - 1,
            multipliers=tuple(m and n.Multiplier(m.values, None if free else m.shift) for m in multipliers),
        ),
    )


def _leaky_relu(reader: Reader, node: onnx.NodeProto) -> None:
    alpha = np.float32(reader.attributes(node, alpha=0.01)["alpha"])
    _table(reader, node, lambda x: np.where(x >= 0, x, alpha * x))


def _sigmoid(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    _table(reader, node, lambda x: (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32))


def _table(
    reader: Reader, node: onnx.NodeProto, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    """Tabulate a function of one tensor: dequantize, compute, quantize."""
    x = reader.operand(node, 0)
    spec = reader.spec(node, 3, x.output.shape)
    limits = np.iinfo(x.output.dtype)
    q = np.arange(limits.min, limits.max + 1, dtype=np.float32)
    y = function(np.float32(x.output.scale) * (q - np.float32(x.output.zero_point)))
    table = np.clip(np.rint(y / np.float32(spec.scale)) + spec.zero_point, spec.lo, spec.hi).astype(np.int16)
    reader.append(node, n.Table(name=node.output[0], inputs=(x.name,), output=spec, table=table))


def _multiplier(factors: NDArray[np.float32] | np.float32, shift: int = REQUANTIZE_SHIFT) -> n.Multiplier:
    """Return multipliers on the grid if the factors are, else free ones."""
    values = np.atleast_1d(np.asarray(factors, np.float32))
    integers = np.ldexp(values.astype(np.float64), shift)
    whole = (integers == np.rint(integers)) & (integers > 0) & (integers < MULTIPLIER_LIMIT)
    return n.Multiplier(values, shift if whole.all() else None)


COMPUTING: dict[str, Callable[[Reader, onnx.NodeProto], None]] = {
    "DequantizeLinear": _dequantize,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_add,
    "QLinearAveragePool": _average_pool,
    "QLinearConcat": _qlinear_concat,
    "QLinearConv": _qlinear_conv,
    "QLinearGlobalAveragePool": _global_average_pool,
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearMul": _qlinear_mul,
    "QLinearSigmoid": _sigmoid,
    "QuantizeLinear": _quantize,
}
"""What reads a node, by operator."""

"""Operators that compute new integers: QuantizeLinear, the QLinear operators, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._frontends.onnx_integer.factors import joint_multipliers, multiplier_of, settled, without_zero_point
from twoscale._frontends.onnx_integer.fusing import Step, chain_of
from twoscale._frontends.onnx_integer.pools import average_pool, global_average_pool
from twoscale._frontends.onnx_integer.reader import Reader, padding, pair
from twoscale._frontends.onnx_integer.settling import runtime_result, values_of
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, REQUANTIZE_SHIFT

__all__ = ["COMPUTING", "MICROSOFT", "quantize_constant", "read_function"]

_LARGEST_CONSTANT = 1 << 13
"""Values of a constant operand, which is swept with all integers of the other one."""


def _quantize(reader: Reader, node: onnx.NodeProto) -> None:
    attributes = reader.attributes(node, axis=1, saturate=1, block_size=0, output_dtype=0, precision=0)
    reader.expect(node, attributes, block_size=0, precision=0)
    types = {0: "uint8", onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT8: "int8"}
    if attributes["output_dtype"] not in types:
        reader.refuse(node, f"output_dtype = {attributes['output_dtype']} is not 8 bits wide")
    dtype, name = types[attributes["output_dtype"]], node.output[0]
    asked = bool(attributes["output_dtype"])
    if node.input[0] == reader.image_input:
        spec = reader.spec(node, 1, reader.image_shape, dtype, asked)
        reader.append(node, n.QuantizeInput(name=name, inputs=(), output=spec))
        return
    x = reader.integers(node, 0)
    spec = reader.spec(node, 1, x.output.shape, dtype, asked)
    if node.input[0] not in reader.real:
        reader.refuse(node, f"it quantizes {node.input[0]}, which is not real numbers made of the images")
    if (spec.scale, spec.zero_point, spec.dtype) == (x.output.scale, x.output.zero_point, x.output.dtype):
        reader.alias(node, x, real=False)
        return
    q = values_of(x.output.dtype)
    steps = (np.float32(x.output.scale) * without_zero_point(q, x)) / np.float32(spec.scale)
    expected = np.clip(np.rint(steps) + np.float32(spec.zero_point), spec.lo, spec.hi)
    multiplier = _requantizing(reader, node, x, spec, expected)
    reader.append(node, n.Concat(name=name, inputs=(x.name,), output=spec, axis=0, multipliers=(multiplier,)))


def quantize_constant(reader: Reader, node: onnx.NodeProto) -> None:
    """Quantize weights, with one scale or one for each index of an axis."""
    attributes = reader.attributes(node, axis=1, saturate=1, block_size=0, output_dtype=0, precision=0)
    reader.expect(node, attributes, block_size=0, output_dtype=0, precision=0)
    axis, dtype = attributes["axis"], np.uint8
    values, scale = reader.constant(node, 0), reader.constant(node, 1)
    zero = reader.constant(node, 2) if reader.has(node, 2) else np.zeros(scale.shape, dtype)
    if values.dtype != np.float32 or scale.dtype != np.float32 or zero.shape != scale.shape or scale.ndim > 1:
        reader.refuse(node, f"it quantizes constants of {values.dtype} with scales {scale.dtype} {scale.shape}")
    if zero.dtype not in (np.uint8, np.int8):
        reader.refuse(node, f"its zero point is {zero.dtype}, expected int8 or uint8")
    reader.usual(node, scale, "scale")
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[reader.axis(node, axis, values.ndim)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    limits = np.iinfo(zero.dtype)
    steps = np.clip(values / scale, np.float32(-(2**20)), np.float32(2**20))  # far beyond the type
    if np.isnan(steps).any():
        reader.refuse(node, "it quantizes constants that are not numbers")
    q = np.clip(np.rint(steps) + zero.astype(np.float32), limits.min, limits.max).astype(zero.dtype)
    reader.define(node.output[0], q)


def _dequantize(reader: Reader, node: onnx.NodeProto) -> None:
    if node.input[0] in reader.constants:
        return  # its readers compute in floating point and are refused
    reader.expect(node, reader.attributes(node, axis=1, block_size=0, output_dtype=0), block_size=0, output_dtype=0)
    reader.alias(node, reader.operand(node, 0), real=True)


def _qlinear_conv(reader: Reader, node: onnx.NodeProto) -> None:
    x = reader.operand(node, 0)
    weight = reader.weights(node, 3, 0, x)
    zero_points = reader.constant(node, 5)
    if (zero_points != zero_points.flat[0]).any():
        reader.refuse(node, "the zero points of its weights differ, which ONNX Runtime does not run")
    if weight.ndim != 4 or len(x.output.shape) != 3:
        reader.refuse(node, f"weights {weight.shape} on {x.output.shape}; only two-dimensional convolutions")
    attributes = reader.window(node, weight.shape[2:], dilations=[1, 1], group=1)
    channels = len(weight)
    shape = (channels, *reader.pooled(node, x, attributes))
    spec = reader.spec(node, 6, shape, x.output.dtype)
    factors = np.float32(x.output.scale) * reader.weight_scales(node, 4, channels) / np.float32(spec.scale)
    reader.usual(node, factors, "multiplier")
    inputs, multiplier, residual_multiplier = [x.name], multiplier_of(factors), None
    if reader.step.operator is not None and reader.has(node, 9):  # a float sum was fused
        residual = reader.operand(node, 9)
        factor = np.float32(residual.output.scale) / np.float32(spec.scale)
        reader.usual(node, np.asarray(factor), "multiplier of the residual")
        inputs.append(residual.name)
        multiplier, residual_multiplier = joint_multipliers(factors, factor)
    reader.append(
        node,
        n.Conv2d(
            name=node.output[0],
            inputs=tuple(inputs),
            output=spec,
            multiplier=multiplier,
            residual_multiplier=residual_multiplier,
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
    weight = reader.weights(node, 3, 0 if attributes["transB"] else 1, x)
    _linear(reader, node, x, weight if attributes["transB"] else weight.T, 6, 7, np.float32(attributes["alpha"]))


def _qlinear_matmul(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    x = reader.operand(node, 0)
    _linear(reader, node, x, reader.weights(node, 3, 1, x).T, None, 6, np.float32(1))


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
    reader.usual(node, scales, "product of scales")
    multiplier: n.Multiplier | None = None
    if reader.has(node, output):
        spec = reader.spec(node, output, (channels,), x.output.dtype)
        factors = scales / np.float32(spec.scale)
        reader.usual(node, factors, "multiplier")
        multiplier = multiplier_of(factors)
    elif scales.size == 1:
        spec = n.TensorSpec((channels,), "int32", float(scales[0]))
        reader.real.add(node.output[0])
    else:
        reader.refuse(
            node,
            "it has real outputs of several scales; accumulators that leave need one for all classes: quantize this "
            "layer's weights per tensor, or its result",
        )
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
    pair_of = _Operands.read(reader, node)
    a, b = pair_of.layers
    x, y = pair_of.centred
    spec = reader.spec(node, 6, a.output.shape, a.output.dtype)
    factors = [np.float32(side.output.scale) / np.float32(spec.scale) for side in (a, b)]

    def compute(moved: Sequence[np.float32]) -> NDArray[np.float32]:
        total: NDArray[np.float32] = x * moved[0] + y * moved[1]
        return total

    m_a, m_b = (
        multiplier_of(factor, ADD_SHIFT) for factor in settled(reader, node, pair_of.swept, factors, compute, spec)
    )
    if (m_a.shift is None) != (m_b.shift is None):
        m_a, m_b = n.Multiplier(m_a.values, None), n.Multiplier(m_b.values, None)
    reader.append(node, n.Add(name=node.output[0], inputs=(a.name, b.name), output=spec, multipliers=(m_a, m_b)))


def _qlinear_mul(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    pair_of = _Operands.read(reader, node)
    a, b = pair_of.layers
    x, y = pair_of.centred
    shapes = a.output.shape, b.output.shape
    if len(shapes[0]) != len(shapes[1]):
        reader.refuse(node, f"it multiplies tensors of shapes {shapes[0]} and {shapes[1]}")
    spec = reader.spec(node, 6, np.broadcast_shapes(*shapes), a.output.dtype)
    factor = np.float32(a.output.scale) * np.float32(b.output.scale) / np.float32(spec.scale)

    def compute(moved: Sequence[np.float32]) -> NDArray[np.float32]:
        product: NDArray[np.float32] = (x * y) * moved[0]
        return product

    (factor,) = settled(reader, node, pair_of.swept, [factor], compute, spec)
    reader.append(
        node, n.Mul(name=node.output[0], inputs=(a.name, b.name), output=spec, multiplier=multiplier_of(factor))
    )


@dataclass(frozen=True)
class _Operands:
    """The two operands of a node, and all pairs of integers that can meet, laid out as in the network.

    ONNX Runtime has kernels for two tensors, and for a tensor and a single number of each row, which take other steps.
    """

    layers: tuple[n.Layer, n.Layer]
    swept: dict[int, NDArray[Any]]
    """Integers of the operands that are no constants, by the index of the node's input."""
    centred: tuple[NDArray[np.float32], NDArray[np.float32]]
    """q − z of both, as float32, which broadcast."""

    @staticmethod
    def read(reader: Reader, node: onnx.NodeProto) -> _Operands:
        """Read both operands; one may be a constant."""
        constant = [index for index in (0, 3) if node.input[index] in reader.constants]
        if len(constant) == 2:
            reader.refuse(node, "both operands are constants")
        layers: dict[int, n.Layer] = {index: reader.operand(node, index) for index in (0, 3) if index not in constant}
        values = {index: values_of(layer.output.dtype) for index, layer in layers.items()}
        if constant:
            (index,) = constant
            other = 3 - index
            layers[index], values[index] = _constant_layer(reader, node, index, layers[other])
            shape = _swept_shape(layers[other].output.shape, values[index].shape)
            size = math.prod(shape)
            if size > _LARGEST_CONSTANT:
                reader.refuse(node, f"its constant has {size:,} values, expected at most {_LARGEST_CONSTANT:,}")
            every = np.repeat(values[other], size).reshape(-1, *shape)
            swept = {other: every}
            values[other] = every
        else:
            shapes = [layers[index].output.shape for index in (0, 3)]
            ends = [shape[-1] for shape in shapes]
            rows, columns = np.meshgrid(values[0], values[3], indexing="ij")
            if ends[0] == 1 < ends[1]:
                rows = rows[:, :1]
            elif ends[1] == 1 < ends[0]:
                rows, columns = np.meshgrid(values[0], values[3])
                columns = columns[:, :1]
            swept = {0: np.ascontiguousarray(rows), 3: np.ascontiguousarray(columns)}
            values = swept
        a, b = layers[0], layers[3]
        return _Operands((a, b), swept, (without_zero_point(values[0], a), without_zero_point(values[3], b)))


def _swept_shape(shape: tuple[int, ...], constant: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape as short as can be in which a constant meets a tensor of ``shape`` in the same way."""
    aligned = ((1,) * len(shape) + constant)[-len(shape) :]
    trailing = next((i for i, size in enumerate(reversed(aligned)) if size != 1), len(shape))
    kept = shape[: len(shape) - trailing] if trailing < len(shape) else ()
    rest = shape[len(kept) :]
    return (*kept, *((1,) * (len(rest) - 1)), *((min(2, math.prod(rest)),) if rest else ()))


def _constant_layer(reader: Reader, node: onnx.NodeProto, index: int, x: n.Layer) -> tuple[n.Layer, NDArray[Any]]:
    """Append a tensor of constants of another operand's shape, and return it with its integers as the file has them.

    The constants are the biases of a convolution without weights, which every executor has.
    """
    q = reader.constant(node, index)
    shape = x.output.shape
    if q.ndim == len(shape) + 1 and len(q) == 1:
        q = q[0]
    if q.dtype != x.output.dtype or np.broadcast_shapes(q.shape, shape) != shape:
        reader.refuse(
            node, f"its constant is {q.dtype} {q.shape}, expected {x.output.dtype} that broadcasts to {shape}"
        )
    q = np.broadcast_to(q, shape)
    given = reader.spec(node, index + 1, shape, x.output.dtype)
    name = f"{node.output[0]}.constant{index}"
    per_channel = len(shape) == 3 and bool((q == q[:, :1, :1]).all())
    channels = shape[0] if per_channel else q.size
    source = x
    if not per_channel:
        source = _reshaped(reader, f"{name}.from", x, (channels, 1, 1), x.output)
    values = (q[:, 0, 0] if per_channel else q.reshape(-1)).astype(np.int32) - given.zero_point
    layer: n.Layer = n.Conv2d(
        name=f"{name}.values" if not per_channel else name,
        inputs=(source.name,),
        output=n.TensorSpec(source.output.shape, given.dtype, given.scale, given.zero_point, given.lo, given.hi),
        multiplier=n.Multiplier.on_grid(np.array([1 << REQUANTIZE_SHIFT])),
        weight=np.zeros((channels, 1, 1, 1), np.int8),
        bias_o=np.ascontiguousarray(values),
        groups=channels,
    )
    reader.layers.append(layer)
    if not per_channel:
        layer = _reshaped(reader, name, layer, shape, given)
    return layer, reader.constant(node, index)


def _reshaped(reader: Reader, name: str, x: n.Layer, shape: Sequence[int], like: n.TensorSpec) -> n.Layer:
    spec = n.TensorSpec(tuple(shape), like.dtype, like.scale, like.zero_point, like.lo, like.hi)
    layer = n.Reshape(name=name, inputs=(x.name,), output=spec)
    reader.layers.append(layer)
    return layer


def _requantizing(
    reader: Reader, node: onnx.NodeProto, x: n.Layer, spec: n.TensorSpec, expected: NDArray[Any] | None
) -> n.Multiplier:
    """Return the multiplier from a layer's scale to another scale."""
    q = values_of(x.output.dtype)
    factor = np.float32(x.output.scale) / np.float32(spec.scale)
    (factor,) = settled(
        reader, node, {0: q}, [factor], lambda moved: without_zero_point(q, x) * moved[0], spec, expected
    )
    return multiplier_of(factor)


def _qlinear_concat(reader: Reader, node: onnx.NodeProto) -> None:
    axis = reader.attributes(node, axis=None)["axis"]
    if not isinstance(axis, int) or (len(node.input) - 2) % 3:
        reader.refuse(node, "expected an axis, and a scale and a zero point for each input")
    operands = [reader.operand(node, index) for index in range(2, len(node.input), 3)]
    rank = len(operands[0].output.shape)
    axis = reader.axis(node, axis, rank + 1)
    if not 1 <= axis <= rank or any(len(x.output.shape) != rank for x in operands):
        reader.refuse(node, f"axis = {axis} does not fit its inputs")
    shape = list(operands[0].output.shape)
    shape[axis - 1] = sum(x.output.shape[axis - 1] for x in operands)
    spec = reader.spec(node, 0, shape, operands[0].output.dtype)
    same = [(x.output.scale, x.output.zero_point) == (spec.scale, spec.zero_point) for x in operands]
    multipliers = tuple(
        None if equal else _requantizing(reader, node, x, spec, _one_part(reader, node, index, x, spec))
        for index, (x, equal) in enumerate(zip(operands, same, strict=True))
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


def _one_part(reader: Reader, node: onnx.NodeProto, index: int, x: n.Layer, spec: n.TensorSpec) -> NDArray[Any] | None:
    """Return what ONNX Runtime computes for all integers of one operand of a concatenation."""
    single = onnx.NodeProto()
    single.CopyFrom(node)
    inputs = [*node.input[:2], *node.input[2 + 3 * index : 5 + 3 * index]]
    del single.input[:]
    single.input.extend(inputs)
    operands = {2: values_of(x.output.dtype)[None]}
    chain = chain_of(Step(single, reader.step.operator), operands)
    found = runtime_result(chain, operands, reader.value, spec.dtype, reader.opset)
    return None if found is None else found[0]


def _leaky_relu(reader: Reader, node: onnx.NodeProto) -> None:
    alpha = np.float32(reader.attributes(node, alpha=0.01)["alpha"])
    _table(reader, node, lambda x: np.where(x >= 0, x, alpha * x))


def _sigmoid(reader: Reader, node: onnx.NodeProto) -> None:
    reader.attributes(node)
    _table(reader, node, lambda x: (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32))


def _table(
    reader: Reader, node: onnx.NodeProto, function: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None
) -> None:
    """Tabulate a function of one tensor: dequantize, compute, quantize."""
    x = reader.operand(node, 0)
    spec = reader.spec(node, 3, x.output.shape, x.output.dtype)
    q = values_of(x.output.dtype)
    found = runtime_result(chain_of(reader.step, {0: q}), {0: q}, reader.value, spec.dtype, reader.opset)
    if found is None and function is None:
        reader.refuse(node, "its table can only be taken from ONNX Runtime, which is not installed or refuses it")
    if found is None:
        assert function is not None
        steps = function(np.float32(x.output.scale) * without_zero_point(q, x)) / np.float32(spec.scale)
        if (np.abs(steps - np.floor(steps) - 0.5) < 1e-3).any():
            reader.refuse(
                node, "entries of its table lie close to a tie; install ONNX Runtime, whose kernel decides them"
            )
        found = np.clip(np.rint(steps) + spec.zero_point, spec.lo, spec.hi)
    table = found.astype(np.int16)
    reader.append(node, n.Table(name=node.output[0], inputs=(x.name,), output=spec, table=table))


def read_function(reader: Reader, node: onnx.NodeProto) -> None:
    """Tabulate a float operator between two quantizations."""
    operator = reader.step.operator
    if operator is None or any(name and name not in reader.constants for name in operator.input[1:]):
        reader.refuse(node, "it is not a function of one tensor")
    _table(reader, node, None)


COMPUTING: dict[str, Callable[[Reader, onnx.NodeProto], None]] = {
    "DequantizeLinear": _dequantize,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_add,
    "QLinearAveragePool": average_pool,
    "QLinearConcat": _qlinear_concat,
    "QLinearConv": _qlinear_conv,
    "QLinearGlobalAveragePool": global_average_pool,
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearMul": _qlinear_mul,
    "QLinearSigmoid": _sigmoid,
    "QuantizeLinear": _quantize,
}
"""Functions that read a node, by operator."""

MICROSOFT = {
    "QGemm": 9,
    "QLinearAdd": 8,
    "QLinearAveragePool": 5,
    "QLinearConcat": 2 + 3 * 1024,
    "QLinearGlobalAveragePool": 5,
    "QLinearLeakyRelu": 5,
    "QLinearMul": 8,
    "QLinearSigmoid": 5,
}
"""Those of the operator set com.microsoft, which ONNX's checker does not know, and how many inputs they may have."""

"""Functions of one value: tables, and clamps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.channels import times_constant
from twoscale._frontends.tflite.file_reader import layer_axis
from twoscale._frontends.tflite.reader import Reader, Value
from twoscale._ir import fixed_point
from twoscale._ir import layers as n
from twoscale._ir.functions import evaluate

__all__ = ["FUNCTIONS", "REAL_FUNCTIONS", "clamped", "pair", "real_function"]

Float32 = NDArray[np.float32]


def pair(multiplier: n.FixedPoint) -> tuple[int, int]:
    """Return the mantissa and the exponent of a single factor."""
    return int(multiplier.mantissas[0]), int(multiplier.exponents[0])


def clamped(r: Reader, x: n.Layer, spec: n.TensorSpec) -> n.Layer:
    """Return a layer's integers within the bounds of an output."""
    if x.output.lo >= spec.lo and x.output.hi <= spec.hi:
        return x
    return r.append(lambda name: n.Clamp(name=name, inputs=(x.name,), output=spec), r.result)


# ---------------------------------------------------------------- scales


def _quantize(r: Reader) -> None:
    tensor, spec = r.tensor(0), r.spec()
    if tensor.index == r.entry:
        r.entry = -1
        r.compute(lambda name: n.QuantizeInput(name=name, inputs=(), output=spec))
        return
    value = r.flattened(0, ("int8", "uint8", "float32"))
    if tensor.dtype == "float32":
        quantized = _rounded(_real(value) / np.float32(spec.scale)) + spec.zero_point
        r.give(r.entries(value.layer, spec, quantized), value.flattened)
        return
    x = r.in_order(value)
    if dataclasses.astuple(spec) == dataclasses.astuple(x.output):
        r.give(x)
        return
    _rescaled(r, x, spec, float(x.output.scale) / float(spec.scale))


def _rescaled(r: Reader, x: n.Layer, spec: n.TensorSpec, factor: float) -> None:
    """Append a table of integers times a factor."""
    m, e = pair(r.multiplier([factor]))
    _require_no_overflow(r, e)
    r.give(r.table(x, spec, lambda q: spec.zero_point + fixed_point.scaled(q, m, e)))


def _require_no_overflow(r: Reader, exponent: int) -> None:
    if exponent > 22:
        r.refuse(f"its scales have a quotient of about 2**{exponent}, with which int32 overflows")


def _dequantize(r: Reader) -> None:
    if r.result.dtype != "float32":
        r.refuse(f"its output is {r.result.dtype}; expected float32")
    r.set(r.result, r.flattened(0))


# ---------------------------------------------------------------- real numbers, (22)


def _real(value: Value) -> Float32:
    """Return the real number of each of the 256 integers: DEQUANTIZE, and functions after it."""
    if value.real is not None:
        return value.real
    spec = value.layer.output
    integers = np.arange(256) + int(np.iinfo(spec.dtype).min) - spec.zero_point
    return integers.astype(np.float32) * np.float32(spec.scale)


def _rounded(steps: Float32) -> NDArray[np.int64]:
    """Return float32 numbers rounded, half a step away from zero, within what tables are clamped to."""
    whole = np.sign(steps) * np.floor(np.abs(steps.astype(np.float64)) + 0.5)
    return np.asarray(np.clip(np.nan_to_num(whole), -(1 << 20), 1 << 20), np.int64)


def _applied(function: str, parameters: tuple[float, ...], real: Float32) -> Float32:
    with np.errstate(all="ignore"):
        return np.asarray(evaluate(function, parameters, real.astype(np.float64)), np.float32)


def real_function(r: Reader) -> None:
    """Apply a function to real numbers, of which QUANTIZE makes integers again."""
    value = r.flattened(0, ("float32",))
    function, parameters = REAL_FUNCTIONS[r.operator.name](r)
    r.set(r.result, dataclasses.replace(value, real=_applied(function, parameters, _real(value))))


def _litert_table(r: Reader, x: n.Layer, spec: n.TensorSpec) -> NDArray[np.int64]:
    """Return the table that LiteRT makes of a function in float32, equation (22)."""
    function, parameters = REAL_FUNCTIONS[r.operator.name](r)
    real = _applied(function, parameters, _real(Value(x)))
    return _rounded(real * (np.float32(1) / np.float32(spec.scale))) + spec.zero_point


def _in_float32(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    r.give(r.entries(x, spec, _litert_table(r, x, spec)))


def _gelu_function(r: Reader) -> tuple[str, tuple[float, ...]]:
    return "gelu_tanh" if r.options.number(0, "b") else "gelu", ()


REAL_FUNCTIONS: Mapping[str, Callable[[Reader], tuple[str, tuple[float, ...]]]] = {
    "ABS": lambda r: ("abs", ()),
    "ELU": lambda r: ("elu", (1.0,)),
    "EXP": lambda r: ("exp", ()),
    "GELU": _gelu_function,
    "LOGISTIC": lambda r: ("sigmoid", ()),
    "RSQRT": lambda r: ("rsqrt", ()),
    "SQRT": lambda r: ("power", (0.5,)),
    "TANH": lambda r: ("tanh", ()),
}
"""Functions and parameters by operator, named as in ``twoscale._ir.functions``."""


# ---------------------------------------------------------------- tables in the file


def _cast(r: Reader) -> None:
    if r.result.dtype != "int32":
        r.refuse(f"its output is {r.result.dtype}; expected int32, the index of a table")
    r.set(r.result, dataclasses.replace(r.flattened(0), offset=0))


def _gather(r: Reader) -> None:
    """Append the table from which GATHER takes an entry for every integer."""
    tensor, table, spec = r.tensor(0), r.constant(0), r.spec()
    value = r.flattened(1, ("int32",))
    x = r.in_order(value)
    first = int(np.iinfo(x.output.dtype).min) + (value.offset or 0)
    if table.ndim != 1 or r.options.number(0, "i") or r.options.number(1, "i") or not 0 <= first <= len(table) - 256:
        r.refuse(f"it gathers {first} to {first + 255} of a table {table.shape}; expected entries of one dimension")
    if (tensor.dtype, tensor.scales.tolist(), tensor.zero_points.tolist()) != (
        spec.dtype, [spec.scale], [spec.zero_point],
    ):  # fmt: skip
        r.refuse("its table has another type, scale or zero point than its output")
    r.give(r.entries(x, spec, table[first : first + 256].astype(np.int64)))


# ---------------------------------------------------------------- integers


def _relu(r: Reader) -> None:
    x = r.value(0)
    spec = r.bounded(r.spec(), {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}[r.operator.name])
    same = (x.output.dtype, x.output.scale, x.output.zero_point) == (spec.dtype, spec.scale, spec.zero_point)
    if same:
        r.compute(lambda name: n.Clamp(name=name, inputs=(x.name,), output=spec))
    elif r.operator.name == "RELU":
        _rescaled(r, x, spec, float(np.float32(x.output.scale) / np.float32(spec.scale)))
    else:
        r.refuse("its output has another scale than its input")


def _leaky_relu(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    alpha = np.float32(r.options.real(0))
    s_x, s_y = np.float32(x.output.scale), np.float32(spec.scale)
    if not 0 < alpha < 1 << 16:
        r.refuse(f"it has the slope {alpha:g}; expected a positive one")
    pairs = [pair(r.multiplier([factor])) for factor in (float(s_x / s_y), float(s_x * alpha / s_y))]
    for _, exponent in pairs:
        _require_no_overflow(r, exponent)
    r.give(r.table(x, spec, lambda q: spec.zero_point + fixed_point.scaled(q, *pairs[q < 0])))


def _prelu(r: Reader) -> None:
    """Equation (23): negative values are multiplied by the slopes of their channels."""
    x, spec, tensor = r.value(0), r.spec(), r.tensor(1)
    slopes = r.constant(1)
    if tensor.dtype != x.output.dtype or spec.dtype != x.output.dtype or len(tensor.scales) != 1:
        r.refuse(f"its slopes are {tensor.dtype} with {len(tensor.scales)} scales; expected {x.output.dtype} with one")
    factors = slopes.astype(np.int64) - int(tensor.zero_points[0])
    s_x, s_a, s_y = np.float32(x.output.scale), tensor.scales[0], np.float32(spec.scale)
    above, below = (r.multiplier([float(factor)]) for factor in (s_x / s_y, s_x * s_a / s_y))
    _require_no_overflow(r, pair(above)[1])
    _require_no_overflow(r, pair(below)[1] + 8)
    if (factors == factors.flat[0]).all():
        slope = int(factors.flat[0])
        r.give(
            r.table(
                x, spec,
                lambda q: spec.zero_point
                + (fixed_point.scaled(q, *pair(above)) if q >= 0 else fixed_point.scaled(q * slope, *pair(below))),
            )
        )  # fmt: skip
        return
    inner = dataclasses.replace(spec, shape=x.output.shape)
    zero = x.output.zero_point
    positive = r.table(x, inner, lambda q: spec.zero_point + fixed_point.scaled(max(q, 0), *pair(above)), whole=False)
    bounded = dataclasses.replace(x.output, hi=zero)
    negative = r.append(lambda name: n.Clamp(name=name, inputs=(x.name,), output=bounded))
    scaled = times_constant(r, negative, factors, inner, below)
    exact = tuple(n.FixedPoint.of(1 << 30, exponent) for exponent in (0, 0, 1 - fixed_point.LEFT_SHIFT + 1))
    r.compute(lambda name: n.Add(name=name, inputs=(positive.name, scaled.name), output=spec, multipliers=exact))


def _abs(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    factor = np.float32(x.output.scale) / np.float32(spec.scale)
    if factor == 1:
        r.give(r.table(x, spec, lambda q: spec.zero_point + abs(q)))
        return
    m, e = pair(r.multiplier([float(factor)]))
    _require_no_overflow(r, e)
    r.give(r.table(x, spec, lambda q: spec.zero_point + fixed_point.scaled(abs(q), m, e)))


def _hard_swish(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    fine = np.float32(x.output.scale) * np.float32(1 / 128)
    to_output = fixed_point.quantize_multiplier(float(fine / np.float32(spec.scale)))
    to_relu = fixed_point.quantize_multiplier(float(fine / np.float32(3.0 / 32768.0)))
    if not (to_output[0] and to_output[1] <= 0 and to_relu[0] and to_relu[1] <= 30):
        r.refuse("its scales are too far apart")
    r.give(r.table(x, spec, lambda q: spec.zero_point + fixed_point.hard_swish(q, to_output, to_relu)))


def _logistic(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    if (spec.dtype, spec.scale, spec.zero_point, x.output.dtype) != ("int8", 2.0**-8, -128, "int8"):
        r.refuse("its output must be int8 with the scale 1/256 and the zero point -128")
    _fixed_point_table(r, x, spec, lambda q: fixed_point.logistic(q, x.output.scale) - 128)


def _tanh(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    if (spec.dtype, spec.scale, spec.zero_point, x.output.dtype) != ("int8", 2.0**-7, 0, "int8"):
        r.refuse("its output must be int8 with the scale 1/128 and the zero point 0")
    _fixed_point_table(r, x, spec, lambda q: fixed_point.tanh(q, x.output.scale))


def _fixed_point_table(r: Reader, x: n.Layer, spec: n.TensorSpec, function: Callable[[int], int]) -> None:
    """Append a table that LiteRT computes in float32, and TensorFlow Lite for Microcontrollers in fixed point."""
    if not 2.0**-24 < x.output.scale < 16:
        r.refuse(f"its input has the scale {x.output.scale:g}")
    layer = r.table(x, spec, function)
    entries = np.clip(_litert_table(r, x, spec), spec.lo, spec.hi).astype(np.int16)
    r.in_litert[layer.name] = n.Table(name=layer.name, inputs=layer.inputs, output=spec, table=entries)
    r.give(layer)


def _softmax(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    if x.output.dtype != spec.dtype or (spec.scale, spec.zero_point) != (2.0**-8, spec.lo):
        r.refuse(f"its output must have the scale 1/256 and the zero point {spec.lo}")
    beta = r.options.real(0)
    if not 0 < beta < 1 << 16:
        r.refuse(f"it has the factor beta = {beta:g}; expected a positive one")
    factor = min(beta * float(x.output.scale) * (1 << 26), (1 << 31) - 1.0)
    mantissa, exponent = fixed_point.quantize_multiplier(factor)
    if exponent < 0:
        r.refuse("its input has a scale that is too small")
    table = np.array(fixed_point.exponential_table(mantissa, exponent), np.int32)
    axis = layer_axis(len(spec.shape) - 1, len(spec.shape))
    r.compute(lambda name: n.FixedPointSoftmax(name=name, inputs=(x.name,), output=spec, axis=axis, table=table))


FUNCTIONS: Mapping[str, Callable[[Reader], None]] = {
    "ABS": _abs,
    "CAST": _cast,
    "DEQUANTIZE": _dequantize,
    "ELU": _in_float32,
    "EXP": _in_float32,
    "GATHER": _gather,
    "GELU": _in_float32,
    "HARD_SWISH": _hard_swish,
    "LEAKY_RELU": _leaky_relu,
    "LOGISTIC": _logistic,
    "PRELU": _prelu,
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RELU6": _relu,
    "RELU_N1_TO_1": _relu,
    "SOFTMAX": _softmax,
    "TANH": _tanh,
}
"""What is read."""

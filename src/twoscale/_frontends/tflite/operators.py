"""Operators of TensorFlow Lite as layers, with the multipliers that its kernels prepare.

Which quotients are float32 and which float64 follows TensorFlow Lite for Microcontrollers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.file_reader import Cut, layer_axis, mixes
from twoscale._frontends.tflite.reader import Reader
from twoscale._ir import fixed_point
from twoscale._ir import layers as n

__all__ = ["OPERATORS"]


def _quantize(r: Reader) -> None:
    x = r.tensor(0)
    spec = r.spec()
    if x.index == r.entry:
        r.entry = -1
        r.compute(lambda name: n.QuantizeInput(name=name, inputs=(), output=spec))
        return
    value = r.value(0)
    if dataclasses.astuple(spec) == dataclasses.astuple(value.output):
        r.give(value)
        return
    _rescaled(r, value, spec, float(value.output.scale) / float(spec.scale))


def _rescaled(r: Reader, x: n.Layer, spec: n.TensorSpec, factor: float) -> None:
    """Append a table of integers times a factor."""
    multiplier = r.multiplier([factor])
    m, e = int(multiplier.mantissas[0]), int(multiplier.exponents[0])
    _require_no_overflow(r, e)
    r.give(r.table(x, spec, lambda q: spec.zero_point + fixed_point.scaled(q, m, e)))


def _require_no_overflow(r: Reader, exponent: int) -> None:
    if exponent > 22:
        r.refuse(f"its scales have a quotient of about 2**{exponent}, with which int32 overflows")


def _dequantize(r: Reader) -> None:
    if r.result.dtype != "float32":
        r.refuse(f"its output is {r.result.dtype}; expected float32")
    r.set(r.result, r.flattened(0))


# ---------------------------------------------------------------- layers with weights


def _weights(r: Reader, x: n.Layer) -> tuple[NDArray[np.int16], NDArray[np.float32], int]:
    """Return an operator's weights less their zero point, their scales, and the dimension of several scales."""
    tensor = r.tensor(1)
    weight = r.constant(1)
    if tensor.dtype not in ("int8", "uint8") or not len(tensor.scales):
        r.refuse(f"its weights are {tensor.dtype} with {len(tensor.scales)} scales; expected int8 or uint8")
    if tensor.dtype != x.output.dtype:
        r.refuse(f"its weights are {tensor.dtype} and its input {x.output.dtype}; expected the same type")
    zero_point = int(tensor.zero_points[0])
    if (tensor.zero_points != zero_point).any() or (tensor.dtype == "int8" and zero_point):
        r.refuse("its int8 weights have zero points that are not 0")
    if not 0 <= zero_point <= 255:
        r.refuse(f"its weights have the zero point {zero_point}")
    return weight.astype(np.int16) - np.int16(zero_point), tensor.scales, tensor.axis


def _bias(r: Reader, channels: int) -> NDArray[np.int32]:
    if not r.has(2):
        return np.zeros(channels, np.int32)
    bias = r.constant(2)
    if bias.dtype != np.int32 or bias.shape != (channels,):
        r.refuse(f"its biases are {bias.dtype} {bias.shape}; expected int32 ({channels},)")
    return np.asarray(bias, np.int32)


def _factors(r: Reader, x: n.Layer, scales: NDArray[np.float32], axis: int, along: int, channels: int) -> n.FixedPoint:
    """Return the multipliers of a layer with weights, whose scales are along one dimension."""
    s_x, s_y = np.float32(x.output.scale), float(r.spec().scale)
    if len(scales) > 1 and (axis != along or len(scales) != channels):
        r.refuse(f"its weights have {len(scales)} scales along dimension {axis}; expected {channels} along {along}")
    # One scale is multiplied in float32 by FULLY_CONNECTED, and by convolutions of uint8.
    single = len(scales) == 1 and (r.operator.name == "FULLY_CONNECTED" or x.output.dtype == "uint8")
    products = (s_x * scales).astype(np.float64) if single else float(s_x) * scales.astype(np.float64)
    return r.multiplier(products / s_y)


def _image(r: Reader, index: int = 0) -> n.Layer:
    x = r.value(index)
    if len(x.output.shape) != 3:
        r.refuse(f"its input has the shape {x.output.shape} without the batch; expected three dimensions")
    return x


def _conv2d(r: Reader) -> None:
    x = _image(r)
    weight, scales, axis = _weights(r, x)
    stride, dilation = r.strides_and_dilations()
    weight, groups = r.oihw(weight, x.output.shape[0])
    channels, _, *kernel = weight.shape
    along, fused = (3, 4) if r.is_depthwise else (0, 3)
    spec = r.activated(fused)
    padding = r.padding(x.output.shape[1:], kernel, stride, dilation)
    multiplier = _factors(r, x, scales, axis, along, channels)
    x, weight = _within_int8(r, x, weight, groups)
    int8, bias = np.ascontiguousarray(weight.astype(np.int8)), _bias(r, channels)
    r.compute(
        lambda name: n.Conv2d(
            name=name,
            inputs=(x.name,),
            output=spec,
            multiplier=multiplier,
            weight=int8,
            bias_o=bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
    )


def _within_int8(r: Reader, x: n.Layer, weight: NDArray[np.int16], groups: int) -> tuple[n.Layer, NDArray[np.int16]]:
    """Return weights of int8 for an input with every channel twice, where weights less their zero point are beyond it.

    A weight is the sum of two, so every accumulator stays what it is.
    """
    limits = np.iinfo(np.int8)
    if weight.min() >= limits.min and weight.max() <= limits.max:
        return x, weight
    first = np.clip(weight, limits.min, limits.max)
    shape, spec = x.output.shape, x.output
    apart = r.reshaped(x, (groups, shape[0] // groups, *shape[1:]))
    twice = dataclasses.replace(spec, shape=(groups, 2 * shape[0] // groups, *shape[1:]))
    both = r.append(
        lambda name: n.Concat(
            name=name, inputs=(apart.name, apart.name), output=twice, axis=1, multipliers=(None, None)
        )
    )
    return r.reshaped(both, (2 * shape[0], *shape[1:])), np.concatenate([first, weight - first], 1)


def _fully_connected(r: Reader) -> None:
    value = r.flattened(0)
    if r.options.number(1, "b"):
        r.refuse("its weights are shuffled; expected the default format")
    x = value.layer
    weight, scales, axis = _weights(r, x)
    count = int(np.prod(x.output.shape))
    if weight.ndim != 2 or weight.shape[1] != count:
        r.refuse(f"it has weights {weight.shape}, and its input {count} values per image")
    image = value.flattened
    if image is None and len(x.output.shape) == 3:
        image, x = x, r.reshaped(x, (count,))
    elif len(x.output.shape) != 1:
        x = r.reshaped(x, (count,))
    if image is not None:
        channels, height, width = image.output.shape
        weight = weight.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(weight.shape)
    multiplier = _factors(r, x, scales, axis, 0, len(weight))
    spec = r.activated(0)
    x, weight = _within_int8(r, x, weight, 1)
    bias = _bias(r, len(weight))
    flat = dataclasses.replace(spec, shape=(len(weight),))
    whole = spec.shape == flat.shape
    layer = r.append(
        lambda name: n.Linear(
            name=name,
            inputs=(x.name,),
            output=flat,
            multiplier=multiplier,
            weight=np.ascontiguousarray(weight.astype(np.int8)),
            bias_o=bias,
        ),
        r.result if whole else None,
    )
    if not whole and len(spec.shape) == 3:
        r.refuse(f"its output has the shape {spec.shape}; expected a vector")
    r.give(r.reshaped(layer, spec.shape, None if whole else r.result))


# ---------------------------------------------------------------- two tensors


def _add(r: Reader) -> None:
    a, b, spec = r.value(0), r.value(1), r.activated(0)
    if not a.output.shape == b.output.shape == spec.shape:
        r.refuse(f"it adds tensors of the shapes {a.output.shape} and {b.output.shape}; expected the same")
    _require_types(r, a, b, spec)
    s_a, s_b, s_y = float(a.output.scale), float(b.output.scale), float(spec.scale)
    twice = 2 * max(s_a, s_b)
    factors = (s_a / twice, s_b / twice, twice / ((1 << fixed_point.LEFT_SHIFT) * s_y))
    if factors[2] >= 1:
        r.refuse("its operands' scales are beyond 2**19 times its output's")
    multipliers = tuple(r.multiplier([factor]) for factor in factors)
    r.compute(lambda name: n.Add(name=name, inputs=(a.name, b.name), output=spec, multipliers=multipliers))


def _require_types(r: Reader, a: n.Layer, b: n.Layer, spec: n.TensorSpec) -> None:
    if not a.output.dtype == b.output.dtype == spec.dtype:
        r.refuse(f"its tensors are {a.output.dtype}, {b.output.dtype} and {spec.dtype}; expected the same type")


def _mul(r: Reader) -> None:
    a, b, spec = r.value(0), r.value(1), r.activated(0)
    _require_types(r, a, b, spec)
    rank = len(spec.shape)
    a, b = (_broadcastable(r, x, rank) for x in (a, b))
    factor = float(a.output.scale) * float(b.output.scale) / float(spec.scale)
    if spec.dtype == "uint8":
        factor = float(np.float32(a.output.scale) * np.float32(b.output.scale) / np.float32(spec.scale))
    multiplier = r.multiplier([factor])
    r.compute(lambda name: n.Mul(name=name, inputs=(a.name, b.name), output=spec, multiplier=multiplier))


def _broadcastable(r: Reader, x: n.Layer, rank: int) -> n.Layer:
    """Return an operand with the output's number of dimensions."""
    if len(x.output.shape) == 1 and rank == 3:
        return r.reshaped(x, (*x.output.shape, 1, 1))
    if len(x.output.shape) != rank:
        r.refuse(f"an operand has {len(x.output.shape)} dimensions without the batch, its output {rank}")
    return x


def _concatenation(r: Reader) -> None:
    spec, rank = r.activated(1), len(r.result.shape)
    axis = r.options.number(0, "i")
    axis += rank if axis < 0 else 0
    if not 1 <= axis < rank:
        r.refuse(f"it concatenates along dimension {axis}; expected 1 to {rank - 1}")
    parts = []
    for index in range(len(r.operator.inputs)):
        x = r.value(index)
        if x.output.dtype != spec.dtype or len(x.output.shape) != len(spec.shape):
            r.refuse("its operands have other types or numbers of dimensions than its output")
        if (x.output.scale, x.output.zero_point) != (spec.scale, spec.zero_point):
            x = _concatenated(r, x, spec)
        parts.append(x)
    if not parts:
        r.refuse("it has no inputs")
    whole = dataclasses.replace(spec, lo=int(np.iinfo(spec.dtype).min), hi=int(np.iinfo(spec.dtype).max))
    names = tuple(x.name for x in parts)
    layer_dimension = layer_axis(axis - 1, rank - 1)
    joined = r.append(
        lambda name: n.Concat(
            name=name, inputs=names, output=whole, axis=layer_dimension, multipliers=(None,) * len(names)
        ),
        r.result if whole == spec else None,
    )
    r.give(_clamped(r, joined, spec))


def _concatenated(r: Reader, x: n.Layer, spec: n.TensorSpec) -> n.Layer:
    """Return an operand in the output's scale: ConcatenationWithScaling, in float32."""
    if spec.dtype != "uint8":
        r.refuse("its int8 operands have other scales than its output, which TensorFlow Lite refuses too")
    scale = np.float32(x.output.scale) * (np.float32(1) / np.float32(spec.scale))
    bias = np.float32(-x.output.zero_point) * scale
    steps = (np.arange(256, dtype=np.float32) * scale + bias).astype(np.float64)
    rounded = (np.sign(steps) * np.floor(np.abs(steps) + 0.5)).clip(-1e6, 1e6).astype(np.int64) + spec.zero_point
    zero_point = x.output.zero_point
    operand = dataclasses.replace(spec, shape=x.output.shape, lo=0, hi=255)
    return r.table(x, operand, lambda q: int(rounded[q + zero_point]), whole=False)


def _clamped(r: Reader, x: n.Layer, spec: n.TensorSpec) -> n.Layer:
    """Return a layer's integers within a fused activation's bounds."""
    if x.output.lo >= spec.lo and x.output.hi <= spec.hi:
        return x
    return r.append(lambda name: n.Clamp(name=name, inputs=(x.name,), output=spec), r.result)


# ---------------------------------------------------------------- pools and means


def _average_pool(r: Reader) -> None:
    x, spec = _image(r), r.activated(5)
    r.require_same(x)
    kernel, stride, padding = r.pool_window(x.output.shape[1:])
    multiplier = n.WindowQuotient.of(kernel[0] * kernel[1])
    r.compute(
        lambda name: n.AveragePool2d(
            name=name,
            inputs=(x.name,),
            output=spec,
            multiplier=multiplier,
            kernel=kernel,
            stride=stride,
            padding=padding,
        )
    )


def _max_pool(r: Reader) -> None:
    x, spec = _image(r), r.activated(5)
    r.require_same(x)
    kernel, stride, padding = r.pool_window(x.output.shape[1:])
    inner = dataclasses.replace(spec, lo=x.output.lo, hi=x.output.hi)
    narrower = spec.lo > inner.lo or spec.hi < inner.hi
    pool = r.append(
        lambda name: n.MaxPool2d(
            name=name, inputs=(x.name,), output=inner, kernel=kernel, stride=stride, padding=padding
        ),
        None if narrower else r.result,
    )
    r.give(_clamped(r, pool, spec))


def _mean(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    rank = len(r.tensor(0).shape)
    axes = r.axes(1, rank)
    if rank != 4 or axes != [0, 1]:
        r.refuse(f"it averages over the dimensions {[axis + 1 for axis in axes]} of {rank}; expected height and width")
    height, width = x.output.shape[1:]
    if x.output.dtype != spec.dtype:
        r.refuse("its input and output have different types")
    whole = r.multiplier([float(x.output.scale) / float(spec.scale)])
    m, e = fixed_point.mean_multiplier(int(whole.mantissas[0]), int(whole.exponents[0]), height * width)
    if m < 1:
        r.refuse("its multiplier is 0")
    image = dataclasses.replace(spec, shape=(x.output.shape[0], 1, 1))
    layer = r.append(
        lambda name: n.AveragePool2d(
            name=name, inputs=(x.name,), output=image, multiplier=n.FixedPoint.of(m, e), kernel=(height, width),
            stride=(height, width),
        ),
        r.result if image.shape == spec.shape else None,
    )  # fmt: skip
    r.give(r.reshaped(layer, spec.shape, r.result))


# ---------------------------------------------------------------- moving


def _reshape(r: Reader) -> None:
    value, tensor = r.flattened(0), r.result
    if tensor.dtype == "float32":
        r.refuse("it reshapes real numbers; expected integers")
    r.require_same(value.layer)
    shape = r.spec().shape
    if np.prod(shape) != np.prod(value.spec.shape):
        r.refuse(f"it makes {shape} of {value.spec.shape}")
    x = value.layer
    if len(shape) == 1 and (value.flattened is not None or (len(x.output.shape) == 3 and mixes(x.output.shape))):
        r.give(r.reshaped(x, shape), x if value.flattened is None else value.flattened)
        return
    x = r.in_order(value)
    if len(x.output.shape) == 3 and mixes(x.output.shape):
        x = r.permuted(x, (1, 2, 0))
    if len(shape) == 3 and mixes(shape):
        x = r.reshaped(x, (shape[1], shape[2], shape[0]))
        r.give(r.permuted(x, (2, 0, 1), tensor))
        return
    r.give(r.reshaped(x, shape, tensor))


def _transpose(r: Reader) -> None:
    x, rank = r.value(0), len(r.tensor(0).shape)
    r.require_same(x)
    r.give(r.permuted(x, r.permutation(rank), r.result))


def _pad(r: Reader) -> None:
    x = r.value(0)
    r.require_same(x)
    widths = r.widths(len(r.tensor(0).shape))
    if r.operator.name == "PADV2" and r.has(2) and int(r.constant(2).ravel()[0]) != x.output.zero_point:
        r.refuse("it pads with another value than 0")
    spec = dataclasses.replace(x.output, shape=r.spec().shape)
    r.compute(lambda name: n.Pad(name=name, inputs=(x.name,), output=spec, widths=widths))


def _slice(r: Reader) -> None:
    x = r.value(0)
    r.require_same(x)
    for cut in r.cuts():
        x = _sliced(r, x, cut)
    r.give(r.reshaped(x, r.spec().shape))


def _sliced(r: Reader, x: n.Layer, cut: Cut) -> n.Layer:
    """Return part of a tensor along one dimension."""
    shape = list(x.output.shape)
    shape[cut.axis] = len(range(cut.start, cut.stop, cut.step))
    spec = dataclasses.replace(x.output, shape=tuple(shape))
    return r.append(
        lambda name: n.Slice(
            name=name, inputs=(x.name,), output=spec, axis=cut.axis, start=cut.start, stop=cut.stop, step=cut.step
        )
    )


# ---------------------------------------------------------------- functions of one value


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
    factors = r.multiplier([float(s_x / s_y)]), r.multiplier([float(s_x * alpha / s_y)])
    pairs = [(int(m.mantissas[0]), int(m.exponents[0])) for m in factors]
    for _, exponent in pairs:
        _require_no_overflow(r, exponent)
    r.give(r.table(x, spec, lambda q: spec.zero_point + fixed_point.scaled(q, *pairs[q < 0])))


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
    _require_input_scale(r, x)
    r.give(r.table(x, spec, lambda q: fixed_point.logistic(q, x.output.scale) - 128))


def _tanh(r: Reader) -> None:
    x, spec = r.value(0), r.spec()
    if (spec.dtype, spec.scale, spec.zero_point, x.output.dtype) != ("int8", 2.0**-7, 0, "int8"):
        r.refuse("its output must be int8 with the scale 1/128 and the zero point 0")
    _require_input_scale(r, x)
    r.give(r.table(x, spec, lambda q: fixed_point.tanh(q, x.output.scale)))


def _require_input_scale(r: Reader, x: n.Layer) -> None:
    if not 2.0**-24 < x.output.scale < 16:
        r.refuse(f"its input has the scale {x.output.scale:g}")


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


OPERATORS: Mapping[str, Callable[[Reader], None]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _average_pool,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _conv2d,
    "DEQUANTIZE": _dequantize,
    "EXPAND_DIMS": _reshape,
    "FULLY_CONNECTED": _fully_connected,
    "HARD_SWISH": _hard_swish,
    "LEAKY_RELU": _leaky_relu,
    "LOGISTIC": _logistic,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "MUL": _mul,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RELU6": _relu,
    "RELU_N1_TO_1": _relu,
    "RESHAPE": _reshape,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _slice,
    "TANH": _tanh,
    "TRANSPOSE": _transpose,
}
"""What is read."""

"""Operators of TensorFlow Lite as layers, with the multipliers that its kernels prepare.

Which quotients are float32 and which float64 follows TensorFlow Lite for Microcontrollers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.channels import within_int8
from twoscale._frontends.tflite.file_reader import layer_axis
from twoscale._frontends.tflite.functions import FUNCTIONS, clamped, pair
from twoscale._frontends.tflite.joining import JOINING
from twoscale._frontends.tflite.model import Tensor
from twoscale._frontends.tflite.moving import MOVING
from twoscale._frontends.tflite.reader import Apart, Reader
from twoscale._ir import fixed_point
from twoscale._ir import layers as n

__all__ = ["OPERATORS"]


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


def _bias(r: Reader, channels: int, index: int = 2) -> NDArray[np.int32]:
    if not r.has(index):
        return np.zeros(channels, np.int32)
    bias = r.constant(index)
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


_FUSED = {False: 3, True: 4}
"""The field of the fused activation, by whether the convolution is depthwise."""


def _conv2d(r: Reader) -> None:
    apart = r.apart.get(r.tensor(0).index)
    if apart is not None:
        _dilated(r, apart)
        return
    x = _image(r)
    stride, dilation = r.strides_and_dilations()
    weight, groups, multiplier = _oihw(r, x)
    padding = r.padding(x.output.shape[1:], weight.shape[2:], stride, dilation)
    r.give(
        _convolved(
            r, x, weight, multiplier, _bias(r, len(weight)), r.activated(_FUSED[r.is_depthwise]), stride=stride,
            padding=padding, dilation=dilation, groups=groups, tensor=r.result,
        )
    )  # fmt: skip


def _oihw(r: Reader, x: n.Layer) -> tuple[NDArray[np.int16], int, n.FixedPoint]:
    """Return a convolution's weights in the order O, I/groups, H, W, its groups and its multipliers."""
    weight, scales, axis = _weights(r, x)
    weight, groups = r.oihw(weight, x.output.shape[0])
    return weight, groups, _factors(r, x, scales, axis, 3 if r.is_depthwise else 0, len(weight))


def _convolved(
    r: Reader, x: n.Layer, weight: NDArray[np.int16], multiplier: n.FixedPoint, bias: NDArray[np.int32],
    spec: n.TensorSpec, *, stride: tuple[int, int], padding: n.Padding, dilation: tuple[int, int], groups: int,
    tensor: Tensor,
) -> n.Layer:  # fmt: skip
    """Append a convolution, whose weights may be beyond int8."""
    x, int8 = within_int8(r, x, weight, groups)
    return r.append(
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
        ),
        tensor,
    )


# ---------------------------------------------------------------- dilated convolutions


def _space_to_batch(r: Reader) -> None:
    """Remember what SPACE_TO_BATCH_ND, CONV_2D and BATCH_TO_SPACE_ND do together: a dilated convolution."""
    x, block, pads = _image(r), r.constant(1).ravel(), r.constant(2)
    r.require_same(x, dataclasses.replace(r.result, shape=(1, *r.result.shape[1:])))
    if (
        len(block) != 2
        or pads.shape != (2, 2)
        or block.min() < 1
        or pads.min() < 0
        or max(block.max(), pads.max()) > 999
    ):
        r.refuse("it has blocks or widths that are not supported; expected two dimensions")
    (top, bottom), (left, right) = ((int(before), int(after)) for before, after in pads)
    r.apart[r.result.index] = Apart(x, (int(block[0]), int(block[1])), (top, left, bottom, right))


def _dilated(r: Reader, apart: Apart) -> None:
    stride, dilation = r.strides_and_dilations()
    weight, groups, multiplier = _oihw(r, apart.layer)
    if apart.append is not None or (stride, dilation) != ((1, 1), (1, 1)) or r.options.number(0, "b") != 1:
        r.refuse(
            "it is between SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND; expected one convolution without padding there"
        )
    result = r.result
    spec = r.bounded(
        r.spec(dataclasses.replace(result, shape=(1, *result.shape[1:]))),
        r.options.number(_FUSED[r.is_depthwise], "b"),
    )
    bias = _bias(r, len(weight))

    def append(padding: n.Padding, tensor: Tensor) -> n.Layer:
        size = apart.layer.output.shape[1:]
        shape = tuple(
            size[i] + padding[i] + padding[i + 2] - apart.block[i] * (weight.shape[2 + i] - 1) for i in (0, 1)
        )
        return _convolved(
            r, apart.layer, weight, multiplier, bias, dataclasses.replace(spec, shape=(len(weight), *shape)),
            stride=(1, 1), padding=padding, dilation=apart.block, groups=groups, tensor=tensor,
        )  # fmt: skip

    r.apart[result.index] = dataclasses.replace(apart, append=append)


def _batch_to_space(r: Reader) -> None:
    apart = r.apart.get(r.tensor(0).index)
    block, crops = tuple(int(size) for size in r.constant(1).ravel()), r.constant(2)
    if apart is None or apart.append is None or block != apart.block or crops.shape != (2, 2):
        r.refuse("it does not follow SPACE_TO_BATCH_ND and a convolution; convert the model for dilated convolutions")
    (top, bottom), (left, right) = ((int(before), int(after)) for before, after in crops)
    cropped = (top, left, bottom, right)
    padding = tuple(width - crop for width, crop in zip(apart.padding, cropped, strict=True))
    if min(padding) < 0:
        r.refuse(f"it crops {cropped} where {apart.padding} were added; expected no more")
    layer = apart.append((padding[0], padding[1], padding[2], padding[3]), r.result)
    r.require_same(layer)
    r.give(layer)


# ---------------------------------------------------------------- transposed convolutions


def _transposed_conv(r: Reader) -> None:
    """Append a convolution of the tensor with stride - 1 zeros after every value."""
    x, spec = _image(r, 2), r.activated(3)
    weight, scales, axis = _weights(r, x)
    channels, *size = x.output.shape
    stride, out = (r.factor(2), r.factor(1)), spec.shape[1:]
    if weight.ndim != 4 or weight.shape[3] != channels or len(weight) != spec.shape[0]:
        r.refuse(f"it has weights {weight.shape} for {channels} channels, and makes {spec.shape[0]}")
    kernel = weight.shape[1:3]
    top, left, _, _ = r.padding(out, kernel, stride)
    windows = [
        -(-out[i] // stride[i]) if r.options.number(0, "b") == 0 else (out[i] - kernel[i]) // stride[i] + 1
        for i in (0, 1)
    ]
    if windows != size:
        r.refuse(f"it makes {spec.shape} of {x.output.shape}")
    multiplier = _factors(r, x, scales, axis, 0, len(weight))
    flipped = np.ascontiguousarray(weight[:, ::-1, ::-1].transpose(0, 3, 1, 2))
    bias = _bias(r, len(weight), 3)
    if max(stride) > 1:
        x = r.reshaped(x, (channels, size[0], 1, size[1], 1))
        x = r.padded(x, ((0, 0), (0, 0), (0, stride[0] - 1), (0, 0), (0, stride[1] - 1)))
        x = r.reshaped(x, (channels, size[0] * stride[0], size[1] * stride[1]))
    before = [kernel[i] - 1 - (top, left)[i] for i in (0, 1)]
    after = [out[i] + kernel[i] - 1 - before[i] - x.output.shape[1 + i] for i in (0, 1)]
    for i in (0, 1):  # a convolution cannot have negative padding
        whole = x.output.shape[1 + i]
        x = r.part(x, 1 + i, max(0, -before[i]), whole - max(0, -after[i]))
    padding = (max(0, before[0]), max(0, before[1]), max(0, after[0]), max(0, after[1]))
    r.give(
        _convolved(
            r, x, flipped, multiplier, bias, spec, stride=(1, 1), padding=padding, dilation=(1, 1), groups=1,
            tensor=r.result,
        )
    )  # fmt: skip


# ---------------------------------------------------------------- linear layers


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
    x, int8 = within_int8(r, x, weight, 1)
    bias = _bias(r, len(weight))
    flat = dataclasses.replace(spec, shape=(len(weight),))
    whole = spec.shape == flat.shape
    layer = r.append(
        lambda name: n.Linear(
            name=name,
            inputs=(x.name,),
            output=flat,
            multiplier=multiplier,
            weight=int8,
            bias_o=bias,
        ),
        r.result if whole else None,
    )
    if not whole and len(spec.shape) == 3:
        r.refuse(f"its output has the shape {spec.shape}; expected a vector")
    r.give(r.reshaped(layer, spec.shape, None if whole else r.result))


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
    r.give(clamped(r, pool, spec))


def _reduced(r: Reader) -> tuple[n.Layer, n.TensorSpec, tuple[int, int, int]]:
    """Return an operand of MEAN or REDUCE_MAX as images of which each is reduced to one value, and their shape.

    The values that stay are the channels, in the order of the layer.
    """
    x, tensor, spec = r.value(0), r.tensor(0), r.spec()
    rank = len(tensor.shape)
    axes = sorted(layer_axis(axis, rank - 1) for axis in r.axes(1, rank))
    shape = x.output.shape
    if rank == 4 and axes == [1, 2]:
        return x, spec, (shape[0], shape[1], shape[2])
    stay = [axis for axis in range(rank - 1) if axis not in axes]
    if [*stay, *axes] != list(range(rank - 1)):
        x = r.permuted(x, (*stay, *axes))
    count = math.prod(shape[axis] for axis in stay)
    whole = (count, math.prod(shape[axis] for axis in axes), 1)
    return r.reshaped(x, whole), spec, whole


def _given_back(r: Reader, image: n.TensorSpec, append: Callable[[Tensor | None], n.Layer]) -> None:
    """Append what reduces images to one value each, and give the values the shape of the output."""
    spec, rank = r.spec(), len(r.tensor(0).shape)
    stay = [axis for axis in range(rank - 1) if axis not in r.axes(1, rank)]
    if spec.shape == image.shape:
        r.give(append(r.result))
        return
    layer = append(None)
    if len(spec.shape) == 3 and len(stay) > 1:  # the order of the file, (H, W, C), to that of the layer
        r.refuse("it keeps several dimensions of an image; expected one, or a reduction over height and width")
    r.give(r.reshaped(layer, spec.shape, r.result))


def _mean(r: Reader) -> None:
    x, spec, (channels, height, width) = _reduced(r)
    if x.output.dtype != spec.dtype:
        r.refuse("its input and output have different types")
    whole = r.multiplier([float(x.output.scale) / float(spec.scale)])
    m, e = fixed_point.mean_multiplier(*pair(whole), height * width)
    if m < 1:
        r.refuse("its multiplier is 0")
    image = dataclasses.replace(spec, shape=(channels, 1, 1))
    _given_back(
        r, image,
        lambda tensor: r.append(
            lambda name: n.AveragePool2d(
                name=name, inputs=(x.name,), output=image, multiplier=n.FixedPoint.of(m, e), kernel=(height, width),
                stride=(height, width),
            ),
            tensor,
        ),
    )  # fmt: skip


def _reduce_max(r: Reader) -> None:
    x, _, (channels, height, width) = _reduced(r)
    r.require_same(x)
    image = dataclasses.replace(x.output, shape=(channels, 1, 1))
    _given_back(
        r, image,
        lambda tensor: r.append(
            lambda name: n.MaxPool2d(
                name=name, inputs=(x.name,), output=image, kernel=(height, width), stride=(height, width)
            ),
            tensor,
        ),
    )  # fmt: skip


OPERATORS: Mapping[str, Callable[[Reader], None]] = {
    **FUNCTIONS,
    **JOINING,
    **MOVING,
    "AVERAGE_POOL_2D": _average_pool,
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _conv2d,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "REDUCE_MAX": _reduce_max,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "TRANSPOSE_CONV": _transposed_conv,
}
"""What is read."""

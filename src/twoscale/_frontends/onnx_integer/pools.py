"""Average pools, whose sums ONNX Runtime computes in integers or in float32."""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._frontends.onnx_integer.factors import multiplier_of, settled, without_zero_point
from twoscale._frontends.onnx_integer.reader import Reader, padding, pair
from twoscale._frontends.onnx_integer.settling import values_of
from twoscale._ir import layers as n

__all__ = ["average_pool", "global_average_pool"]

_LARGEST_MEAN = 100
"""Values in a window of an average pool, for which the float32 sums are followed step by step."""


def global_average_pool(reader: Reader, node: onnx.NodeProto) -> None:
    reader.expect(node, reader.attributes(node, channels_last=0), channels_last=0)
    x = reader.operand(node, 0)
    if len(x.output.shape) != 3:
        reader.refuse(node, f"its input has shape {x.output.shape}, expected (C, H, W)")
    channels, height, width = x.output.shape
    # Here ONNX Runtime adds integers and multiplies once.
    factor = np.float32(x.output.scale) / (reader.scale(node, 3) * np.float32(height * width))
    reader.usual(node, np.asarray(factor), "multiplier")
    _average(reader, node, x, (channels, 1, 1), (height, width), (1, 1), (0, 0, 0, 0), factor)


def average_pool(reader: Reader, node: onnx.NodeProto) -> None:
    attributes = reader.window(node, count_include_pad=0, ceil_mode=0, channels_last=0)
    reader.expect(node, attributes, ceil_mode=0, channels_last=0)
    if any(pad >= attributes["kernel_shape"][index % 2] for index, pad in enumerate(attributes["pads"])):
        reader.refuse(node, f"pads = {attributes['pads']}; expected less than the kernel")
    if any(attributes["pads"]) and not attributes["count_include_pad"]:
        reader.refuse(node, "padding that does not count in the mean (count_include_pad = 0) is not supported")
    x = reader.operand(node, 0)
    shape = (x.output.shape[0], *reader.pooled(node, x, attributes))
    kernel, stride = pair(attributes["kernel_shape"]), pair(attributes["strides"])
    factor = _mean_factor(reader, node, x, math.prod(kernel), any(attributes["pads"]))
    _average(reader, node, x, shape, kernel, stride, padding(attributes["pads"]), factor)


def _mean_factor(reader: Reader, node: onnx.NodeProto, x: n.Layer, count: int, padded: bool) -> np.float32:
    """Return the factor of integer sums with which means round as ONNX Runtime's do.

    ONNX Runtime adds the products scale · (q − z) of a window in float32, divides by the count and by the output's
    scale, and adds the zero point before it rounds. The float32 sum depends on the values behind an integer sum, so
    both the least and the greatest that occur must round to the same integer.
    """
    spec = reader.spec(node, 3, (), x.output.dtype)
    if count > _LARGEST_MEAN:
        reader.refuse(
            node, f"its windows have {count:,} values, expected at most {_LARGEST_MEAN}; use a global average pool"
        )
    factor = np.float32(x.output.scale) / (np.float32(spec.scale) * np.float32(count))
    reader.usual(node, np.asarray(factor), "multiplier")
    sums, least, greatest = _float_sums(x, count, padded)

    def rounded(total: NDArray[np.float32]) -> NDArray[np.float32]:
        steps: NDArray[np.float32] = total / np.float32(count) / np.float32(spec.scale)
        clipped: NDArray[np.float32] = np.clip(np.rint(steps + np.float32(spec.zero_point)), spec.lo, spec.hi)
        return clipped

    expected = rounded(least)
    if not np.array_equal(expected, rounded(greatest)):
        reader.refuse(
            node,
            "some sums lie so close to a tie that ONNX Runtime's rounding depends on the order of the values; "
            "quantize the float model with twoscale.quantize",
        )
    return settled(reader, node, {}, [factor], lambda moved: sums * moved[0], spec, expected)[0]


def _float_sums(x: n.Layer, count: int, padded: bool) -> tuple[NDArray[np.float32], ...]:
    """Return all sums of ``count`` values q − z, and the least and the greatest float32 sum of the products.

    Float32 addition is monotonic, so the extremes after each step follow from those before it. With padding a window
    may also have fewer values.
    """
    centred = without_zero_point(values_of(x.output.dtype), x)
    products = centred * np.float32(x.output.scale)
    lowest = int(centred[0])
    least = greatest = products
    every = np.arange(count * lowest, count * (lowest + 255) + 1).astype(np.float32)
    bounds = np.full((2, len(every)), np.nan, np.float32)
    for values in range(1, count + 1):
        if values > 1:
            size = len(least) + 255
            less, more = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
            for i, product in enumerate(products):
                part = slice(i, i + len(least))
                np.minimum(less[part], least + product, out=less[part])
                np.maximum(more[part], greatest + product, out=more[part])
            least, greatest = less, more
        if padded or values == count:
            start = (values - count) * lowest
            part = slice(start, start + len(least))
            np.fmin(bounds[0, part], least, out=bounds[0, part])
            np.fmax(bounds[1, part], greatest, out=bounds[1, part])
    return every, bounds[0], bounds[1]


def _average(
    reader: Reader,
    node: onnx.NodeProto,
    x: n.Layer,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: n.Padding,
    factor: np.float32,
) -> None:
    spec = reader.spec(node, 3, shape, x.output.dtype)
    layer = n.AveragePool2d(
        name=node.output[0],
        inputs=(x.name,),
        output=spec,
        multiplier=multiplier_of(factor),
        kernel=kernel,
        stride=stride,
        padding=padding,
    )
    reader.append(node, layer)

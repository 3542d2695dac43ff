"""Random `.tflite` files of TensorFlow Lite's quantized operators, as its converters write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twoscale._formats.tflite.graph_builder import GraphBuilder

__all__ = ["KERAS_OPERATORS", "OPERATORS", "UINT8_OPERATORS", "random_file"]


@dataclass(frozen=True)
class Activation:
    """A tensor of the file."""

    index: int
    shape: tuple[int, ...]
    """With the batch."""
    scale: float
    zero_point: int


class Maker:
    """Appends random operators to a graph.

    Args:
        rng: draws everything.
        dtype: of the activations, "int8" or "uint8".
    """

    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        self.rng = rng
        self.dtype = dtype
        self.graph = GraphBuilder("random")
        self.count = 0
        shape = (1, int(rng.integers(3, 9)), int(rng.integers(3, 9)), int(rng.integers(1, 7)))
        self.entry = self.last = self.activation(shape)
        self.made = [self.last]

    def number(self, lowest: int, highest: int) -> int:
        return int(self.rng.integers(lowest, highest, endpoint=True))

    def scale(self, low: float = -6.0, high: float = 1.0) -> float:
        return float(np.float32(2.0 ** self.rng.uniform(low, high)))

    def name(self, what: str = "t") -> str:
        self.count += 1
        return f"{what}{self.count};merged"

    def activation(self, shape: Sequence[int], scale: float | None = None, zero_point: int | None = None) -> Activation:
        limits = np.iinfo(self.dtype)
        scale = self.scale() if scale is None else scale
        zero_point = self.number(int(limits.min), int(limits.max)) if zero_point is None else zero_point
        index = self.graph.tensor(self.name(), shape, self.dtype, scale, zero_point)
        return Activation(index, tuple(shape), scale, zero_point)

    def same(self, x: Activation, shape: Sequence[int] | None = None) -> Activation:
        return self.activation(x.shape if shape is None else shape, x.scale, x.zero_point)

    def constant(self, values: Any, dtype: Any = np.int32) -> int:
        return self.graph.constant(self.name("c"), np.asarray(values, dtype))

    def operator(self, name: str, inputs: Sequence[int], y: Activation, options: str = "", **fields: Any) -> None:
        self.graph.operator(name, inputs, y.index, options, **fields)
        self.last = y
        self.made.append(y)

    def image(self) -> Activation:
        """Return a tensor (1, H, W, C)."""
        x = self.last
        if len(x.shape) != 4:
            count = math.prod(x.shape)
            height = next(size for size in (4, 3, 2, 1) if count % size == 0)
            self.reshape((1, height, 1, count // height))
        return self.last

    # ------------------------------------------------------------ layers with weights

    def weights(self, shape: Sequence[int], axis: int, x: Activation, name: str) -> tuple[int, int, float]:
        """Append weights and biases; return them, and the scale that the output needs."""
        channels = shape[axis]
        per_channel = self.dtype == "int8" and bool(self.rng.random() < 0.8)
        scales = np.array([self.scale(-8, -3) for _ in range(channels if per_channel else 1)], np.float32)
        zero_point = 0
        if self.dtype == "uint8":
            zero_point = self.number(80, 170)
            q: Any = self.rng.integers(0, 256, shape, dtype=np.uint8)
            if self.rng.random() < 0.5:  # within int8, less the zero point
                q = np.clip(q, zero_point - 100, min(255, zero_point + 100)).astype(np.uint8)
        else:
            q = self.rng.integers(-127, 128, shape, dtype=np.int8)
        weight = self.graph.constant(self.name("w"), q, scales, zero_point, axis=axis if per_channel else 0)
        bias_scale = (np.float32(x.scale) * scales).astype(np.float32)
        bias = self.rng.integers(-3000, 3000, channels).astype(np.int32)
        spread = float(x.scale * np.median(scales) * 60 * 60 * math.sqrt(max(1, math.prod(shape) // channels)))
        index = self.graph.constant(self.name("b"), bias, bias_scale)
        return weight, index, float(np.float32(spread / self.number(20, 200)))

    def window(self, x: Activation) -> tuple[int, int, int]:
        """Return (padding, kernel height, kernel width)."""
        return self.number(0, 1), self.number(1, min(3, x.shape[1])), self.number(1, min(3, x.shape[2]))

    def sizes(self, x: Activation, padding: int, kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
        return [
            -(-size // s) if padding == 0 else -(-(size - k + 1) // s)
            for size, k, s in zip(x.shape[1:3], kernel, stride, strict=True)
        ]

    def conv(self, depthwise: bool = False) -> None:
        x = self.image()
        padding, *kernel = self.window(x)
        stride = [self.number(1, 2), self.number(1, 2)]
        dilation = [1, 1]
        if padding == 0 and stride == [1, 1] and not depthwise and self.rng.random() < 0.3:
            dilation = [2, 2]
        channels = x.shape[3] * self.number(1, 2) if depthwise else self.number(1, 9)
        shape = (1, *kernel, channels) if depthwise else (channels, *kernel, x.shape[3])
        weight, bias, scale = self.weights(shape, 3 if depthwise else 0, x, "conv")
        y = self.activation((1, *self.sizes(x, padding, kernel, stride), channels), scale)
        fields = {
            "padding": padding, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
            "dilationWFactor": dilation[1], "fusedActivationFunction": self.activation_function(),
        }  # fmt: skip
        if depthwise:
            fields["depthMultiplier"] = channels // x.shape[3]
        name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        self.operator(
            name, [x.index, weight, bias], y, "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions", **fields
        )

    def activation_function(self) -> int:
        return int(self.rng.choice([0, 0, 1, 3]))

    def depthwise(self) -> None:
        self.conv(depthwise=True)

    def fully_connected(self) -> None:
        x = self.last
        if len(x.shape) != 2:
            self.reshape((1, math.prod(x.shape)))
            x = self.last
        channels = self.number(2, 10)
        weight, bias, scale = self.weights((channels, x.shape[1]), 0, x, "fc")
        y = self.activation((1, channels), scale)
        self.operator(
            "FULLY_CONNECTED", [x.index, weight, bias], y, "FullyConnectedOptions",
            fusedActivationFunction=self.activation_function(),
        )  # fmt: skip

    # ------------------------------------------------------------ others

    def partner(self, x: Activation) -> Activation:
        """Return another tensor of the same shape: an earlier one, or one of another scale."""
        earlier = [other for other in self.made if other.shape == x.shape and other.index != x.index]
        if earlier and self.rng.random() < 0.7:
            return earlier[self.number(0, len(earlier) - 1)]
        self.rescale()
        return self.last

    def add(self) -> None:
        a = self.last
        b = self.partner(a)
        y = self.activation(a.shape, float(np.float32((a.scale + b.scale) * self.rng.uniform(0.4, 1.0))))
        self.operator("ADD", [a.index, b.index], y, "AddOptions", fusedActivationFunction=self.activation_function())

    def mul(self) -> None:
        a = self.last
        b = self.partner(a)
        y = self.activation(a.shape, float(np.float32(a.scale * b.scale * self.rng.uniform(20, 120))))
        self.operator("MUL", [a.index, b.index], y, "MulOptions", fusedActivationFunction=self.activation_function())

    def pool(self, name: str) -> None:
        x = self.image()
        padding, *kernel = self.window(x)
        stride = [self.number(1, 2), self.number(1, 2)]
        y = self.same(x, (1, *self.sizes(x, padding, kernel, stride), x.shape[3]))
        self.operator(
            name, [x.index], y, "Pool2DOptions", padding=padding, strideH=stride[0], strideW=stride[1],
            filterHeight=kernel[0], filterWidth=kernel[1], fusedActivationFunction=self.activation_function(),
        )  # fmt: skip

    def average_pool(self) -> None:
        self.pool("AVERAGE_POOL_2D")

    def max_pool(self) -> None:
        self.pool("MAX_POOL_2D")

    def mean(self) -> None:
        x = self.image()
        keep = bool(self.rng.random() < 0.5)
        shape = (1, 1, 1, x.shape[3]) if keep else (1, x.shape[3])
        y = self.activation(shape, float(np.float32(x.scale * self.rng.uniform(0.3, 1.5))))
        self.operator("MEAN", [x.index, self.constant([1, 2])], y, "ReducerOptions", keepDims=keep)

    def softmax(self) -> None:
        x = self.last
        y = self.activation(x.shape, 2.0**-8, int(np.iinfo(self.dtype).min))
        self.operator("SOFTMAX", [x.index], y, "SoftmaxOptions", beta=1.0)

    def reshape(self, shape: Sequence[int] | None = None) -> None:
        x = self.last
        shape = (1, math.prod(x.shape)) if shape is None else shape
        self.operator(
            "RESHAPE", [x.index, self.constant(list(shape))], self.same(x, shape), "ReshapeOptions",
            newShape=np.array(shape, np.int32),
        )  # fmt: skip

    def pad(self) -> None:
        x = self.image()
        widths = [(0, 0), *((self.number(0, 2), self.number(0, 2)) for _ in range(2)), (0, self.number(0, 1))]
        shape = [size + sum(pair) for size, pair in zip(x.shape, widths, strict=True)]
        self.operator("PAD", [x.index, self.constant(widths)], self.same(x, shape), "PadOptions")

    def concat(self) -> None:
        x = self.last
        copies = [x.index] * self.number(1, 3)
        if self.dtype == "uint8" and self.rng.random() < 0.5:
            copies.append(self.partner(x).index)
        axis = self.number(1, len(x.shape) - 1)
        shape = list(x.shape)
        shape[axis] *= len(copies)
        self.operator(
            "CONCATENATION", copies, self.same(x, shape), "ConcatenationOptions",
            axis=axis - (len(shape) if self.rng.random() < 0.5 else 0),
        )  # fmt: skip

    def relu(self) -> None:
        x = self.last
        name = str(self.rng.choice(["RELU", "RELU6", "RELU_N1_TO_1"]))
        y = self.same(x) if name != "RELU" or self.rng.random() < 0.5 else self.activation(x.shape, x.scale * 0.75)
        self.operator(name, [x.index], y)

    def leaky_relu(self) -> None:
        x = self.last
        y = self.activation(x.shape, float(np.float32(x.scale * self.rng.uniform(0.5, 1.5))))
        self.operator(
            "LEAKY_RELU", [x.index], y, "LeakyReluOptions", alpha=float(np.float32(self.rng.uniform(0.01, 0.5)))
        )

    def hard_swish(self) -> None:
        x = self.last
        y = self.activation(x.shape, float(np.float32(x.scale * self.rng.uniform(0.5, 1.5))))
        self.operator("HARD_SWISH", [x.index], y, "HardSwishOptions")

    def logistic(self) -> None:
        self.operator("LOGISTIC", [self.last.index], self.activation(self.last.shape, 2.0**-8, -128))

    def tanh(self) -> None:
        self.operator("TANH", [self.last.index], self.activation(self.last.shape, 2.0**-7, 0))

    def rescale(self) -> None:
        x = self.last
        y = self.activation(x.shape, float(np.float32(x.scale * self.rng.uniform(0.5, 2.0))))
        self.operator("QUANTIZE", [x.index], y, "QuantizeOptions")

    def transpose(self) -> None:
        x = self.image()
        order = [0, *(int(axis) + 1 for axis in self.rng.permutation(3))]
        shape = [x.shape[axis] for axis in order]
        self.operator("TRANSPOSE", [x.index, self.constant(order)], self.same(x, shape), "TransposeOptions")

    def strided_slice(self) -> None:
        x = self.image()
        begin = [0, self.number(0, 1), 0, 0]
        step = [1, 1, self.number(1, 2), 1]
        shape = [1, x.shape[1] - begin[1], -(-x.shape[2] // step[2]), x.shape[3]]
        if min(shape) < 1:
            return
        inputs = [x.index, *(self.constant(values) for values in (begin, list(x.shape), step))]
        self.operator("STRIDED_SLICE", inputs, self.same(x, shape), "StridedSliceOptions", beginMask=1, endMask=1)

    # ------------------------------------------------------------ of Keras models

    def operand(self, x: Activation, scale: float) -> int:
        """Append a constant that broadcasts to a tensor: one value, or one per channel."""
        channels = x.shape[-1]
        shape = [(), (1,), (channels,), (1,) * (len(x.shape) - 1) + (channels,)][self.number(0, 3)]
        q = self.rng.integers(-128, 128, shape, dtype=np.int8)
        return self.graph.constant(self.name("k"), np.asarray(q, np.int8), scale, self.number(-128, 127))

    def sum_of(self, name: str, operands: list[int], x: Activation, scale: float) -> None:
        y = self.activation(x.shape, float(np.float32(scale * self.rng.uniform(0.4, 1.0))))
        fused = self.activation_function()
        self.operator(name, operands, y, f"{name.title()}Options", fusedActivationFunction=fused)

    def add_constant(self) -> None:
        x, scale = self.last, self.scale()
        operands = [x.index, self.operand(x, scale)]
        self.sum_of("ADD", operands[:: self.rng.choice([1, -1])], x, x.scale + scale)

    def sub_constant(self) -> None:
        """The subtrahend has the larger scale, with which no value is halfway between two steps."""
        x = self.last
        if self.rng.random() < 0.5:
            self.sum_of("SUB", [x.index, self.operand(x, x.scale * 1.5)], x, x.scale * 2)
        else:
            self.sum_of("SUB", [self.operand(x, x.scale * 0.7), x.index], x, x.scale * 2)

    def sub(self) -> None:
        a = self.last
        a, b = sorted((a, self.partner(a)), key=lambda x: x.scale)
        self.sum_of("SUB", [a.index, b.index], a, a.scale + b.scale)

    def mul_constant(self) -> None:
        x, scale = self.last, self.scale()
        y = self.activation(x.shape, float(np.float32(x.scale * scale * self.rng.uniform(20, 120))))
        operands = [x.index, self.operand(x, scale)]
        fused = self.activation_function()
        self.operator("MUL", operands[:: self.rng.choice([1, -1])], y, "MulOptions", fusedActivationFunction=fused)

    def function(self, name: str, options: str = "", scale: float = 1.0, **fields: Any) -> None:
        x = self.last
        y = self.activation(x.shape, float(np.float32(x.scale * scale * self.rng.uniform(0.5, 1.5))))
        self.operator(name, [x.index], y, options, **fields)

    def abs(self) -> None:
        self.function("ABS", "AbsOptions")

    def gelu(self) -> None:
        self.function("GELU", "GeluOptions", approximate=bool(self.rng.random() < 0.5))

    def prelu(self) -> None:
        x = self.image()
        channels = x.shape[3]
        q = self.rng.integers(-128, 128, (1, 1, channels), dtype=np.int8)
        q = np.full_like(q, 77) if self.rng.random() < 0.3 else q
        slopes = self.graph.constant(self.name("k"), q, 0.003, self.number(-128, 127))
        y = self.activation(x.shape, float(np.float32(x.scale * self.rng.uniform(0.5, 1.5))))
        self.operator("PRELU", [x.index, slopes], y)

    def transpose_conv(self) -> None:
        x = self.image()
        padding, stride = self.number(0, 1), [self.number(1, 3), self.number(1, 2)]
        kernel, channels = [self.number(1, 4), self.number(1, 3)], self.number(1, 5)
        size = [
            length * step if padding == 0 else (length - 1) * step + max(k, step)
            for length, step, k in zip(x.shape[1:3], stride, kernel, strict=True)
        ]
        if padding == 0:
            kernel = [max(k, step) for k, step in zip(kernel, stride, strict=True)]
        weight, bias, scale = self.weights((channels, *kernel, x.shape[3]), 0, x, "up")
        shape = [1, *size, channels]
        self.operator(
            "TRANSPOSE_CONV", [self.constant(shape), weight, x.index, bias], self.activation(shape, scale),
            "TransposeConvOptions", padding=padding, strideH=stride[0], strideW=stride[1],
        )  # fmt: skip

    def dilated_conv(self) -> None:
        """A dilated convolution as Keras writes it, with the shapes that it writes: a batch of 1 throughout."""
        x = self.image()
        block, kernel, channels = [2, self.number(1, 3)], 3, self.number(1, 5)
        total = [block[i] * (kernel - 1) for i in (0, 1)]
        crops = [-(x.shape[1 + i] + total[i]) % block[i] for i in (0, 1)]
        widths = [[total[i] // 2, total[i] - total[i] // 2 + crops[i]] for i in (0, 1)]
        inner = [(x.shape[1 + i] + sum(widths[i])) // block[i] for i in (0, 1)]
        apart = self.same(x, (1, *inner, x.shape[3]))
        self.operator(
            "SPACE_TO_BATCH_ND", [x.index, self.constant(block), self.constant(widths)], apart,
            "SpaceToBatchNDOptions",
        )  # fmt: skip
        weight, bias, scale = self.weights((channels, kernel, kernel, x.shape[3]), 0, x, "dilated")
        conv = self.activation((1, *(size - kernel + 1 for size in inner), channels), scale)
        fused = self.activation_function()
        self.operator(
            "CONV_2D", [apart.index, weight, bias], conv, "Conv2DOptions", padding=1, strideH=1, strideW=1,
            dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=fused,
        )  # fmt: skip
        y = self.same(conv, (1, *x.shape[1:3], channels))
        del self.made[-2:]  # they are several images each
        self.operator(
            "BATCH_TO_SPACE_ND", [conv.index, self.constant(block), self.constant([[0, crops[0]], [0, crops[1]]])], y,
            "BatchToSpaceNDOptions",
        )  # fmt: skip

    def reduce(self) -> None:
        """A mean or a maximum over any dimensions, of which one stays at most."""
        x = self.last if self.rng.random() < 0.5 else self.image()
        rank = len(x.shape)
        stays = self.number(1, rank - 1) if rank > 2 else rank
        axes = [axis for axis in range(1, rank) if axis != stays]
        keep = bool(self.rng.random() < 0.5)
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape) if keep or axis not in axes]
        if len(shape) < 2:
            return
        if self.rng.random() < 0.5:
            y = self.same(x, shape)
            self.operator("REDUCE_MAX", [x.index, self.constant(axes)], y, "ReducerOptions", keepDims=keep)
        else:
            y = self.activation(shape, float(np.float32(x.scale * self.rng.uniform(0.3, 1.5))))
            self.operator("MEAN", [x.index, self.constant(axes)], y, "ReducerOptions", keepDims=keep)

    def flatten(self) -> None:
        """A reshape whose shape is computed while the network runs, with a result that states another shape."""
        x = self.image()
        shape, first, size = (
            self.graph.tensor(self.name("s"), sizes, "int32", batch=False) for sizes in ((4,), (), (2,))
        )
        self.graph.operator("SHAPE", [x.index], shape, "ShapeOptions", outType=2)
        places = [self.constant([place]) for place in (0, 1, 1)]
        self.graph.operator("STRIDED_SLICE", [shape, *places], first, "StridedSliceOptions", shrinkAxisMask=1)
        count = math.prod(x.shape)
        self.graph.operator("PACK", [first, self.constant(count)], size, "PackOptions", valuesCount=2)
        y = self.same(x, (1, count))
        self.operator("RESHAPE", [x.index, size], y, "ReshapeOptions")

    def tile(self) -> None:
        x = self.image()
        counts = [1, self.number(1, 2), self.number(1, 3), self.number(1, 2)]
        shape = [size * count for size, count in zip(x.shape, counts, strict=True)]
        self.operator("TILE", [x.index, self.constant(counts)], self.same(x, shape), "TileOptions")

    def resize_nearest(self) -> None:
        x = self.image()
        size = [self.number(1, 9), x.shape[2] * self.number(1, 3)]
        self.operator(
            "RESIZE_NEAREST_NEIGHBOR", [x.index, self.constant(size)], self.same(x, (1, *size, x.shape[3])),
            "ResizeNearestNeighborOptions", halfPixelCenters=bool(self.rng.random() < 0.5),
        )  # fmt: skip

    def split(self) -> None:
        x = self.image()
        axis = next((axis for axis in (3, 2, 1) if x.shape[axis] % 2 == 0), 0)
        if not axis:
            return
        shape = [size // 2 if place == axis else size for place, size in enumerate(x.shape)]
        first, second = self.same(x, shape), self.same(x, shape)
        self.graph.operator(
            "SPLIT", [self.constant(axis), x.index], first.index, "SplitOptions", further=[second.index], numSplits=2
        )
        self.made += [first, second]
        self.last = second

    def depth_to_space(self) -> None:
        x = self.image()
        if x.shape[3] % 4 == 0:
            shape = (1, 2 * x.shape[1], 2 * x.shape[2], x.shape[3] // 4)
            self.operator("DEPTH_TO_SPACE", [x.index], self.same(x, shape), "DepthToSpaceOptions", blockSize=2)
        elif x.shape[1] % 2 == x.shape[2] % 2 == 0:
            shape = (1, x.shape[1] // 2, x.shape[2] // 2, 4 * x.shape[3])
            self.operator("SPACE_TO_DEPTH", [x.index], self.same(x, shape), "SpaceToDepthOptions", blockSize=2)


KERAS_OPERATORS = (
    "abs", "add_constant", "depth_to_space", "dilated_conv", "flatten", "gelu", "mul_constant", "prelu", "reduce",
    "resize_nearest", "split", "sub", "sub_constant", "tile", "transpose_conv",
)  # fmt: skip
"""That files of Keras models have besides ``OPERATORS``."""
OPERATORS = (
    "add", "average_pool", "concat", "conv", "depthwise", "fully_connected", "hard_swish", "leaky_relu", "logistic",
    "max_pool", "mean", "mul", "pad", "relu", "rescale", "reshape", "softmax", "strided_slice", "tanh", "transpose",
)  # fmt: skip
UINT8_OPERATORS = (
    "add", "average_pool", "concat", "conv", "depthwise", "fully_connected", "max_pool", "mul", "pad", "reshape",
)  # fmt: skip


def random_file(rng: np.random.Generator, operators: Sequence[str], length: int, dtype: str = "int8") -> bytes:
    """Return a file of ``length`` random operators and those that make their operands.

    Args:
        rng: draws everything.
        operators: names in ``OPERATORS``.
        length: number of operators.
        dtype: of the activations.
    """
    maker = Maker(rng, dtype)
    for _ in range(length):
        append: Callable[[], None] = getattr(maker, operators[maker.number(0, len(operators) - 1)])
        append()
    if maker.last is maker.entry:
        maker.reshape()
    return maker.graph.to_bytes([maker.entry.index], [maker.last.index])

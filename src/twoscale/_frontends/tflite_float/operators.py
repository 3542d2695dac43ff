"""One function per operator. It appends the operator's nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.file_reader import layer_axis
from twoscale._frontends.tflite.model import Tensor
from twoscale._frontends.tflite_float.reader import Reader
from twoscale._frontends.tflite_float.resizing import resize_bilinear, resize_nearest
from twoscale._ir.float_graph import AveragePool2d, MaxPool2d

__all__ = ["OPERATORS"]

_MOST_COPIES = 1 << 10
"""Of a tensor along one dimension."""

_BOUNDS = {0: (-math.inf, math.inf), 1: (0.0, math.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
"""Of fused activations, by their numbers."""


def _activated(r: Reader, name: str, field: int = 0) -> None:
    """Give a tensor after the fused activation in a field of the options."""
    kind = r.options.number(field, "b")
    if kind not in _BOUNDS:
        raise r.at.unsupported(f"the fused activation {kind}", "use RELU, RELU_N1_TO_1 or RELU6")
    r.give(r.at.clamp(name, _BOUNDS[kind]) if kind else name)


# ---------------------------------------------------------------- layers with weights


def _bias(r: Reader) -> NDArray[np.float32] | None:
    return r.weights(2) if r.has(2) else None


def _conv2d(r: Reader) -> None:
    name, (channels, *size) = r.image(), r.shape()
    weight, groups = r.oihw(r.weights(1), channels)
    stride, dilation = r.strides_and_dilations()
    top, left, bottom, right = r.padding(size, weight.shape[2:], stride, dilation)
    _require_windows(r, size, weight.shape[2:], stride, (top, left, bottom, right), dilation)
    made = r.at.convolution(
        name, r.expected, np.ascontiguousarray(weight), _bias(r), stride=stride,
        padding=[(top, bottom), (left, right)], dilation=dilation, groups=groups,
    )  # fmt: skip
    _activated(r, made, 4 if r.is_depthwise else 3)


def _require_windows(
    r: Reader,
    size: list[int],
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int] = (1, 1),
) -> None:
    """Check that the output has as many positions as windows fit."""
    found = tuple(
        (size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    if found != r.expected[1:]:
        r.refuse(f"it has {found} windows, and the file says {r.expected[1:]}")


def _transposed_conv(r: Reader) -> None:
    if r.tensor(0).dtype != "int32" or not r.is_activation(2):
        raise r.at.unsupported("its inputs", "give the output's shape, the weights and the image, in this order")
    weight, name, size = r.weights(1), r.image(2), r.shape(2)[1:]
    channels, stride = r.shape(2)[0], (r.factor(2), r.factor(1))
    if weight.ndim != 4 or weight.shape[3] != channels:
        r.refuse(f"it has weights {weight.shape} for {channels} channels")
    kernel, out = weight.shape[1:3], list(r.expected[1:])
    top, left, _, _ = r.padding(out, kernel, stride)
    windows = tuple(
        -(-out[i] // stride[i]) if r.options.number(0, "b") == 0 else (out[i] - kernel[i]) // stride[i] + 1
        for i in (0, 1)
    )
    if windows != tuple(size) or len(weight) != r.expected[0]:
        r.refuse(f"it makes {r.expected} of {r.shape(2)}")
    bias = r.weights(3) if r.has(3) else None
    made = r.at.transposed_convolution(
        name, r.expected, np.ascontiguousarray(weight.transpose(3, 0, 1, 2)), bias, stride=stride,
        padding=(top, left), dilation=(1, 1), groups=1,
    )  # fmt: skip
    _activated(r, made, 3)


def _fully_connected(r: Reader) -> None:
    name, weight = r.input(), r.weights(1)
    if r.options.number(1, "b") or weight.ndim != 2:
        raise r.at.unsupported(f"weights {weight.shape} in another format than the default", "use the default")
    out, features = weight.shape
    shape = r.at.shape(name)
    if math.prod(shape) == features:
        weight, name = _flattened(r, name, weight)
        made = r.at.linear(name, np.ascontiguousarray(weight), _checked(r, _bias(r), out))
    elif r.tensor(0).shape[-1] == features:
        made = r.at.linear(r.to_file(name), weight, _checked(r, _bias(r), out))
        made = r.to_graph(made) if len(shape) == 3 else made
    else:
        r.refuse(f"it has weights {weight.shape}, and its input {math.prod(shape)} values per image")
    _activated(r, r.reshaped(made, r.expected) if math.prod(r.expected) == math.prod(r.at.shape(made)) else made)


def _flattened(r: Reader, name: str, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    """Return the weights in the graph's order of the values, and the tensor as a vector."""
    source = r.builder[name]
    if len(source.shape) != 3 and source.inputs:  # a reshape of an image in the file's order
        inner = r.builder[source.inputs[0]]
        if inner.inputs and getattr(inner, "axes", None) == (1, 2, 0) and len(source.shape) == 1:
            source = r.builder[inner.inputs[0]]
    if len(source.shape) == 3:
        channels, height, width = source.shape
        weight = weight.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(len(weight), -1)
    return weight, r.at.reshape(source.name, (weight.shape[1],))


def _checked(r: Reader, bias: NDArray[np.float32] | None, channels: int) -> NDArray[np.float32] | None:
    if bias is not None and bias.shape != (channels,):
        r.refuse(f"its biases have the shape {bias.shape}; expected ({channels},)")
    return bias


def _batch_matmul(r: Reader) -> None:
    left = _matrices(r, 0)
    if r.is_activation(1):
        r.give(r.to_graph(r.at.matmul(left, _matrices(r, 1))))
        return
    weight = r.weights(1)
    if math.prod(weight.shape[:-2]) != 1:
        raise r.at.unsupported(f"a product with weights of shape {weight.shape}", "use one matrix")
    weight = weight.reshape(weight.shape[-2], weight.shape[-1])
    if not r.options.number(1, "b"):
        weight = weight.T
    if r.at.shape(left)[-1] != weight.shape[1]:
        r.refuse(f"it has weights {weight.shape} for {r.at.shape(left)[-1]} values")
    r.give(r.to_graph(r.at.linear(left, np.ascontiguousarray(weight))))


def _matrices(r: Reader, index: int) -> str:
    """Return an operand of a product in the file's order, transposed if the options say so."""
    name = r.to_file(r.input(index))
    rank = len(r.at.shape(name))
    flipped = bool(r.options.number(index, "b"))
    if rank < 2 and (flipped or r.is_activation(1)):
        raise r.at.wrong("sums over the batch; expected images to stay apart")
    return r.at.permute(name, (*range(rank - 2), rank - 1, rank - 2)) if flipped else name


# ---------------------------------------------------------------- two tensors


def _sum(left: float, right: float) -> Callable[[Reader], None]:
    def read(r: Reader) -> None:
        at, shape, rank = r.at, r.expected, len(r.result.shape)
        if r.is_activation(0) and r.is_activation(1):
            a, b = (r.broadcast(index, rank) for index in (0, 1))
            made = at.add(at.scaled(a, left), at.scaled(b, right), shape)
        else:
            x, constant = (0, 1) if r.is_activation(0) else (1, 0)
            signs = (left, right)
            name = r.broadcast(x, rank)
            shift = signs[constant] * at.constant_operand(name, r.aligned(constant, rank), shape)
            made = at.affine_map(name, signs[x], shift)
        _activated(r, made)

    return read


def _mul(r: Reader) -> None:
    at, shape, rank = r.at, r.expected, len(r.result.shape)
    if r.is_activation(0) and r.is_activation(1):
        made = at.mul(r.broadcast(0, rank), r.broadcast(1, rank), shape)
    else:
        x, constant = (0, 1) if r.is_activation(0) else (1, 0)
        name = r.broadcast(x, rank)
        made = at.affine_map(name, at.constant_operand(name, r.aligned(constant, rank), shape), 0.0)
    _activated(r, made)


def _div(r: Reader) -> None:
    if r.is_activation(1):
        raise r.at.unsupported("a quotient of activations", "divide by a constant")
    divisor = r.at.constant_operand(r.input(), r.aligned(1, len(r.result.shape)), r.expected)
    if not divisor.all():
        raise r.at.wrong("divides by zero")
    _activated(r, r.at.affine_map(r.input(), 1.0 / divisor, 0.0))


def _extremum(largest: bool) -> Callable[[Reader], None]:
    def read(r: Reader) -> None:
        at, shape, rank = r.at, r.expected, len(r.result.shape)
        if r.is_activation(0) and r.is_activation(1):
            a, b = (r.broadcast(index, rank) for index in (0, 1))
            r.give(at.maximum(a, b, shape) if largest else at.minimum(a, b, shape))
            return
        x, constant = (0, 1) if r.is_activation(0) else (1, 0)
        bound = at.constant_operand(r.input(x), r.aligned(constant, rank), shape)
        if bound.size == 1:
            limit = float(bound.reshape(()))
            r.give(at.clamp(r.input(x), (limit, math.inf) if largest else (-math.inf, limit)))
            return
        r.give(at.bounded(r.input(x), bound, (0.0, math.inf) if largest else (-math.inf, 0.0)))

    return read


def _concatenation(r: Reader) -> None:
    rank = len(r.result.shape)
    axis = r.axis(r.options.number(0, "i"), rank)
    parts: list[str | NDArray[np.float32]] = [
        r.input(index) if r.is_activation(index) else r.aligned(index, rank)[0]
        for index in range(len(r.operator.inputs))
    ]
    shapes = [r.at.shape(part) if isinstance(part, str) else part.shape for part in parts]
    total = sum(shape[axis] if len(shape) == rank - 1 else 0 for shape in shapes)
    for shape in shapes:
        if (*shape[:axis], total, *shape[axis + 1 :]) != r.expected:
            r.refuse(f"it joins {shapes[:8]} along {axis}, and the file says {r.expected}")
    _activated(r, r.at.concat(parts, axis, r.expected), 1)


# ---------------------------------------------------------------- pools and reductions


def _average_pool(r: Reader) -> None:
    size = list(r.shape(0)[1:])
    kernel, stride, padding = r.pool_window(size)
    _require_windows(r, size, kernel, stride, padding)
    made = r.at.average_pool(r.image(), r.expected, kernel, stride, padding, counts_padding=False)
    _activated(r, made, 5)


def _max_pool(r: Reader) -> None:
    size = list(r.shape(0)[1:])
    kernel, stride, padding = r.pool_window(size)
    _require_windows(r, size, kernel, stride, padding)
    _activated(r, r.at.max_pool(r.image(), r.expected, kernel, stride, padding), 5)


def _reduce(kind: type[AveragePool2d | MaxPool2d] | None) -> Callable[[Reader], None]:
    def read(r: Reader) -> None:
        rank = r.rank()
        places, name = r.axes(1, rank), r.input()
        axes = sorted(r.axis(place + 1, rank) for place in places)
        moved = rank == 4 and axes != [1, 2]  # neighbours in the file are reduced together
        if moved:
            axes, name = places, r.to_file(name)
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(r.at.shape(name)))
        name = r.at.total(name, axes, kept) if kind is None else r.at.reduce(name, axes, kind, kept)
        r.give(r.reshaped(r.to_graph(name) if moved else name, r.expected))

    return read


# ---------------------------------------------------------------- moving


def _reshape(r: Reader) -> None:
    if math.prod(r.expected) != math.prod(r.shape()):
        raise r.at.wrong(f"makes {r.result.shape} of {r.tensor(0).shape}; expected the batch to stay first")
    r.give(r.reshaped(r.input(), r.expected))


def _transpose(r: Reader) -> None:
    r.give(r.at.permute(r.input(), r.permutation(r.rank())))


def _pad(r: Reader) -> None:
    value = 0.0
    if r.operator.name == "PADV2":
        values = r.weights(2)
        if values.size != 1:
            r.refuse(f"it pads with {values.size} values; expected one")
        value = float(values.reshape(()))
    r.give(r.at.pad(r.input(), r.widths(r.rank()), value))


def _mirror_pad(r: Reader) -> None:
    if r.options.number(0, "b"):
        raise r.at.unsupported("padding that repeats the edge", "use the mode REFLECT")
    widths = r.widths(r.rank())
    if any(max(pair) >= size for pair, size in zip(widths, r.shape(), strict=True)):
        r.refuse(f"it pads {r.shape()} by {widths}; expected less than the image")
    r.give(r.at.pad_with_values(r.input(), widths, "reflect"))


def _slice(r: Reader) -> None:
    name = r.input()
    for cut in r.cuts():
        name = r.at.slice(name, cut.axis, cut.start, cut.stop, cut.step)
    r.give(name)


def _tile(r: Reader) -> None:
    counts, rank, name = [int(count) for count in r.constant(1).ravel()[:8]], r.rank(), r.input()
    if len(counts) != rank or counts[0] != 1 or not all(1 <= count <= _MOST_COPIES for count in counts):
        r.refuse(f"it repeats {counts} times; expected a number for each of {rank} dimensions, and 1 for the batch")
    for place, count in enumerate(counts[1:]):
        axis, shape = layer_axis(place, rank - 1), list(r.at.shape(name))
        shape[axis] *= count
        name = r.at.concat([name] * count, axis, tuple(shape)) if count > 1 else name
    r.give(name)


def _split(r: Reader) -> None:
    axes = r.constant(0).ravel()
    if len(axes) != 1 or not r.is_activation(1):
        r.refuse(f"it splits along {axes[:8].tolist()}; expected one dimension of a tensor that depends on the images")
    axis = r.axis(int(axes[0]), r.rank(1))
    size, count = r.shape(1)[axis], len(r.operator.outputs)
    if count < 1 or size % count or min(r.operator.outputs) < 0:
        r.refuse(f"it makes {count} parts of {size}")
    part = size // count
    for place, index in enumerate(r.operator.outputs):
        r.give(r.at.slice(r.input(1), axis, place * part, (place + 1) * part), _output(r, index))


def _output(r: Reader, index: int) -> Tensor:
    return r.model.tensors[index]


def _depth_to_space(r: Reader) -> None:
    block, (channels, height, width) = r.factor(0), r.at.shape(r.image())
    if channels % (block * block):
        r.refuse(f"it makes blocks of {block} from {channels} channels")
    out = channels // (block * block)
    split = (block, block, out, height, width)
    r.give(r.at.rearrange(r.input(), split, (2, 3, 0, 4, 1), (out, height * block, width * block)))


def _space_to_depth(r: Reader) -> None:
    block, (channels, height, width) = r.factor(0), r.at.shape(r.image())
    if height % block or width % block:
        r.refuse(f"it makes blocks of {block} from {height} x {width} pixels")
    split = (channels, height // block, block, width // block, block)
    shape = (channels * block * block, height // block, width // block)
    r.give(r.at.rearrange(r.input(), split, (2, 4, 0, 1, 3), shape))


def _resize(r: Reader) -> None:
    name = r.image()
    if r.expected[0] != r.shape()[0]:
        r.refuse(f"it makes {r.expected} of {r.shape()}")
    for axis in (1, 2):
        size, result = r.shape()[axis], r.expected[axis]
        if r.operator.name == "RESIZE_BILINEAR":
            corners, centers = (bool(r.options.number(field, "b")) for field in (2, 3))
            name = resize_bilinear(r.at, name, axis, size, result, align_corners=corners, half_pixel_centers=centers)
        else:
            corners, centers = (bool(r.options.number(field, "b")) for field in (0, 1))
            name = resize_nearest(r.at, name, axis, size, result, align_corners=corners, half_pixel_centers=centers)
    r.give(name)


# ---------------------------------------------------------------- functions of one value


def _table(function: str, *parameters: float) -> Callable[[Reader], None]:
    def read(r: Reader) -> None:
        r.give(r.at.table(r.input(), function, *parameters))

    return read


def _clamp(lo: float, hi: float) -> Callable[[Reader], None]:
    def read(r: Reader) -> None:
        r.give(r.at.clamp(r.input(), (lo, hi)))

    return read


def _neg(r: Reader) -> None:
    r.give(r.at.affine_map(r.input(), -1.0, 0.0))


def _square(r: Reader) -> None:
    r.give(r.at.mul(r.input(), r.input(), r.expected))


def _leaky_relu(r: Reader) -> None:
    alpha = r.options.real(0)
    if not math.isfinite(alpha):
        r.refuse(f"it has the slope {alpha}")
    r.give(r.at.table(r.input(), "leaky_relu", alpha))


def _prelu(r: Reader) -> None:
    slopes, channels = r.weights(1), r.shape()[0] if len(r.shape()) != 2 else 0
    if slopes.size != 1 and not (slopes.size == channels == slopes.shape[-1]):
        raise r.at.unsupported(f"slopes of shape {slopes.shape}", "use one per channel")
    r.give(r.at.prelu(r.input(), slopes.reshape(-1)))


def _gelu(r: Reader) -> None:
    r.give(r.at.table(r.input(), "gelu_tanh" if r.options.number(0, "b") else "gelu"))


def _softmax(r: Reader) -> None:
    beta = r.options.real(0)
    if not (math.isfinite(beta) and beta > 0):
        r.refuse(f"it has the factor beta = {beta:g}; expected a positive one")
    name = r.at.scaled(r.input(), beta)
    classes = r.tensor(0).shape[-1]
    if classes == math.prod(r.shape()) and _leads_to_output(r, r.result.index):
        r.give(name)  # a classifier's outputs are its logits
        return
    rank = len(r.at.shape(name))
    r.give(r.to_graph(r.at.softmax(r.to_file(name), rank - 1)))


def _leads_to_output(r: Reader, index: int) -> bool:
    """Whether only changes of shape follow a tensor."""
    while index not in r.model.outputs:
        readers = [operator for operator in r.model.operators if index in operator.inputs]
        if len(readers) != 1 or readers[0].name not in ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"):
            return False
        index = readers[0].outputs[0] if readers[0].outputs else -1
    return not any(index in operator.inputs for operator in r.model.operators)


OPERATORS: Mapping[str, Callable[[Reader], None]] = {
    "ABS": _table("abs"),
    "ADD": _sum(1.0, 1.0),
    "AVERAGE_POOL_2D": _average_pool,
    "BATCH_MATMUL": _batch_matmul,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _conv2d,
    "DEPTH_TO_SPACE": _depth_to_space,
    "DIV": _div,
    "ELU": _table("elu", 1.0),
    "EXP": _table("exp"),
    "EXPAND_DIMS": _reshape,
    "FULLY_CONNECTED": _fully_connected,
    "GELU": _gelu,
    "HARD_SWISH": _table("hardswish"),
    "LEAKY_RELU": _leaky_relu,
    "LOGISTIC": _table("sigmoid"),
    "MAXIMUM": _extremum(largest=True),
    "MAX_POOL_2D": _max_pool,
    "MEAN": _reduce(AveragePool2d),
    "MINIMUM": _extremum(largest=False),
    "MIRROR_PAD": _mirror_pad,
    "MUL": _mul,
    "NEG": _neg,
    "PAD": _pad,
    "PADV2": _pad,
    "PRELU": _prelu,
    "REDUCE_MAX": _reduce(MaxPool2d),
    "RELU": _clamp(0.0, math.inf),
    "RELU6": _clamp(0.0, 6.0),
    "RELU_N1_TO_1": _clamp(-1.0, 1.0),
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "RSQRT": _table("rsqrt"),
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "SPACE_TO_DEPTH": _space_to_depth,
    "SPLIT": _split,
    "SQRT": _table("power", 0.5),
    "SQUARE": _square,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _slice,
    "SUB": _sum(1.0, -1.0),
    "SUM": _reduce(None),
    "TANH": _table("tanh"),
    "TILE": _tile,
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _transposed_conv,
}
"""What is read."""

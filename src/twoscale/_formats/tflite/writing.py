"""Layers of an integer network as TensorFlow Lite operators."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._formats.tflite.graph_builder import GraphBuilder
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, REQUANTIZE_SHIFT
from twoscale._ir.checks import refuse_fixed_point
from twoscale._ir.float_scales import adds_exactly, product_is_exact, weight_scales
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

__all__ = ["METADATA", "Placed", "Written", "write"]

METADATA = "twoscale"
"""Name of the file's metadata entry: JSON with fingerprint, classes, normalization and the network's metadata."""

_LARGEST = 1 << (31 + REQUANTIZE_SHIFT)

_REMEDY = 'quantize the network for it: --scheme tflite, or twoscale.quantize(..., scheme="tflite")'


@dataclass(frozen=True)
class Placed:
    """Where the output of a layer is."""

    tensor: int
    """Its index in the file."""
    offset: int
    """What is subtracted from the network's integers: 128 for uint8, which becomes int8."""
    stored: tuple[int, ...]
    """The network's dimensions, without the batch, in the order in which the file has them."""
    flattened: tuple[int, ...] = ()
    """(C, H, W) of a vector whose values are in the order H, W, C."""

    def integers(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a batch of the file's integers as the network has them, in int16."""
        values = array.astype(np.int16) + self.offset
        if self.flattened:
            channels, *size = self.flattened
            return values.reshape(len(values), *size, channels).transpose(0, 3, 1, 2).reshape(len(values), -1)
        axes = [self.stored.index(axis) + 1 for axis in range(len(self.stored))]
        return values.transpose(0, *axes)


@dataclass(frozen=True)
class Written:
    """A file, and where its tensors are."""

    data: bytes
    layers: Mapping[str, Placed]
    """By the network's layer."""


def write(network: IntegerNetwork, *, io: str = "int8", outputs: Sequence[str] = ()) -> Written:
    """Make a file.

    Args:
        network: what to write.
        io: type of input and output: "int8", "uint8" or "float32".
        outputs: layers whose integers become further outputs.

    Raises:
        ConfigurationError: a layer has no form with the same integers.
    """
    refuse_fixed_point(network, ".tflite")
    if len(network.inputs) > 1:
        raise ConfigurationError(
            f"{network.name} has {len(network.inputs)} inputs; .tflite files are written for one; use another form"
        )
    writer = _Writer(network, io)
    for layer in network:
        _place(layer, writer)
    results = [writer.result(network[name]) for name in network.outputs]
    further = [writer.layers[name].tensor for name in outputs]
    writer.graph.metadata({METADATA: json.dumps(_metadata(network), sort_keys=True).encode()})
    return Written(writer.graph.to_bytes([writer.entry], [*results, *further]), writer.layers)


def _metadata(network: IntegerNetwork) -> dict[str, Any]:
    return {"fingerprint": network.fingerprint, "name": network.name, "metadata": dict(network.metadata)}


class _Writer:
    def __init__(self, network: IntegerNetwork, io: str) -> None:
        self.network = network
        self.io = io
        self.graph = GraphBuilder(network.name)
        self.layers: dict[str, Placed] = {}
        self.entry = -1
        self._count = 0

    # ------------------------------------------------------------ tensors

    def like(self, layer: n.Layer, shape: Sequence[int], spec: n.TensorSpec | None = None, name: str = "") -> int:
        """Append an int8 tensor with a layer's quantization, or another one's, of a shape without the batch."""
        spec = spec or layer.output
        return self.graph.tensor(
            name or self.unique(layer), (1, *shape), "int8", spec.scale, spec.zero_point - offset(spec)
        )

    def unique(self, layer: n.Layer) -> str:
        self._count += 1
        return f"{layer.name}/{self._count}"

    def read(self, layer: n.Layer, index: int = 0) -> int:
        """Return the tensor that a layer reads."""
        return self.layers[layer.inputs[index]].tensor

    def spec(self, layer: n.Layer, index: int = 0) -> n.TensorSpec:
        return self.network.spec(layer.inputs[index])

    def refuse(self, layer: n.Layer, what: str, remedy: str = _REMEDY) -> ConfigurationError:
        return ConfigurationError(f"layer {layer.name} has no .tflite form with the same integers: {what}; {remedy}")

    def constant(self, layer: n.Layer, values: Any, dtype: str = "int32") -> int:
        return self.graph.constant(self.unique(layer), np.asarray(values, dtype))

    # ------------------------------------------------------------ results

    def place(self, layer: n.Layer, tensor: int, flattened: tuple[int, ...] = ()) -> None:
        order = stored_order(len(layer.output.shape))
        self.layers[layer.name] = Placed(tensor, offset(layer.output), order, flattened)

    def saturated(self, layer: n.Layer, tensor: int, shape: Sequence[int], *, done: bool = False) -> int:
        """Append what limits a tensor to the layer's [lo, hi], if int8 does not.

        Args:
            layer: whose bounds.
            tensor: to limit.
            shape: of the tensor, without the batch.
            done: whether a fused activation has taken care of ``lo``.
        """
        spec = layer.output
        for operator, bound, needed in (
            ("MAXIMUM", spec.lo - offset(spec), spec.lo - offset(spec) > -128 and not done),
            ("MINIMUM", spec.hi - offset(spec), spec.hi - offset(spec) < 127),
        ):
            if needed:
                limit = self.graph.constant(
                    self.unique(layer), np.array([bound], np.int8), spec.scale, spec.zero_point - offset(spec)
                )
                tensor = self.graph.operator(
                    operator, [tensor, limit], self.like(layer, shape), "MaximumMinimumOptions"
                )
        return tensor

    def activation(self, spec: n.TensorSpec) -> int:
        """Return the fused activation of a layer: a ReLU, if ``lo`` is the zero point and int8 does not end there."""
        kinds = self.graph.schema.ActivationFunctionType
        code: int = kinds.RELU if spec.lo == spec.zero_point and spec.lo - offset(spec) > -128 else kinds.NONE
        return code

    def result(self, layer: n.Layer) -> int:
        """Append what gives an output the file's type, and return the file's output."""
        spec, tensor = layer.output, self.layers[layer.name].tensor
        shape = (1, *stored(spec.shape))
        if self.io == "float32":
            real = self.graph.tensor(f"{layer.name}/real", shape, "float32")
            return self.graph.operator("DEQUANTIZE", [tensor], real, "DequantizeOptions")
        if self.io == "uint8":
            zero_point = spec.zero_point - offset(spec) + 128
            shifted = self.graph.tensor(f"{layer.name}/uint8", shape, "uint8", spec.scale, zero_point)
            return self.graph.operator("QUANTIZE", [tensor], shifted, "QuantizeOptions")
        return tensor

    # ------------------------------------------------------------ parts of layers

    def scales(self, layer: n.Layer, multiplier: n.Multiplier, x: n.TensorSpec, count: int) -> NDArray[np.float32]:
        """Return the weight scales with which LiteRT's multipliers are the layer's, one for each channel."""
        if multiplier.shift is None:
            raise self.refuse(layer, "it has a free float multiplier")
        found = weight_scales(multiplier.integers, multiplier.shift, x.scale, layer.output.scale)
        if np.isnan(found).any():
            raise self.refuse(layer, "no float32 scale of its weights gives its multiplier")
        if isinstance(layer, n.Accumulating) and (layer.partial_bound(x) * multiplier.integers >= _LARGEST).any():
            raise self.refuse(layer, "its products can leave int32, where conversions from float32 wrap")
        return np.ascontiguousarray(np.broadcast_to(found, count))

    def padded(self, layer: n.Layer, tensor: int, shape: Sequence[int], widths: Any, value: int | None = None) -> int:
        """Append a padding of the stored dimensions with zeros, or with an integer of int8."""
        spec = self.spec(layer)
        widths = [(0, 0), *widths]
        if not any(map(any, widths)):
            return tensor
        larger = [size + sum(pair) for size, pair in zip(shape, widths[1:], strict=True)]
        inputs = [tensor, self.constant(layer, widths)]
        if value is None:
            return self.graph.operator("PAD", inputs, self.like(layer, larger, spec), "PadOptions")
        zero_point = spec.zero_point - offset(spec)
        inputs.append(self.graph.constant(self.unique(layer), np.array([value], np.int8), spec.scale, zero_point))
        return self.graph.operator("PADV2", inputs, self.like(layer, larger, spec), "PadV2Options")

    def reshaped(self, layer: n.Layer, tensor: int, shape: Sequence[int], spec: n.TensorSpec, name: str = "") -> int:
        return self.graph.operator(
            "RESHAPE", [tensor, self.constant(layer, [-1, *shape])], self.like(layer, shape, spec, name),
            "ReshapeOptions", newShape=np.array([-1, *shape], np.int32),
        )  # fmt: skip

    def transposed(self, layer: n.Layer, tensor: int, shape: Sequence[int], axes: Sequence[int], spec: Any) -> int:
        """Append a transpose of dimensions without the batch; ``shape`` is the result's."""
        permutation = self.constant(layer, [0, *(axis + 1 for axis in axes)])
        return self.graph.operator(
            "TRANSPOSE", [tensor, permutation], self.like(layer, shape, spec), "TransposeOptions"
        )

    def of_two(self, layer: n.Layer, operator: str, options: str) -> None:
        """Append an operator of two tensors with a fused ReLU, and place the layer's output."""
        shape, activation = stored(layer.output.shape), self.activation(layer.output)
        first, second = self.read(layer), self.read(layer, 1)
        if (
            operator == "MUL" and first == second
        ):  # LiteRT would look the square of x up in a table, which rounds ties by chance
            second = self.reshaped(layer, second, shape, self.spec(layer))
        result = self.graph.operator(
            operator, [first, second], self.like(layer, shape), options,
            fusedActivationFunction=activation,
        )  # fmt: skip
        self.place(layer, self.saturated(layer, result, shape, done=activation != 0))

    def depthwise_ones(
        self,
        layer: n.Layer,
        tensor: int,
        x: n.TensorSpec,
        multiplier: n.Multiplier,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        shape: Sequence[int],
    ) -> int:
        """Append a convolution of every channel with ones: Σ (q − z), requantized by ``multiplier``."""
        g, options = self.graph, self.graph.schema
        channels = shape[-1]
        scales = self.scales(layer, multiplier, x, channels)
        ones = g.constant(self.unique(layer), np.ones((1, *kernel, channels), np.int8), scales, axis=3)
        bias = g.constant(self.unique(layer), np.zeros(channels, np.int32), np.float32(x.scale) * scales)
        out = g.operator(
            "DEPTHWISE_CONV_2D", [tensor, ones, bias], self.like(layer, shape), "DepthwiseConv2DOptions",
            padding=options.Padding.VALID, strideH=stride[0], strideW=stride[1], depthMultiplier=1,
            dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=self.activation(layer.output),
        )  # fmt: skip
        return self.saturated(layer, out, shape, done=self.activation(layer.output) != 0)


def offset(spec: n.TensorSpec) -> int:
    """Return what is subtracted from a tensor's integers in the file."""
    return 128 if spec.dtype == "uint8" else 0


def stored_order(rank: int) -> tuple[int, ...]:
    """Return a tensor's dimensions, without the batch, in the file's order: (C, H, W) is stored as (H, W, C)."""
    return (1, 2, 0) if rank == 3 else tuple(range(rank))


def stored(values: Sequence[Any]) -> list[Any]:
    """Return one value per dimension in the file's order."""
    return [values[axis] for axis in stored_order(len(values))]


@functools.singledispatch
def _place(layer: n.Layer, w: _Writer) -> None:
    raise w.refuse(layer, f"TensorFlow Lite has no {layer.op}", "leave this layer out of the model")


@_place.register
def _(layer: n.QuantizeInput, w: _Writer) -> None:
    spec = layer.output
    shape = stored(spec.shape)
    integers = w.like(layer, shape, name=layer.name)
    w.entry = integers
    if w.io != "int8":
        zero_point = spec.zero_point - offset(spec) + 128
        real = w.io == "float32"
        scale = None if real else spec.scale
        w.entry = w.graph.tensor("images", (1, *shape), w.io, scale, 0 if real else zero_point)
        w.graph.operator("QUANTIZE", [w.entry], integers, "QuantizeOptions")
    w.place(layer, integers)


@_place.register
def _(layer: n.Conv2d, w: _Writer) -> None:
    if layer.residual_multiplier is not None:
        raise w.refuse(layer, "it adds a residual before requantization, (7b)")
    if layer.multiplier is None:
        raise w.refuse(layer, "its output is 32-bit accumulators")
    g, options = w.graph, w.graph.schema
    x, spec, tensor = w.spec(layer), layer.output, w.read(layer)
    out, per_group, *kernel = layer.weight.shape
    size = x.shape[1:]
    padding = options.Padding.VALID
    if layer.padding == _same_padding(size, kernel, layer.stride, layer.dilation):
        padding = options.Padding.SAME
    elif any(layer.padding):
        top, left, bottom, right = layer.padding
        tensor = w.padded(layer, tensor, stored(x.shape), [(top, bottom), (left, right), (0, 0)])
    scales = w.scales(layer, layer.multiplier, x, out)
    biases = g.constant(w.unique(layer), layer.bias_o, np.float32(x.scale) * scales)
    window = {
        "padding": padding, "strideH": layer.stride[0], "strideW": layer.stride[1],
        "dilationHFactor": layer.dilation[0], "dilationWFactor": layer.dilation[1],
        "fusedActivationFunction": w.activation(spec),
    }  # fmt: skip
    shape = stored(spec.shape)
    result = w.like(layer, shape)
    if layer.groups > 1 and per_group == 1:
        weight = layer.weight.transpose(1, 2, 3, 0)
        inputs = [tensor, g.constant(w.unique(layer), np.ascontiguousarray(weight), scales, axis=3), biases]
        window["depthMultiplier"] = out // layer.groups
        g.operator("DEPTHWISE_CONV_2D", inputs, result, "DepthwiseConv2DOptions", **window)
    else:
        weight = np.ascontiguousarray(layer.weight.transpose(0, 2, 3, 1))
        inputs = [tensor, g.constant(w.unique(layer), weight, scales), biases]
        g.operator("CONV_2D", inputs, result, "Conv2DOptions", **window)
    w.place(layer, w.saturated(layer, result, shape, done=w.activation(spec) != 0))


def _same_padding(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Any:
    """Return TensorFlow's SAME padding as (top, left, bottom, right)."""
    before, after = [], []
    for length, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-length // s) - 1) * s + d * (k - 1) + 1 - length, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (*before, *after)


@_place.register
def _(layer: n.Linear, w: _Writer) -> None:
    if layer.multiplier is None:
        raise w.refuse(layer, "its output is 32-bit accumulators")
    g, x, source = w.graph, w.spec(layer), w.layers[layer.inputs[0]]
    weight = layer.weight
    if source.flattened:
        channels, *size = source.flattened
        weight = weight.reshape(len(weight), channels, *size).transpose(0, 2, 3, 1).reshape(weight.shape)
    scales = w.scales(layer, layer.multiplier, x, len(weight))
    inputs = [
        source.tensor,
        g.constant(w.unique(layer), np.ascontiguousarray(weight), scales),
        g.constant(w.unique(layer), layer.bias_o, np.float32(x.scale) * scales),
    ]
    activation = w.activation(layer.output)
    result = g.operator(
        "FULLY_CONNECTED", inputs, w.like(layer, layer.output.shape), "FullyConnectedOptions",
        fusedActivationFunction=activation,
    )  # fmt: skip
    w.place(layer, w.saturated(layer, result, layer.output.shape, done=activation != 0))


@_place.register
def _(layer: n.Add, w: _Writer) -> None:
    if any(m.shift is None for m in layer.multipliers):
        raise w.refuse(layer, "it has a free float multiplier")
    factors = [int(m.integers[0]) for m in layer.multipliers]
    if 1 << ADD_SHIFT not in factors:
        raise w.refuse(layer, "neither operand has its output's scale")
    for index, factor in enumerate(factors):
        if not adds_exactly(factor, ADD_SHIFT, w.spec(layer, index).scale, layer.output.scale):
            raise w.refuse(layer, "the quotient of its float32 scales is not its multiplier")
    w.of_two(layer, "ADD", "AddOptions")


@_place.register
def _(layer: n.Mul, w: _Writer) -> None:
    assert layer.multiplier is not None
    if layer.multiplier.shift is None:
        raise w.refuse(layer, "it has a free float multiplier")
    a, b = (w.spec(layer, index).scale for index in (0, 1))
    if not product_is_exact(int(layer.multiplier.integers[0]), REQUANTIZE_SHIFT, a, b, layer.output.scale):
        raise w.refuse(layer, "the quotient of its float32 scales is not its multiplier")
    w.of_two(layer, "MUL", "MulOptions")


@_place.register
def _(layer: n.AveragePool2d, w: _Writer) -> None:
    assert layer.multiplier is not None
    x = w.spec(layer)
    top, left, bottom, right = layer.padding
    tensor = w.padded(layer, w.read(layer), stored(x.shape), [(top, bottom), (left, right), (0, 0)])
    shape = stored(layer.output.shape)
    stride = layer.stride
    if layer.kernel == (x.shape[1] + top + bottom, x.shape[2] + left + right):
        stride = (1, 1)  # of a single window; compilers for accelerators refuse large ones
    w.place(layer, w.depthwise_ones(layer, tensor, x, layer.multiplier, layer.kernel, stride, shape))


@_place.register
def _(layer: n.MaxPool2d, w: _Writer) -> None:
    if layer.dilation != (1, 1):
        raise w.refuse(layer, "TensorFlow Lite's MAX_POOL_2D has no dilation", "use a pool without dilation")
    x, options = w.spec(layer), w.graph.schema
    tensor, padding = w.read(layer), options.Padding.VALID
    if layer.padding == _same_padding(x.shape[1:], layer.kernel, layer.stride, (1, 1)):
        padding = options.Padding.SAME
    elif any(layer.padding):
        top, left, bottom, right = layer.padding
        tensor = w.padded(layer, tensor, stored(x.shape), [(top, bottom), (left, right), (0, 0)], -128)
    shape = stored(layer.output.shape)
    result = w.graph.operator(
        "MAX_POOL_2D", [tensor], w.like(layer, shape), "Pool2DOptions", padding=padding, strideH=layer.stride[0],
        strideW=layer.stride[1], filterHeight=layer.kernel[0], filterWidth=layer.kernel[1],
    )  # fmt: skip
    w.place(layer, result)


@_place.register
def _(layer: n.Concat, w: _Writer) -> None:
    parts = []
    for index, multiplier in enumerate(layer.multipliers):
        tensor, x = w.read(layer, index), w.spec(layer, index)
        if multiplier is not None:
            shape = stored(x.shape)
            column = (math.prod(shape), 1, 1)
            tensor = w.reshaped(layer, tensor, column, x)
            tensor = w.depthwise_ones(layer, tensor, x, multiplier, (1, 1), (1, 1), column)
            tensor = w.reshaped(layer, tensor, shape, layer.output)
        parts.append(tensor)
    shape = stored(layer.output.shape)
    axis = 1 + stored_order(len(shape)).index(layer.axis)
    result = w.graph.operator("CONCATENATION", parts, w.like(layer, shape), "ConcatenationOptions", axis=axis)
    w.place(layer, result)


@_place.register
def _(layer: n.Reshape, w: _Writer) -> None:
    source, x, out = w.layers[layer.inputs[0]], w.spec(layer), layer.output
    tensor = source.tensor
    readers = [other for other in w.network if layer.name in other.inputs]
    for_linear = bool(readers) and all(isinstance(reader, n.Linear) for reader in readers)
    if source.flattened or (len(x.shape) == 3 and _mixes(x.shape)):
        kept = for_linear and layer.name not in w.network.outputs
        if kept and not source.flattened and len(out.shape) == 1:
            w.place(layer, w.reshaped(layer, tensor, out.shape, out), x.shape)
            return
        shape = source.flattened or x.shape
        tensor = w.reshaped(layer, tensor, stored(shape), x) if source.flattened else tensor
        tensor = w.transposed(layer, tensor, shape, (2, 0, 1), x)
    if len(out.shape) == 3 and _mixes(out.shape):
        tensor = w.reshaped(layer, tensor, out.shape, out)
        tensor = w.transposed(layer, tensor, stored(out.shape), (1, 2, 0), out)
    else:
        tensor = w.reshaped(layer, tensor, stored(out.shape), out)
    w.place(layer, tensor)


def _mixes(shape: Sequence[int]) -> bool:
    """Whether the values of (C, H, W) are in another order as (H, W, C)."""
    return shape[0] > 1 and math.prod(shape[1:]) > 1


@_place.register
def _(layer: n.Permute, w: _Writer) -> None:
    before, after = stored_order(len(w.spec(layer).shape)), stored_order(len(layer.axes))
    axes = [before.index(layer.axes[axis]) for axis in after]
    w.place(layer, w.transposed(layer, w.read(layer), stored(layer.output.shape), axes, layer.output))


@_place.register
def _(layer: n.Slice, w: _Writer) -> None:
    shape = w.spec(layer).shape
    begin, end, step = [0] * len(shape), list(shape), [1] * len(shape)
    begin[layer.axis], end[layer.axis], step[layer.axis] = layer.start, layer.stop, layer.step
    inputs = [
        w.read(layer),
        *(w.constant(layer, [first, *stored(v)]) for first, v in ((0, begin), (0, end), (1, step))),
    ]
    result = w.graph.operator(
        "STRIDED_SLICE", inputs, w.like(layer, stored(layer.output.shape)), "StridedSliceOptions",
        beginMask=1, endMask=1,  # the whole batch
    )  # fmt: skip
    w.place(layer, result)


@_place.register
def _(layer: n.Pad, w: _Writer) -> None:
    w.place(layer, w.padded(layer, w.read(layer), stored(w.spec(layer).shape), stored(layer.widths)))


@_place.register
def _(layer: n.Clamp, w: _Writer) -> None:
    w.place(layer, w.saturated(layer, w.read(layer), stored(layer.output.shape)))


@_place.register
def _(layer: n.Table, w: _Writer) -> None:
    """Append a look-up: TensorFlow Lite has no operator for a table of int8, but gathers from one."""
    g, options, spec = w.graph, w.graph.schema, layer.output
    shape = (1, *stored(spec.shape))
    wide, index = (g.tensor(w.unique(layer), shape, "int32") for _ in range(2))
    g.operator(
        "CAST", [w.read(layer)], wide, "CastOptions",
        inDataType=options.TensorType.INT8, outDataType=options.TensorType.INT32,
    )  # fmt: skip
    g.operator("ADD", [wide, w.constant(layer, 128)], index, "AddOptions")
    # Entry i is for the integer i + the type's smallest, which is stored as i - 128.
    values = (layer.table - offset(spec)).astype(np.int8)
    table = g.constant(w.unique(layer), values, spec.scale, spec.zero_point - offset(spec))
    w.place(layer, g.operator("GATHER", [table, index], w.like(layer, shape[1:]), "GatherOptions", axis=0))

"""Other tools' ONNX files of QLinear operators → IntegerNetwork.

The subset is what ONNX Runtime's quantizer writes in operator form (QuantFormat.QOperator) for feed-forward
classifiers: QuantizeLinear at the input, the QLinear operators of the default and the com.microsoft domain, operators
that only move integers, and DequantizeLinear at the logits. Between a DequantizeLinear and a QuantizeLinear the
operators that only move numbers are read as moving integers.

Such networks have free float multipliers and any zero points, so they are off the grid: executors may differ in the
last bit of a rounding, and verify measures how often. What does not fit is refused, with the node's name and the
reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from twoscale.arithmetic import ADD_SHIFT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT
from twoscale.errors import NetworkFileError, QuantizationError
from twoscale.network import layers as n
from twoscale.network.network import IntegerNetwork

__all__ = ["OPERATORS", "read"]


def read(path: Path, model: onnx.ModelProto) -> IntegerNetwork:
    """Read a foreign model.

    Args:
        path: where it comes from, for messages.
        model: what is in the file.

    Raises:
        NetworkFileError: it does not fit the subset; names the node, its operator and the reason.
    """
    reader = _Reader(path, model.graph)
    for node in model.graph.node:
        try:
            _READ.get(node.op_type, _Reader.refuse_operator)(reader, node)
        except (ValueError, IndexError, TypeError, ArithmeticError) as error:
            reader.refuse(node, f"it cannot be read ({error})")
    try:
        return IntegerNetwork(
            name=model.graph.name or path.stem,
            layers=tuple(reader.layers),
            output=reader.output(),
            scheme="foreign",
            metadata={"file": path.name, "producer": f"{model.producer_name} {model.producer_version}".strip()},
        )
    except QuantizationError as error:
        raise NetworkFileError(f"{path} does not make an integer network: {error}") from error


class _Reader:
    """Turns nodes into layers, one after another; a layer has the name of the tensor that the node makes."""

    def __init__(self, path: Path, graph: onnx.GraphProto) -> None:
        self.path = path
        self.layers: list[n.Layer] = []
        self._made: dict[str, n.Layer] = {}  # by tensor, be it the integers or their real values
        self._real: set[str] = set()
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in self._constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise NetworkFileError(
                f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; expected images in, logits out"
            )
        self._input, self._output = inputs[0].name, graph.output[0].name
        kind = inputs[0].type.tensor_type
        self._image_shape = tuple(dimension.dim_value for dimension in kind.shape.dim)[1:]
        if kind.elem_type != TensorProto.FLOAT or len(self._image_shape) != 3 or min(self._image_shape) < 1:
            raise NetworkFileError(f"{path}: the input {self._input} is not float32 images (N, C, H, W) of known size")

    def output(self) -> str:
        """Return the layer that makes the logits."""
        if self._output not in self._made:
            raise NetworkFileError(f"{self.path}: no integers lead to the output {self._output}")
        return self._made[self._output].name

    # What every operator needs.

    def refuse(self, node: onnx.NodeProto, reason: str) -> NoReturn:
        name = node.name or next(iter(node.output), "without a name")
        raise NetworkFileError(f"{self.path}: node {name} ({node.op_type}): {reason}")

    def refuse_operator(self, node: onnx.NodeProto) -> NoReturn:
        self.refuse(
            node,
            f"not an operator on integers that twoscale reads (it reads {', '.join(OPERATORS)}); "
            "quantize the whole model in operator form (QuantFormat.QOperator)",
        )

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any]:
        name = node.input[index] if index < len(node.input) else ""
        if name not in self._constants:
            self.refuse(node, f"its input {index} ({name or 'missing'}) must be a constant")
        tensor = self._constants[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            self.refuse(node, f"the constant {name} is in another file; save the model as one file")
        return numpy_helper.to_array(tensor)

    def has(self, node: onnx.NodeProto, index: int) -> bool:
        return index < len(node.input) and bool(node.input[index])

    def scale(self, node: onnx.NodeProto, index: int) -> np.float32:
        value = self.constant(node, index)
        if value.size != 1 or value.dtype != np.float32:
            self.refuse(node, f"its input {index} must be one float32 scale, got {value.dtype} {value.shape}")
        return np.float32(value.item())

    def attributes(self, node: onnx.NodeProto, **allowed: Any) -> dict[str, Any]:
        """Return the attributes, by default as given; others than these are refused."""
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        for name, value in found.items():
            if name not in allowed:
                self.refuse(node, f"its attribute {name} = {value} is not supported")
        return allowed | found

    def expect(self, node: onnx.NodeProto, attributes: dict[str, Any], **expected: Any) -> None:
        for name, value in expected.items():
            if attributes[name] != value:
                self.refuse(node, f"{name} = {attributes[name]} is not supported, only {value}")

    def integers(self, node: onnx.NodeProto, index: int) -> n.Layer:
        """Return the layer that makes an input."""
        name = node.input[index] if self.has(node, index) else ""
        if name not in self._made:
            self.refuse(node, f"its input {index} ({name or 'missing'}) is not made of the quantized images")
        return self._made[name]

    def operand(self, node: onnx.NodeProto, index: int) -> n.Layer:
        """Return the layer that makes input ``index``; scale and zero point, behind it, must be that layer's."""
        layer = self.integers(node, index)
        spec = layer.output
        scale = self.scale(node, index + 1)
        zero_point = self.constant(node, index + 2).item() if self.has(node, index + 2) else 0
        if node.input[index] in self._real:
            self.refuse(node, f"its input {node.input[index]} is real, not integers")
        if scale != np.float32(spec.scale) or zero_point != spec.zero_point:
            self.refuse(
                node,
                f"it reads {node.input[index]} with scale {scale:g} and zero point {zero_point}, but that was "
                f"written with {spec.scale:g} and {spec.zero_point}",
            )
        return layer

    def spec(self, node: onnx.NodeProto, index: int, shape: Sequence[int]) -> n.TensorSpec:
        """Return the output's quantization, from the scale at input ``index`` and the zero point behind it."""
        zero_point = self.constant(node, index + 1) if self.has(node, index + 1) else np.zeros((), np.uint8)
        if zero_point.dtype not in (np.uint8, np.int8) or zero_point.size != 1:
            self.refuse(node, f"its output must be 8 bits wide with one zero point, not {zero_point.dtype}")
        limits = np.iinfo(zero_point.dtype)
        return n.TensorSpec(
            tuple(shape),
            str(zero_point.dtype),
            float(self.scale(node, index)),
            zero_point.item(),
            limits.min,
            limits.max,
        )

    def append(self, node: onnx.NodeProto, layer: n.Layer) -> None:
        """Take a layer as what the node makes."""
        self.layers.append(layer)
        self._made[node.output[0]] = layer

    def alias(self, node: onnx.NodeProto, layer: n.Layer, *, real: bool) -> None:
        """Take the node's output for a layer that there is already."""
        self._made[node.output[0]] = layer
        if real:
            self._real.add(node.output[0])

    def move(self, node: onnx.NodeProto, layer: n.Layer) -> None:
        """Take a layer that only moves integers: real values in, real values out."""
        self.append(node, layer)
        if node.input[0] in self._real:
            self._real.add(node.output[0])

    def weights(self, node: onnx.NodeProto, index: int, channel_axis: int) -> NDArray[np.int8]:
        """Return q − z of the weights at input ``index``, whose scale and zero point are behind it, as int8."""
        weight = self.constant(node, index)
        zero_point = self.constant(node, index + 2) if self.has(node, index + 2) else np.zeros((), weight.dtype)
        if zero_point.size > 1:
            shape = [1] * weight.ndim
            shape[channel_axis] = -1
            zero_point = zero_point.reshape(shape)
        if weight.dtype not in (np.int8, np.uint8):
            self.refuse(node, f"its weights are {weight.dtype}, expected int8 or uint8")
        shifted = weight.astype(np.int16) - zero_point.astype(np.int16)
        if shifted.min(initial=0) < -128 or shifted.max(initial=0) > 127:
            self.refuse(
                node, f"weights less their zero point reach {shifted.min()}..{shifted.max()}, beyond 8 signed bits"
            )
        return shifted.astype(np.int8)

    def weight_scales(self, node: onnx.NodeProto, index: int, channels: int) -> NDArray[np.float32]:
        scales = self.constant(node, index).reshape(-1)
        if scales.dtype != np.float32 or scales.size not in (1, channels):
            self.refuse(node, f"it has {scales.size} weight scales, expected 1 or {channels}")
        return scales

    # Operators.

    def read_constant(self, node: onnx.NodeProto) -> None:
        attributes = self.attributes(node, value=None)
        tensor = onnx.TensorProto()
        if attributes["value"] is None:
            self.refuse(node, "only constants with a tensor value are supported")
        tensor.CopyFrom(attributes["value"])
        self._constants[node.output[0]] = tensor

    def quantize(self, node: onnx.NodeProto) -> None:
        self.expect(node, self.attributes(node, axis=1, saturate=1, block_size=0, output_dtype=0, precision=0))
        name = node.output[0]
        if node.input[0] == self._input:
            self.append(node, n.QuantizeInput(name=name, inputs=(), output=self.spec(node, 1, self._image_shape)))
            return
        x = self.integers(node, 0)
        spec = self.spec(node, 1, x.output.shape)
        if (spec.scale, spec.zero_point, spec.dtype) == (x.output.scale, x.output.zero_point, x.output.dtype):
            self.alias(node, x, real=False)
            return
        factor = np.float32(x.output.scale) / np.float32(spec.scale)
        self.append(
            node, n.Concat(name=name, inputs=(x.name,), output=spec, axis=0, multipliers=(_multiplier(factor),))
        )

    def dequantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self._constants:
            return  # whatever reads it computes in floating point, and is refused
        self.alias(node, self.operand(node, 0), real=True)

    def qlinear_conv(self, node: onnx.NodeProto) -> None:
        x = self.operand(node, 0)
        weight = self.weights(node, 3, 0)
        if weight.ndim != 4 or len(x.output.shape) != 3:
            self.refuse(node, f"weights {weight.shape} on {x.output.shape}; only two-dimensional convolutions")
        attributes = self.window(node, weight.shape[2:], dilations=[1, 1], group=1)
        channels = len(weight)
        shape = (channels, *self.pooled(node, x, attributes))
        spec = self.spec(node, 6, shape)
        factors = np.float32(x.output.scale) * self.weight_scales(node, 4, channels) / np.float32(spec.scale)
        self.append(
            node,
            n.Conv2d(
                name=node.output[0],
                inputs=(x.name,),
                output=spec,
                multiplier=_multiplier(factors),
                weight=weight,
                bias_o=self.bias(node, 8, channels),
                stride=_pair(attributes["strides"]),
                padding=_padding(attributes["pads"]),
                dilation=_pair(attributes["dilations"]),
                groups=attributes["group"],
            ),
        )

    def bias(self, node: onnx.NodeProto, index: int, channels: int) -> NDArray[np.int32]:
        if not self.has(node, index):
            return np.zeros(channels, np.int32)
        bias = self.constant(node, index).reshape(-1)
        if bias.dtype != np.int32 or bias.size not in (1, channels):
            self.refuse(node, f"its bias is {bias.dtype} of {bias.size}, expected {channels} int32")
        return np.ascontiguousarray(np.broadcast_to(bias, channels))

    def window(self, node: onnx.NodeProto, kernel: Sequence[int] | None = None, **more: Any) -> dict[str, Any]:
        """Return kernel_shape, strides, pads and more attributes of a convolution or a pool."""
        default = {"kernel_shape": list(kernel or ()), "strides": [1, 1], "pads": [0] * 4, "auto_pad": b"NOTSET"}
        attributes = self.attributes(node, **default, **more)
        if attributes["auto_pad"] not in (b"NOTSET", b"VALID"):
            self.refuse(node, f"auto_pad = {attributes['auto_pad'].decode()} is not supported; write the pads")
        if len(attributes["kernel_shape"]) != 2 or (kernel and list(kernel) != list(attributes["kernel_shape"])):
            self.refuse(node, f"kernel_shape = {attributes['kernel_shape']}; expected height and width")
        return attributes

    def pooled(self, node: onnx.NodeProto, x: n.Layer, attributes: dict[str, Any]) -> tuple[int, int]:
        """Return the output's height and width."""
        if len(x.output.shape) != 3:
            self.refuse(node, f"its input has shape {x.output.shape}, expected (C, H, W)")
        dilations = attributes.get("dilations", (1, 1))
        height, width = (
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, before, after, dilation, kernel, stride in zip(
                x.output.shape[1:],
                attributes["pads"][:2],
                attributes["pads"][2:],
                dilations,
                attributes["kernel_shape"],
                attributes["strides"],
                strict=True,
            )
        )
        return height, width

    def qgemm(self, node: onnx.NodeProto) -> None:
        attributes = self.attributes(node, alpha=1.0, transA=0, transB=0)
        self.expect(node, attributes, transA=0)
        x = self.operand(node, 0)
        weight = self.weights(node, 3, 0 if attributes["transB"] else 1)
        self.linear(node, x, weight if attributes["transB"] else weight.T, 6, 7, np.float32(attributes["alpha"]))

    def qlinear_matmul(self, node: onnx.NodeProto) -> None:
        self.attributes(node)
        x = self.operand(node, 0)
        self.linear(node, x, self.weights(node, 3, 1).T, None, 6, np.float32(1))

    def linear(
        self,
        node: onnx.NodeProto,
        x: n.Layer,
        weight: NDArray[np.int8],
        bias: int | None,
        output: int,
        alpha: np.float32,
    ) -> None:
        if weight.ndim != 2 or len(x.output.shape) != 1:
            self.refuse(node, f"weights {weight.T.shape} on {x.output.shape}; only vectors times a matrix")
        channels = len(weight)
        scales = alpha * np.float32(x.output.scale) * self.weight_scales(node, 4, channels)
        multiplier: n.Multiplier | None = None
        if self.has(node, output):
            spec = self.spec(node, output, (channels,))
            multiplier = _multiplier(scales / np.float32(spec.scale))
        elif scales.size == 1:
            spec = n.TensorSpec((channels,), "int32", float(scales[0]))
            self._real.add(node.output[0])
        else:
            self.refuse(node, "it has real outputs of several scales; accumulators that leave need one for all classes")
        layer = n.Linear(
            name=node.output[0],
            inputs=(x.name,),
            output=spec,
            multiplier=multiplier,
            weight=np.ascontiguousarray(weight),
            bias_o=np.zeros(channels, np.int32) if bias is None else self.bias(node, bias, channels),
        )
        self.append(node, layer)

    def qlinear_add(self, node: onnx.NodeProto) -> None:
        self.attributes(node)
        a, b = self.operand(node, 0), self.operand(node, 3)
        spec = self.spec(node, 6, a.output.shape)
        factors = [np.float32(x.output.scale) / np.float32(spec.scale) for x in (a, b)]
        m_a, m_b = (_multiplier(factor, ADD_SHIFT) for factor in factors)
        if (m_a.shift is None) != (m_b.shift is None):
            m_a, m_b = n.Multiplier(m_a.values, None), n.Multiplier(m_b.values, None)
        self.append(node, n.Add(name=node.output[0], inputs=(a.name, b.name), output=spec, multipliers=(m_a, m_b)))

    def qlinear_mul(self, node: onnx.NodeProto) -> None:
        self.attributes(node)
        a, b = self.operand(node, 0), self.operand(node, 3)
        shapes = a.output.shape, b.output.shape
        if len(shapes[0]) != len(shapes[1]):
            self.refuse(node, f"it multiplies tensors of shapes {shapes[0]} and {shapes[1]}")
        spec = self.spec(node, 6, np.broadcast_shapes(*shapes))
        factor = np.float32(a.output.scale) * np.float32(b.output.scale) / np.float32(spec.scale)
        self.append(
            node, n.Mul(name=node.output[0], inputs=(a.name, b.name), output=spec, multiplier=_multiplier(factor))
        )

    def global_average_pool(self, node: onnx.NodeProto) -> None:
        self.expect(node, self.attributes(node, channels_last=0), channels_last=0)
        x = self.operand(node, 0)
        if len(x.output.shape) != 3:
            self.refuse(node, f"its input has shape {x.output.shape}, expected (C, H, W)")
        channels, height, width = x.output.shape
        self.average(node, x, (channels, 1, 1), (height, width), (1, 1), (0, 0, 0, 0))

    def average_pool(self, node: onnx.NodeProto) -> None:
        attributes = self.window(node, count_include_pad=0, ceil_mode=0, channels_last=0)
        self.expect(node, attributes, ceil_mode=0, channels_last=0)
        if any(attributes["pads"]) and not attributes["count_include_pad"]:
            self.refuse(node, "padding that does not count in the mean (count_include_pad = 0) is not supported")
        x = self.operand(node, 0)
        shape = (x.output.shape[0], *self.pooled(node, x, attributes))
        kernel, stride = _pair(attributes["kernel_shape"]), _pair(attributes["strides"])
        self.average(node, x, shape, kernel, stride, _padding(attributes["pads"]))

    def average(
        self,
        node: onnx.NodeProto,
        x: n.Layer,
        shape: tuple[int, ...],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: n.Padding,
    ) -> None:
        spec = self.spec(node, 3, shape)
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
        self.append(node, layer)

    def qlinear_concat(self, node: onnx.NodeProto) -> None:
        axis = self.attributes(node, axis=None)["axis"]
        operands = [self.operand(node, index) for index in range(2, len(node.input), 3)]
        rank = len(operands[0].output.shape)
        axis = axis + rank + 1 if axis < 0 else axis
        if not 1 <= axis <= rank or any(len(x.output.shape) != rank for x in operands):
            self.refuse(node, f"axis = {axis} does not fit its inputs")
        shape = list(operands[0].output.shape)
        shape[axis - 1] = sum(x.output.shape[axis - 1] for x in operands)
        spec = self.spec(node, 0, shape)
        same = [(x.output.scale, x.output.zero_point) == (spec.scale, spec.zero_point) for x in operands]
        multipliers = tuple(
            None if equal else _multiplier(np.float32(x.output.scale) / np.float32(spec.scale))
            for x, equal in zip(operands, same, strict=True)
        )
        free = any(m is not None and m.shift is None for m in multipliers)
        self.append(
            node,
            n.Concat(
                name=node.output[0],
                inputs=tuple(x.name for x in operands),
                output=spec,
                axis=axis - 1,
                multipliers=tuple(m and n.Multiplier(m.values, None if free else m.shift) for m in multipliers),
            ),
        )

    def leaky_relu(self, node: onnx.NodeProto) -> None:
        alpha = np.float32(self.attributes(node, alpha=0.01)["alpha"])
        self.table(node, lambda x: np.where(x >= 0, x, alpha * x))

    def sigmoid(self, node: onnx.NodeProto) -> None:
        self.attributes(node)
        self.table(node, lambda x: (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32))

    def table(self, node: onnx.NodeProto, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        """Tabulate a function of one tensor: dequantize, compute, quantize."""
        x = self.operand(node, 0)
        spec = self.spec(node, 3, x.output.shape)
        limits = np.iinfo(x.output.dtype)
        q = np.arange(limits.min, limits.max + 1, dtype=np.float32)
        y = function(np.float32(x.output.scale) * (q - np.float32(x.output.zero_point)))
        table = np.clip(np.rint(y / np.float32(spec.scale)) + spec.zero_point, spec.lo, spec.hi).astype(np.int16)
        self.append(node, n.Table(name=node.output[0], inputs=(x.name,), output=spec, table=table))

    def max_pool(self, node: onnx.NodeProto) -> None:
        if len(node.output) > 1:
            self.refuse(node, "its indices are not supported")
        attributes = self.window(node, dilations=[1, 1], ceil_mode=0, storage_order=0)
        self.expect(node, attributes, ceil_mode=0)
        x = self.integers(node, 0)
        layer = n.MaxPool2d(
            name=node.output[0],
            inputs=(x.name,),
            output=_reshaped(x, (x.output.shape[0], *self.pooled(node, x, attributes))),
            kernel=_pair(attributes["kernel_shape"]),
            stride=_pair(attributes["strides"]),
            padding=_padding(attributes["pads"]),
            dilation=_pair(attributes["dilations"]),
        )
        self.move(node, layer)

    def reshape(self, node: onnx.NodeProto) -> None:
        self.expect(node, self.attributes(node, allowzero=0), allowzero=0)
        x = self.integers(node, 0)
        batch, *target = (int(size) for size in self.constant(node, 1))
        count = math.prod(x.output.shape)
        known = [x.output.shape[i] if size == 0 and i < len(x.output.shape) else size for i, size in enumerate(target)]
        if known.count(-1) == 1 and batch != -1:
            known[known.index(-1)] = count // max(1, -math.prod(known))
        if batch not in (-1, 0, 1) or math.prod(known) != count:
            self.refuse(node, f"it reshapes {('N', *x.output.shape)} to {(batch, *target)}; the batch must stay")
        self.move(node, n.Reshape(name=node.output[0], inputs=(x.name,), output=_reshaped(x, known)))

    def flatten(self, node: onnx.NodeProto) -> None:
        self.expect(node, self.attributes(node, axis=1), axis=1)
        x = self.integers(node, 0)
        shape = (math.prod(x.output.shape),)
        self.move(node, n.Reshape(name=node.output[0], inputs=(x.name,), output=_reshaped(x, shape)))

    def squeeze(self, node: onnx.NodeProto) -> None:
        x = self.integers(node, 0)
        self.attributes(node)
        axes = {int(axis) % (len(x.output.shape) + 1) for axis in self.constant(node, 1)}
        if any(axis == 0 or x.output.shape[axis - 1] != 1 for axis in axes):
            self.refuse(node, f"axes {sorted(axes)} are not all of size 1")
        shape = [size for axis, size in enumerate(x.output.shape, 1) if axis not in axes]
        self.move(node, n.Reshape(name=node.output[0], inputs=(x.name,), output=_reshaped(x, shape)))

    def transpose(self, node: onnx.NodeProto) -> None:
        x = self.integers(node, 0)
        permutation = self.attributes(node, perm=[])["perm"]
        if sorted(permutation) != list(range(len(x.output.shape) + 1)) or permutation[0] != 0:
            self.refuse(node, f"perm = {permutation} moves the batch")
        axes = tuple(axis - 1 for axis in permutation[1:])
        spec = _reshaped(x, [x.output.shape[axis] for axis in axes])
        self.move(node, n.Permute(name=node.output[0], inputs=(x.name,), output=spec, axes=axes))

    def slice(self, node: onnx.NodeProto) -> None:
        self.attributes(node)
        x = self.integers(node, 0)
        starts, ends = self.constant(node, 1), self.constant(node, 2)
        axes = self.constant(node, 3) if self.has(node, 3) else np.arange(len(starts))
        steps = self.constant(node, 4) if self.has(node, 4) else np.ones(len(starts), np.int64)
        if len(axes) != 1 or int(axes[0]) % (len(x.output.shape) + 1) == 0 or steps[0] < 1:
            self.refuse(node, "only one dimension, not the batch, with a positive step")
        axis = int(axes[0]) % (len(x.output.shape) + 1) - 1
        shape = list(x.output.shape)
        start, stop, step = slice(int(starts[0]), int(ends[0]), int(steps[0])).indices(shape[axis])
        shape[axis] = len(range(start, stop, step))
        spec = _reshaped(x, shape)
        self.move(
            node,
            n.Slice(name=node.output[0], inputs=(x.name,), output=spec, axis=axis, start=start, stop=stop, step=step),
        )

    def clip(self, node: onnx.NodeProto) -> None:
        x = self.integers(node, 0)
        if node.input[0] in self._real:
            self.refuse(node, "it computes on real numbers")
        spec = x.output
        lo = self.constant(node, 1).item() if self.has(node, 1) else spec.lo
        hi = self.constant(node, 2).item() if self.has(node, 2) else spec.hi
        bounds = n.TensorSpec(spec.shape, spec.dtype, spec.scale, spec.zero_point, max(lo, spec.lo), min(hi, spec.hi))
        self.append(node, n.Clamp(name=node.output[0], inputs=(x.name,), output=bounds))

    def identity(self, node: onnx.NodeProto) -> None:
        self.alias(node, self.integers(node, 0), real=node.input[0] in self._real)


def _multiplier(factors: NDArray[np.float32] | np.float32, shift: int = REQUANTIZE_SHIFT) -> n.Multiplier:
    """Return multipliers on the grid if the factors are, else free ones."""
    values = np.atleast_1d(np.asarray(factors, np.float32))
    integers = np.ldexp(values.astype(np.float64), shift)
    whole = (integers == np.rint(integers)) & (integers > 0) & (integers < MULTIPLIER_LIMIT)
    return n.Multiplier(values, shift if whole.all() else None)


def _reshaped(x: n.Layer, shape: Sequence[int]) -> n.TensorSpec:
    spec = x.output
    return n.TensorSpec(tuple(shape), spec.dtype, spec.scale, spec.zero_point, spec.lo, spec.hi)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return height, width


def _padding(values: Sequence[int]) -> n.Padding:
    top, left, bottom, right = values
    return top, left, bottom, right


_READ: dict[str, Callable[[_Reader, onnx.NodeProto], None]] = {
    "Clip": _Reader.clip,
    "Constant": _Reader.read_constant,
    "DequantizeLinear": _Reader.dequantize,
    "Flatten": _Reader.flatten,
    "Identity": _Reader.identity,
    "MaxPool": _Reader.max_pool,
    "QGemm": _Reader.qgemm,
    "QLinearAdd": _Reader.qlinear_add,
    "QLinearAveragePool": _Reader.average_pool,
    "QLinearConcat": _Reader.qlinear_concat,
    "QLinearConv": _Reader.qlinear_conv,
    "QLinearGlobalAveragePool": _Reader.global_average_pool,
    "QLinearLeakyRelu": _Reader.leaky_relu,
    "QLinearMatMul": _Reader.qlinear_matmul,
    "QLinearMul": _Reader.qlinear_mul,
    "QLinearSigmoid": _Reader.sigmoid,
    "QuantizeLinear": _Reader.quantize,
    "Reshape": _Reader.reshape,
    "Slice": _Reader.slice,
    "Squeeze": _Reader.squeeze,
    "Transpose": _Reader.transpose,
}

OPERATORS = tuple(_READ)
"""Operators that are read."""

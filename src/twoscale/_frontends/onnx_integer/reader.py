"""The part of a foreign graph read so far: constants, layers, and access to a node's inputs and attributes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from twoscale._frontends.onnx_constants import fold, shape_of
from twoscale._frontends.onnx_integer.fusing import Step
from twoscale._ir import layers as n
from twoscale.errors import NetworkFileError

__all__ = ["Reader", "padding", "pair", "reshaped"]

_LARGEST_WINDOW = 65_536  # of kernels, strides, pads and dilations
_LARGEST_TENSOR = 1 << 28  # values of one image
_NOT_FOLDED = ("QuantizeLinear", "DequantizeLinear")  # read as what they are, or where they are used


class Reader:
    """Turns nodes into layers, one after another; a layer has the name of the tensor that the node makes.

    Attributes:
        step: the node that is being read.
        any_batch: the number that stands for the batch size in shapes, where it is not fixed.
    """

    def __init__(self, path: Path, model: onnx.ModelProto, operators: Collection[str]) -> None:
        graph = model.graph
        self.path = path
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._operators = operators
        self.layers: list[n.Layer] = []
        self._made: dict[str, n.Layer] = {}  # by tensor: either the integers or their real values
        self.real: set[str] = set()  # the tensors among them that are real values
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1 or not graph.output:
            raise NetworkFileError(
                f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; expected one input and an output"
            )
        self.image_input, self._outputs = inputs[0].name, [value.name for value in graph.output]
        kind = inputs[0].type.tensor_type
        self.image_shape = tuple(dimension.dim_value for dimension in kind.shape.dim)[1:]
        self.batch = kind.shape.dim[0].dim_value if kind.shape.dim else 0  # 0: any
        self._opsets = list(model.opset_import)
        self.step = Step(onnx.NodeProto())
        used = {
            int(value)
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) < 4096
            for value in numpy_helper.to_array(tensor).flat
        }
        self.any_batch = next(number for number in itertools.count(7919) if number not in used)
        if kind.elem_type != TensorProto.FLOAT or len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise NetworkFileError(
                f"{path}: the input {self.image_input} is not float32 images (N, C, H, W) of known size"
            )

    def fold(self, node: onnx.NodeProto) -> bool:
        """Compute a node that depends on no image, or only on their shape; return whether it is one."""
        if node.op_type == "Shape" and node.domain in ("", "ai.onnx") and node.input and node.input[0] in self._made:
            shape = (self.batch or self.any_batch, *self._made[node.input[0]].output.shape)
            self.define(node.output[0], shape_of(node, shape))
            return True
        names = [name for name in node.input if name]
        if node.op_type in _NOT_FOLDED or not names or any(name not in self.constants for name in names):
            return False
        try:
            found = fold(node, {name: self.value(name) for name in names}, self._opsets)
        except ValueError as error:
            self.refuse(node, f"it {error}")
        for name, value in found.items():
            self.define(name, value)
        return True

    def define(self, name: str, value: NDArray[Any]) -> None:
        """Remember a constant."""
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)

    def outputs(self) -> tuple[str, ...]:
        """Return the layers that compute the outputs."""
        for name in self._outputs:
            if name not in self._made:
                raise NetworkFileError(f"{self.path}: no integers lead to the output {name}")
            if name not in self.real:
                raise NetworkFileError(
                    f"{self.path}: the output {name} is the integers themselves; expected real values, "
                    "append a DequantizeLinear"
                )
        return tuple(self._made[name].name for name in self._outputs)

    def refuse(self, node: onnx.NodeProto, reason: str) -> NoReturn:
        """Raise the error with the reason why a node cannot be read."""
        name = node.name or next(iter(node.output), "without a name")
        raise NetworkFileError(f"{self.path}: node {name} ({node.op_type}): {reason}")

    def refuse_operator(self, node: onnx.NodeProto) -> NoReturn:
        """Refuse a node because of its operator."""
        self.refuse(
            node,
            f"not an operator on integers that twoscale reads (it reads {', '.join(self._operators)}); "
            "quantize the whole model in operator form (QuantFormat.QOperator), or the float model with "
            "twoscale.quantize",
        )

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any]:
        """Return the values of an input that must be constant."""
        name = node.input[index] if index < len(node.input) else ""
        if name not in self.constants:
            self.refuse(node, f"its input {index} ({name or 'missing'}) must be a constant")
        tensor = self.constants[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            self.refuse(node, f"the constant {name} is in another file; save the model as one file")
        return numpy_helper.to_array(tensor)

    def value(self, name: str) -> NDArray[Any]:
        """Return the values of a constant."""
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def has(self, node: onnx.NodeProto, index: int) -> bool:
        """Return whether a node has that input. Optional inputs may be left out."""
        return index < len(node.input) and bool(node.input[index])

    def scale(self, node: onnx.NodeProto, index: int) -> np.float32:
        """Return the scale at an input."""
        value = self.constant(node, index)
        if value.shape not in ((), (1,)) or value.dtype != np.float32:
            self.refuse(node, f"its input {index} must be one float32 scale, got {value.dtype} {value.shape}")
        self.usual(node, value, "scale")
        return np.float32(value.item())

    def usual(self, node: onnx.NodeProto, values: NDArray[Any], what: str) -> None:
        """Refuse scales and factors for which float32 arithmetic depends on the machine."""
        usual = np.isfinite(values) & (values >= np.finfo(np.float32).tiny) & (values < 2.0**31)
        if not usual.all():
            self.refuse(node, f"its {what} {values[~usual].flat[0]:g} is not a positive float32 below 2**31")

    def attributes(self, node: onnx.NodeProto, **allowed: Any) -> dict[str, Any]:
        """Return the attributes, with these defaults. Other attributes are refused."""
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        for name, value in found.items():
            if name not in allowed:
                self.refuse(node, f"its attribute {name} = {value} is not supported")
            if allowed[name] is not None and type(value) is not type(allowed[name]):
                self.refuse(
                    node, f"its attribute {name} is {type(value).__name__}, expected {type(allowed[name]).__name__}"
                )
        return allowed | found

    def expect(self, node: onnx.NodeProto, attributes: dict[str, Any], **expected: Any) -> None:
        """Refuse attributes with other values than these."""
        for name, value in expected.items():
            if attributes[name] != value:
                self.refuse(node, f"{name} = {attributes[name]} is not supported, only {value}")

    def integers(self, node: onnx.NodeProto, index: int) -> n.Layer:
        """Return the layer whose output is an input of the node."""
        name = node.input[index] if self.has(node, index) else ""
        if name not in self._made:
            self.refuse(node, f"its input {index} ({name or 'missing'}) is not made of the quantized images")
        return self._made[name]

    def operand(self, node: onnx.NodeProto, index: int) -> n.Layer:
        """Return the layer whose output is input ``index``. The scale and zero point in the next two inputs must be
        that layer's."""
        layer = self.integers(node, index)
        spec = layer.output
        scale = self.scale(node, index + 1)
        given = self.constant(node, index + 2) if self.has(node, index + 2) else np.zeros((), spec.dtype)
        if given.shape not in ((), (1,)) or given.dtype != spec.dtype:
            self.refuse(node, f"its input {index + 2} must be one zero point of {spec.dtype}")
        zero_point = given.item()
        if node.input[index] in self.real:
            self.refuse(node, f"its input {node.input[index]} is real, not integers")
        if scale != np.float32(spec.scale) or zero_point != spec.zero_point:
            self.refuse(
                node,
                f"it reads {node.input[index]} with scale {scale:g} and zero point {zero_point}, but that was "
                f"written with {spec.scale:g} and {spec.zero_point}",
            )
        return layer

    def spec(
        self, node: onnx.NodeProto, index: int, shape: Sequence[int], dtype: str, same: bool = True
    ) -> n.TensorSpec:
        """Return the output's quantization, from the scale at input ``index`` and the zero point at the next one.

        Args:
            node: the node.
            index: of the scale.
            shape: of the output.
            dtype: of the output if the zero point is left out.
            same: whether the output must have that type in any case.
        """
        zero_point = self.constant(node, index + 1) if self.has(node, index + 1) else np.zeros((), dtype)
        if zero_point.dtype not in (np.uint8, np.int8) or zero_point.shape not in ((), (1,)):
            self.refuse(node, f"its output must be 8 bits wide with one zero point, not {zero_point.dtype}")
        if same and zero_point.dtype != dtype:
            self.refuse(node, f"it makes {zero_point.dtype} of {dtype}; expected one type")
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
        """Enter a layer as the output of the node."""
        if not 0 < math.prod(layer.output.shape) <= _LARGEST_TENSOR:
            self.refuse(
                node, f"it makes a tensor of shape {layer.output.shape}; expected 1 to {_LARGEST_TENSOR:,} values"
            )
        self.layers.append(layer)
        self._made[node.output[0]] = layer

    def alias(self, node: onnx.NodeProto, layer: n.Layer, *, real: bool) -> None:
        """Enter an existing layer as the output of the node."""
        self._made[node.output[0]] = layer
        if real:
            self.real.add(node.output[0])

    def move(self, node: onnx.NodeProto, layer: n.Layer) -> None:
        """Enter a layer that only moves integers. Its output is real values if its input is."""
        self.append(node, layer)
        if node.input[0] in self.real:
            self.real.add(node.output[0])

    def weights(self, node: onnx.NodeProto, index: int, channel_axis: int, x: n.Layer) -> NDArray[np.int8]:
        """Return q − z of the weights at input ``index`` as int8. Scale and zero point are the next two inputs."""
        weight = self.constant(node, index)
        zero_point = self.constant(node, index + 2) if self.has(node, index + 2) else np.zeros((), weight.dtype)
        if weight.dtype not in (np.int8, np.uint8):
            self.refuse(node, f"its weights are {weight.dtype}, expected int8 or uint8")
        if zero_point.dtype != weight.dtype or zero_point.ndim > 1:
            self.refuse(node, f"its weights are {weight.dtype} and their zero points {zero_point.dtype}")
        if zero_point.size not in (1, weight.shape[channel_axis] if weight.ndim > channel_axis else 1):
            self.refuse(node, f"it has {zero_point.size} zero points of weights, expected 1 or one per output channel")
        if weight.dtype == np.uint8 and x.output.dtype != "uint8":
            self.refuse(node, "its weights are uint8 and its input is int8, which ONNX Runtime does not run")
        if zero_point.size > 1:
            shape = [1] * weight.ndim
            shape[channel_axis] = -1
            zero_point = zero_point.reshape(shape)
        shifted = weight.astype(np.int16) - zero_point.astype(np.int16)
        if shifted.min(initial=0) < -128 or shifted.max(initial=0) > 127:
            self.refuse(
                node,
                f"weights less their zero point reach {shifted.min()}..{shifted.max()}, beyond 8 signed bits; "
                "quantize weights as QuantType.QInt8",
            )
        return shifted.astype(np.int8)

    def weight_scales(self, node: onnx.NodeProto, index: int, channels: int) -> NDArray[np.float32]:
        """Return the scales at an input: one, or one for each output channel."""
        scales = self.constant(node, index)
        if scales.dtype != np.float32 or scales.size not in (1, channels) or scales.ndim > 1:
            self.refuse(node, f"it has {scales.size} weight scales, expected 1 or {channels}")
        self.usual(node, scales, "weight scale")
        return scales.reshape(-1)

    def bias(self, node: onnx.NodeProto, index: int, channels: int) -> NDArray[np.int32]:
        """Return the bias at an input, (channels,); zeros if there is none."""
        if not self.has(node, index):
            return np.zeros(channels, np.int32)
        bias = self.constant(node, index)
        if bias.dtype != np.int32 or bias.shape != (channels,):
            self.refuse(node, f"its bias is {bias.dtype} {bias.shape}, expected {channels} int32")
        return np.ascontiguousarray(bias)

    def window(self, node: onnx.NodeProto, kernel: Sequence[int] | None = None, **more: Any) -> dict[str, Any]:
        """Return kernel_shape, strides, pads and more attributes of a convolution or a pool."""
        default = {"kernel_shape": list(kernel or ()), "strides": [1, 1], "pads": [0] * 4, "auto_pad": b"NOTSET"}
        attributes = self.attributes(node, **default, **more)
        if attributes["auto_pad"] not in (b"NOTSET", b"VALID"):
            auto_pad = attributes["auto_pad"].decode(errors="replace")
            self.refuse(node, f"auto_pad = {auto_pad} is not supported; write the pads")
        if attributes["auto_pad"] == b"VALID" and any(attribute.name == "pads" for attribute in node.attribute):
            self.refuse(node, "it has pads beside auto_pad = VALID; expected one of the two")
        if len(attributes["kernel_shape"]) != 2 or (kernel and list(kernel) != list(attributes["kernel_shape"])):
            self.refuse(node, f"kernel_shape = {attributes['kernel_shape']}; expected height and width")
        for name, count, least in (("kernel_shape", 2, 1), ("strides", 2, 1), ("pads", 4, 0), ("dilations", 2, 1)):
            values = attributes.get(name, [1] * count)
            if len(values) != count or not all(least <= value <= _LARGEST_WINDOW for value in values):
                self.refuse(node, f"{name} = {values}; expected {count} numbers from {least} to {_LARGEST_WINDOW:,}")
        return attributes

    def axis(self, node: onnx.NodeProto, axis: int, rank: int) -> int:
        """Return a dimension counted from the front; ``rank`` counts the batch."""
        if not -rank <= axis < rank:
            self.refuse(node, f"dimension {axis} of a tensor of {rank} dimensions")
        return axis % rank

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

    def read_constant(self, node: onnx.NodeProto) -> None:
        """Enter the value of a Constant node."""
        attributes = self.attributes(node, value=None)
        tensor = onnx.TensorProto()
        if attributes["value"] is None:
            self.refuse(node, "only constants with a tensor value are supported")
        tensor.CopyFrom(attributes["value"])
        self.constants[node.output[0]] = tensor


def reshaped(x: n.Layer, shape: Sequence[int]) -> n.TensorSpec:
    """Return a layer's quantization for another shape."""
    spec = x.output
    return n.TensorSpec(tuple(shape), spec.dtype, spec.scale, spec.zero_point, spec.lo, spec.hi)


def pair(values: Sequence[int]) -> tuple[int, int]:
    """Return (height, width)."""
    height, width = values
    return height, width


def padding(values: Sequence[int]) -> n.Padding:
    """Return (top, left, bottom, right), from ONNX's order."""
    top, left, bottom, right = values
    return top, left, bottom, right

"""Shared by every ONNX form of an integer network: names, versions, metadata, and the collection of nodes.

Names: a graph's input is "input", its output "logits". Several inputs are "layer/input" each, several outputs
"layer/output". Other tensors are
"layer/part": the integers of a layer are "conv1/q", its weights "conv1/weight". A part has no slash, so no names of
layers can collide. A constant that layers share has no slash at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from twoscale._environment import VERSION
from twoscale._ir import layers as n
from twoscale._ir.checks import refuse_fixed_point
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["FORMAT", "FORMAT_OF_ONE_INPUT", "GraphBuilder", "has_half_bytes", "input_name", "is_narrow", "q", "window"]

FORMAT = 4
"""Version of the metadata and of the graph that belongs to it; this one has weights of 4 bits."""

FORMAT_WITHOUT_INT4 = 3
"""Version of a network whose weights have a byte each."""

FORMAT_OF_ONE_INPUT = 2
"""Version of a network with one input, which older versions of twoscale read."""

FORMAT_OF_ONE_OUTPUT = 1
"""Version of a network with one input and one output, which still older versions read."""

# Opset 18 is the oldest with everything needed, so that old runtimes read it. IR version 8 belongs to it.
OPSET = 18
IR_VERSION = 8

# Opset 21 is the oldest with tensors of 4 bits.
OPSET_INT4 = 21
IR_VERSION_INT4 = 10

_TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "int32": TensorProto.INT32}


class GraphBuilder:
    """Collects the nodes and initializers of one graph. The same calls give the same bytes.

    Args:
        network: what to write.
        int4: whether weights that fit 4 bits take half a byte each.
    """

    def __init__(self, network: IntegerNetwork, *, int4: bool = False) -> None:
        self._int4 = int4
        refuse_fixed_point(network, "ONNX")
        self.network = dataclasses.replace(network, layers=tuple(_python_numbers(layer) for layer in network))
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def model(self, form: str) -> onnx.ModelProto:
        """Return the finished model with its metadata, which contains the name ``form``."""
        network = self.network
        made = {node.output[0] for node in self._nodes}
        integers = [
            helper.make_tensor_value_info(q(layer.name), _TYPES[layer.output.dtype], ("N", *layer.output.shape))
            for layer in network
            if q(layer.name) in made
        ]
        graph = helper.make_graph(
            self._nodes,
            network.name or "network",
            [
                helper.make_tensor_value_info(
                    input_name(network, layer.name), TensorProto.FLOAT, ("N", *layer.output.shape)
                )
                for layer in network.inputs
            ],
            [
                helper.make_tensor_value_info(
                    self.output_name(name), TensorProto.FLOAT, ("N", *network.spec(name).shape)
                )
                for name in network.outputs
            ],
            list(self._initializers.values()),
            value_info=integers,
        )
        has_int4 = any(has_half_bytes(tensor) for tensor in self._initializers.values())
        model = helper.make_model(
            graph,
            producer_name="twoscale",
            producer_version=VERSION,
            ir_version=IR_VERSION_INT4 if has_int4 else IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET_INT4 if has_int4 else OPSET)],
        )
        one_input, one = len(network.inputs) == 1, len(network.outputs) == 1
        known = FORMAT_WITHOUT_INT4 if not one_input else FORMAT_OF_ONE_OUTPUT if one else FORMAT_OF_ONE_INPUT
        properties = {
            "format": str(FORMAT if has_int4 else known),
            "form": form,
            "name": network.name,
            "scheme": network.scheme,
            **({"output": network.output} if one else {"outputs": _json(network.outputs)}),
            "fingerprint": network.fingerprint,
            "layers": _json([_describe(layer) for layer in network]),
            "metadata": _json(dict(network.metadata)),
        }
        helper.set_model_props(model, {f"twoscale.{key}": value for key, value in properties.items()})
        return model

    def output_name(self, layer: str) -> str:
        """Return the name of an output's real values in the graph."""
        return "logits" if len(self.network.outputs) == 1 else f"{layer}/output"

    def constant(self, name: str, values: ArrayLike, dtype: Any) -> str:
        """Add an initializer, unless the name exists, and return its name."""
        if name not in self._initializers:
            array = np.asarray(values, dtype)
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def fits_int4(self, weight: NDArray[np.int8]) -> bool:
        """Whether these weights are written with 4 bits each."""
        return self._int4 and bool(weight.size) and int(weight.min()) >= -8 and int(weight.max()) <= 7

    def half_bytes(self, name: str, values: NDArray[Any], dtype: str) -> str:
        """Add an initializer of "int4" or "uint4", and return its name."""
        import ml_dtypes  # which onnx needs for these types

        if name not in self._initializers:
            packed = np.ascontiguousarray(values.astype(getattr(ml_dtypes, dtype)))
            self._initializers[name] = numpy_helper.from_array(packed, name)
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node named after its output; return that name."""
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def scale(self, name: str) -> str:
        """Return the real scale of a layer's integers."""
        return self.constant(f"{name}/scale", self.network.spec(name).scale, np.float32)

    def zero_point(self, name: str) -> str:
        """Return the zero point of a layer's integers, as a scalar of their type."""
        spec = self.network.spec(name)
        return self.constant(f"{name}/zero_point", spec.zero_point, spec.dtype)

    def pad(self, layer: n.Layer, x: str, value: str, widths: Sequence[Sequence[int]], output: str) -> str:
        """Return x padded with a value: (before, after) for each dimension but the batch.

        All axes are named, in order. ONNX Runtime fuses a Pad without axes into a MaxPool, whatever its value. If a Pad
        names some axes, it moves transpositions across it as if it named all.
        """
        before, after = zip((0, 0), *widths, strict=True)
        pads = self.constant(f"{layer.name}/widths", (*before, *after), np.int64)
        axes = self.constant(f"{layer.name}/axes", range(len(before)), np.int64)
        return self.node("Pad", [x, pads, value, axes], output)

    def reshape(self, layer: n.Reshape, x: str, output: str) -> str:
        """Return x in the layer's shape. 0 keeps the batch, also an empty one."""
        shape = self.constant(f"{layer.name}/shape", (0, *layer.output.shape), np.int64)
        return self.node("Reshape", [x, shape], output)

    def slice(self, layer: n.Slice, x: str, output: str) -> str:
        """Return the slice start:stop:step of one dimension."""
        bounds = {"start": layer.start, "stop": layer.stop, "axis": layer.axis + 1, "step": layer.step}
        constants = [self.constant(f"{layer.name}/{what}", [value], np.int64) for what, value in bounds.items()]
        return self.node("Slice", [x, *constants], output)

    def look_up(self, layer: n.Table) -> None:
        """Write q_y = table[q_x − type minimum], equation (10)."""
        x = layer.inputs[0]
        index = self.node("Cast", [q(x)], f"{layer.name}/integer", to=TensorProto.INT32)
        lowest = int(np.iinfo(self.network.spec(x).dtype).min)
        if lowest:
            offset = self.constant(f"{layer.name}/offset", -lowest, np.int32)
            index = self.node("Add", [index, offset], f"{layer.name}/index")
        table = self.constant(f"{layer.name}/table", layer.table, layer.output.dtype)
        self.node("Gather", [table, index], q(layer.name))


def has_half_bytes(tensor: onnx.TensorProto) -> bool:
    """Whether an initializer has 4 bits for each value."""
    return tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)


def input_name(network: IntegerNetwork, layer: str) -> str:
    """Return the name of an input's real values in the graph; ``layer`` quantizes them."""
    return "input" if len(network.inputs) == 1 else f"{layer}/input"


def q(layer: str) -> str:
    """Return the name of a layer's integers."""
    return f"{layer}/q"


def is_narrow(spec: n.TensorSpec) -> bool:
    """Whether the bounds are narrower than the type."""
    limits = np.iinfo(spec.dtype)
    return spec.lo > limits.min or spec.hi < limits.max


def window(kernel: Sequence[int], stride: Sequence[int], padding: n.Padding, **more: Any) -> dict[str, Any]:
    """Return the attributes of a convolution or a pool."""
    return {"kernel_shape": list(kernel), "strides": list(stride), "pads": list(padding), **more}


def _python_numbers(value: Any) -> Any:
    """Return a layer whose NumPy scalars are Python numbers, as protobuf and JSON need."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return tuple(_python_numbers(item) for item in value)
    if isinstance(value, n.Layer | n.TensorSpec):
        fields = {field.name: _python_numbers(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return type(value)(**fields)
    return value


def _describe(layer: n.Layer) -> dict[str, Any]:
    """Return everything about a layer except its arrays, which are initializers, as plain values for JSON."""
    plain: dict[str, Any] = {"op": layer.op}
    for attribute in dataclasses.fields(layer):
        value = getattr(layer, attribute.name)
        if not isinstance(value, np.ndarray):
            plain[attribute.name] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, n.Multiplier):
        return {"shift": value.shift}
    if isinstance(value, n.TensorSpec):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _json(value: Any) -> str:
    def scalar(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        raise TypeError(f"a network's metadata holds a {type(item).__name__}; expected plain values that JSON has")

    return json.dumps(value, ensure_ascii=False, default=scalar)

"""IntegerNetwork → ONNX graph.

Names: the graph's input is "input", its output "logits". Everything else is "layer/what" — the integers of a
layer are "conv1/q", its weights "conv1/weight" — so that no layer's name can collide with another tensor; only
"unit", the scale 1 that all integers share, has no slash.

Forms were chosen so that no optimization of a runtime can change a bit:

- A convolution is QLinearConv with x_scale = y_scale = 1 and w_scale = m / 2**16: equation (3) by (5).
- Accumulators that need more than that go ConvInteger or MatMulInteger → Add (bias) → Cast → Mul → QuantizeLinear.
- An addition is DequantizeLinear ×2 → Add → QuantizeLinear, exact in float32 by (7), fused or not.
- No DequantizeLinear is followed by QuantizeLinear alone: runtimes drop such pairs and merge their scales.
- A Pad names all axes, and so is never fused into a MaxPool, which pads with another value.
- Bounds narrower than the type are a Clip on integers, after the rounding, where it commutes with everything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from twoscale import __version__
from twoscale.network import layers as n
from twoscale.network.network import IntegerNetwork

__all__ = ["FORMAT", "describe", "to_model"]

FORMAT = 1
"""Version of the metadata and of the graph that belongs to it."""

# Opset 18 is the oldest with everything needed, so the oldest runtimes read it; IR version 8 belongs to it.
OPSET = 18
IR_VERSION = 8

UNIT = "unit"
_TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "int32": TensorProto.INT32}


def to_model(network: IntegerNetwork) -> onnx.ModelProto:
    """Return the network as a model; the same network always gives the same bytes."""
    writer = GraphWriter(network)
    for layer in network:
        _WRITE[type(layer)](writer, layer)
    writer.write_logits()
    model = helper.make_model(
        writer.graph(),
        producer_name="twoscale",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(
        model,
        {
            "twoscale.format": str(FORMAT),
            "twoscale.name": network.name,
            "twoscale.scheme": network.scheme,
            "twoscale.output": network.output,
            "twoscale.fingerprint": network.fingerprint,
            "twoscale.layers": _json([describe(layer) for layer in network]),
            "twoscale.metadata": _json(dict(network.metadata)),
        },
    )
    return model


def describe(layer: n.Layer) -> dict[str, Any]:
    """Return everything about a layer but its arrays, which are initializers, as plain values for JSON."""
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


class GraphWriter:
    """Collects nodes and initializers of one graph."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def graph(self) -> onnx.GraphProto:
        """Return the finished graph."""
        shape = self.network.input.output.shape
        classes = self.network.spec(self.network.output).shape
        integers = [
            helper.make_tensor_value_info(q(layer.name), _TYPES[layer.output.dtype], ("N", *layer.output.shape))
            for layer in self.network
        ]
        return helper.make_graph(
            self._nodes,
            self.network.name or "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("N", *shape))],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", *classes))],
            list(self._initializers.values()),
            value_info=integers,
        )

    def constant(self, name: str, values: ArrayLike, dtype: Any) -> str:
        """Add an initializer, once for each name, and return its name."""
        if name not in self._initializers:
            array = np.asarray(values, dtype)
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node, named as its output, and return that name."""
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def unit(self) -> str:
        """Return the scale 1."""
        return self.constant(UNIT, 1, np.float32)

    def zero_point(self, name: str) -> str:
        """Return the zero point of a layer's integers, as a scalar of their type."""
        spec = self.network.spec(name)
        return self.constant(f"{name}/zero_point", spec.zero_point, spec.dtype)

    def multiplier(self, layer: n.Layer, multiplier: n.Multiplier, what: str, rank: int) -> str:
        """Return the float32 factors, a scalar, or one for each channel of a tensor of this rank without batch."""
        values = multiplier.values
        shape = () if values.size == 1 else (-1,) + (1,) * (rank - 1)
        return self.constant(f"{layer.name}/{what}", values.reshape(shape), np.float32)

    def real(self, layer: n.Layer, index: int) -> str:
        """Return q − z of an input as float32.

        Not by DequantizeLinear: before a QuantizeLinear a runtime may take the two for a pair it can merge.
        """
        name = layer.inputs[index]
        zero_point = self.network.spec(name).zero_point
        value = self.node("Cast", [q(name)], f"{layer.name}/input{index}", to=TensorProto.FLOAT)
        if not zero_point:
            return value
        constant = self.constant(f"{layer.name}/zero{index}", zero_point, np.float32)
        return self.node("Sub", [value, constant], f"{layer.name}/shifted{index}")

    def quantize(self, layer: n.Layer, product: str, output: str | None = None) -> str:
        """Return clamp(RNE(product) + z, lo, hi)."""
        output = output or q(layer.name)
        spec = layer.output
        rounded = output + "/unclamped" if _narrow(spec) else output
        self.node("QuantizeLinear", [product, self.unit(), self.zero_point(layer.name)], rounded)
        return self.clip(layer, rounded, output) if _narrow(spec) else output

    def clip(self, layer: n.Layer, value: str, output: str) -> str:
        """Return integers saturated to the layer's [lo, hi]."""
        spec = layer.output
        lo = self.constant(f"{layer.name}/lo", spec.lo, spec.dtype)
        hi = self.constant(f"{layer.name}/hi", spec.hi, spec.dtype)
        return self.node("Clip", [value, lo, hi], output)

    def requantize(self, layer: n.Requantize, acc: str) -> None:
        """Finish int32 accumulators "layer/acc" by equation (3)."""
        assert layer.multiplier is not None
        product = self.node("Cast", [acc], f"{layer.name}/real", to=TensorProto.FLOAT)
        factors = self.multiplier(layer, layer.multiplier, "multiplier", len(layer.output.shape))
        self.quantize(layer, self.node("Mul", [product, factors], f"{layer.name}/product"))

    def qlinear_conv(self, layer: n.Requantize, weight: str, bias: str | None, **attributes: Any) -> None:
        """Write equations (2) and (3) as one QLinearConv, and a Clip where the bounds are narrower."""
        assert layer.multiplier is not None
        name = layer.inputs[0]
        factors = self.multiplier(layer, layer.multiplier, "multiplier", 1)
        # Some runtimes want as many weight zero points as weight scales.
        zeros = np.zeros(() if layer.multiplier.values.size == 1 else layer.multiplier.values.size)
        weight_zero = self.constant(f"{layer.name}/weight_zero_point", zeros, np.int8)
        x = [q(name), self.unit(), self.zero_point(name)]
        y = [self.unit(), self.zero_point(layer.name)]
        narrow = _narrow(layer.output)
        output = f"{layer.name}/unclamped" if narrow else q(layer.name)
        self.node(
            "QLinearConv", [*x, weight, factors, weight_zero, *y, *([bias] if bias else [])], output, **attributes
        )
        if narrow:
            self.clip(layer, output, q(layer.name))

    def pad(self, layer: n.Layer, x: str, value: str, widths: Sequence[Sequence[int]], output: str) -> str:
        """Return x with a value around, (before, after) for each dimension but the batch.

        All axes are named, in order. ONNX Runtime fuses a Pad that names none into a MaxPool, whatever its value,
        and moves transpositions across one that names some as if it had named all.
        """
        before, after = zip((0, 0), *widths, strict=True)
        pads = self.constant(f"{layer.name}/widths", (*before, *after), np.int64)
        axes = self.constant(f"{layer.name}/axes", range(len(before)), np.int64)
        return self.node("Pad", [x, pads, value, axes], output)

    def write_logits(self) -> None:
        """Write the way back to reals: logits = s · (q − z), equation (12)."""
        name = self.network.output
        scale = self.constant(f"{name}/scale", self.network.spec(name).scale, np.float32)
        # int32 must not have a zero point other than 0, nor some runtimes an explicit one.
        zero = [] if self.network.spec(name).dtype == "int32" else [self.zero_point(name)]
        self.node("DequantizeLinear", [q(name), scale, *zero], "logits")


def q(layer: str) -> str:
    """Return the name of a layer's integers."""
    return f"{layer}/q"


def _narrow(spec: n.TensorSpec) -> bool:
    limits = np.iinfo(spec.dtype)
    return spec.lo > limits.min or spec.hi < limits.max


def _window(kernel: Sequence[int], stride: Sequence[int], padding: n.Padding, **more: Any) -> dict[str, Any]:
    return {"kernel_shape": list(kernel), "strides": list(stride), "pads": list(padding), **more}


def _quantize_input(w: GraphWriter, layer: n.QuantizeInput) -> None:
    scale = w.constant(f"{layer.name}/scale", layer.output.scale, np.float32)
    rounded = f"{layer.name}/unclamped" if _narrow(layer.output) else q(layer.name)
    w.node("QuantizeLinear", ["input", scale, w.zero_point(layer.name)], rounded)
    if _narrow(layer.output):
        w.clip(layer, rounded, q(layer.name))


def _conv2d(w: GraphWriter, layer: n.Conv2d) -> None:
    window = _window(
        layer.weight.shape[2:], layer.stride, layer.padding, dilations=list(layer.dilation), group=layer.groups
    )
    weight = w.constant(f"{layer.name}/weight", layer.weight, np.int8)
    if layer.residual_multiplier is None and _one_step(w, layer):
        w.qlinear_conv(layer, weight, w.constant(f"{layer.name}/bias", layer.bias_o, np.int32), **window)
        return
    acc = _conv_integer(w, layer, weight, layer.bias_o, window)
    if layer.residual_multiplier is not None:
        _join_residual(w, layer, acc)
    elif layer.multiplier is not None:
        w.requantize(layer, acc)


def _one_step(w: GraphWriter, layer: n.Requantize) -> bool:
    """Whether QLinearConv can do it all: kernels exist for inputs and outputs of one type only."""
    return layer.multiplier is not None and w.network.spec(layer.inputs[0]).dtype == layer.output.dtype


def _conv_integer(
    w: GraphWriter, layer: n.Requantize, weight: str, bias: NDArray[np.int32] | None, window: dict[str, Any]
) -> str:
    """Write equation (2) and return the accumulators, the layer's integers if it has no multiplier."""
    x = layer.inputs[0]
    acc = q(layer.name) if layer.multiplier is None else f"{layer.name}/acc"
    products = f"{layer.name}/products" if bias is not None else acc
    w.node("ConvInteger", [q(x), weight, w.zero_point(x)], products, **window)
    if bias is not None:
        w.node("Add", [products, w.constant(f"{layer.name}/bias", bias.reshape(-1, 1, 1), np.int32)], acc)
    return acc


def _join_residual(w: GraphWriter, layer: n.Conv2d, acc: str) -> None:
    """Equation (7b)."""
    assert layer.multiplier is not None
    assert layer.residual_multiplier is not None
    factors = w.multiplier(layer, layer.multiplier, "multiplier", 3)
    residual_factors = w.multiplier(layer, layer.residual_multiplier, "residual_multiplier", 3)
    real = w.node("Cast", [acc], f"{layer.name}/real", to=TensorProto.FLOAT)
    product = w.node("Mul", [real, factors], f"{layer.name}/product")
    residual = w.node("Mul", [w.real(layer, 1), residual_factors], f"{layer.name}/residual")
    w.quantize(layer, w.node("Add", [product, residual], f"{layer.name}/sum"))


def _linear(w: GraphWriter, layer: n.Linear) -> None:
    x = layer.inputs[0]
    weight = w.constant(f"{layer.name}/weight", layer.weight.T, np.int8)
    products = w.node("MatMulInteger", [q(x), weight, w.zero_point(x)], f"{layer.name}/products")
    bias = w.constant(f"{layer.name}/bias", layer.bias_o, np.int32)
    acc = w.node("Add", [products, bias], q(layer.name) if layer.multiplier is None else f"{layer.name}/acc")
    if layer.multiplier is not None:
        w.requantize(layer, acc)


def _add(w: GraphWriter, layer: n.Add) -> None:
    reals = []
    for i, name in enumerate(layer.inputs):
        factor = w.multiplier(layer, layer.multipliers[i], f"multipliers.{i}", 1)
        reals.append(w.node("DequantizeLinear", [q(name), factor, w.zero_point(name)], f"{layer.name}/real{i}"))
    w.quantize(layer, w.node("Add", reals, f"{layer.name}/sum"))


def _mul(w: GraphWriter, layer: n.Mul) -> None:
    acc = w.node("Mul", [w.real(layer, 0), w.real(layer, 1)], f"{layer.name}/acc")
    if layer.multiplier is None:
        w.node("Cast", [acc], q(layer.name), to=TensorProto.INT32)
        return
    factors = w.multiplier(layer, layer.multiplier, "multiplier", len(layer.output.shape))
    w.quantize(layer, w.node("Mul", [acc, factors], f"{layer.name}/product"))


def _average_pool(w: GraphWriter, layer: n.AveragePool2d) -> None:
    """A sum over windows is a depthwise convolution with ones."""
    channels = layer.output.shape[0]
    window = _window(layer.kernel, layer.stride, layer.padding, dilations=[1, 1], group=channels)
    ones = w.constant(f"{layer.name}/ones", np.ones((channels, 1, *layer.kernel)), np.int8)
    if _one_step(w, layer):
        w.qlinear_conv(layer, ones, None, **window)
        return
    acc = _conv_integer(w, layer, ones, None, window)
    if layer.multiplier is not None:
        w.requantize(layer, acc)


def _max_pool(w: GraphWriter, layer: n.MaxPool2d) -> None:
    x, padding = q(layer.inputs[0]), layer.padding
    if any(pad >= layer.kernel[i % 2] for i, pad in enumerate(padding)):
        # ONNX Runtime wants padding below the kernel's size; the type's minimum never wins either.
        lowest = w.constant(f"{layer.name}/lowest", np.iinfo(layer.output.dtype).min, layer.output.dtype)
        x = w.pad(layer, x, lowest, ((0, 0), padding[::2], padding[1::2]), f"{layer.name}/padded")
        padding = (0, 0, 0, 0)
    window = _window(layer.kernel, layer.stride, padding, dilations=list(layer.dilation))
    w.node("MaxPool", [x], q(layer.name), **window)


def _concat(w: GraphWriter, layer: n.Concat) -> None:
    parts = []
    for i, (name, multiplier) in enumerate(zip(layer.inputs, layer.multipliers, strict=True)):
        if multiplier is None:
            parts.append(q(name))
            continue
        factors = w.multiplier(layer, multiplier, f"multipliers.{i}", len(layer.output.shape))
        product = w.node("Mul", [w.real(layer, i), factors], f"{layer.name}/product{i}")
        parts.append(w.quantize(layer, product, f"{layer.name}/part{i}"))
    w.node("Concat", parts, q(layer.name), axis=layer.axis + 1)


def _reshape(w: GraphWriter, layer: n.Reshape) -> None:
    # 0 keeps the batch, an empty one too.
    shape = w.constant(f"{layer.name}/shape", (0, *layer.output.shape), np.int64)
    w.node("Reshape", [q(layer.inputs[0]), shape], q(layer.name))


def _permute(w: GraphWriter, layer: n.Permute) -> None:
    w.node("Transpose", [q(layer.inputs[0])], q(layer.name), perm=[0, *(axis + 1 for axis in layer.axes)])


def _slice(w: GraphWriter, layer: n.Slice) -> None:
    bounds = {"start": layer.start, "stop": layer.stop, "axis": layer.axis + 1, "step": layer.step}
    inputs = [w.constant(f"{layer.name}/{what}", [value], np.int64) for what, value in bounds.items()]
    w.node("Slice", [q(layer.inputs[0]), *inputs], q(layer.name))


def _pad(w: GraphWriter, layer: n.Pad) -> None:
    x = layer.inputs[0]
    w.pad(layer, q(x), w.zero_point(x), layer.widths, q(layer.name))


def _clamp(w: GraphWriter, layer: n.Clamp) -> None:
    w.clip(layer, q(layer.inputs[0]), q(layer.name))


def _table(w: GraphWriter, layer: n.Table) -> None:
    index = w.node("Cast", [q(layer.inputs[0])], f"{layer.name}/integer", to=TensorProto.INT32)
    lowest = int(np.iinfo(w.network.spec(layer.inputs[0]).dtype).min)
    if lowest:
        offset = w.constant(f"{layer.name}/offset", -lowest, np.int32)
        index = w.node("Add", [index, offset], f"{layer.name}/index")
    w.node("Gather", [w.constant(f"{layer.name}/table", layer.table, layer.output.dtype), index], q(layer.name))


_WRITE: dict[type[n.Layer], Callable[[GraphWriter, Any], None]] = {
    n.QuantizeInput: _quantize_input,
    n.Conv2d: _conv2d,
    n.Linear: _linear,
    n.Add: _add,
    n.Mul: _mul,
    n.AveragePool2d: _average_pool,
    n.MaxPool2d: _max_pool,
    n.Concat: _concat,
    n.Reshape: _reshape,
    n.Permute: _permute,
    n.Slice: _slice,
    n.Pad: _pad,
    n.Clamp: _clamp,
    n.Table: _table,
}

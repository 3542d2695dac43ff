"""IntegerNetwork → ONNX in QDQ form, for runtimes that fuse it themselves (OpenVINO, TensorRT).

Every layer is the floating-point operator between a DequantizeLinear of its inputs and weights and a QuantizeLinear of
its output, with real scales: r = s · (q − z). A runtime either computes that in floating point or fuses it into its own
integer kernels with its own rounding. The integers are therefore close to the network's, but not guaranteed to be
equal; tests/formats/test_onnx_qdq.py states how many differ. This form is not read back.

Scales follow from the multipliers. The scale of weights is s_w = m · s_y / (2**16 · s_x), equation (4). If tensors are
added, concatenated or averaged, an operand is dequantized with the scale that its multiplier implies. It differs from
the operand's own scale by the rounding of the multiplier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._formats.onnx.graph_builder import GraphBuilder, input_name, is_narrow, q, window
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import REQUANTIZE_SHIFT
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["FORM", "to_bytes", "to_model"]

FORM = "qdq"
"""Name of this form in the metadata."""


def to_bytes(network: IntegerNetwork, *, int4: bool = False) -> bytes:
    """Return the network as a file in QDQ form. The same network always gives the same bytes.

    Args:
        network: what to write.
        int4: whether weights that fit 4 bits take half a byte each. Such a file needs opset 21, others opset 18.
    """
    return bytes(to_model(network, int4=int4).SerializeToString(deterministic=True))


def to_model(network: IntegerNetwork, *, int4: bool = False) -> onnx.ModelProto:
    """Return the network as a model in QDQ form."""
    writer = QdqWriter(network, int4=int4)
    for layer in writer.network:
        _WRITE[type(layer)](writer, layer)
    for name in network.outputs:
        writer.node("Identity", [writer.real(name)], writer.output_name(name))
    return writer.model(FORM)


class QdqWriter(GraphBuilder):
    """Collects the nodes of layers. "layer/r" is the real value of "layer/q"."""

    def __init__(self, network: IntegerNetwork, *, int4: bool = False) -> None:
        super().__init__(network, int4=int4)
        self._real: dict[str, str] = {}

    def real(self, name: str) -> str:
        """Return a layer's real values, dequantized if it has been quantized."""
        if name not in self._real:
            inputs = [q(name), self.scale(name), self.zero_point(name)]
            self._real[name] = self.node("DequantizeLinear", inputs, f"{name}/r")
        return self._real[name]

    def reals(self, layer: n.Layer) -> list[str]:
        """Return a layer's real inputs."""
        return [self.real(name) for name in layer.inputs]

    def scaled(self, layer: n.Layer, index: int, scale: float) -> str:
        """Return scale · (q − z) of an input, with the scale that a multiplier on the grid implies."""
        name = layer.inputs[index]
        if np.float32(scale) == np.float32(self.network.spec(name).scale):
            return self.real(name)
        constant = self.constant(f"{layer.name}/scale{index}", scale, np.float32)
        return self.node("DequantizeLinear", [q(name), constant, self.zero_point(name)], f"{layer.name}/r{index}")

    def compute(self, layer: n.Layer, operator: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Add the operator that computes a layer's real values, and quantize them."""
        self.finish(layer, self.node(operator, inputs, f"{layer.name}/computed", **attributes))

    def finish(self, layer: n.Layer, value: str) -> None:
        """Quantize a layer's real values. Accumulators that are the network's output stay real."""
        spec = layer.output
        if spec.dtype == "int32":
            self._real[layer.name] = value
            return
        if is_narrow(spec):
            lo = self.constant(f"{layer.name}/lo", spec.scale * (spec.lo - spec.zero_point), np.float32)
            hi = self.constant(f"{layer.name}/hi", spec.scale * (spec.hi - spec.zero_point), np.float32)
            value = self.node("Clip", [value, lo, hi], f"{layer.name}/clipped")
        self.node("QuantizeLinear", [value, self.scale(layer.name), self.zero_point(layer.name)], q(layer.name))

    def weights(self, layer: n.Accumulating) -> list[str]:
        """Return the dequantized weights and biases."""
        s_x = self.network.spec(layer.inputs[0]).scale
        factors = np.ones(1) if layer.multiplier is None else layer.multiplier.values.astype(np.float64)
        s_acc = factors * layer.output.scale
        return [
            self.dequantize_constant(f"{layer.name}/weight", layer.weight, s_acc / s_x),
            self.dequantize_constant(f"{layer.name}/bias", layer.bias_o, s_acc),
        ]

    def dequantize_constant(self, name: str, values: NDArray[Any], scales: NDArray[np.float64]) -> str:
        """Return constants times their scales: one scale, or one for each output channel."""
        if scales.size == 1:
            scales = scales.reshape(())
        scale, zeros = self.constant(f"{name}_scale", scales, np.float32), np.zeros(scales.shape)
        if values.dtype == np.int8 and self.fits_int4(values):
            inputs = [self.half_bytes(name, values, "int4"), scale]
            inputs.append(self.half_bytes(f"{name}_zero_point", zeros, "int4"))
        else:
            inputs = [self.constant(name, values, values.dtype), scale]
            inputs.append(self.constant(f"{name}_zero_point", zeros, values.dtype))
        return self.node("DequantizeLinear", inputs, f"{name}_real", axis=0)

    def pooled(
        self, layer: n.AveragePool2d | n.MaxPool2d, operator: str, x: str, value: float, **attributes: Any
    ) -> None:
        """Add a pool. ONNX Runtime requires padding below the kernel's size, so more padding is a separate Pad."""
        padding = layer.padding
        if any(pad >= layer.kernel[i % 2] for i, pad in enumerate(padding)):
            constant = self.constant(f"{layer.name}/padding", value, np.float32)
            x = self.pad(layer, x, constant, ((0, 0), padding[::2], padding[1::2]), f"{layer.name}/padded")
            padding = (0, 0, 0, 0)
        self.compute(layer, operator, [x], **window(layer.kernel, layer.stride, padding, **attributes))


def _conv2d(w: QdqWriter, layer: n.Conv2d) -> None:
    attributes = window(
        layer.weight.shape[2:], layer.stride, layer.padding, dilations=list(layer.dilation), group=layer.groups
    )
    inputs = [w.real(layer.inputs[0]), *w.weights(layer)]
    value = w.node("Conv", inputs, f"{layer.name}/convolved", **attributes)
    if layer.residual_multiplier is not None:
        residual = w.scaled(layer, 1, _factor(layer.residual_multiplier) * layer.output.scale)
        value = w.node("Add", [value, residual], f"{layer.name}/sum")
    w.finish(layer, value)


def _linear(w: QdqWriter, layer: n.Linear) -> None:
    w.compute(layer, "Gemm", [w.real(layer.inputs[0]), *w.weights(layer)], transB=1)


def _add(w: QdqWriter, layer: n.Add) -> None:
    reals = [w.scaled(layer, i, _factor(m) * layer.output.scale) for i, m in enumerate(layer.multipliers)]
    w.compute(layer, "Add", reals)


def _mul(w: QdqWriter, layer: n.Mul) -> None:
    s_a = w.network.spec(layer.inputs[0]).scale
    s_ab = layer.output.scale * (1.0 if layer.multiplier is None else _factor(layer.multiplier))
    w.compute(layer, "Mul", [w.real(layer.inputs[0]), w.scaled(layer, 1, s_ab / s_a)])


def _average_pool(w: QdqWriter, layer: n.AveragePool2d) -> None:
    s_sum = layer.output.scale * (1.0 if layer.multiplier is None else _factor(layer.multiplier))
    x = w.scaled(layer, 0, s_sum * layer.kernel[0] * layer.kernel[1])
    w.pooled(layer, "AveragePool", x, 0, count_include_pad=1)


def _max_pool(w: QdqWriter, layer: n.MaxPool2d) -> None:
    w.pooled(layer, "MaxPool", w.real(layer.inputs[0]), -np.inf, dilations=list(layer.dilation))


def _concat(w: QdqWriter, layer: n.Concat) -> None:
    reals = [
        w.real(name) if m is None else w.scaled(layer, i, _factor(m) * layer.output.scale)
        for i, (name, m) in enumerate(zip(layer.inputs, layer.multipliers, strict=True))
    ]
    w.compute(layer, "Concat", reals, axis=layer.axis + 1)


def _reshape(w: QdqWriter, layer: n.Reshape) -> None:
    w.finish(layer, w.reshape(layer, w.real(layer.inputs[0]), f"{layer.name}/computed"))


def _slice(w: QdqWriter, layer: n.Slice) -> None:
    w.finish(layer, w.slice(layer, w.real(layer.inputs[0]), f"{layer.name}/computed"))


def _pad(w: QdqWriter, layer: n.Pad) -> None:
    zero = w.constant(f"{layer.name}/padding", 0, np.float32)
    w.finish(layer, w.pad(layer, w.real(layer.inputs[0]), zero, layer.widths, f"{layer.name}/computed"))


def _permute(w: QdqWriter, layer: n.Permute) -> None:
    w.compute(layer, "Transpose", w.reals(layer), perm=[0, *(axis + 1 for axis in layer.axes)])


def _matmul(w: QdqWriter, layer: n.MatMul) -> None:
    s_a = w.network.spec(layer.inputs[0]).scale
    s_ab = layer.output.scale * (1.0 if layer.multiplier is None else _factor(layer.multiplier))
    w.compute(layer, "MatMul", [w.real(layer.inputs[0]), w.scaled(layer, 1, s_ab / s_a)])


def _softmax_matmul(w: QdqWriter, layer: n.SoftmaxMatMul) -> None:
    assert layer.multiplier is not None
    weights = w.node("Softmax", [w.real(layer.inputs[0])], f"{layer.name}/weights", axis=3)
    w.compute(layer, "MatMul", [weights, w.scaled(layer, 1, _factor(layer.multiplier) * layer.output.scale)])


def _normalize(w: QdqWriter, layer: n.Normalize) -> None:
    spec, name = w.network.spec(layer.inputs[0]), layer.name
    axes = w.constant(f"{name}/axes", [axis + 1 for axis in layer.axes], np.int64)
    x = w.real(layer.inputs[0])
    if layer.centered:
        x = w.node("Sub", [x, w.node("ReduceMean", [x, axes], f"{name}/mean")], f"{name}/centered")
    variance = w.node("ReduceMean", [w.node("Mul", [x, x], f"{name}/squares"), axes], f"{name}/variance")
    eps = w.constant(f"{name}/eps", layer.epsilon * spec.scale**2 / layer.count(spec) ** 2, np.float32)
    deviation = w.node("Sqrt", [w.node("Add", [variance, eps], f"{name}/with_eps")], f"{name}/deviation")
    value = w.node("Div", [x, deviation], f"{name}/normalized")
    for operator, what, integers in (("Mul", "gain", layer.gain), ("Add", "bias", layer.bias)):
        real = np.ldexp(integers * layer.output.scale, -REQUANTIZE_SHIFT)
        value = w.node(operator, [value, w.constant(f"{name}/{what}", real, np.float32)], f"{name}/with_{what}")
    w.finish(layer, value)


def _factor(multiplier: n.Multiplier) -> float:
    (value,) = multiplier.values
    return float(value)


_WRITE: dict[type[n.Layer], Callable[[QdqWriter, Any], object]] = {
    n.QuantizeInput: lambda w, layer: w.finish(layer, input_name(w.network, layer.name)),
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
    n.Clamp: lambda w, layer: w.finish(layer, w.real(layer.inputs[0])),
    n.Table: lambda w, layer: w.look_up(layer),  # the function is only known as a table of integers
    n.MatMul: _matmul,
    n.Softmax: lambda w, layer: w.compute(layer, "Softmax", w.reals(layer), axis=layer.axis + 1),
    n.SoftmaxMatMul: _softmax_matmul,
    n.Normalize: _normalize,
}

"""IntegerNetwork → ONNX graph of standard integer operators, in integer units.

The operators were chosen so that no optimization of a runtime can change a bit:

- A convolution is QLinearConv with x_scale = y_scale = 1 and w_scale = m / 2**16: equation (3) by (5).
- Other accumulators use ConvInteger or MatMulInteger → Add (bias) → Cast → Mul → QuantizeLinear.
- An addition is (Cast → Sub → Mul) ×2 → Add → QuantizeLinear, exact in float32 by (7); nothing fuses it.
- No DequantizeLinear is followed by QuantizeLinear alone: runtimes drop such pairs and merge their scales.
- A Pad names all axes, so it is never fused into a MaxPool, which pads with another value.
- Softmax and norms are in float64, where every step is exact, (15) to (17).
- Bounds narrower than the type are a Clip on integers, after the rounding, where it commutes with everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from twoscale._formats.onnx.attention import unsigned, write_normalize, write_softmax, write_softmax_matmul
from twoscale._formats.onnx.graph_builder import GraphBuilder, input_name, is_narrow, q, window
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["FORM", "to_model"]

FORM = "integer"
"""Name of this form in the metadata."""


def to_model(network: IntegerNetwork, *, int4: bool = False) -> onnx.ModelProto:
    """Return the network as a model. The same network always gives the same bytes.

    Args:
        network: what to write.
        int4: whether weights that fit 4 bits take half a byte each, with opset 21. A Cast makes them bytes.
    """
    writer = IntegerWriter(network, int4=int4)
    for layer in writer.network:
        _WRITE[type(layer)](writer, layer)
    writer.write_outputs()
    return writer.model(FORM)


class IntegerWriter(GraphBuilder):
    """Collects the nodes of layers."""

    def unit(self) -> str:
        """Return the scale 1."""
        return self.constant("unit", 1, np.float32)

    def multiplier(self, layer: n.Layer, multiplier: n.Multiplier, what: str, rank: int) -> str:
        """Return the float32 factors: a scalar, or one per channel of a tensor of this rank (without the batch)."""
        values = multiplier.values
        shape = () if values.size == 1 else (-1,) + (1,) * (rank - 1)
        return self.constant(f"{layer.name}/{what}", values.reshape(shape), np.float32)

    def real(self, layer: n.Layer, index: int) -> str:
        """Return q − z of an input as float32.

        It does not use DequantizeLinear, which a runtime may merge with a QuantizeLinear after it.
        """
        name = layer.inputs[index]
        zero_point = self.network.spec(name).zero_point
        value = self.node("Cast", [q(name)], f"{layer.name}/input{index}", to=TensorProto.FLOAT)
        if not zero_point:
            return value
        constant = self.constant(f"{layer.name}/zero{index}", zero_point, np.float32)
        return self.node("Sub", [value, constant], f"{layer.name}/shifted{index}")

    def saturating(self, layer: n.Layer, operator: str, inputs: list[str], what: str = "q", **attributes: Any) -> str:
        """Add a node that saturates to the type, and a Clip if the layer's bounds are narrower."""
        output = f"{layer.name}/{what}"
        if not is_narrow(layer.output):
            return self.node(operator, inputs, output, **attributes)
        return self.clip(layer, self.node(operator, inputs, f"{output}_unclamped", **attributes), output)

    def clip(self, layer: n.Layer, value: str, output: str) -> str:
        """Return integers saturated to the layer's [lo, hi]."""
        spec = layer.output
        lo = self.constant(f"{layer.name}/lo", spec.lo, spec.dtype)
        hi = self.constant(f"{layer.name}/hi", spec.hi, spec.dtype)
        return self.node("Clip", [value, lo, hi], output)

    def quantize(self, layer: n.Layer, product: str, what: str = "q") -> str:
        """Return clamp(RNE(product) + z, lo, hi)."""
        return self.saturating(layer, "QuantizeLinear", [product, self.unit(), self.zero_point(layer.name)], what)

    def requantize(self, layer: n.Requantize, acc: str) -> None:
        """Finish int32 accumulators by equation (3)."""
        assert layer.multiplier is not None
        real = self.node("Cast", [acc], f"{layer.name}/real", to=TensorProto.FLOAT)
        factors = self.multiplier(layer, layer.multiplier, "multiplier", len(layer.output.shape))
        self.quantize(layer, self.node("Mul", [real, factors], f"{layer.name}/product"))

    def weight(self, layer: n.Layer, weight: NDArray[np.int8]) -> str:
        """Return weights as int8."""
        if self.fits_int4(weight):
            return self.packed(layer, weight, "int8")
        return self.constant(f"{layer.name}/weight", weight, np.int8)

    def packed(self, layer: n.Layer, values: NDArray[Any], dtype: str) -> str:
        """Return integers of 4 bits in the file as int8 or uint8."""
        half = self.half_bytes(f"{layer.name}/weight", values, dtype.replace("8", "4"))
        return self.node("Cast", [half], f"{layer.name}/weight_bytes", to=getattr(TensorProto, dtype.upper()))

    def conv_integer(
        self, layer: n.Requantize, weight: NDArray[np.int8], bias: NDArray[np.int32], attributes: dict[str, Any]
    ) -> str:
        """Write equation (2) and return the accumulators. They are the layer's integers if it has no multiplier.

        The weights have the input's type; as uint8, their zero point is 128. The kernels for mixed types are several
        times slower, and saturate on CPUs without VNNI.
        """
        x = layer.inputs[0]
        acc = q(layer.name) if layer.multiplier is None else f"{layer.name}/acc"
        dtype = self.network.spec(x).dtype
        packed = self.fits_int4(weight)
        zero = (8 if packed else 128) if dtype == "uint8" else 0
        if packed:
            shifted = self.packed(layer, weight.astype(np.int16) + zero, dtype)
        else:
            shifted = self.constant(f"{layer.name}/weight", weight.astype(np.int16) + zero, dtype)
        inputs = [q(x), shifted, self.zero_point(x), self.constant(f"{layer.name}/weight_zero_point", zero, dtype)]
        products = self.node("ConvInteger", inputs, f"{layer.name}/products", **attributes)
        return self.node("Add", [products, self.constant(f"{layer.name}/bias", bias.reshape(-1, 1, 1), np.int32)], acc)

    def qlinear_conv(
        self, layer: n.Requantize, weight: NDArray[np.int8], bias: NDArray[np.int32], attributes: dict[str, Any]
    ) -> None:
        """Write equations (2) and (3) as one QLinearConv."""
        assert layer.multiplier is not None
        x = layer.inputs[0]
        signed = self.weight(layer, weight)
        factors = self.multiplier(layer, layer.multiplier, "multiplier", 1)
        # Runtimes require as many weight zero points as weight scales.
        zeros = np.zeros(() if layer.multiplier.values.size == 1 else layer.multiplier.values.size)
        weight_zero = self.constant(f"{layer.name}/weight_zero_point", zeros, np.int8)
        inputs = [q(x), self.unit(), self.zero_point(x), signed, factors, weight_zero]
        inputs += [self.unit(), self.zero_point(layer.name), self.constant(f"{layer.name}/bias", bias, np.int32)]
        self.saturating(layer, "QLinearConv", inputs, **attributes)

    def one_step(self, layer: n.Requantize) -> bool:
        """Whether one QLinearConv is enough. Its kernels need the same type for input and output."""
        return layer.multiplier is not None and self.network.spec(layer.inputs[0]).dtype == layer.output.dtype

    def write_outputs(self) -> None:
        """Write the outputs as real numbers: s · (q − z), equation (12)."""
        for name in self.network.outputs:
            # int32 has the zero point 0, which some runtimes do not accept explicitly.
            zero = [] if self.network.spec(name).dtype == "int32" else [self.zero_point(name)]
            self.node("DequantizeLinear", [q(name), self.scale(name), *zero], self.output_name(name))


def _quantize_input(w: IntegerWriter, layer: n.QuantizeInput) -> None:
    real = input_name(w.network, layer.name)
    w.saturating(layer, "QuantizeLinear", [real, w.scale(layer.name), w.zero_point(layer.name)])


def _conv2d(w: IntegerWriter, layer: n.Conv2d) -> None:
    attributes = window(
        layer.weight.shape[2:], layer.stride, layer.padding, dilations=list(layer.dilation), group=layer.groups
    )
    if layer.residual_multiplier is None and w.one_step(layer):
        w.qlinear_conv(layer, layer.weight, layer.bias_o, attributes)
        return
    acc = w.conv_integer(layer, layer.weight, layer.bias_o, attributes)
    if layer.residual_multiplier is not None:
        _join_residual(w, layer, acc)
    elif layer.multiplier is not None:
        w.requantize(layer, acc)


def _join_residual(w: IntegerWriter, layer: n.Conv2d, acc: str) -> None:
    """Equation (7b). The accumulators do not come from a DequantizeLinear, so no runtime mistakes this for (7)."""
    assert layer.multiplier is not None
    assert layer.residual_multiplier is not None
    factors = w.multiplier(layer, layer.multiplier, "multiplier", 3)
    real = w.node("Cast", [acc], f"{layer.name}/real", to=TensorProto.FLOAT)
    product = w.node("Mul", [real, factors], f"{layer.name}/product")
    factor = w.multiplier(layer, layer.residual_multiplier, "residual_multiplier", 1)
    skip = layer.inputs[1]
    residual = w.node("DequantizeLinear", [q(skip), factor, w.zero_point(skip)], f"{layer.name}/residual")
    w.quantize(layer, w.node("Add", [product, residual], f"{layer.name}/sum"))


def _linear(w: IntegerWriter, layer: n.Linear) -> None:
    x = layer.inputs[0]
    weight = w.weight(layer, layer.weight.T)
    products = w.node("MatMulInteger", [q(x), weight, w.zero_point(x)], f"{layer.name}/products")
    bias = w.constant(f"{layer.name}/bias", layer.bias_o, np.int32)
    acc = w.node("Add", [products, bias], q(layer.name) if layer.multiplier is None else f"{layer.name}/acc")
    if layer.multiplier is not None:
        w.requantize(layer, acc)


def _add(w: IntegerWriter, layer: n.Add) -> None:
    # Not DequantizeLinear: ONNX Runtime would fuse it into its QLinearAdd, whose kernels round in ways of their own
    # (large multipliers on x86, ties on Arm).
    reals = []
    for i in range(len(layer.inputs)):
        factor = w.multiplier(layer, layer.multipliers[i], f"multipliers.{i}", 1)
        reals.append(w.node("Mul", [w.real(layer, i), factor], f"{layer.name}/real{i}"))
    w.quantize(layer, w.node("Add", reals, f"{layer.name}/sum"))


def _mul(w: IntegerWriter, layer: n.Mul) -> None:
    acc = w.node("Mul", [w.real(layer, 0), w.real(layer, 1)], f"{layer.name}/acc")
    if layer.multiplier is None:
        w.node("Cast", [acc], q(layer.name), to=TensorProto.INT32)
        return
    factors = w.multiplier(layer, layer.multiplier, "multiplier", len(layer.output.shape))
    w.quantize(layer, w.node("Mul", [acc, factors], f"{layer.name}/product"))


def _average_pool(w: IntegerWriter, layer: n.AveragePool2d) -> None:
    """A sum over windows is a depthwise convolution with weights of 1."""
    channels = layer.output.shape[0]
    attributes = window(layer.kernel, layer.stride, layer.padding, dilations=[1, 1], group=channels)
    ones, zeros = np.ones((channels, 1, *layer.kernel), np.int8), np.zeros(channels, np.int32)
    if w.one_step(layer):
        w.qlinear_conv(layer, ones, zeros, attributes)
        return
    acc = w.conv_integer(layer, ones, zeros, attributes)
    if layer.multiplier is not None:
        w.requantize(layer, acc)


def _max_pool(w: IntegerWriter, layer: n.MaxPool2d) -> None:
    x, padding = q(layer.inputs[0]), layer.padding
    if any(pad >= layer.kernel[i % 2] for i, pad in enumerate(padding)):
        # ONNX Runtime requires padding below the kernel's size. The type's minimum never wins either.
        lowest = w.constant(f"{layer.name}/lowest", np.iinfo(layer.output.dtype).min, layer.output.dtype)
        x = w.pad(layer, x, lowest, ((0, 0), padding[::2], padding[1::2]), f"{layer.name}/padded")
        padding = (0, 0, 0, 0)
    attributes = window(layer.kernel, layer.stride, padding, dilations=list(layer.dilation))
    w.node("MaxPool", [x], q(layer.name), **attributes)


def _concat(w: IntegerWriter, layer: n.Concat) -> None:
    parts = []
    for i, (name, multiplier) in enumerate(zip(layer.inputs, layer.multipliers, strict=True)):
        if multiplier is None:
            parts.append(q(name))
            continue
        factors = w.multiplier(layer, multiplier, f"multipliers.{i}", len(layer.output.shape))
        product = w.node("Mul", [w.real(layer, i), factors], f"{layer.name}/product{i}")
        parts.append(w.quantize(layer, product, f"part{i}"))
    w.node("Concat", parts, q(layer.name), axis=layer.axis + 1)


def _permute(w: IntegerWriter, layer: n.Permute) -> None:
    w.node("Transpose", [q(layer.inputs[0])], q(layer.name), perm=[0, *(axis + 1 for axis in layer.axes)])


def _pad(w: IntegerWriter, layer: n.Pad) -> None:
    x = layer.inputs[0]
    w.pad(layer, q(x), w.zero_point(x), layer.widths, q(layer.name))


def _matmul(w: IntegerWriter, layer: n.MatMul) -> None:
    (a, a_zero), (b, b_zero) = unsigned(w, layer, 0), unsigned(w, layer, 1)
    acc = q(layer.name) if layer.multiplier is None else f"{layer.name}/acc"
    acc = w.node("MatMulInteger", [a, b, a_zero, b_zero], acc)
    if layer.multiplier is not None:
        w.requantize(layer, acc)


_WRITE: dict[type[n.Layer], Callable[[IntegerWriter, Any], object]] = {
    n.QuantizeInput: _quantize_input,
    n.Conv2d: _conv2d,
    n.Linear: _linear,
    n.Add: _add,
    n.Mul: _mul,
    n.AveragePool2d: _average_pool,
    n.MaxPool2d: _max_pool,
    n.Concat: _concat,
    n.Reshape: lambda w, layer: w.reshape(layer, q(layer.inputs[0]), q(layer.name)),
    n.Permute: _permute,
    n.Slice: lambda w, layer: w.slice(layer, q(layer.inputs[0]), q(layer.name)),
    n.Pad: _pad,
    n.Clamp: lambda w, layer: w.clip(layer, q(layer.inputs[0]), q(layer.name)),
    n.Table: lambda w, layer: w.look_up(layer),
    n.MatMul: _matmul,
    n.Softmax: write_softmax,
    n.SoftmaxMatMul: write_softmax_matmul,
    n.Normalize: write_normalize,
}

"""Layer → calls of vector kernels on rows of bytes, for several images at a time.

A tensor that a convolution reads has a border of zero points, so that windows need no bounds checks. Its rows are
further apart than they are long. Layers without a vector kernel run the portable one, one image after the other, on
tensors without a border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from twoscale._codegen.c.common.arrange import ArrangedLayer, Arrangement, Copy
from twoscale._codegen.c.common.calls import Call, Constant, Operand, Whole
from twoscale._codegen.c.common.program import Constants
from twoscale._codegen.c.common.tensors import Tensor
from twoscale._codegen.c.portable.calls import PortableCalls, copy_call, fixed_sum, window
from twoscale._codegen.c.portable.parameters import CopyParams, Memset
from twoscale._codegen.c.vector import block_calls as k
from twoscale._codegen.c.vector.convolutions import (
    ConvEnd,
    ConvResidual,
    Packed,
    PackedDepthwise,
    Scale,
    best_merge,
    conv_params,
    conv_windows,
    linear_windows,
    matrices_for,
    pack,
    pack_depthwise,
    requantizes_exactly,
)
from twoscale._codegen.c.vector.groups import join_groups
from twoscale._codegen.c.vector.layout import Rows, bordered, dense
from twoscale._codegen.c.vector.sharing import shares_channels
from twoscale._codegen.c.vector.tiles import Tile
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import sum_is_exact
from twoscale._ir.checks import in_fixed_point, sum_bounds

__all__ = ["VectorCalls"]

_MOST_GROUPS = 64
"""A convolution that has more groups after groups are combined keeps its portable kernel."""


class VectorCalls:
    """Decides on the positions of rows, and makes the calls of each layer.

    Args:
        arrangement: of the network.
        pairs: whether an instruction set adds products of bytes in pairs that may saturate.
        matrices: whether an instruction set multiplies matrices of bytes.
        always_matrices: whether all do, except the plain C.
        signed: whether an instruction set multiplies activations as signed bytes.
    """

    def __init__(
        self, arrangement: Arrangement, *, pairs: bool, matrices: bool, always_matrices: bool, signed: bool
    ) -> None:
        self.pairs, self.matrices, self.always_matrices, self.signed = pairs, matrices, always_matrices, signed
        self.network = arrangement.network
        self.tensors = dict(arrangement.tensors)
        self.roots = arrangement.roots
        self.constants = Constants()
        self.portable = PortableCalls(arrangement, self.constants, tiles=False)
        self.rows = {name: dense(tensor) for name, tensor in self.tensors.items()}
        self.readers: dict[str, list[n.Layer]] = {name: [] for name in self.roots}
        for layer in self.network:
            for name in layer.inputs:
                self.readers[name].append(layer)
        for name in self.roots:
            if self.roots[name] == name and self._may_have_border(name):
                self._give_border(name)
        for name, root in self.roots.items():
            if self.rows[root].has_border:
                self.rows[name] = self.rows[root]

    def has_kernel(self, layer: n.Layer) -> bool:
        """Whether a layer has a vector kernel, whose rows need not be adjacent."""
        if isinstance(layer, n.Conv2d):
            if self.is_depthwise(layer):
                return True
            return join_groups(layer).groups <= _MOST_GROUPS and self.is_exact(layer)
        if isinstance(layer, n.Add) and layer.in_fixed_point:
            return True
        if isinstance(layer, n.AveragePool2d | n.Mul) and in_fixed_point(layer):
            return False
        if isinstance(layer, n.Add):
            products = sum_bounds(self.network, layer)
            return products is not None and sum_is_exact(*products)
        if isinstance(layer, n.Mul):
            return layer.multiplier is not None and self.gate_of(layer) is not None
        if isinstance(layer, n.Linear):
            return self.is_exact(layer)
        return isinstance(layer, n.QuantizeInput | n.MaxPool2d | n.AveragePool2d | n.Table)

    def is_exact(self, layer: n.Conv2d | n.Linear) -> bool:
        """Whether float32 turns accumulators into the right bytes."""
        x, *others = (self.network.spec(name) for name in layer.inputs)
        if not others:
            return requantizes_exactly(layer, x)
        return requantizes_exactly(layer, x, others[0], self.tensors[layer.inputs[1]].shift)

    def is_depthwise(self, layer: n.Layer) -> bool:
        """Whether a convolution has one input and one output channel per group, and a byte as output."""
        return (
            isinstance(layer, n.Conv2d)
            and layer.groups > 1
            and layer.groups == layer.output.shape[0] == self.network.spec(layer.inputs[0]).shape[0]
            and layer.multiplier is not None
            and layer.residual_multiplier is None
            and self.is_exact(layer)
        )

    def gate_of(self, layer: n.Mul) -> tuple[str, str, int] | None:
        """Return (whole operand, other operand, channels that the other repeats or 0) if the kernel supports the
        case."""
        for whole, other in (layer.inputs, layer.inputs[::-1]):
            shapes = [self.network.spec(name).shape for name in (layer.name, whole, other)]
            if shapes[1] == shapes[0] and shapes[2] in (shapes[0], (*shapes[0][:1], 1, 1)):
                return whole, other, 0 if shapes[2] == shapes[0] else shapes[0][0]
        return None

    def _may_have_border(self, name: str) -> bool:
        """Whether all kernels that touch a tensor support rows that are not adjacent. Views may be read by linear
        layers only."""
        views = [view for view, root in self.roots.items() if root == name and view != name]
        plain = [reader for reader in self.readers[name] if reader.name not in views]
        return (
            len(self.tensors[name].spec.shape) == 3
            and name not in self.network.outputs
            and all(self.has_kernel(layer) for layer in (self.network[name], *plain))
            and all(
                isinstance(reader, n.Linear) or reader.name in views for view in views for reader in self.readers[view]
            )
            and not any(output in views for output in self.network.outputs)
        )

    def _give_border(self, name: str) -> None:
        """Give a tensor the border that its convolutions need."""
        pads = [
            layer.padding
            for layer in self.readers[name]
            if isinstance(layer, n.Conv2d) and layer.inputs[0] == name and any(layer.padding)
        ]
        if pads:
            self.rows[name] = bordered(self.tensors[name], [max(sides) for sides in zip(*pads, strict=True)])

    def of(self, arranged: ArrangedLayer) -> list[Call]:
        """Return the calls that compute a layer."""
        layer = arranged.layer
        calls: list[Call] = []
        if self.roots[layer.name] == layer.name and self.rows[layer.name].has_border:
            calls.append(self.fill_border(layer.name))
        if isinstance(layer, n.Concat | n.Pad | n.Permute | n.Reshape | n.Slice):
            return [*calls, *self.move(arranged, layer)]
        handler = _CALLS.get(type(layer))
        if handler is None or not self.has_kernel(layer):
            return [*calls, *self.portable.of(arranged)]
        return [*calls, *handler(self, layer)]

    def move(self, arranged: ArrangedLayer, layer: n.Layer) -> list[Call]:
        """Return the calls of a layer that moves integers."""
        calls: list[Call] = []
        if isinstance(layer, n.Pad):
            calls.append(Memset(Operand(layer.name), self.tensors[layer.inputs[0]].zero, self.tensors[layer.name].size))
        for move in arranged.moves:
            if isinstance(move, Copy):
                calls.append(_copy(move))
                continue
            params = k.RescaleRunsParams(
                move.outer, move.run, move.y_step, move.in_zero, np.float32(move.multiplier.values[0]),
                *self.bounds(layer),
            )  # fmt: skip
            calls.append(k.RescaleRuns(params, move.source, move.target))
        return calls

    def look_up(self, layer: n.Table) -> list[Call]:
        """Return the call of any function of one byte."""
        rows, values = self.rows[layer.name], (layer.table + self.tensors[layer.name].shift).astype(np.uint8)
        params = k.LookUpRowsParams(
            rows=rows.count,
            row_bytes=rows.length,
            in_row=self.rows[layer.inputs[0]].stride,
            out_row=rows.stride,
            table=self.constants.add("table", "uint8_t", values, values.shape),
        )
        return [k.LookUpRows(params, Operand(layer.inputs[0]), Operand(layer.name))]

    def read_images(self, layer: n.QuantizeInput) -> list[Call]:
        """Return the call that writes images as the first tensor."""
        x = self.tensors[layer.name]
        spec = x.spec
        channels, height, width = spec.shape if len(spec.shape) == 3 else (1, 1, len(x.order))
        has_inverse = 2.0**-100 < spec.scale < 2.0**100  # otherwise it could be subnormal or infinite
        lo, hi, zero = self.bounds(layer)
        names = [entry.name for entry in self.network.inputs]
        inputs = self.network.input_layout
        params = k.ReadImagesParams(
            sample=math.prod(inputs.shape),
            first=inputs.offsets[names.index(x.name)],
            in_h=height,
            in_w=width,
            in_c=channels,
            row_stride=self.rows[x.name].stride,
            scale=np.float32(spec.scale),
            inverse=np.float32(1 / spec.scale) if has_inverse else Whole(0),
            tie=np.float32(0.5 - 2**-12) if has_inverse else Whole(-1),
            shift=x.shift,
            lo=lo,
            hi=hi,
            zero=zero,
        )
        return [k.ReadImages(params, Operand(x.name))]

    def fill_border(self, name: str) -> Call:
        """Return the call that writes the zero point around a tensor's rows."""
        rows = self.rows[name]
        params = k.FillBorderParams(
            rows.count, rows.length, rows.stride, rows.first, rows.size, self.tensors[name].zero
        )
        return k.FillBorder(params, Operand(name, -rows.first))

    def conv(self, layer: n.Conv2d) -> list[Call]:
        """Return the calls of a convolution, one for each group and kind of tile."""
        if self.is_depthwise(layer):
            return self.depthwise(layer)
        layer = join_groups(layer)
        x, y = self.tensors[layer.inputs[0]], self.tensors[layer.name]
        channels, out_c = x.spec.shape[0], layer.output.shape[0]
        calls: list[Call] = []
        source, start = self.first_window(layer, calls)
        for group in range(layer.groups):
            windows = conv_windows(layer, x.spec.shape, x.zero, self.rows[source].stride, group)
            if layer.groups == 1:
                windows = best_merge(windows)
            out_pixel = out_c * windows.merged
            for packed in pack(windows):
                channel = group * (out_c // layer.groups) + packed.first
                weight, bias, signed_bias = self.weights(packed)
                residual = self.residual(layer, out_pixel)
                params = conv_params(
                    windows,
                    packed,
                    out_row=self.rows[layer.name].stride,
                    out_pixel=out_pixel * y.item,
                    weight=weight,
                    bias=bias,
                    end=self.conv_end(layer, packed),
                    residual=residual,
                    signed_bias=signed_bias,
                )
                order = packed.order() if self.pairs else None
                if order is not None:
                    params = replace(
                        params,
                        order=self.constants.add("order", "uint16_t", order, order.shape),
                        starts=self.constants.add("starts", "int32_t", windows.starts, windows.starts.shape),
                    )
                matrices = matrices_for(windows, packed) if self.matrices else None
                if matrices is not None:
                    params = replace(
                        params,
                        matrix_words=matrices.words,
                        matrix_pixels=matrices.pixels,
                        row_pixels=matrices.row_pixels or None,
                    )
                image_bytes, always = x.size + y.size, self.always_matrices
                if shares_channels(
                    params, packed.tile, packed.bits, packed.weight.nbytes, image_bytes, matrices=always
                ):
                    params = replace(params, by_channels=1)
                instance = k.ConvInstance(
                    packed.tile.pixels,
                    packed.tile.rows,
                    packed.tile.vectors,
                    windows.pixel_step,
                    int(windows.is_short),
                    int(packed.is_far),
                    packed.bits,
                    _end(layer),
                )
                calls.append(
                    k.Conv(
                        params,
                        instance,
                        Operand(source, start + group * (channels // layer.groups)),
                        None if residual is None else Operand(layer.inputs[1], channel),
                        Operand(layer.name, channel * y.item),
                    )
                )
        return calls

    def residual(self, layer: n.Conv2d, out_pixel: int) -> ConvResidual | None:
        """Return how the residual of a convolution is added, if it has one."""
        if layer.residual_multiplier is None:
            return None
        joined = self.tensors[layer.inputs[1]]
        scale = layer.residual_multiplier.values[0]
        zero = self.tensors[layer.name].zero - joined.zero * float(scale)
        return ConvResidual(self.rows[joined.name].stride, out_pixel, np.float32(scale), np.float32(zero))

    def depthwise(self, layer: n.Conv2d) -> list[Call]:
        """Return the calls of a depthwise convolution."""
        calls: list[Call] = []
        source, start = self.first_window(layer, calls)
        stride = self.rows[source].stride
        channels, out_h, out_w = layer.output.shape
        packed = pack_depthwise(layer, self.tensors[source].zero)
        joined = layer.stride[1] == 1  # neighbouring pixels are then neighbouring bytes of the input too
        weight, bias, signed_bias = self.weights(packed)
        y = self.tensors[layer.name]
        params = k.DepthwiseParams(
            out_h=out_h,
            runs=1 if joined else out_w,
            run_bytes=channels * (out_w if joined else 1),
            run_step=layer.stride[1] * channels,
            row_step=layer.stride[0] * stride,
            tap_step=layer.dilation[1] * channels,
            tap_row=layer.dilation[0] * stride,
            out_row=self.rows[layer.name].stride,
            period=len(packed.weight),
            weight=weight,
            bias=bias,
            **self.factors(packed.scale),
            lo=y.lo,
            hi=y.hi,
            zero=Whole(y.zero),
            signed_bias=signed_bias,
        )
        instance = k.DepthwiseInstance(layer.weight.shape[2], packed.weight.shape[2])
        return [*calls, k.Depthwise(params, instance, Operand(source, start), Operand(layer.name))]

    def first_window(self, layer: n.Conv2d, calls: list[Call]) -> tuple[str, int]:
        """Return the tensor that a convolution reads, and the offset of the first window.

        If its input has no border, the calls that make a copy with a border are appended to ``calls``.
        """
        x = self.tensors[layer.inputs[0]]
        source = x.name
        if any(layer.padding) and not self.rows[source].has_border:
            source = self.with_border(layer, x, bordered(x, layer.padding), calls)
        top, left = layer.padding[:2]
        return source, -top * self.rows[source].stride - left * x.spec.shape[0]

    def with_border(self, layer: n.Conv2d, x: Tensor, rows: Rows, calls: list[Call]) -> str:
        """Copy a tensor into one with a border; return the copy's name."""
        name = f"{layer.name}: {x.name} with a border"
        while name in self.tensors:
            name += "'"
        self.tensors[name] = replace(x, name=name)
        self.rows[name] = rows
        dense = self.rows[x.name]
        params = k.CopyRowsParams(rows.count, rows.length, dense.stride, rows.stride)
        calls += [self.fill_border(name), k.CopyRows(params, Operand(x.name), Operand(name))]
        return name

    def linear(self, layer: n.Linear) -> list[Call]:
        """Return the calls of a linear layer. The images are the pixels of one row."""
        x, y = self.tensors[layer.inputs[0]], self.tensors[layer.name]
        rows = self.rows[x.name]
        count = rows.count if rows.has_border else 1
        windows = linear_windows(layer, x.order, x.zero, count, rows.stride)
        calls: list[Call] = []
        for packed in pack(windows, Tile(6, 1, 4)):
            weight, bias, signed_bias = self.weights(packed)
            params = conv_params(
                windows,
                packed,
                out_row=None,
                out_pixel=k.IMAGE_BYTES,
                weight=weight,
                bias=bias,
                end=self.conv_end(layer, packed),
                signed_bias=signed_bias,
            )
            instance = k.LinearInstance(packed.tile.pixels, packed.tile.vectors, packed.bits, _end(layer))
            calls.append(k.Linear(params, instance, Operand(x.name), Operand(layer.name, packed.first * y.item)))
        return calls

    def max_pool(self, layer: n.MaxPool2d) -> list[Call]:
        """Return the call of maxima over windows."""
        dilation_h, dilation_w = layer.dilation
        params = replace(self.pool(layer), dilation_h=dilation_h, dilation_w=dilation_w)
        inside = int(not any(layer.padding))  # the last window ends within the image
        instance = k.MaxPoolInstance(*layer.kernel, inside)
        return [k.MaxPool(params, instance, Operand(layer.inputs[0]), Operand(layer.name))]

    def average_pool(self, layer: n.AveragePool2d) -> list[Call]:
        """Return the call of means over windows."""
        in_zero = self.tensors[layer.inputs[0]].zero
        params = replace(self.pool(layer), in_zero=in_zero)
        if layer.multiplier is not None:
            lo, hi, zero = self.bounds(layer)
            params = replace(params, scale=np.float32(layer.multiplier.values[0]), lo=lo, hi=hi, zero=zero)
        return [k.AveragePool(params, Operand(layer.inputs[0]), Operand(layer.name))]

    def pool(self, layer: n.MaxPool2d | n.AveragePool2d) -> k.PoolParams:
        """Return the parameters of a pool's windows and rows."""
        x = self.tensors[layer.inputs[0]]
        windows = vars(window(layer, x.spec.shape))
        return k.PoolParams(**windows, in_row=self.rows[x.name].stride, out_row=self.rows[layer.name].stride)

    def add(self, layer: n.Add) -> list[Call]:
        """Return the call of a sum."""
        a, b = layer.inputs
        if layer.in_fixed_point:
            return [self.add_fixed(layer)]
        a_scale, b_scale = (np.float32(m.values[0]) for m in layer.multipliers)
        return [k.AddRows(self.join(layer, a, b, a_scale, b_scale), Operand(a), Operand(b), Operand(layer.name))]

    def add_fixed(self, layer: n.Add) -> Call:
        """Return the call of a sum in TensorFlow Lite's arithmetic."""
        a, b = layer.inputs
        rows, y = self.rows[layer.name], self.tensors[layer.name]
        steps = (self.rows[a].stride, self.rows[b].stride, rows.stride)
        numbers = fixed_sum(layer, self.tensors[a], self.tensors[b])
        params = k.AddFixedRowsParams(rows.count, rows.length, *steps, **numbers, zero=y.zero, lo=y.lo, hi=y.hi)
        return k.AddFixedRows(params, Operand(a), Operand(b), Operand(layer.name))

    def factors(self, scale: Scale) -> dict[str, Constant | None]:
        """Return the arrays of requantization factors, by the names of the kernels' parameters."""
        if scale.dtype == np.float32:
            return {"scale": self.constants.add("scale", "float", scale, scale.shape)}
        exponents = (scale & 255).astype(np.uint8).view(np.int8)
        mantissas = (scale - exponents) >> 8
        return {
            "scale": None,
            "mantissa": self.constants.add("mantissa", "int32_t", mantissas, scale.shape),
            "exponent": self.constants.add("exponent", "int32_t", exponents, scale.shape),
        }

    def multiply(self, layer: n.Mul) -> list[Call]:
        """Return the call of a product."""
        gate = self.gate_of(layer)
        assert gate is not None
        assert layer.multiplier is not None
        a, b, gates = gate
        params = self.join(layer, a, b, np.float32(layer.multiplier.values[0]), gates=gates)
        return [k.MultiplyRows(params, Operand(a), Operand(b), Operand(layer.name))]

    def join(
        self,
        layer: n.Layer,
        a: str,
        b: str,
        a_scale: np.float32,
        b_scale: np.float32 | None = None,
        gates: int | None = None,
    ) -> k.JoinParams:
        """Return the parameters of a sum or a product."""
        rows = self.rows[layer.name]
        lo, hi, zero = self.bounds(layer)
        return k.JoinParams(
            rows=rows.count,
            row_bytes=rows.length,
            a_row=self.rows[a].stride,
            b_row=self.rows[b].stride,
            out_row=rows.stride,
            a_zero=self.tensors[a].zero,
            b_zero=self.tensors[b].zero,
            gates=gates,
            a_scale=a_scale,
            b_scale=b_scale,
            lo=lo,
            hi=hi,
            zero=zero,
        )

    def bounds(self, layer: n.Layer) -> tuple[Whole, Whole, int]:
        """Return the bounds of a layer's output relative to its zero point, and the zero point as stored."""
        spec = layer.output
        return Whole(spec.lo - spec.zero_point), Whole(spec.hi - spec.zero_point), self.tensors[layer.name].zero

    def weights(self, packed: Packed | PackedDepthwise) -> tuple[Constant, Constant, Constant | None]:
        """Return the static arrays of weights and biases, and of biases for signed activations if they are needed."""
        bias = packed.signed_bias if self.signed else None
        return (
            self.constants.add("weight", "int8_t", packed.weight, packed.weight.shape),
            self.constants.add("bias", "int32_t", packed.bias, packed.bias.shape),
            None if bias is None else self.constants.add("signed_bias", "int32_t", bias, bias.shape),
        )

    def conv_end(self, layer: n.Accumulating, packed: Packed) -> ConvEnd:
        """Return how accumulators become bytes."""
        if packed.scale is None:
            return ConvEnd()
        y = self.tensors[layer.name]
        return ConvEnd(**self.factors(packed.scale), lo=y.lo, hi=y.hi, zero=Whole(y.zero))


_CALLS: dict[type[n.Layer], Callable[[VectorCalls, Any], Iterable[Call]]] = {
    n.Add: VectorCalls.add,
    n.AveragePool2d: VectorCalls.average_pool,
    n.Conv2d: VectorCalls.conv,
    n.Linear: VectorCalls.linear,
    n.MaxPool2d: VectorCalls.max_pool,
    n.Mul: VectorCalls.multiply,
    n.QuantizeInput: VectorCalls.read_images,
    n.Table: VectorCalls.look_up,
}
"""Layers with a vector kernel, if ``has_kernel`` agrees. Other layers run their portable kernel."""


def _end(layer: n.Conv2d | n.Linear) -> int:
    """Return the form of the results: the kernels' NUMBERS, BYTES, JOINED or FIXED."""
    if layer.multiplier is None:
        return 0
    if isinstance(layer.multiplier, n.FixedPoint):
        return 3
    return 2 if len(layer.inputs) > 1 else 1


def _copy(copy: Copy) -> Call:
    """Return the call that copies a block's bytes, with the longest loop innermost."""
    if not copy.sizes:
        return copy_call(copy)
    loops = sorted(zip(copy.sizes, copy.from_steps, copy.to_steps, strict=True))
    size, from_step, to_step = zip(*loops, strict=True)
    return k.Move(CopyParams(len(size), size, from_step, to_step, copy.run), copy.source, copy.target)

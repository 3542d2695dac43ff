"""Layer → calls of portable kernels. Equation numbers are those of docs/arithmetic.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.arrange import ArrangedLayer, Arrangement, Copy, refusal
from twoscale._codegen.c.common.calls import NULL, Call, Inline, Name, Operand
from twoscale._codegen.c.common.program import Constants, Step, step_of
from twoscale._codegen.c.common.storage import memory_axes, memory_steps
from twoscale._codegen.c.common.tensors import Tensor
from twoscale._codegen.c.portable import parameters as k
from twoscale._codegen.c.portable.attention import (
    matmul_call,
    normalize_call,
    softmax_call,
    softmax_fixed_call,
    softmax_matmul_call,
)
from twoscale._codegen.c.portable.packed import linear_of, packed_bits, stored
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT

__all__ = [
    "Faster",
    "PortableCalls",
    "bounds",
    "copy_call",
    "fixed_sum",
    "folded_biases",
    "operands",
    "residual",
    "window",
    "window_sizes",
]

_LARGEST_EDGE = 3072
"""Most bytes of the stack for two windows at an edge."""


def copy_call(copy: Copy) -> Call:
    """Return the call that copies one image's bytes."""
    if not copy.sizes:
        return k.Memcpy(copy.target, copy.source, copy.run)
    params = k.CopyParams(len(copy.sizes), copy.sizes, copy.from_steps, copy.to_steps, copy.run)
    return k.CopyRuns(params, copy.source, copy.target)


def window(layer: n.MaxPool2d | n.AveragePool2d, shape: tuple[int, ...]) -> k.WindowParams:
    """Return the windows of a pool over inputs of ``shape`` (C, H, W)."""
    channels, in_h, in_w = shape
    _, out_h, out_w = layer.output.shape
    return k.WindowParams(
        in_h, in_w, channels, out_h, out_w, *layer.kernel, *layer.stride, pad_top=layer.padding[0],
        pad_left=layer.padding[1],
    )  # fmt: skip


def window_sizes(layer: n.Conv2d, x: Tensor) -> dict[str, int]:
    """Return the sizes and positions of a convolution's windows, by the names of the kernels' parameters."""
    _, in_h, in_w = x.spec.shape
    _, out_h, out_w = layer.output.shape
    *_, kernel_h, kernel_w = layer.weight.shape
    stride_h, stride_w = layer.stride
    pad_top, pad_left, *_ = layer.padding
    return {
        "in_h": in_h, "in_w": in_w, "out_h": out_h, "out_w": out_w, "kernel_h": kernel_h, "kernel_w": kernel_w,
        "stride_h": stride_h, "stride_w": stride_w, "pad_top": pad_top, "pad_left": pad_left, "in_zero": x.zero,
    }  # fmt: skip


def residual(layer: n.Conv2d, others: Sequence[Tensor], factor: int = 1) -> dict[str, Any]:
    """Return the numbers of a convolution's residual, by the names of the kernels' parameters.

    Args:
        layer: the convolution.
        others: its inputs but the first.
        factor: of the multiplier.
    """
    multiplier = layer.residual_multiplier
    if multiplier is None:
        return {"residual_zero": None, "residual_multiplier": None}
    return {"residual_zero": others[0].zero, "residual_multiplier": factor * int(multiplier.integers[0])}


def bounds(layer: n.Conv2d, x: Tensor) -> tuple[int, int]:
    """Return bounds on the magnitudes of a convolution's sums and of its residual's products."""
    multiplier = layer.residual_multiplier
    added = 0 if multiplier is None else 255 * int(multiplier.integers[0])
    return int(layer.partial_bound(x.spec).max(initial=0)), added


def operands(layer: n.Conv2d) -> tuple[Operand, Operand | None, Operand]:
    """Return the tensors of a convolution: input, residual, output."""
    x, *others = (Operand(name) for name in layer.inputs)
    return x, others[0] if others else None, Operand(layer.name)


class Faster(Protocol):
    """Kernels of some processors that take the place of portable ones."""

    def whole(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute a layer's whole output; None if the portable kernels compute it."""

    def row(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute one row of a layer; None if the portable kernels compute it."""


class PortableCalls:
    """Makes the calls that compute layers one image at a time.

    Args:
        arrangement: of the tensors.
        constants: collects the layers' arrays.
        tiles: whether convolutions may compute in tiles. The C must then define the tile sizes.
        faster: kernels that take the place of portable ones.
    """

    def __init__(
        self, arrangement: Arrangement, constants: Constants, *, tiles: bool = True, faster: Faster | None = None
    ) -> None:
        self.arrangement = arrangement
        self.constants = constants
        self.tiles = tiles
        self.faster = faster

    def step(self, arranged: ArrangedLayer, calls: Callable[[ArrangedLayer], Iterable[Call]] | None = None) -> Step:
        """Return a layer with the calls that ``calls`` makes; by default those for the whole tensor."""
        self.constants.begin(arranged)
        made = (calls or self.of)(arranged)
        return step_of(arranged, tuple(made), self.constants.made)

    def of(self, arranged: ArrangedLayer) -> tuple[Call, ...]:
        """Return the calls that compute a layer's whole output; empty if no bytes change."""
        made = self.faster.whole(self, arranged.layer) if self.faster else None
        return _CALLS[type(arranged.layer)](self, arranged, arranged.layer) if made is None else made

    def tensor(self, layer: n.Layer) -> Tensor:
        """Return a layer's output."""
        return self.arrangement.tensors[layer.name]

    def requantization(
        self, layer: n.Layer, multiplier: n.Multiplier | None, bound: int = 2**31, added: int = 0
    ) -> k.Requantization:
        """Return how accumulators become a layer's output.

        Args:
            layer: the layer.
            multiplier: its multiplier; None if accumulators stay int32.
            bound: on the magnitude of accumulators.
            added: bound on the magnitude of what is added to the product with the multiplier.
        """
        if multiplier is None:
            return k.Requantization(NULL)
        if isinstance(multiplier, n.FixedPoint):
            return self._fixed_point(layer, multiplier)
        assert multiplier.shift is not None
        integers, y = multiplier.integers, self.tensor(layer)
        largest = bound * int(integers.max()) + added + (1 << (multiplier.shift - 1))
        is_narrow = 1 if largest < 2**31 else None
        if len(integers) == 1:
            values = Inline((int(integers[0]),))
            return k.Requantization(values, None, multiplier.shift, is_narrow, None, y.zero, y.lo, y.hi)
        array = self.constants.add("multiplier", "int32_t", integers, integers.shape)
        return k.Requantization(array, 1, multiplier.shift, is_narrow, None, y.zero, y.lo, y.hi)

    def _fixed_point(self, layer: n.Layer, multiplier: n.FixedPoint) -> k.Requantization:
        """Return how accumulators become a layer's output by equation (18)."""
        y, mantissas = self.tensor(layer), multiplier.mantissas
        array = self.constants.add("mantissa", "int32_t", mantissas, mantissas.shape)
        exponents = self.constants.add("exponent", "int8_t", multiplier.exponents, mantissas.shape)
        per_channel = 1 if len(mantissas) > 1 else None
        return k.Requantization(array, per_channel, None, None, exponents, y.zero, y.lo, y.hi)

    def in_tiles(self, layer: n.Conv2d) -> bool:
        """Whether the tile kernels can compute a convolution.

        Taps of a row must be adjacent in memory, sums of bytes (zero point not subtracted) must fit 32 bits, and two
        windows at an edge must fit the stack.
        """
        x = self.arrangement.inputs(layer)[0]
        channels, *_ = x.spec.shape
        kernel_h, kernel_w = layer.weight.shape[2:]
        sums = np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3))
        biases = folded_biases(layer, x.zero)
        return (
            self.tiles
            and layer.groups == 1
            and (layer.dilation[1] == 1 or kernel_w == 1)
            and int((np.abs(biases) + 255 * sums).max()) < 2**31
            and kernel_h * (kernel_w + layer.stride[1]) * channels <= _LARGEST_EDGE
        )

    def conv2d_call(self, layer: n.Conv2d) -> Call:
        """Return the call of a whole convolution."""
        return k.Conv2dTiles(*self.conv2d(layer)) if self.in_tiles(layer) else k.Conv2d(*self.conv2d(layer))

    def conv2d(self, layer: n.Conv2d) -> tuple[k.Conv2dParams, Operand, Operand | None, Operand]:
        """Return the parameters of a convolution."""
        x, *others = self.arrangement.inputs(layer)
        weight_ohwi = layer.weight.transpose(0, 2, 3, 1)
        bias = folded_biases(layer, x.zero).astype(np.int32) if self.in_tiles(layer) else layer.bias_o
        bound, added = bounds(layer, x)
        params = k.Conv2dParams(
            **window_sizes(layer, x),
            in_c=x.spec.shape[0],
            out_c=len(layer.weight),
            dilation_h=layer.dilation[0],
            dilation_w=layer.dilation[1],
            groups=layer.groups,
            weight_bits=packed_bits(layer),
            weight=stored(self.constants, weight_ohwi.reshape(*weight_ohwi.shape[:2], -1), weight_ohwi.shape),
            bias=self.constants.add("bias", "int32_t", bias, bias.shape),
            **residual(layer, others),
            to=self.requantization(layer, layer.multiplier, bound, added),
        )
        return params, *operands(layer)

    def average_pool(self, layer: n.AveragePool2d) -> tuple[k.AveragePool2dParams, Operand, Operand]:
        """Return the parameters of means over windows."""
        (x,) = self.arrangement.inputs(layer)
        shape = vars(window(layer, x.spec.shape))
        if isinstance(layer.multiplier, n.WindowQuotient):  # of the integers themselves, without their zero point
            y = self.tensor(layer)
            to = k.Requantization(zero=y.shift, lo=y.lo, hi=y.hi)
            params = k.AveragePool2dParams(**shape, in_zero=x.shift, divides=1, to=to)
        else:
            to = self.requantization(layer, layer.multiplier)
            params = k.AveragePool2dParams(**shape, in_zero=x.zero, divides=None, to=to)
        return params, Operand(x.name), Operand(layer.name)

    def max_pool(self, layer: n.MaxPool2d) -> tuple[k.MaxPool2dParams, Operand, Operand]:
        """Return the parameters of maxima over windows."""
        (x,) = self.arrangement.inputs(layer)
        dilation_h, dilation_w = layer.dilation
        params = k.MaxPool2dParams(**vars(window(layer, x.spec.shape)), dilation_h=dilation_h, dilation_w=dilation_w)
        return params, Operand(x.name), Operand(layer.name)

    def add(self, layer: n.Add, count: int) -> k.Add | k.AddFixed:
        """Return the call that adds ``count`` bytes."""
        first, second = self.arrangement.inputs(layer)
        y = self.tensor(layer)
        if layer.in_fixed_point:
            fixed = k.AddFixedParams(count, **fixed_sum(layer, first, second), zero=y.zero, lo=y.lo, hi=y.hi)
            return k.AddFixed(fixed, Operand(first.name), Operand(second.name), Operand(layer.name))
        params = k.AddParams(
            count=count,
            a_zero=first.zero,
            a_multiplier=int(layer.multipliers[0].integers[0]),
            b_zero=second.zero,
            b_multiplier=int(layer.multipliers[1].integers[0]),
            to=k.Requantization(shift=ADD_SHIFT, zero=y.zero, lo=y.lo, hi=y.hi),
        )
        reach = 255 * (params.a_multiplier + params.b_multiplier) + (1 << (ADD_SHIFT - 1))
        call = k.AddNarrow if reach < 2**31 else k.Add
        return call(params, Operand(first.name), Operand(second.name), Operand(layer.name))

    def clamp(self, layer: n.Clamp, count: int) -> k.Clamp:
        """Return the call that clamps ``count`` bytes."""
        y = self.tensor(layer)
        return k.Clamp(Operand(layer.inputs[0]), Operand(layer.name), count, y.lo, y.hi)

    def look_up(self, layer: n.Table, count: int) -> k.LookUp:
        """Return the call that looks up ``count`` bytes."""
        values = (layer.table + self.tensor(layer).shift).astype(np.uint8)
        table = self.constants.add("table", "uint8_t", values, (256,))
        return k.LookUp(Operand(layer.inputs[0]), Operand(layer.name), count, table)


def fixed_sum(layer: n.Add, a: Tensor, b: Tensor) -> dict[str, int]:
    """Return the numbers of a sum in TensorFlow Lite's arithmetic, by the names of the kernels' parameters."""
    found = {"a_zero": a.zero, "b_zero": b.zero}
    for prefix, multiplier in zip(("a_", "b_", ""), layer.multipliers, strict=True):
        assert isinstance(multiplier, n.FixedPoint)
        found[f"{prefix}mantissa"] = int(multiplier.mantissas[0])
        found[f"{prefix}exponent"] = int(multiplier.exponents[0])
    return found


def folded_biases(layer: n.Conv2d | n.Linear, zero: int) -> NDArray[np.int64]:
    """Return biases minus the zero point times the sum of the weights, for kernels that do not subtract the zero
    point."""
    sums: NDArray[np.int64] = layer.weight.astype(np.int64).reshape(len(layer.weight), -1).sum(1)
    return layer.bias_o.astype(np.int64) - zero * sums


def _quantize_input(p: PortableCalls, _: ArrangedLayer, layer: n.QuantizeInput) -> tuple[Call, ...]:
    y = p.tensor(layer)
    if not y.shift:
        return ()
    network = p.arrangement.network
    names = [entry.name for entry in network.inputs]
    offset = network.input_layout.offsets[names.index(layer.name)]
    image = k.IMAGE if len(names) == 1 else Name(f"(const int8_t *)image + {offset}")
    return (k.FromInt8(image, Operand(layer.name), y.size),)


def _linear(p: PortableCalls, _: ArrangedLayer, layer: n.Linear) -> tuple[Call, ...]:
    (x,) = p.arrangement.inputs(layer)
    weight = layer.weight[:, x.order]
    params = k.LinearParams(
        in_count=weight.shape[1],
        out_count=weight.shape[0],
        in_zero=x.zero,
        weight=stored(p.constants, weight[:, None], weight.shape),
        bias=p.constants.add("bias", "int32_t", layer.bias_o, layer.bias_o.shape),
        to=p.requantization(layer, layer.multiplier),
    )
    return (linear_of(layer)(params, Operand(x.name), Operand(layer.name)),)


def _mul(p: PortableCalls, _: ArrangedLayer, layer: n.Mul) -> tuple[Call, ...]:
    a, b = p.arrangement.inputs(layer)
    shape = layer.output.shape
    left, right = (
        [step if size > 1 else 0 for size, step in zip(x.spec.shape, memory_steps(x.spec.shape), strict=True)]
        for x in (a, b)
    )
    loops: list[tuple[int, int, int]] = []
    for axis in memory_axes(len(shape)):
        size = shape[axis]
        if loops and loops[-1][1:] == (size * left[axis], size * right[axis]):
            loops[-1] = (loops[-1][0] * size, left[axis], right[axis])
        elif size > 1:
            loops.append((size, left[axis], right[axis]))
    if len(loops) > 3:
        raise refusal(
            p.arrangement.network, layer, f"repeats operands along {len(loops)} dimensions", "3 are supported"
        )
    loops = [(1, 0, 0)] * (3 - len(loops)) + loops
    params = k.MultiplyParams(
        size=tuple(loop[0] for loop in loops),
        a_step=tuple(loop[1] for loop in loops),
        b_step=tuple(loop[2] for loop in loops),
        a_zero=a.zero,
        b_zero=b.zero,
        to=p.requantization(layer, layer.multiplier),
    )
    return (k.Multiply(params, Operand(a.name), Operand(b.name), Operand(layer.name)),)


def _move(p: PortableCalls, arranged: ArrangedLayer, layer: n.Layer) -> tuple[Call, ...]:
    calls: list[Call] = []
    for move in arranged.moves:
        if isinstance(move, Copy):
            calls.append(copy_call(move))
            continue
        params = k.RescaleParams(
            move.outer, move.run, move.y_step, move.in_zero, p.requantization(layer, move.multiplier)
        )
        calls.append(k.RescaleRuns(params, move.source, move.target))
    return tuple(calls)


def _pad(p: PortableCalls, arranged: ArrangedLayer, layer: n.Pad) -> tuple[Call, ...]:
    (x,) = p.arrangement.inputs(layer)
    return (k.Memset(Operand(layer.name), x.zero, p.tensor(layer).size), *_move(p, arranged, layer))


def _matmul(p: PortableCalls, _: ArrangedLayer, layer: n.MatMul) -> tuple[Call, ...]:
    a, b = p.arrangement.inputs(layer)
    return (matmul_call(layer, a, b, p.requantization(layer, layer.multiplier)),)


def _softmax(p: PortableCalls, _: ArrangedLayer, layer: n.Softmax) -> tuple[Call, ...]:
    (x,) = p.arrangement.inputs(layer)
    return (softmax_call(layer, x, p.tensor(layer), p.constants),)


def _softmax_fixed(p: PortableCalls, _: ArrangedLayer, layer: n.FixedPointSoftmax) -> tuple[Call, ...]:
    (x,) = p.arrangement.inputs(layer)
    return (softmax_fixed_call(layer, x, p.constants),)


def _softmax_matmul(p: PortableCalls, _: ArrangedLayer, layer: n.SoftmaxMatMul) -> tuple[Call, ...]:
    scores, values = p.arrangement.inputs(layer)
    return (softmax_matmul_call(layer, scores, values, p.tensor(layer), p.constants),)


def _normalize(p: PortableCalls, _: ArrangedLayer, layer: n.Normalize) -> tuple[Call, ...]:
    (x,) = p.arrangement.inputs(layer)
    try:
        return (normalize_call(layer, x, p.tensor(layer), p.constants),)
    except ValueError as error:
        raise refusal(p.arrangement.network, layer, str(error), "normalize fewer dimensions that are apart") from error


_CALLS: dict[type[n.Layer], Callable[[PortableCalls, ArrangedLayer, Any], tuple[Call, ...]]] = {
    n.Add: lambda p, _, layer: (p.add(layer, p.tensor(layer).size),),
    n.AveragePool2d: lambda p, _, layer: (k.AveragePool2d(*p.average_pool(layer)),),
    n.Clamp: lambda p, _, layer: (p.clamp(layer, p.tensor(layer).size),),
    n.Concat: _move,
    n.Conv2d: lambda p, _, layer: (p.conv2d_call(layer),),
    n.Linear: _linear,
    n.MaxPool2d: lambda p, _, layer: (k.MaxPool2d(*p.max_pool(layer)),),
    n.Mul: _mul,
    n.Pad: _pad,
    n.Permute: _move,
    n.QuantizeInput: _quantize_input,
    n.Reshape: _move,
    n.Slice: _move,
    n.Table: lambda p, _, layer: (p.look_up(layer, p.tensor(layer).size),),
    n.MatMul: _matmul,
    n.FixedPointSoftmax: _softmax_fixed,
    n.Softmax: _softmax,
    n.SoftmaxMatMul: _softmax_matmul,
    n.Normalize: _normalize,
}

"""Layer → calls of kernels with Helium. Equation numbers are those of docs/arithmetic.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.calls import Call, Inline, Operand
from twoscale._codegen.c.cortex_m import kernels as k
from twoscale._codegen.c.cortex_m.dsp import FasterWithDsp, as_one_row
from twoscale._codegen.c.portable.calls import PortableCalls, bounds, folded_biases, operands, residual, window_sizes
from twoscale._codegen.c.portable.parameters import Add, AddParams, Requantization
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, REQUANTIZE_SHIFT

__all__ = ["FasterWithHelium"]

_LARGEST = 12288
"""Most bytes of the stack for the kept rows, and for the copies of four windows."""


def _clamp_bits(bound: int, integers: NDArray[np.int64], added: int) -> int | None:
    """Return the number of bits to which sums may be clamped so that products in units of 2^-16 fit 32 bits; 0 if all
    fit, None if none do.

    Args:
        bound: on the magnitude of sums.
        integers: the multipliers.
        added: bound on the magnitude of a residual's product.
    """
    beyond = 257 << REQUANTIZE_SHIFT
    most, least = int(integers.max()), int(integers.min())
    if bound * most + added + beyond < 2**31:
        return 0
    for bits in range(8, 31):
        limit = 2 ** (bits - 1)
        if limit * most + added + beyond < 2**31 and (limit - 1) * least - added >= beyond:
            return bits
    return None


def _fits(sum_of: AddParams) -> bool:
    """Whether the products of a sum fit 32 bits in units of 2^-16."""
    factor = 1 << (REQUANTIZE_SHIFT - ADD_SHIFT)
    return factor * 255 * (sum_of.a_multiplier + sum_of.b_multiplier) + (257 << REQUANTIZE_SHIFT) < 2**31


class FasterWithHelium(FasterWithDsp):
    """Computes convolutions and linear layers with products of bytes, and other layers with the DSP extension."""

    def whole(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute a layer's whole output; None if the portable kernels compute it."""
        match layer:
            case n.Conv2d() if layer.groups > 1:
                if (depthwise := self._by_channel(calls, layer)) is not None:
                    return (k.DepthwiseHelium(*depthwise),)
            case n.Conv2d():
                if (made := self._of(calls, layer)) is not None:
                    return (k.Conv2dHelium(as_one_row(made[0]), *made[1:]),)
            case n.MaxPool2d():
                return (k.MaxPool2dHelium(*calls.max_pool(layer)),)
            case n.Table():
                look_up = calls.look_up(layer, calls.tensor(layer).size)
                return (k.LookUpHelium(look_up.x, look_up.y, look_up.count, look_up.table),)
            case n.Add() if not layer.in_fixed_point:
                add = calls.add(layer, calls.tensor(layer).size)
                if isinstance(add, Add) and _fits(add.parameters):
                    return (k.AddHelium(add.parameters, add.a, add.b, add.y),)
            case n.Linear():
                if (linear := self._fully_connected(calls, layer)) is not None:
                    return (linear,)
        return super().whole(calls, layer)

    def row(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute one row of a layer; None if the portable kernels compute it."""
        match layer:
            case n.Conv2d() if layer.groups > 1:
                if (depthwise := self._by_channel(calls, layer)) is not None:
                    return (k.DepthwiseHeliumRow(*depthwise),)
            case n.Conv2d():
                if (made := self._of(calls, layer)) is not None:
                    return (k.Conv2dHeliumRow(*made),)
            case n.MaxPool2d():
                return (k.MaxPool2dHeliumRow(*calls.max_pool(layer)),)
        return super().row(calls, layer)

    def _fully_connected(self, calls: PortableCalls, layer: n.Linear) -> k.LinearHelium | None:
        """Return the call of a fully connected layer, or None if the kernel cannot compute it."""
        (x,) = calls.arrangement.inputs(layer)
        weight = layer.weight[:, x.order].astype(np.int64)
        outputs, inputs = weight.shape
        biases = folded_biases(layer, x.zero) + 128 * weight.sum(1)
        sixteens = -(-inputs // 16)
        if 16 * sixteens > _LARGEST or int((np.abs(biases) + 128 * np.abs(weight).sum(1)).max()) >= 2**31:
            return None
        filled = np.zeros((-(-outputs // 4) * 4, sixteens * 16), np.int8)
        filled[:outputs, :inputs] = weight
        arranged = filled.reshape(-1, 4, sixteens, 16).transpose(0, 2, 1, 3)
        bias = np.zeros(len(filled), np.int32)
        bias[:outputs] = biases
        params = k.LinearHeliumParams(
            in_count=inputs,
            out_count=outputs,
            sixteens=sixteens,
            weight=calls.constants.add("weight", "int8_t", arranged, arranged.shape),
            bias=calls.constants.add("bias", "int32_t", bias, bias.shape),
            to=calls.requantization(layer, layer.multiplier),
        )
        return k.LinearHelium(params, Operand(x.name), Operand(layer.name))

    def _by_channel(
        self, calls: PortableCalls, layer: n.Conv2d
    ) -> tuple[k.DepthwiseHeliumParams, Operand, Operand] | None:
        """Return the arguments of a depthwise convolution, or None if the kernel cannot compute it."""
        x, *others = calls.arrangement.inputs(layer)
        channels, in_c, kernel_h, kernel_w = layer.weight.shape
        taps = kernel_h * kernel_w
        biases = folded_biases(layer, x.zero)
        sums = np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3))
        multiplier = layer.multiplier
        if in_c != 1 or channels != layer.groups or channels % 8 or others or channels + 8 * taps > _LARGEST:
            return None
        if int((np.abs(biases) + 255 * sums).max()) >= 2**31:
            return None
        if not isinstance(multiplier, n.Multiplier) or multiplier.shift != REQUANTIZE_SHIFT:
            return None
        clamp_bits = _clamp_bits(int(layer.partial_bound(x.spec).max(initial=0)), multiplier.integers, 0)
        if clamp_bits is None:
            return None
        each = np.stack([biases, np.broadcast_to(multiplier.integers, (channels,))], 1).reshape(-1, 4, 2, 2)
        each = each.transpose(0, 3, 2, 1)
        weight = layer.weight.reshape(-1, 8, taps).transpose(0, 2, 1)
        y = calls.tensor(layer)
        params = k.DepthwiseHeliumParams(
            **window_sizes(layer, x),
            channels=channels,
            dilation_h=layer.dilation[0],
            dilation_w=layer.dilation[1],
            weight=calls.constants.add("weight", "int8_t", weight, weight.shape),
            each=calls.constants.add("each", "int32_t", each, each.shape),
            clamp_bits=clamp_bits or None,
            zero=y.zero,
            lo=y.lo,
            hi=y.hi,
        )
        return params, Operand(x.name), Operand(layer.name)

    def _of(
        self, calls: PortableCalls, layer: n.Conv2d
    ) -> tuple[k.Conv2dHeliumParams, Operand, Operand | None, Operand] | None:
        """Return the arguments of a convolution, or None if the kernel cannot compute it."""
        x, *others = calls.arrangement.inputs(layer)
        out_c, in_c, kernel_h, kernel_w = layer.weight.shape
        out_w = layer.output.shape[2]
        single = kernel_h * kernel_w == 1
        to, factor, integers, clamp_bits = self._in_halves(calls, layer)
        by_columns = in_c % 16 == 0 and (kernel_h, kernel_w) == (3, 3) and layer.stride[1] in (1, 2)
        columns = (-(-out_w // 4) * 4 - 1) * layer.stride[1] + kernel_w
        sixteens = -(-kernel_h * kernel_w * in_c // 16)
        row_bytes = 0 if single else columns * in_c + (0 if by_columns else 16)
        weight = layer.weight.transpose(0, 2, 3, 1).astype(np.int64)
        biases = folded_biases(layer, x.zero) + 128 * weight.sum((1, 2, 3))
        if layer.groups != 1 or max(layer.dilation) > 1 or (single and any(layer.padding)):
            return None
        if (kernel_h + 1) * row_bytes > _LARGEST or (not by_columns and 80 * sixteens > _LARGEST):
            return None
        if int((np.abs(biases) + 128 * np.abs(weight).sum((1, 2, 3))).max()) >= 2**31:
            return None
        filled = np.zeros((out_c + out_c % 2, sixteens * 16), np.int8)
        if by_columns:
            weight = weight.reshape(out_c, kernel_h, kernel_w, in_c // 16, 16).transpose(0, 1, 3, 2, 4)
        filled[:out_c, : kernel_h * kernel_w * in_c] = weight.reshape(out_c, -1)
        arranged = np.ascontiguousarray(filled.reshape(-1, 2, sixteens, 16).transpose(0, 2, 1, 3))
        words = arranged.view("<i4").astype(np.int32)
        channels = np.zeros((len(filled), 2), np.int32)
        channels[:out_c, 0] = biases
        channels[:out_c, 1] = integers
        by_pairs = channels.reshape(-1, 2, 2).transpose(0, 2, 1)
        params = k.Conv2dHeliumParams(
            **window_sizes(layer, x),
            in_c=in_c,
            out_c=out_c,
            sixteens=sixteens,
            columns=columns if by_columns else None,
            row_bytes=row_bytes,
            weight=calls.constants.add("weight", "int32_t", words, words.shape),
            channels=calls.constants.add("channels", "int32_t", by_pairs, by_pairs.shape),
            **residual(layer, others, factor),
            in_halves=None if clamp_bits is None else 1,
            clamp_bits=clamp_bits or None,
            to=to,
        )
        return params, *operands(layer)

    def _in_halves(
        self, calls: PortableCalls, layer: n.Conv2d
    ) -> tuple[Requantization, int, NDArray[np.int64] | int, int | None]:
        """Return how a convolution's sums become its output.

        Returns:
            its requantization, without multipliers if these are in units of 2^-16; the factor of its residual's
            multiplier; these multipliers, 0 if there are none; the bits to which sums may be clamped so that products
            fit 32 bits, 0 if all do, None if the multipliers are not in these units.
        """
        multiplier = layer.multiplier
        bound, added = bounds(layer, calls.arrangement.inputs(layer)[0])
        if isinstance(multiplier, n.Multiplier) and multiplier.shift in (ADD_SHIFT, REQUANTIZE_SHIFT):
            factor = 2 ** (REQUANTIZE_SHIFT - multiplier.shift)
            integers = factor * multiplier.integers
            bits = _clamp_bits(bound, integers, factor * added)
            if bits is not None:
                y = calls.tensor(layer)
                to = Requantization(Inline((1,)), None, REQUANTIZE_SHIFT, None, None, y.zero, y.lo, y.hi)
                return to, factor, integers, bits
        return calls.requantization(layer, multiplier, bound, added), 1, 0, None

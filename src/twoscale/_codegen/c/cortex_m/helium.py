"""Layer → calls of kernels with Helium. Equation numbers are those of docs/arithmetic.md."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from twoscale._codegen.c.common.calls import Call, Operand
from twoscale._codegen.c.cortex_m import kernels as k
from twoscale._codegen.c.cortex_m.dsp import FasterWithDsp, sums_clamp
from twoscale._codegen.c.portable.calls import PortableCalls, folded_biases
from twoscale._ir import layers as n

__all__ = ["FasterWithHelium"]

_LARGEST = 9216
"""Most bytes of the stack for three windows, for three windows at an edge, and for the sums of three pixels."""


class FasterWithHelium(FasterWithDsp):
    """Computes convolutions with products of 16 bytes, and other layers with products of 16-bit halves."""

    def whole(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute a layer's whole output; None if the portable kernels compute it."""
        made = self._of(calls, layer) if isinstance(layer, n.Conv2d) else None
        if made is None:
            return super().whole(calls, layer)
        params, x, joins, y = made
        window = (params.kernel_h, params.kernel_w, params.stride_h, params.stride_w, params.pad_top, params.pad_left)
        if window == (1, 1, 1, 1, 0, 0) and (params.in_h, params.in_w) == (params.out_h, params.out_w):
            pixels = params.in_h * params.in_w  # as one row, which has more whole tiles
            params = replace(params, in_h=1, in_w=pixels, out_h=1, out_w=pixels)
        return (k.Conv2dHelium(params, x, joins, y),)

    def row(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute one row of a layer; None if the portable kernels compute it."""
        made = self._of(calls, layer) if isinstance(layer, n.Conv2d) else None
        return super().row(calls, layer) if made is None else (k.Conv2dHeliumRow(*made),)

    def _of(
        self, calls: PortableCalls, layer: n.Conv2d
    ) -> tuple[k.Conv2dHeliumParams, Operand, Operand | None, Operand] | None:
        """Return the arguments of a convolution, or None if the kernel cannot compute it."""
        x, *others = calls.arrangement.inputs(layer)
        out_c, in_c, kernel_h, kernel_w = layer.weight.shape
        run = kernel_w * in_c
        sixteens = kernel_h * -(-run // 16)
        weight = layer.weight.transpose(0, 2, 3, 1).reshape(out_c, kernel_h, run).astype(np.int64)
        biases = folded_biases(layer, x.zero) + 128 * weight.sum((1, 2))
        bytes_of_stack = (48 * sixteens, kernel_h * (kernel_w + 2 * layer.stride[1]) * in_c, 12 * (out_c + 1))
        if layer.groups != 1 or (layer.dilation[1] != 1 and kernel_w != 1) or max(bytes_of_stack) > _LARGEST:
            return None
        if int((np.abs(biases) + 128 * np.abs(weight).sum((1, 2))).max()) >= 2**31:
            return None
        filled = np.zeros((out_c + out_c % 2, kernel_h, -(-run // 16) * 16), np.int8)
        filled[:out_c, :, :run] = weight
        arranged = filled.reshape(-1, 2, sixteens, 16).transpose(0, 2, 1, 3)
        even = np.zeros(len(filled), np.int32)
        even[:out_c] = biases
        residual = layer.residual_multiplier
        added = 255 * int(residual.integers[0]) if residual is not None else 0
        bound = int(layer.partial_bound(x.spec).max(initial=0))
        params = k.Conv2dHeliumParams(
            in_h=x.spec.shape[1],
            in_w=x.spec.shape[2],
            in_c=in_c,
            out_h=layer.output.shape[1],
            out_w=layer.output.shape[2],
            out_c=out_c,
            kernel_h=kernel_h,
            kernel_w=kernel_w,
            stride_h=layer.stride[0],
            stride_w=layer.stride[1],
            dilation_h=layer.dilation[0],
            pad_top=layer.padding[0],
            pad_left=layer.padding[1],
            in_zero=x.zero,
            sixteens=sixteens,
            weight=calls.constants.add("weight", "int8_t", arranged, arranged.shape),
            bias=calls.constants.add("bias", "int32_t", even, even.shape),
            residual_zero=None if residual is None else others[0].zero,
            residual_multiplier=None if residual is None else int(residual.integers[0]),
            clamp_bits=next((bits for bits in range(8, 31) if sums_clamp(self.network, layer, bits)), None),
            to=calls.requantization(layer, layer.multiplier, bound, added),
        )
        joins = None if residual is None else Operand(others[0].name)
        return params, Operand(x.name), joins, Operand(layer.name)

"""Equations (3), (11) and their parts on whole NumPy arrays, exactly.

Tests compare them with twoscale._ir.arithmetic, which defines them on Python integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.operators.base import FixedPoint, Multiplier, Padding, Requantize, TensorSpec

__all__ = [
    "Int64",
    "finish",
    "fixed_point",
    "high_product",
    "padded",
    "per_channel",
    "quantize_input",
    "requantize",
    "rint",
    "rne_shift",
    "rounding_shift",
    "saturate",
    "shifted",
    "windows",
]

Int64 = NDArray[np.int64]


def quantize_input(x: NDArray[np.float32], spec: TensorSpec) -> NDArray[Any]:
    """Return clamp(RNE(fl(x / s)) + z, lo, hi), equation (11)."""
    with np.errstate(over="ignore"):  # a quotient beyond float32 saturates, as it should
        quotient = np.rint(np.asarray(x, np.float32) / np.float32(spec.scale))
    result: NDArray[Any] = np.clip(quotient + np.float32(spec.zero_point), spec.lo, spec.hi).astype(spec.dtype)
    return result


def rne_shift(value: Int64, shift: int) -> Int64:
    """Return RNE(value / 2**shift) of int64 values below 2**62."""
    # Add half, minus one if the floor is even, so that ties go to the even neighbour.
    rounded = value >> shift
    rounded &= 1
    rounded += (1 << (shift - 1)) - 1
    rounded += value
    rounded >>= shift
    return rounded


def requantize(acc: Int64, multiplier: Multiplier, spec: TensorSpec) -> Int64:
    """Return clamp(z + RNE(acc·m / 2**shift), lo, hi), equation (3); channels are dimension 1.

    Off the grid the product is taken in float32, as runtimes with float multipliers do.
    """
    if isinstance(multiplier, FixedPoint):
        return saturate(fixed_point(acc, multiplier), spec)
    if multiplier.shift is None:
        product = acc.astype(np.float32) * per_channel(multiplier.values, acc.ndim)
        return saturate(rint(product), spec)
    return saturate(rne_shift(acc * per_channel(multiplier.integers, acc.ndim), multiplier.shift), spec)


def high_product(a: Int64, b: Int64 | int) -> Int64:
    """Return a · b / 2**31 rounded, ties up, of int64 values whose product is below 2**63 - 2**30."""
    product = a * b
    product += 1 << 30
    product >>= 31
    return product


def rounding_shift(value: Int64, shift: Int64 | int) -> Int64:
    """Return value / 2**shift rounded, ties away from zero."""
    half = (np.int64(1) << np.asarray(shift, np.int64)) >> 1
    rounded: Int64 = np.sign(value) * ((np.abs(value) + half) >> shift)
    return rounded


def fixed_point(acc: Int64, multiplier: FixedPoint) -> Int64:
    """Return acc · mantissa · 2**(exponent - 31) in two roundings, equation (18); channels are dimension 1."""
    mantissas = per_channel(multiplier.mantissas.astype(np.int64), acc.ndim)
    exponents = per_channel(multiplier.exponents.astype(np.int64), acc.ndim)
    high = high_product(acc << np.maximum(exponents, 0), mantissas)
    return rounding_shift(high, np.maximum(-exponents, 0))


def rint(real: NDArray[np.float32]) -> Int64:
    """Return RNE(v) of float32 numbers. Those beyond int32 saturate; every clamp range is within int32."""
    rounded: Int64 = np.clip(np.rint(real), -(2.0**31), 2.0**31).astype(np.int64)
    return rounded


def finish(acc: Int64, layer: Requantize) -> Int64:
    """Requantize accumulators, or return them unchanged if the layer has no multiplier."""
    return acc if layer.multiplier is None else requantize(acc, layer.multiplier, layer.output)


def saturate(rounded: Int64, spec: TensorSpec) -> Int64:
    """Add the zero point and clamp, in place."""
    rounded += spec.zero_point
    return np.clip(rounded, spec.lo, spec.hi, out=rounded)


def per_channel(values: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Return one value per channel, shaped to broadcast over (N, C, ...) of ``ndim`` dimensions."""
    return values.reshape((1, -1) + (1,) * (ndim - 2))


def shifted(q: NDArray[Any], spec: TensorSpec) -> Int64:
    """Return q − z as int64."""
    result: Int64 = q.astype(np.int64) - spec.zero_point
    return result


def padded(q: NDArray[Any], spec: TensorSpec, padding: Padding, value: int) -> Int64:
    """Return q − z as int64 with ``value`` around height and width."""
    top, left, bottom, right = padding
    x = shifted(q, spec)
    if not any(padding):
        return x
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def windows(
    x: NDArray[Any], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> NDArray[Any]:
    """Return a view (N, C, out_h, out_w, kernel_h, kernel_w)."""
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
    result: NDArray[Any] = view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    return result

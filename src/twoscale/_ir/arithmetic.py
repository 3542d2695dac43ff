"""The integer contract on Python integers: the definition of what every executor computes.

Equation numbers are those of docs/arithmetic.md. RNE(v) is the nearest integer, ties to even. Nothing here
depends on an array library or on the machine: Python integers do not overflow.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

__all__ = [
    "ADD_SHIFT",
    "FLOAT32_LIMIT",
    "MULTIPLIER_LIMIT",
    "NORM_BITS",
    "NORM_RECIPROCAL_BITS",
    "REQUANTIZE_SHIFT",
    "accumulate",
    "accumulator_bound",
    "add",
    "clamp",
    "float32",
    "matmul",
    "multiply",
    "normalize",
    "normalize_shift",
    "quantize_input",
    "requantize",
    "requantize_with_residual",
    "rne_ratio",
    "rne_shift",
    "softmax",
    "softmax_matmul",
    "sum_is_exact",
]

REQUANTIZE_SHIFT = 16
"""Requantization multipliers count 2**-16ths, equation (3)."""

ADD_SHIFT = 14
"""Multipliers of an addition count 2**-14ths, equation (7): every partial sum is then exact in float32."""

MULTIPLIER_LIMIT = 1 << 24
"""Multipliers are below 2**24, so that they are exact in float32."""

FLOAT32_LIMIT = 1 << 24
"""Every integer of magnitude up to 2**24 is a float32."""

NORM_BITS = 14
"""Normalized values count 2**-14ths, equation (17)."""

NORM_RECIPROCAL_BITS = 42
"""The reciprocal of a deviation counts 2**-42nds, equation (17)."""


def rne_shift(value: int, shift: int) -> int:
    """Return RNE(value / 2**shift); ``shift`` ≥ 1."""
    half = 1 << (shift - 1)
    floor = value >> shift  # Python's shift rounds towards minus infinity
    rest = value - (floor << shift)
    return floor + (rest > half or (rest == half and floor & 1))


def rne_ratio(numerator: int, denominator: int) -> int:
    """Return RNE(numerator / denominator); ``denominator`` > 0."""
    floor, rest = divmod(numerator, denominator)
    return floor + (2 * rest > denominator or (2 * rest == denominator and floor & 1))


def clamp(value: int, lo: int, hi: int) -> int:
    """Return ``value`` saturated to [lo, hi]."""
    return min(max(value, lo), hi)


def float32(value: float) -> float:
    """Return ``value`` rounded to the nearest float32 (ties to even)."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def accumulate(q_x: Sequence[int], z_x: int, q_w: Sequence[int], bias: int) -> int:
    """Return Σ (q_x − z_x)·q_w + bias, equation (2)."""
    return sum((x - z_x) * w for x, w in zip(q_x, q_w, strict=True)) + bias


def requantize(acc: int, multiplier: int, zero_point: int, lo: int, hi: int) -> int:
    """Return clamp(z + RNE(acc · m / 2**16), lo, hi), equation (3)."""
    return clamp(zero_point + rne_shift(acc * multiplier, REQUANTIZE_SHIFT), lo, hi)


def add(
    q_a: int,
    z_a: int,
    multiplier_a: int,
    q_b: int,
    z_b: int,
    multiplier_b: int,
    zero_point: int,
    lo: int,
    hi: int,
) -> int:
    """Return clamp(z + RNE(((q_a − z_a)·m_a + (q_b − z_b)·m_b) / 2**14), lo, hi), equation (7)."""
    total = (q_a - z_a) * multiplier_a + (q_b - z_b) * multiplier_b
    return clamp(zero_point + rne_shift(total, ADD_SHIFT), lo, hi)


def requantize_with_residual(
    acc: int,
    multiplier: int,
    q_s: int,
    z_s: int,
    multiplier_s: int,
    zero_point: int,
    lo: int,
    hi: int,
) -> int:
    """Return clamp(z + RNE((acc·m + (q_s − z_s)·m_s) / 2**14), lo, hi), equation (7b)."""
    total = acc * multiplier + (q_s - z_s) * multiplier_s
    return clamp(zero_point + rne_shift(total, ADD_SHIFT), lo, hi)


def sum_is_exact(bound_a: int, bound_b: int) -> bool:
    """Whether float32 evaluates (7) or (7b) without error for all results that are not clamped, condition (7c).

    Args:
        bound_a: largest |first product|, an integer count of 2**-14ths: (q_a − z_a)·m_a, or acc·m.
        bound_b: largest |second product|.
    """
    saturating = 1 << (8 + ADD_SHIFT)  # a sum of 256 or more is beyond every clamp bound
    return max(bound_a, bound_b) <= FLOAT32_LIMIT or min(bound_a, bound_b) <= FLOAT32_LIMIT - saturating


def multiply(q_a: int, z_a: int, q_b: int, z_b: int, multiplier: int, zero_point: int, lo: int, hi: int) -> int:
    """Return the product of two activations: equation (3) with acc = (q_a − z_a)·(q_b − z_b)."""
    return requantize((q_a - z_a) * (q_b - z_b), multiplier, zero_point, lo, hi)


def quantize_input(value: float, scale: float, zero_point: int, lo: int, hi: int) -> int:
    """Return clamp(RNE(fl(x / s)) + z, lo, hi) with an IEEE float32 division, equation (11).

    Dividing in double and rounding to float32 gives the float32 quotient: 53 ≥ 2·24 + 2 bits
    (Figueroa, "When is double rounding innocuous?", 1995).
    """
    quotient = float32(value) / float32(scale)
    if quotient >= 2.0**31:  # beyond every clamp bound, and possibly beyond float32
        return hi
    if quotient <= -(2.0**31):
        return lo
    return clamp(round(float32(quotient)) + zero_point, lo, hi)


def accumulator_bound(weights: Sequence[int], bias: int, z_x: int, lo: int, hi: int) -> int:
    """Return Σ|q_w|·max(z_x − lo, hi − z_x) + |bias|: no input gives a larger |accumulator|, equation (13)."""
    return sum(abs(w) for w in weights) * max(z_x - lo, hi - z_x) + abs(bias)


def matmul(
    q_a: Sequence[int], z_a: int, q_b: Sequence[int], z_b: int, multiplier: int, zero_point: int, lo: int, hi: int
) -> int:
    """Return one value of a product of two matrices of activations, equation (14): a row of a, a column of b."""
    acc = sum((a - z_a) * (b - z_b) for a, b in zip(q_a, q_b, strict=True))
    return requantize(acc, multiplier, zero_point, lo, hi)


def softmax(q: Sequence[int], table: Sequence[int], shift: int, zero_point: int, lo: int, hi: int) -> list[int]:
    """Return clamp(z + RNE(2**shift · T[q_max − q] / S), lo, hi) for every q, equation (15)."""
    exponentials = [table[max(q) - value] for value in q]
    total = sum(exponentials)
    return [clamp(zero_point + rne_ratio(entry << shift, total), lo, hi) for entry in exponentials]


def softmax_matmul(
    q: Sequence[int],
    table: Sequence[int],
    q_v: Sequence[int],
    z_v: int,
    multiplier: int,
    zero_point: int,
    lo: int,
    hi: int,
) -> int:
    """Return the mean of values q_v, weighted by the softmax of scores q, equation (16)."""
    exponentials = [table[max(q) - value] for value in q]
    acc = sum(entry * (value - z_v) for entry, value in zip(exponentials, q_v, strict=True))
    return clamp(zero_point + rne_ratio(acc * multiplier, sum(exponentials) << REQUANTIZE_SHIFT), lo, hi)


def normalize_shift(count: int, reach: int, epsilon: int) -> int:
    """Return t of equation (17) for ``count`` values with |x| ≤ ``reach``."""
    return min(20, (52 - (count * count * reach * reach + epsilon).bit_length()) // 2)


def normalize(
    q: Sequence[int],
    z_x: int,
    reach: int,
    epsilon: int,
    gains: Sequence[int],
    biases: Sequence[int],
    zero_point: int,
    lo: int,
    hi: int,
    *,
    centered: bool,
) -> list[int]:
    """Return normalized values, equation (17), with one gain and one bias for each.

    Args:
        q: values that are normalized together.
        z_x: their zero point.
        reach: bound on |q − z_x|.
        epsilon: added to the variance, in units of V.
        gains: in units of 2**-16 output steps.
        biases: in units of 2**-16 output steps.
        zero_point: of the output.
        lo: lower bound of the output.
        hi: upper bound of the output.
        centered: whether the mean is subtracted; RMSNorm does not.
    """
    count = len(q)
    x = [value - z_x for value in q]
    total = sum(x) if centered else 0
    variance = count * sum(value * value for value in x) - total * total + epsilon
    t = normalize_shift(count, reach, epsilon)
    reciprocal = (1 << NORM_RECIPROCAL_BITS) // math.isqrt(variance << 2 * t)
    made = []
    for value, gain, bias in zip(x, gains, biases, strict=True):
        h = rne_shift((count * value - total) * reciprocal, NORM_RECIPROCAL_BITS - NORM_BITS - t)
        real = h * gain + (bias << NORM_BITS)
        made.append(clamp(zero_point + rne_shift(real, NORM_BITS + REQUANTIZE_SHIFT), lo, hi))
    return made

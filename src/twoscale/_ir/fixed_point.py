"""TensorFlow Lite's integer arithmetic on Python integers: equations (18) to (21) of docs/arithmetic.md.

The definition of what every executor computes for a network that was read from a `.tflite` file. Sources: gemmlowp's
``fixedpoint/fixedpoint.h``, and TensorFlow Lite's ``kernels/internal/common.h``, ``quantization_util.cc`` and
``reference/``, in builds that round twice (without ``TFLITE_SINGLE_ROUNDING``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "LEFT_SHIFT",
    "add",
    "exponential",
    "exponential_table",
    "hard_swish",
    "high_product",
    "logistic",
    "mean",
    "mean_multiplier",
    "quantize_multiplier",
    "quotient",
    "reciprocal",
    "rounding_shift",
    "scaled",
    "softmax",
    "tanh",
]

LEFT_SHIFT = 20
"""Operands of an addition are multiplied by 2**20 before they are scaled, equation (19)."""

_ONE = (1 << 31) - 1
"""1.0 with 31 fractional bits, as near as int32 has it."""

_INT16 = (-(1 << 15), (1 << 15) - 1)

# e ** -(2 ** k) for k = -2 ... 4, with 31 fractional bits.
_POWERS = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242}


def _saturated(value: int, limits: tuple[int, int] = (-(1 << 31), (1 << 31) - 1)) -> int:
    return min(max(value, limits[0]), limits[1])


def high_product(a: int, b: int) -> int:
    """Return a · b / 2**31 rounded, ties up: SaturatingRoundingDoublingHighMul of int32."""
    return _saturated((a * b + (1 << 30)) >> 31)


def rounding_shift(value: int, exponent: int) -> int:
    """Return value / 2**exponent rounded, ties away from zero: RoundingDivideByPOT."""
    half = (1 << exponent) >> 1
    return (value + half) >> exponent if value >= 0 else -((-value + half) >> exponent)


def scaled(value: int, mantissa: int, exponent: int) -> int:
    """Return value · mantissa · 2**(exponent − 31), rounded twice: MultiplyByQuantizedMultiplier, equation (18)."""
    return rounding_shift(high_product(value << max(exponent, 0), mantissa), max(-exponent, 0))


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return the mantissa in [2**30, 2**31) and the exponent of a positive factor; (0, 0) below about 2**-32."""
    if real == 0:
        return 0, 0
    fraction, exponent = math.frexp(real)
    mantissa = math.floor(fraction * (1 << 31) + 0.5)  # exact: a float64 has 53 bits
    if mantissa == 1 << 31:
        mantissa, exponent = mantissa // 2, exponent + 1
    return (0, 0) if exponent < -31 else (mantissa, exponent)


def mean_multiplier(mantissa: int, exponent: int, count: int) -> tuple[int, int]:
    """Return the multiplier of a mean of ``count`` values: MEAN divides the mantissa, rounded down."""
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    return (mantissa << shift) // count, exponent - shift


def add(
    a: int,
    b: int,
    mantissas: tuple[int, int, int],
    exponents: tuple[int, int, int],
    zero_point: int,
    lo: int,
    hi: int,
) -> int:
    """Return the sum of two operands, which have their zero points subtracted, equation (19)."""
    first, second = (
        scaled(value << LEFT_SHIFT, m, e) for value, m, e in zip((a, b), mantissas[:2], exponents[:2], strict=True)
    )
    return _saturated(zero_point + scaled(first + second, mantissas[2], exponents[2]), (lo, hi))


def quotient(total: int, count: int) -> int:
    """Return total / count rounded, ties away from zero, equation (20)."""
    half = count // 2
    return (total + half) // count if total > 0 else -((-total + half) // count)


def mean(q: Sequence[int], lo: int, hi: int) -> int:
    """Return the mean of the integers of a window: AVERAGE_POOL_2D, equation (20)."""
    return _saturated(quotient(sum(q), len(q)), (lo, hi))


def exponential(value: int, integer_bits: int) -> int:
    """Return e ** value with 31 fractional bits: exp_on_negative_values.

    Args:
        value: of at most 0, with 31 − integer_bits fractional bits.
        integer_bits: 4 or 5.
    """
    fractional = 31 - integer_bits
    quarter = 1 << (fractional - 2)
    inside = (value & (quarter - 1)) - quarter  # in [-1/4, 0)
    x = (inside << integer_bits) + (1 << 28)  # around -1/8
    x2 = high_product(x, x)
    x3, x4 = high_product(x2, x), high_product(x2, x2)
    third = 715827883
    series = rounding_shift(high_product(rounding_shift(x4, 2) + x3, third) + x2, 1)
    constant = 1895147668  # e ** (-1/8)
    result = constant + high_product(constant, x + series)
    rest = inside - value
    for power, factor in _POWERS.items():
        if power < integer_bits and rest >> (fractional + power) & 1:
            result = high_product(result, factor)
    return _ONE if value == 0 else result


def _newton(value: int) -> int:
    """Return 2 / (1 + value) with 29 fractional bits, for a value in [0, 1] with 31."""
    half_denominator = (value + _ONE + 1) >> 1
    x = 1515870810 + high_product(half_denominator, -1010580540)  # 48/17 − 32/17 · d
    for _ in range(3):
        rest = (1 << 29) - high_product(half_denominator, x)
        x += _saturated(high_product(x, rest) << 2)
    return x


def reciprocal(value: int) -> int:
    """Return 1 / (1 + value) with 31 fractional bits: one_over_one_plus_x_for_x_in_0_1."""
    return _saturated(_newton(value) << 1)


def exponential_table(mantissa: int, exponent: int) -> list[int]:
    """Return e ** (−s · d) with 31 fractional bits for d = 0 … 255: the numerators of SOFTMAX, equation (21).

    The factor is beta · s with 26 fractional bits. Entries beyond the reach of the fixed-point exponential are 0.
    """
    reach = math.floor(31.0 * (1 << 26) / (1 << exponent))
    return [exponential(scaled(-d, mantissa, exponent), 5) if d <= reach else 0 for d in range(256)]


def softmax(q: Sequence[int], table: Sequence[int], lowest: int) -> list[int]:
    """Return 2**8 · e ** q / Σ e ** q in fixed point, equation (21).

    Args:
        q: values that are normalized together.
        table: of 256 exponentials.
        lowest: the smallest integer of the output's type, which stands for 0.
    """
    entries = [table[max(q) - value] for value in q]
    total = sum(rounding_shift(entry, 12) for entry in entries)
    bits = total.bit_length()
    inverse = reciprocal((total << (32 - bits)) - (1 << 31))
    shift = 12 - (32 - bits) + 31 - 8
    return [_saturated(rounding_shift(high_product(inverse, entry), shift), (0, 255)) + lowest for entry in entries]


def _input_of_4(value: int, scale: float) -> int | float:
    """Return a value with 27 fractional bits, or an infinity beyond the 4 integer bits: LOGISTIC and TANH."""
    fraction, exponent = math.frexp(scale * (1 << 27))
    mantissa = math.floor(fraction * (1 << 31) + 0.5)
    radius = math.floor(15.0 * (1 << 27) / 2.0**exponent)
    if value <= -radius:
        return -math.inf
    return math.inf if value >= radius else scaled(value, mantissa, exponent)


def logistic(value: int, scale: float) -> int:
    """Return 2**8 · sigmoid(scale · value), rounded, in [0, 255]."""
    x = _input_of_4(value, scale)
    if isinstance(x, float):
        return 0 if x < 0 else 255
    if x == 0:
        result = 1 << 30
    else:
        result = reciprocal(exponential(-abs(x), 4))
        result = result if x > 0 else _ONE - result
    return _saturated(rounding_shift(result, 23), (0, 255))


def tanh(value: int, scale: float) -> int:
    """Return 2**7 · tanh(scale · value), rounded, in [−128, 127]."""
    x = _input_of_4(value, scale)
    if isinstance(x, float):
        return -128 if x < 0 else 127
    # −2 · |x| has one integer bit more and the same raw value.
    result = 0 if x == 0 else _saturated((_newton(exponential(-abs(x), 5)) - (1 << 29)) << 2)
    return _saturated(rounding_shift(-result if x < 0 else result, 24), (-128, 127))


def _half_product(a: int, b: int) -> int:
    """Return a · b / 2**15 rounded, ties up, of int16."""
    return _saturated((a * b + (1 << 14)) >> 15, _INT16)


def _narrow(mantissa: int) -> int:
    """Return a mantissa with 15 fractional bits: DownScaleInt32ToInt16Multiplier."""
    return _INT16[1] if mantissa >= (1 << 31) - (1 << 15) else (mantissa + (1 << 15)) >> 16


def hard_swish(value: int, to_output: tuple[int, int], to_relu: tuple[int, int]) -> int:
    """Return x · clamp(x + 3, 0, 6) / 6 in steps of the output: HARD_SWISH, in 16 bits.

    Args:
        value: q − z.
        to_output: mantissa and exponent of input scale / 128 / output scale; the exponent is at most 0.
        to_relu: mantissa and exponent of input scale / 128 · 32768 / 3.
    """
    fine = value << 7
    on_output = _half_product(fine, _narrow(to_output[0]))
    exponent = to_relu[1]
    relu = _saturated(fine << (exponent - 1), _INT16) if exponent > 0 else fine
    relu = _half_product(relu, _narrow(to_relu[0]))
    if exponent > 0:
        relu = _saturated(relu << 1, _INT16)
    elif exponent < 0:
        relu = rounding_shift(relu, -exponent)
    relu = (relu + (1 << 15)) >> 1
    product = relu * on_output
    truncated = product >> 15 if product >= 0 else -(-product >> 15)
    return rounding_shift(_saturated(truncated, _INT16), -to_output[1])

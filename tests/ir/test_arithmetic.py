"""The integer contract: its definition against exact fractions, and its claims about float32 against the definition.

Both sides of claims (5) and (7b) never fall as the accumulator rises. If they agree at the two integers around
every point where the definition steps, they agree for every accumulator in between; so the sweeps here cover all
of int32 for the multipliers they take.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twoscale._ir import arithmetic
from twoscale._ir.arithmetic import ADD_SHIFT, FLOAT32_LIMIT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Range = tuple[int, int, int]  # zero point, lo, hi

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIERS = st.integers(1, MULTIPLIER_LIMIT - 1) | st.sampled_from([2**k for k in range(24)])

EDGES = sorted(
    {
        sign * (2**power + offset)
        for power in range(32)
        for offset in (-2, -1, 0, 1, 2)
        for sign in (-1, 1)
        if -(2**31) <= sign * (2**power + offset) < 2**31
    }
    | {-(2**31), 2**31 - 1}
)
EDGE_MULTIPLIERS = [m for m in EDGES if 0 < m < MULTIPLIER_LIMIT]


def ranges() -> Iterator[Range]:
    """Every kind of clamp in use: full and 4 to 7 bit ranges, both types, ReLU (lo = z), ReLU6 (hi lowered)."""
    for bits in (4, 5, 6, 7, 8):
        for lo, hi in ((0, 2**bits - 1), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), (1 - 2 ** (bits - 1), 0)):
            for zero in {lo + lo % 2, (lo + hi) // 4 * 2, hi - hi % 2}:
                yield zero, lo, hi
                yield zero, zero, hi
                yield zero, lo, zero + (hi - zero) // 2


RANGES = sorted(set(ranges()))
RANGE = st.sampled_from(RANGES)

examples = settings(max_examples=200)


def saturate(value: int, lo: int, hi: int) -> int:
    return lo if value < lo else hi if value > hi else value


def checked(values: NDArray[Any]) -> Float32:
    """Nothing was promoted to double on the way."""
    assert values.dtype == np.float32
    return values


def rne(value: Fraction) -> int:
    """Python's round of a Fraction is exact, ties to even."""
    return round(value)


# The definition against fractions.


@examples
@given(st.integers(-(2**70), 2**70), st.integers(1, 60))
@example(1, 1)
@example(3, 1)
@example(-1, 1)
@example(-3, 1)
def test_shift_rounds_to_nearest_even(value: int, shift: int) -> None:
    assert arithmetic.rne_shift(value, shift) == rne(Fraction(value, 2**shift))


@examples
@given(st.integers(-(2**70), 2**70), st.integers(1, 2**40))
@example(5, 2)
@example(-5, 2)
@example(7, 2)
def test_ratio_rounds_to_nearest_even(numerator: int, denominator: int) -> None:
    assert arithmetic.rne_ratio(numerator, denominator) == rne(Fraction(numerator, denominator))


def test_shift_at_every_edge() -> None:
    for value, shift in itertools.product(EDGES, (1, 2, 13, ADD_SHIFT, 15, REQUANTIZE_SHIFT, 17, 31)):
        assert arithmetic.rne_shift(value, shift) == rne(Fraction(value, 2**shift)), (value, shift)


@examples
@given(INT32, MULTIPLIERS, RANGE)
def test_requantize_is_its_formula(acc: int, multiplier: int, range_: Range) -> None:
    zero, lo, hi = range_
    expected = saturate(zero + rne(Fraction(acc * multiplier, 2**16)), lo, hi)
    assert arithmetic.requantize(acc, multiplier, zero, lo, hi) == expected


@examples
@given(st.data(), RANGE, RANGE, RANGE, MULTIPLIERS, MULTIPLIERS)
def test_add_and_multiply_are_their_formulas(
    data: st.DataObject, a: Range, b: Range, y: Range, m_a: int, m_b: int
) -> None:
    q_a, q_b = (data.draw(st.integers(lo, hi)) for _, lo, hi in (a, b))
    (z_a, *_), (z_b, *_), (z_y, lo, hi) = a, b, y
    total = Fraction((q_a - z_a) * m_a + (q_b - z_b) * m_b, 2**14)
    assert arithmetic.add(q_a, z_a, m_a, q_b, z_b, m_b, z_y, lo, hi) == saturate(z_y + rne(total), lo, hi)
    product = Fraction((q_a - z_a) * (q_b - z_b) * m_a, 2**16)
    assert arithmetic.multiply(q_a, z_a, q_b, z_b, m_a, z_y, lo, hi) == saturate(z_y + rne(product), lo, hi)


@examples
@given(st.data(), INT32, MULTIPLIERS, RANGE, MULTIPLIERS, RANGE)
def test_residual_is_its_formula(data: st.DataObject, acc: int, m: int, s: Range, m_s: int, y: Range) -> None:
    z_s, lo_s, hi_s = s
    q_s = data.draw(st.integers(lo_s, hi_s))
    z_y, lo, hi = y
    total = Fraction(acc * m + (q_s - z_s) * m_s, 2**14)
    assert arithmetic.requantize_with_residual(acc, m, q_s, z_s, m_s, z_y, lo, hi) == saturate(z_y + rne(total), lo, hi)


@examples
@given(st.integers(-300, 300), RANGE)
def test_clamp_is_within_and_idempotent(value: int, range_: Range) -> None:
    _, lo, hi = range_
    clamped = arithmetic.clamp(value, lo, hi)
    assert lo <= clamped <= hi
    assert clamped == saturate(value, lo, hi)
    assert arithmetic.clamp(clamped, lo, hi) == clamped


@examples
@given(st.floats(-3.0e38, 3.0e38, allow_nan=False))
def test_float32_is_numpys(value: float) -> None:
    assert arithmetic.float32(value) == float(np.float32(value))


@examples
@given(st.data(), RANGE, st.integers(-(2**20), 2**20))
def test_accumulators_stay_within_their_bound(data: st.DataObject, x: Range, bias: int) -> None:
    zero, lo, hi = x
    weights = data.draw(st.lists(st.integers(-127, 127), max_size=6))
    inputs = data.draw(st.lists(st.integers(lo, hi), min_size=len(weights), max_size=len(weights)))
    acc = arithmetic.accumulate(inputs, zero, weights, bias)
    assert acc == int(np.dot(np.array(inputs, np.int64) - zero, np.array(weights, np.int64))) + bias
    assert abs(acc) <= arithmetic.accumulator_bound(weights, bias, zero, lo, hi)


def test_the_accumulator_bound_is_reached() -> None:
    weights, bias = [127, 3, 90], 17
    assert arithmetic.accumulator_bound(weights, bias, 0, 0, 255) == arithmetic.accumulate([255] * 3, 0, weights, bias)
    reached = arithmetic.accumulate([-128] * 3, 0, [-w for w in weights], bias)
    assert arithmetic.accumulator_bound(weights, bias, 0, -128, 127) == reached


# Equation (11).


@examples
@given(
    st.floats(-1e4, 1e4, width=32),
    st.floats(2.0**-20, 2.0**10, width=32),
    st.sampled_from(RANGES),
)
def test_quantize_input_is_float32_division(value: float, scale: float, range_: Range) -> None:
    zero, lo, hi = range_
    quotient = np.float32(value) / np.float32(scale)
    expected = saturate(zero + int(np.rint(quotient)), lo, hi)
    assert arithmetic.quantize_input(value, scale, zero, lo, hi) == expected


def test_quantize_input_at_every_tie_of_many_scales() -> None:
    """x = s·(k + 1/2) and both its float32 neighbours, for scales with short and long significands."""
    scales = [np.float32(s) for s in (1.0, 0.5, 1 / 3, 0.1, 0.0078125, 0.0173, 1e-3, 3.0517578e-05, 7.77)]
    for scale in scales:
        half = (np.arange(-260, 260, dtype=np.float32) + np.float32(0.5)) * scale
        values = np.concatenate([half, np.nextafter(half, np.float32(np.inf)), np.nextafter(half, -np.float32(np.inf))])
        expected = np.clip(np.rint(values / scale).astype(np.int64) + 128, 0, 255)
        found = [arithmetic.quantize_input(float(v), float(scale), 128, 0, 255) for v in values]
        assert found == expected.tolist(), scale


def test_quantize_input_differs_from_division_in_double() -> None:
    """The division must be in float32: rounding the quotient makes ties that are none in double."""
    differences = 0
    for k in range(200):
        scale = float(np.float32(0.1))
        value = float(np.float32((k + 0.5) * 0.1))
        in_double = saturate(round(value / scale), 0, 255)
        differences += in_double != arithmetic.quantize_input(value, scale, 0, 0, 255)
    assert differences > 0


@pytest.mark.parametrize(("value", "expected"), [(3e38, 255), (-3e38, 0), (2.0**40, 255), (-(2.0**40), 0), (0.0, 4)])
def test_quantize_input_saturates_beyond_float32(value: float, expected: int) -> None:
    assert arithmetic.quantize_input(value, 2.0**-20, 4, 0, 255) == expected


# Claim (5): float32 requantization.


def float_requantize(acc: Int64, multiplier: int | Int64) -> Float32:
    """RNE(fl(fl(acc)·fl(m / 2**16))), in float32 throughout."""
    factor = np.ldexp(np.asarray(multiplier, np.float32), -REQUANTIZE_SHIFT)
    return checked(np.rint(acc.astype(np.float32) * factor))


def exact_requantize(acc: Int64, multiplier: int | Int64, shift: int = REQUANTIZE_SHIFT, offset: int = 0) -> Int64:
    """RNE((acc·m + offset) / 2**shift) on int64, independent of the implementation under test."""
    total = acc * multiplier + offset
    floor, rest = total >> shift, total & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    return np.asarray(floor + ((rest > half) | ((rest == half) & (floor % 2 == 1))), np.int64)


def around_steps(multiplier: int, shift: int, offset: int = 0) -> Int64:
    """Every accumulator beside a step of RNE((acc·m + offset) / 2**shift) from −258 to 258, and int32's ends."""
    steps = np.arange(-258, 259, dtype=np.int64) * 2**shift + 2 ** (shift - 1) - offset
    below = steps // multiplier
    limits = np.array([-(2**31), -(2**31) + 1, -(2**24) - 1, -1, 0, 1, 2**24 + 1, 2**31 - 2, 2**31 - 1])
    accs = np.concatenate([below - 1, below, below + 1, limits])
    return accs[(accs >= -(2**31)) & (accs < 2**31)]


def beyond(value: NDArray[np.int64] | Float32) -> Int64:
    """Values beyond every clamp made equal: with hi − lo ≤ 255, z ± 256 is outside [lo, hi] for every z in it."""
    return np.clip(value, -256, 256).astype(np.int64)


def many_multipliers(seed: int, count: int) -> list[int]:
    rng = np.random.default_rng(seed)
    spread = np.exp2(rng.uniform(0, 24, count)).astype(np.int64)
    return sorted({*EDGE_MULTIPLIERS, *(int(m) for m in spread if 0 < m < MULTIPLIER_LIMIT)})


def test_exact_requantize_is_the_definition() -> None:
    for acc, m in itertools.product(EDGES[::3], EDGE_MULTIPLIERS[::5]):
        found = int(exact_requantize(np.array([acc]), m)[0])
        assert found == arithmetic.rne_shift(acc * m, 16), (acc, m)


def test_float32_requantization_is_exact_for_every_accumulator() -> None:
    for m in many_multipliers(5, 2000):
        acc = around_steps(m, REQUANTIZE_SHIFT)
        same = beyond(float_requantize(acc, m)) == beyond(exact_requantize(acc, m))
        assert same.all(), (m, acc[~same][:3])


def test_float32_requantization_at_edge_pairs() -> None:
    accs = np.array(EDGES, np.int64)
    for m in EDGE_MULTIPLIERS:
        assert np.array_equal(beyond(float_requantize(accs, m)), beyond(exact_requantize(accs, m))), m


@examples
@given(INT32 | st.sampled_from(EDGES), MULTIPLIERS, RANGE)
def test_claim_5_for_every_clamp_range(acc: int, multiplier: int, range_: Range) -> None:
    zero, lo, hi = range_
    rounded = float_requantize(np.array([acc]), multiplier)[0]
    expected = arithmetic.requantize(acc, multiplier, zero, lo, hi)
    assert saturate(int(rounded) + zero, lo, hi) == expected
    # Clamping before rounding, as ONNX Runtime's kernels do, gives the same.
    product = np.float32(acc) * np.ldexp(np.float32(multiplier), -16)
    assert int(np.rint(np.clip(product, np.float32(lo - zero), np.float32(hi - zero)))) + zero == expected


@pytest.mark.parametrize("range_", RANGES)
def test_claim_5_at_the_ends_of_every_clamp_range(range_: Range) -> None:
    zero, lo, hi = range_
    for m in (1, 3, 255, 32767, 32768, 65535, 65536, 65537, 8388607, MULTIPLIER_LIMIT - 1):
        for end in (lo - zero, hi - zero):
            for step in (end - 1, end):  # the steps into and out of the last value
                edge = (step * 2**16 + 2**15) // m
                for acc in range(max(edge - 1, -(2**31)), min(edge + 3, 2**31)):
                    found = saturate(int(float_requantize(np.array([acc]), m)[0]) + zero, lo, hi)
                    assert found == arithmetic.requantize(acc, m, zero, lo, hi), (acc, m)


def count_claim_5(rounding: Callable[[Float32], Float32], error: int = 0, clamped: bool = True) -> int:
    """Mismatches of a faulty float32 requantization to [0, 255] at all steps of many multipliers."""
    mismatches = 0
    for m in many_multipliers(6, 100):
        acc = around_steps(m, REQUANTIZE_SHIFT)
        factor = np.ldexp(np.float32(m + error), -16)
        found = rounding(acc.astype(np.float32) * factor).astype(np.int64)
        expected = exact_requantize(acc, m)
        if clamped:
            found, expected = np.clip(found, 0, 255), np.clip(expected, 0, 255)
        mismatches += int((found != expected).sum())
    return mismatches


def test_faults_in_requantization_show() -> None:
    assert count_claim_5(np.rint) == 0
    assert count_claim_5(lambda v: np.floor(v + np.float32(0.5))) > 0  # ties up
    assert count_claim_5(lambda v: np.copysign(np.floor(np.abs(v) + np.float32(0.5)), v)) > 0  # ties away from zero
    assert count_claim_5(np.trunc) > 0
    assert count_claim_5(np.rint, error=1) > 0
    assert count_claim_5(np.rint, error=-1) > 0
    assert count_claim_5(np.rint, clamped=False) > 0


# Equation (7): additions. All 256 × 256 operand pairs for each set of parameters.

Q = np.arange(256, dtype=np.int64)


def exact_add(z_a: int, m_a: int, z_b: int, m_b: int) -> Int64:
    """RNE of (7) before z is added, (256, 256)."""
    a, b = (Q - z_a)[:, None] * m_a, (Q - z_b)[None, :] * m_b
    return exact_requantize(a + b, 1, ADD_SHIFT)


def float_add(z_a: int, m_a: int, z_b: int, m_b: int) -> Float32:
    """The sum of (7) in float32: zero points subtracted, two products, one sum."""
    f_a, f_b = (np.ldexp(np.float32(m), -ADD_SHIFT) for m in (m_a, m_b))
    a, b = (Q - z_a).astype(np.float32) * f_a, (Q - z_b).astype(np.float32) * f_b
    return checked(a[:, None] + b[None, :])


def fused_add(z_a: int, m_a: int, z_b: int, m_b: int) -> Float32:
    """The same with the second product not rounded before the sum (a fused multiply-add)."""
    a = ((Q - z_a).astype(np.float32) * np.ldexp(np.float32(m_a), -ADD_SHIFT)).astype(np.float64)
    b = (Q - z_b).astype(np.float64) * np.ldexp(float(m_b), -ADD_SHIFT)
    return checked((a[:, None] + b[None, :]).astype(np.float32))


def folded_add(z_a: int, m_a: int, z_b: int, m_b: int, z_y: int) -> Float32:
    """Another order, that of vectorized kernels: all zero points in one constant, then q_a·f_a, then q_b·f_b."""
    f_a, f_b = (np.ldexp(np.float32(m), -ADD_SHIFT) for m in (m_a, m_b))
    constant = np.float32(z_y) - (f_a * np.float32(z_a) + f_b * np.float32(z_b))
    a, b = Q.astype(np.float32) * f_a, Q.astype(np.float32) * f_b
    return checked((constant + a[:, None]) + b[None, :])


def add_parameters(seed: int, count: int, most: Callable[[int, int], tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """Even zero points, and multipliers up to ``most`` (given the largest |q − z| of both), often at it."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        z_a, z_b, z_y = (2 * int(z) for z in rng.integers(0, 128, 3))
        limits = most(max(z_a, 255 - z_a), max(z_b, 255 - z_b))
        m_a, m_b = (limit if rng.random() < 0.3 else int(rng.integers(1, limit + 1)) for limit in limits)
        yield (z_a, m_a, z_b, m_b, z_y) if rng.random() < 0.5 else (z_b, m_b, z_a, m_a, z_y)


def both_within(d_a: int, d_b: int) -> tuple[int, int]:
    return FLOAT32_LIMIT // d_a, FLOAT32_LIMIT // d_b


def one_within(d_a: int, d_b: int) -> tuple[int, int]:
    return 3 * 2**22 // d_a, MULTIPLIER_LIMIT - 1


@pytest.mark.parametrize("most", [both_within, one_within])
def test_additions_are_exact_in_float32_for_all_operands(most: Callable[[int, int], tuple[int, int]]) -> None:
    for z_a, m_a, z_b, m_b, z_y in add_parameters(7, 60, most):
        expected = exact_add(z_a, m_a, z_b, m_b)
        for evaluate in (float_add, fused_add):
            total = evaluate(z_a, m_a, z_b, m_b)
            assert np.array_equal(beyond(np.rint(total)), beyond(expected)), (evaluate, z_a, m_a, z_b, m_b)
            # z_y added before rounding: the same, because z_y is even.
            before = np.clip(np.rint(total + np.float32(z_y)), 0, 255)
            assert np.array_equal(before, np.clip(expected + z_y, 0, 255)), (evaluate, z_a, m_a, z_b, m_b, z_y)


def test_any_order_of_an_addition_is_exact_within_the_narrower_limit() -> None:
    """(7d): 255·(m_a + m_b) + 2**22 ≤ 2**24 keeps every partial sum exact, with raw integers too."""

    def narrow(d_a: int, d_b: int) -> tuple[int, int]:
        return 49344 // 3, 49344 - 49344 // 3

    for z_a, m_a, z_b, m_b, z_y in add_parameters(8, 60, narrow):
        total = folded_add(z_a, m_a, z_b, m_b, z_y)
        expected = np.clip(exact_add(z_a, m_a, z_b, m_b) + z_y, 0, 255)
        assert np.array_equal(np.clip(np.rint(total), 0, 255), expected), (z_a, m_a, z_b, m_b, z_y)


def test_folded_zero_points_can_be_wrong_beyond_the_narrower_limit() -> None:
    """Why (7d) is a separate condition: these parameters satisfy (7c)."""
    z_a, m_a, z_b, m_b, z_y = 104, 104176, 104, 104803, 218
    assert arithmetic.sum_is_exact(151 * m_a, 151 * m_b)
    expected = np.clip(exact_add(z_a, m_a, z_b, m_b) + z_y, 0, 255)
    assert np.array_equal(np.clip(np.rint(float_add(z_a, m_a, z_b, m_b)) + z_y, 0, 255), expected)
    different = sum(
        int((np.clip(np.rint(folded_add(*p)), 0, 255) != np.clip(exact_add(*p[:4]) + p[4], 0, 255)).sum())
        for p in [(z_a, m_a, z_b, m_b, z_y), *add_parameters(9, 300, both_within)]
        if 255 * (p[1] + p[3]) > 2**24
    )
    assert different > 0


def test_the_addition_of_the_definition_is_the_swept_one() -> None:
    for z_a, m_a, z_b, m_b, z_y in add_parameters(10, 8, both_within):
        expected = np.clip(exact_add(z_a, m_a, z_b, m_b) + z_y, 0, 255)
        for q_a, q_b in itertools.product((0, 1, 127, 128, 254, 255), repeat=2):
            assert arithmetic.add(q_a, z_a, m_a, q_b, z_b, m_b, z_y, 0, 255) == expected[q_a, q_b]


def count_adds(z_y: int, finish: Callable[[Float32, int], Float32], error: int = 0) -> int:
    mismatches = 0
    for z_a, m_a, z_b, m_b, _ in add_parameters(11, 30, lambda d_a, d_b: (2**14, 2**14)):
        expected = np.clip(exact_add(z_a, m_a, z_b, m_b) + z_y, 0, 255)
        found = finish(float_add(z_a, m_a + error, z_b, m_b), z_y)
        mismatches += int((found != expected).sum())
    return mismatches


def z_before(total: Float32, z_y: int) -> Float32:
    clipped: Float32 = np.clip(np.rint(total + np.float32(z_y)), 0, 255)
    return clipped


def z_after(total: Float32, z_y: int) -> Float32:
    clipped: Float32 = np.clip(np.rint(total) + np.float32(z_y), 0, 255)
    return clipped


def test_an_odd_zero_point_makes_the_order_matter() -> None:
    assert count_adds(128, z_before) == 0
    assert count_adds(128, z_after) == 0
    assert count_adds(127, z_after) == 0
    assert count_adds(127, z_before) > 0


def test_faults_in_additions_show() -> None:
    assert count_adds(128, lambda total, z: np.clip(np.floor(total + np.float32(0.5)) + np.float32(z), 0, 255)) > 0
    assert count_adds(128, z_after, error=1) > 0
    assert count_adds(128, lambda total, z: np.rint(total) + np.float32(z)) > 0


def test_beyond_its_condition_an_addition_fails() -> None:
    """(7c) is needed: a product just above 2**24 rounds, and the other one brings the sum back onto a tie."""
    m_a = 65795
    product, rounded = 255 * m_a, int(np.float32(255 * m_a))
    assert product > FLOAT32_LIMIT
    assert product != rounded
    z_b = 254
    for k in range(-200, 200):
        tie = k * 2**ADD_SHIFT + 2 ** (ADD_SHIFT - 1)
        m_b, rest = divmod(rounded - tie, 254)
        if rest or m_b >= MULTIPLIER_LIMIT:
            continue
        assert not arithmetic.sum_is_exact(product, 254 * m_b)
        exact, found = exact_add(0, m_a, z_b, m_b)[255, 0], np.rint(float_add(0, m_a, z_b, m_b))[255, 0]
        if exact != found:
            assert abs(exact) < 256
            return
    pytest.fail("expected a counterexample beyond condition (7c)")


# Equation (7b): the residual is added before requantization.


def float_residual(acc: Int64, m: int, residual: int, m_s: int) -> Float32:
    product = acc.astype(np.float32) * np.ldexp(np.float32(m), -ADD_SHIFT)
    return checked(product + np.float32(residual) * np.ldexp(np.float32(m_s), -ADD_SHIFT))


def fused_residual(acc: Int64, m: int, residual: int, m_s: int) -> Float32:
    product = acc.astype(np.float32).astype(np.float64) * np.ldexp(float(m), -ADD_SHIFT)
    return checked((product + residual * np.ldexp(float(m_s), -ADD_SHIFT)).astype(np.float32))


def test_residual_sums_are_exact_in_float32_for_every_accumulator() -> None:
    """With |q_s − z_s|·m_s ≤ 3·2**22 there is no condition on the accumulator: beyond 2**24 its rounding is
    harmless."""
    rng = np.random.default_rng(12)
    for m in many_multipliers(13, 150):
        for _ in range(3):
            residual = int(rng.choice([-255, -254, -128, -1, 0, 1, 127, 254, 255]))
            most = 3 * 2**22 // max(1, abs(residual))
            m_s = min(MULTIPLIER_LIMIT - 1, most if rng.random() < 0.4 else int(rng.integers(1, most + 1)))
            acc = around_steps(m, ADD_SHIFT, residual * m_s)
            expected = beyond(exact_requantize(acc, m, ADD_SHIFT, residual * m_s))
            for evaluate in (float_residual, fused_residual):
                total = evaluate(acc, m, residual, m_s)
                same = beyond(np.rint(total)) == expected
                assert same.all(), (evaluate, m, residual, m_s, acc[~same][:3])
                same = np.clip(np.rint(total + np.float32(128)), 0, 255) == np.clip(expected + 128, 0, 255)
                assert same.all(), (evaluate, m, residual, m_s, acc[~same][:3])


def test_residual_sums_with_a_small_convolution_are_exact_for_any_residual() -> None:
    """The other case of (7c): if |acc·m| stays within 3·2**22, the residual may have any multiplier."""
    rng = np.random.default_rng(14)
    for m_s in many_multipliers(15, 100):
        m = int(np.exp2(rng.uniform(0, 20)))
        acc = rng.integers(-(3 * 2**22) // m, 3 * 2**22 // m + 1, 400)
        for residual in (-255, -3, 0, 1, 254):
            expected = beyond(exact_requantize(acc, m, ADD_SHIFT, residual * m_s))
            assert np.array_equal(beyond(np.rint(float_residual(acc, m, residual, m_s))), expected), (m, m_s, residual)


def test_the_residual_of_the_definition_is_the_swept_one() -> None:
    acc = np.array(EDGES, np.int64)
    for m, q_s, m_s in itertools.product((1, 16384, 49345), (0, 100, 255), (1, 12345, 49344)):
        expected = np.clip(exact_requantize(acc, m, ADD_SHIFT, (q_s - 100) * m_s) + 2, 0, 255)
        found = [arithmetic.requantize_with_residual(a, m, q_s, 100, m_s, 2, 0, 255) for a in EDGES]
        assert found == expected.tolist()


def test_beyond_its_condition_a_residual_sum_fails() -> None:
    """A residual of more than 3·2**22 can meet an accumulator that float32 rounds, with a sum that matters."""
    m, residual, m_s = 1, -255, 65800
    acc = around_steps(m, ADD_SHIFT, residual * m_s)
    assert not arithmetic.sum_is_exact(2**31, 255 * m_s)
    expected = beyond(exact_requantize(acc, m, ADD_SHIFT, residual * m_s))
    assert (beyond(np.rint(float_residual(acc, m, residual, m_s))) != expected).any()


def test_faults_in_residual_sums_show() -> None:
    m, residual, m_s = 7, -99, 10000
    acc = around_steps(m, ADD_SHIFT, residual * m_s)
    expected = np.clip(exact_requantize(acc, m, ADD_SHIFT, residual * m_s) + 128, 0, 255)

    def mismatches(total: Float32) -> int:
        return int((np.clip(np.rint(total) + np.float32(128), 0, 255) != expected).sum())

    assert mismatches(float_residual(acc, m, residual, m_s)) == 0
    assert mismatches(float_residual(acc, m + 1, residual, m_s)) > 0
    assert mismatches(float_residual(acc, m, residual, m_s - 1)) > 0
    assert mismatches(float_residual(acc, m, residual + 1, m_s)) > 0
    two_roundings = np.rint(acc.astype(np.float32) * np.ldexp(np.float32(m), -14)) + np.rint(
        np.float32(residual) * np.ldexp(np.float32(m_s), -14)
    )
    assert mismatches(two_roundings) > 0


@pytest.mark.parametrize(
    ("bound_a", "bound_b", "exact"),
    [
        (2**24, 2**24, True),
        (2**24 + 1, 2**24, False),
        (2**24 + 1, 3 * 2**22, True),
        (2**24 + 1, 3 * 2**22 + 1, False),
        (3 * 2**22, 2**40, True),
        (2**40, 2**40, False),
        (0, 2**55, True),
    ],
)
def test_condition_7c(bound_a: int, bound_b: int, exact: bool) -> None:
    assert arithmetic.sum_is_exact(bound_a, bound_b) is exact
    assert arithmetic.sum_is_exact(bound_b, bound_a) is exact


def test_limits_of_the_multipliers() -> None:
    assert FLOAT32_LIMIT // 255 == 65793  # a ratio of 4.01 for both operands of uint8 with z = 0
    assert 3 * 2**22 // 255 == 49344  # a ratio of 3.01
    assert int(np.float32(FLOAT32_LIMIT)) == FLOAT32_LIMIT
    assert int(np.float32(FLOAT32_LIMIT + 1)) != FLOAT32_LIMIT + 1

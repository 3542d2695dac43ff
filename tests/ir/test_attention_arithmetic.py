"""Equations (14) to (17): the definition against fractions and real functions, and exact arithmetic in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integer_networks import random_images, random_network
from tests.sweep import count
from twoscale._ir import arithmetic
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators import attention, normalizing
from twoscale._ir.operators.attention import MOST_PRODUCTS, exponentials, largest_exponential
from twoscale._ir.reference import ReferenceExecutor
from twoscale.errors import QuantizationError

bytes_ = st.integers(0, 255)


def clamped(value: Fraction, zero_point: int) -> int:
    """Return clamp(z + RNE(value), 0, 255); Python rounds fractions to even."""
    return min(max(zero_point + round(value), 0), 255)


@given(st.lists(st.tuples(bytes_, bytes_), min_size=1, max_size=9), bytes_, bytes_, st.integers(1, 2**24 - 1))
def test_matmul_is_its_formula(pairs: list[tuple[int, int]], z_a: int, z_b: int, m: int) -> None:
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    acc = sum((p - z_a) * (q - z_b) for p, q in pairs)
    assert arithmetic.matmul(a, z_a, b, z_b, m, 128, 0, 255) == clamped(Fraction(acc * m, 2**16), 128)


@given(st.lists(bytes_, min_size=1, max_size=9), st.floats(1e-3, 2), st.integers(0, 15), st.integers(0, 16))
def test_softmax_is_its_formula(q: list[int], scale: float, bits: int, shift: int) -> None:
    table = exponentials(scale, 1 << bits).tolist()
    entries = [table[max(q) - value] for value in q]
    expected = [clamped(Fraction(entry << shift, sum(entries)), 0) for entry in entries]
    assert arithmetic.softmax(q, table, shift, 0, 0, 255) == expected
    in_float64 = [min(max(round(entry * 2.0**shift / float(sum(entries))), 0), 255) for entry in entries]
    assert in_float64 == expected


@given(st.lists(st.tuples(bytes_, bytes_), min_size=1, max_size=9), st.floats(1e-3, 2), st.integers(1, 2**24 - 1))
def test_softmax_with_a_product_is_its_formula(pairs: list[tuple[int, int]], scale: float, m: int) -> None:
    scores, values = ([pair[i] for pair in pairs] for i in (0, 1))
    table = exponentials(scale, largest_exponential(len(pairs), 128)).tolist()
    entries = [table[max(scores) - q] for q in scores]
    acc = sum(entry * (value - 128) for entry, value in zip(entries, values, strict=True))
    expected = clamped(Fraction(acc * m, sum(entries) << 16), 100)
    assert arithmetic.softmax_matmul(scores, table, values, 128, m, 100, 0, 255) == expected
    assert min(max(100 + round(float(acc * m) / float(sum(entries) << 16)), 0), 255) == expected


def test_float64_rounds_quotients_near_ties_as_fractions_do() -> None:
    """The quotients nearest to ties with the largest denominators that (15) and (16) allow, and ties themselves."""
    rng = np.random.default_rng(0)
    for total, limit in ((2**31 - 1, 2**31), (2**28 - 1, 2**52)):
        unit = 1 if limit == 2**31 else 2**16
        for denominator in (total, total - 1, *(int(v) for v in rng.integers(1, total, 40))):
            for tie in (0, 1, 2, 127, 128, 254, 255):
                middle = (2 * tie + 1) * denominator * unit // 2
                for numerator in (middle - 1, middle, middle + 1):
                    if 0 <= numerator < limit:
                        exact = arithmetic.rne_ratio(numerator, denominator * unit)
                        assert round(float(numerator) / float(denominator * unit)) == exact


def test_float64_takes_square_roots_and_reciprocals_of_integers_as_integers_do() -> None:
    rng = np.random.default_rng(1)
    roots = [1, 2, 3, 2**25, 2**26 - 1, *(int(v) for v in rng.integers(1, 2**26, 5000))]
    for root in roots:
        for square in (root * root - 1, root * root, root * root + 1):
            if 0 < square < 2**52:
                assert math.floor(np.sqrt(np.float64(square))) == math.isqrt(square)
        assert math.floor(2.0**42 / float(root)) == 2**42 // root


def real_norm(x: Any, gain: Any, bias: Any, eps: float, *, centered: bool) -> Any:
    inner = x - x.mean() if centered else x
    return inner / np.sqrt((inner * inner).mean() + eps) * gain + bias


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("size", "spread"), [(2, 100), (64, 1), (64, 40), (768, 8), (768, 60), (20_000, 30)])
def test_norms_are_close_to_the_real_function(size: int, spread: float, *, centered: bool) -> None:
    """Within half a step, and the share of a step that the document states."""
    rng = np.random.default_rng(size)
    scale, step, worst = 0.05, 0.03, 0.0
    for zero_point in (0, 128, 254):
        q = np.clip(np.rint(rng.normal(zero_point, spread, size)), 0, 255).astype(int)
        gain, bias = rng.normal(1, 0.3, size), rng.normal(0, 0.5, size)
        epsilon = max(1, round(size * size * 1e-5 / scale**2))
        g, b = (np.rint(65536 * real / step).astype(int).tolist() for real in (gain, bias))
        reach = max(zero_point, 255 - zero_point)
        found = arithmetic.normalize(
            q.tolist(), zero_point, reach, epsilon, g, b, 0, -(10**6), 10**6, centered=centered
        )  # fmt: skip
        expected = real_norm(scale * (q - zero_point), gain, bias, 1e-5, centered=centered) / step
        worst = max(worst, float(np.abs(found - expected).max()))
    assert worst <= 0.5 + 0.02


@pytest.mark.parametrize("length", [2, 65, 197, 1024])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_softmax_is_close_to_the_real_function(length: int, spread: float) -> None:
    """Its own step is all that matters: the table and its sum add less than 0.05 of one."""
    scale, rng = 16 * spread / 255, np.random.default_rng(length)
    q = np.clip(np.rint(rng.normal(128, spread / scale, length)), 0, 255).astype(int)
    weights = np.exp(scale * (q - q.max()))
    weights /= weights.sum()
    found = arithmetic.softmax(q.tolist(), exponentials(scale, 1 << 15).tolist(), 8, 0, 0, 255)
    assert np.abs(found - np.minimum(256 * weights, 255)).max() <= 0.55
    values = rng.normal(128, 40, length).round().clip(0, 255).astype(int)
    table = exponentials(scale, largest_exponential(length, 128)).tolist()
    mean = arithmetic.softmax_matmul(q.tolist(), table, values.tolist(), 128, 65536, 128, 0, 255)
    assert abs(mean - 128 - float(weights @ (values - 128))) <= 0.5 + 0.25


def one_layer(shape: tuple[int, ...], make: Callable[[n.TensorSpec], n.Layer]) -> IntegerNetwork:
    x = n.TensorSpec(shape, "uint8", 1.0, 128, 0, 255)
    layer = make(x)
    flat = dataclasses.replace(layer.output, shape=(math.prod(layer.output.shape),))
    end = n.Reshape(name="flat", inputs=("l",), output=flat)
    return IntegerNetwork("one", (n.QuantizeInput(name="input", inputs=(), output=x), layer, end), ("flat",))


def normalizing_layer(x: n.TensorSpec, **changes: Any) -> n.Layer:
    one = np.ones((1,) * len(x.shape), np.int32)
    fields: dict[str, Any] = {"axes": (0,), "epsilon": 1, "centered": True, "gain": one, "bias": one, **changes}
    return n.Normalize(name="l", inputs=("input",), output=x, **fields)


def softmax_layer(x: n.TensorSpec, table: Any = None, scale: float = 2.0**-8) -> n.Layer:
    spec = dataclasses.replace(x, scale=scale, zero_point=0)
    table = exponentials(0.1, 1 << 15) if table is None else table
    return n.Softmax(name="l", inputs=("input",), output=spec, axis=0, table=table)


M = n.Multiplier.on_grid(np.array([65536]))
REFUSED: dict[str, tuple[tuple[int, ...], Callable[[n.TensorSpec], n.Layer], str]] = {
    "sums of a product": (
        (1, 1, MOST_PRODUCTS + 1),
        lambda x: n.MatMul(name="l", inputs=("input", "input"), output=x, multiplier=M),
        f"sums of {MOST_PRODUCTS + 1} products can leave int32",
    ),
    "shapes of a product": (
        (1, 2, 3),
        lambda x: n.MatMul(name="l", inputs=("input", "input"), output=x, multiplier=M),
        "as many columns in the first",
    ),
    "a rising table": ((4,), lambda x: softmax_layer(x, np.arange(256, dtype=np.int32)), "256 int32 that fall"),
    "a table of another type": ((4,), lambda x: softmax_layer(x, exponentials(0.1, 99).astype(np.int64)), "got int64"),
    "a scale that is no power of two": ((4,), lambda x: softmax_layer(x, scale=0.3), "expected a power of two"),
    "a long softmax": ((65536,), softmax_layer, "a softmax over 65536 values"),
    "a table for shorter sums": (
        (1, 99, 99),
        lambda x: n.SoftmaxMatMul(
            name="l", inputs=("input", "input"), output=x, multiplier=M, table=exponentials(0.1, 1 << 15)
        ),
        "sums of 99 weighted values are beyond",
    ),
    "many values": (
        (2**17 + 1,), normalizing_layer, "131073 values are normalized"
    ),
    "an epsilon of 0": ((4,), lambda x: normalizing_layer(x, epsilon=0), "an epsilon from 1"),
    "a large gain": (
        (4,), lambda x: normalizing_layer(x, gain=np.array([2**28], np.int32)), "expected gains below"
    ),
    "gains of another shape": (
        (4,),
        lambda x: normalizing_layer(x, gain=np.ones(3, np.int32), bias=np.ones(3, np.int32)),
        r"gains of shape \(3,\)",
    ),
    "axes": ((4,), lambda x: normalizing_layer(x, axes=(1,)), r"axes \(1,\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_exact_is_refused(what: str) -> None:
    shape, make, message = REFUSED[what]
    with pytest.raises(QuantizationError, match=message):
        one_layer(shape, make)


def test_tables_get_coarser_for_longer_sums() -> None:
    for length in (1, 2, 65, 197, 1024, 4096):
        for reach in (1, 128, 255):
            largest = largest_exponential(length, reach)
            assert largest * length * reach <= 2**28
            assert largest == 1 << 15 or 2 * largest * length * reach > 2**28
    with pytest.raises(ValueError, match="a softmax over 9000 values is too long"):
        largest_exponential(9000, 255)


def ties_up(numerator: Any, denominator: Any) -> Any:
    return (2 * numerator + denominator) // (2 * denominator)


def truncated(numerator: Any, denominator: Any) -> Any:
    return np.sign(numerator) * ((2 * np.abs(numerator) + denominator) // (2 * denominator))


def float32_root(value: Any) -> Any:
    return np.sqrt(value.astype(np.float32)).astype(np.float64)


FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "ties up in a softmax": (attention, "_rne_ratio", ties_up, "softmax"),
    "a quotient rounded down": (attention, "_rne_ratio", lambda a, b: a // b, "softmax_matmul"),
    "negative ties away from zero": (attention, "_rne_ratio", truncated, "softmax_matmul"),
    "the table from the other end": (
        attention, "_entries", lambda t, q, axis: t.astype(np.int64)[q.astype(np.int64) - q.min(axis, keepdims=True)],
        "softmax",
    ),
    "a fixed shift": (normalizing, "normalize_shift", lambda *_: 0, "normalize"),
    "ties up in a norm": (normalizing, "rne_shift", lambda v, s: (v + (1 << (s - 1))) >> s, "normalize"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks notice it, as the comparisons of executors do."""
    module, name, wrong, operator = FAULTS[fault]
    cases = []
    for seed in range(count(200, 60)):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators={operator}, length=3)
        cases.append((network, random_images(rng, network, 2)))
    names = [[layer.name for layer in network] for network, _ in cases]
    right = [ReferenceExecutor(case).run(images, kept) for (case, images), kept in zip(cases, names, strict=True)]
    monkeypatch.setattr(module, name, wrong)
    found = [ReferenceExecutor(case).run(images, kept) for (case, images), kept in zip(cases, names, strict=True)]
    assert any((e[layer] != f[layer]).any() for e, f in zip(right, found, strict=True) for layer in e)

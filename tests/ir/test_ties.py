"""Ties of roundings: which layers can meet one, equations (3b) and (7e)."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integer_networks import random_images, random_network
from twoscale._ir import layers as n
from twoscale._ir.operators import accumulating, sums, vectorized
from twoscale._ir.reference import ReferenceExecutor
from twoscale._ir.ties import find_tie

HALF = Fraction(1, 2)


def spec(zero_point: int, lo: int, hi: int) -> n.TensorSpec:
    return n.TensorSpec((4,), "uint8", 1.0, zero_point, lo, hi)


def matters(product: int, shift: int, out: n.TensorSpec) -> bool:
    """Whether rounding down and up differ after the clamp, for a value halfway between two integers."""
    value = Fraction(product, 2**shift)
    if (value - HALF).denominator != 1:
        return False
    below, above = (min(max(floor(value) + more + out.zero_point, out.lo), out.hi) for more in (0, 1))
    return below != above


def array(*values: int) -> Any:
    return np.array(values, np.int64)


@given(
    m=st.integers(1, 300) | st.integers(1, 30).map(lambda k: k << 9),
    bound=st.integers(0, 300),
    addends=st.lists(st.integers(-600, 600), min_size=1, max_size=3),
    clamp=st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 40)),
)
def test_it_is_what_trying_every_accumulator_finds(
    m: int, bound: int, addends: list[int], clamp: tuple[int, int, int]
) -> None:
    shift = 10
    lo, zero, hi = np.cumsum(clamp).tolist()
    out = spec(zero, lo, hi)
    tried = any(
        matters(acc * m + addend, shift, out) for acc in range(-bound, bound + 1) for addend in addends
    )  # fmt: skip
    found = find_tie(array(m), array(-bound), array(bound), shift, out, array(*addends))
    assert (found is not None) == tried
    if found is not None:
        channel, acc, addend = found
        assert (channel, addend in addends) == (0, True)
        assert abs(acc) <= bound
        assert matters(acc * m + addend, shift, out)


def test_the_two_conditions_of_3b() -> None:
    """An odd multiplier with a bound below 2^15, or of 511 and more with any bound; each is needed."""
    out = spec(0, 0, 255)
    odd, far = np.arange(1, 2**12, 2), 2**31 - 1
    assert find_tie(odd, -(0 * odd + 2**15 - 1), 0 * odd + 2**15 - 1, 16, out) is None
    assert find_tie(odd[odd >= 511], array(-far), array(far), 16, out) is None
    assert find_tie(array(1), array(-(2**15)), array(2**15), 16, out) == (0, 2**15, 0)
    assert find_tie(array(509), array(-far), array(far), 16, out) is not None
    assert find_tie(array(2), array(-(2**15) + 1), array(2**15 - 1), 16, out) is not None


def test_sums_with_one_operand_in_output_steps() -> None:
    values, out = np.arange(-255, 256), spec(128, 0, 255)
    for m in (1, 63, 64, 96, 192, 5_001, 20_000):
        found = find_tie(array(m), array(-255), array(255), 14, out, values << 14)
        assert (found is None) == (m % 64 != 0), m
    assert find_tie(array(5_001), array(-255), array(255), 14, out, values * 5_003) is not None


def half_up(value: Any, shift: int) -> Any:
    return (value + (1 << (shift - 1))) >> shift


def half_away(value: Any, shift: int) -> Any:
    return np.sign(value) * ((np.abs(value) + (1 << (shift - 1))) >> shift)


def odd_multipliers(network: Any) -> Any:
    """The network with odd multipliers of at least 511, and additions with an operand in output steps."""

    def odd(m: n.Multiplier | None) -> n.Multiplier | None:
        if m is None:
            return None
        assert m.shift is not None
        return n.Multiplier.on_grid(np.maximum(m.integers | 1, 511), m.shift)

    changed = []
    for layer in network.layers:
        if isinstance(layer, n.Add):
            first = n.Multiplier.on_grid(layer.multipliers[0].integers | 1, 14)
            layer = dataclasses.replace(layer, multipliers=(first, n.Multiplier.on_grid(array(1 << 14), 14)))
        elif isinstance(layer, n.Concat):
            layer = dataclasses.replace(layer, multipliers=tuple(odd(m) for m in layer.multipliers))
        elif isinstance(layer, n.Requantize):
            layer = dataclasses.replace(layer, multiplier=odd(layer.multiplier))
        changed.append(layer)
    return dataclasses.replace(network, layers=tuple(changed))


def test_tie_free_networks_have_the_same_integers_under_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    differing = {True: 0, False: 0}
    proved = 0
    for seed, change in itertools.product(range(40), (True, False)):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators=("conv", "add", "mul", "average_pool", "concat", "residual"))
        network = odd_multipliers(network) if change else network
        images = random_images(rng, network, 2)
        keep = [layer.name for layer in network]
        even = ReferenceExecutor(network).run(images, keep)
        for rule in (half_up, half_away):
            with monkeypatch.context() as patch:
                for module in (vectorized, accumulating, sums):
                    patch.setattr(module, "rne_shift", rule)
                other = ReferenceExecutor(network).run(images, keep)
            differing[network.tie_free] += sum(int((even[name] != other[name]).sum()) for name in keep)
        proved += network.tie_free
    assert proved >= 10
    assert differing[True] == 0
    assert differing[False] > 0  # the rules are not the same


def test_a_network_names_the_layers_and_their_first_tie() -> None:
    network = random_network(np.random.default_rng(0), operators=("conv",), length=3)
    convolution = next(layer for layer in network if isinstance(layer, n.Conv2d))
    even = dataclasses.replace(convolution, multiplier=n.Multiplier.on_grid(array(1 << 12)))
    layers = tuple(even if layer.name == even.name else layer for layer in odd_multipliers(network).layers)
    [reason, *_] = dataclasses.replace(network, layers=layers).ties
    assert reason.startswith(f"layer {convolution.name}: ")
    assert "4,096) / 2^16 is halfway between two integers" in reason

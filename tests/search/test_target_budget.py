"""Bits for a target: the C of the choice keeps the flash, and its time is that of the counted instructions."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from tests.search.test_layer_bits import by_hand
from twoscale._codegen.c import sizes_of
from twoscale._codegen.c.common.packing import pack, stored_bytes
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._search import Sensitivity, choose_for_target
from twoscale.errors import ConfigurationError


def some_network() -> tuple[IntegerNetwork, Sensitivity]:
    """Return three linear layers, and noises of 4 and 2 bits."""
    rng, sizes = np.random.default_rng(12), (100, 60, 50, 10)
    spec = n.TensorSpec(sizes[:1], "uint8", 1.0, 0, 0, 255)
    layers: list[n.Layer] = [n.QuantizeInput(name="image", inputs=(), output=spec)]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers.append(
            n.Linear(
                name=f"linear{fan_out}", inputs=(layers[-1].name,), output=dataclasses.replace(spec, shape=(fan_out,)),
                multiplier=n.Multiplier.on_grid(np.array([99])), bias_o=np.zeros(fan_out, np.int32),
                weight=rng.integers(-127, 128, (fan_out, fan_in)).astype(np.int8),
            )
        )  # fmt: skip
    names = [layer.name for layer in layers[1:]]
    entries = tuple((layer.name, layer.weight.size, 0, 8) for layer in layers if isinstance(layer, n.Linear))
    noise = {(name, bits): float((7 - bits) * (1 + i)) for i, name in enumerate(names) for bits in (4, 2)}
    return IntegerNetwork("three", tuple(layers), (names[-1],)), by_hand(entries, noise)


def with_bits(network: IntegerNetwork, bits: dict[str, int]) -> IntegerNetwork:
    def clamped(layer: n.Layer) -> n.Layer:
        if not isinstance(layer, n.Accumulating):
            return layer
        limit = 2 ** (bits[layer.name] - 1) - 1
        return dataclasses.replace(layer, weight=np.clip(layer.weight, -limit, limit))

    return dataclasses.replace(network, layers=tuple(map(clamped, network)))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("target", ["portable", "small-ram"])
def test_the_choice_fits_and_is_near_the_best(target: str) -> None:
    network, found = some_network()
    names = [name for name, *_ in found.weights]
    noises = {(s.layer, s.bits): s.noise for s in found.layers} | {(name, 8): 0.0 for name in names}
    every = {}
    for picks in itertools.product((8, 4, 2), repeat=len(names)):
        bits = dict(zip(names, picks, strict=True))
        every[picks] = sizes_of(with_bits(network, bits), target).flash_bytes, sum(noises[b] for b in bits.items())
    flashes = sorted(flash for flash, _ in every.values())
    for limit in (flashes[0], *flashes[5::7], flashes[-1]):
        choice = choose_for_target(found, network, target=target, flash=limit)
        assert choice.flash_bytes is not None
        assert choice.flash_bytes <= limit
        picked = tuple(dict(choice.layer_weight_bits)[name] for name in names)
        assert every[picked][0] == choice.flash_bytes
        best = min((noise for flash, noise in every.values() if flash <= limit - 600), default=np.inf)
        assert every[picked][1] <= best  # 600 bytes are for code of packed weights
    assert every[picked][1] == 0


def test_too_little_flash_and_too_little_time_are_refused() -> None:
    network, found = some_network()
    with pytest.raises(ConfigurationError, match=r"^100 bytes of flash are too few: with the fewest bits measured"):
        choose_for_target(found, network, flash=100)
    with pytest.raises(ConfigurationError, match=r"^0.001 million instructions are too few: the bits that fit"):
        choose_for_target(found, network, million_instructions=0.001)


def test_a_time_budget_allows_no_more_than_it_says() -> None:
    network, found = some_network()
    free = choose_for_target(found, network)
    assert {bits for _, bits in free.layer_weight_bits} == {8}
    macs = sum(layer.macs for layer in sizes_of(network, "portable").layers)
    assert free.million_instructions == pytest.approx(2.64 * macs / 1e6, abs=1e-3)
    limit = 2.63 * macs / 1e6
    less = choose_for_target(found, network, million_instructions=limit)
    assert less.million_instructions is not None
    assert less.million_instructions <= limit + 1e-3
    assert 4 in {bits for _, bits in less.layer_weight_bits}


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 3, 3), (3, 2, 1, 5)])
def test_stored_bytes_are_those_of_packed_arrays(shape: tuple[int, ...]) -> None:
    rows = shape[2] if len(shape) == 4 else 1
    weight = np.zeros((shape[0], rows, int(np.prod(shape[1:])) // rows), np.int8)
    for bits in (4, 2):
        assert stored_bytes(shape, bits) == pack(weight, bits).nbytes
    assert stored_bytes(shape, 8) == weight.nbytes

"""Bits of accumulators: sums by Python's integers stay inside what is proved and inside what was seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.integer_networks import random_images, random_network
from twoscale._ir import layers as n
from twoscale._ir.accumulators import accumulator_bits, signed_bits
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor


@pytest.mark.parametrize(
    ("lowest", "highest", "bits"),
    [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-2, 1, 2), (-128, 127, 8), (-129, 0, 9), (0, 128, 9), (-32768, 32767, 16)],
)
def test_signed_bits(lowest: int, highest: int, bits: int) -> None:
    assert signed_bits(lowest, highest) == bits


def terms_of(network: IntegerNetwork, layer: n.Linear, images: np.ndarray) -> Iterator[list[int]]:
    """Yield the terms of every sum of a linear layer."""
    x = ReferenceExecutor(network).run(images, [layer.inputs[0]])[layer.inputs[0]].astype(int)
    for row in x - network.spec(layer.inputs[0]).zero_point:
        for weight, bias in zip(layer.weight.astype(int), layer.bias_o.tolist(), strict=True):
            yield [bias, *(row * weight).tolist()]


def test_what_is_seen_is_what_python_sums() -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, operators={"conv", "linear", "residual"}, length=5)
    batches = [random_images(rng, network, 3) for _ in range(2)]
    found = {bits.layer: bits for bits in accumulator_bits(network, batches)}
    assert set(found) == {layer.name for layer in network if isinstance(layer, n.Accumulating)}
    for bits in found.values():
        assert bits.images == 6
        assert bits.seen <= bits.seen_in_any_order <= bits.proved <= 32
    compared = 0
    for layer in network:
        if isinstance(layer, n.Linear):
            sums = [terms for images in batches for terms in terms_of(network, layer, images)]
            mine = found[layer.name]
            assert (mine.lowest, mine.highest) == (min(map(sum, sums)), max(map(sum, sums)))
            lowest = min(sum(term for term in terms if term < 0) for terms in sums)
            highest = max(sum(term for term in terms if term > 0) for terms in sums)
            assert mine.seen_in_any_order == signed_bits(lowest, highest)
            compared += 1
    assert compared


def test_one_step_beyond_the_proved_bits_needs_one_more() -> None:
    spec = n.TensorSpec((2,), "uint8", 1.0, 0, 0, 255)
    head = n.Linear(
        name="head", inputs=("image",), output=n.TensorSpec((1,), "int32", 1.0), multiplier=None,
        weight=np.array([[127, 1]], np.int8), bias_o=np.array([127], np.int32),
    )  # fmt: skip
    network = IntegerNetwork("edge", (n.QuantizeInput(name="image", inputs=(), output=spec), head), ("head",))
    (bits,) = accumulator_bits(network, [np.array([[255.0, 255.0]], np.float32)])
    assert (bits.highest, bits.proved, bits.seen, bits.products) == (32767, 16, 16, 2)

"""Networks with free multipliers, moved onto the grid: on it, near what they were, the same everywhere, and C."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import twoscale
from tests.integer_networks import random_images, random_network
from twoscale._ir import layers as n
from twoscale._ir.onto_grid import onto_grid
from twoscale.errors import QuantizationError


@pytest.mark.parametrize("seed", range(12))
def test_every_executor_gives_the_same_integers(seed: int) -> None:
    network = random_network(np.random.default_rng(seed), on_grid=False)
    assert not network.on_grid
    try:
        moved = network.requantize()
    except QuantizationError as error:
        assert "exact up to" in str(error) or "is not on the grid" in str(error)  # noqa: PT017
        return
    assert moved.on_grid
    assert moved.scheme == "requantized"
    images = random_images(np.random.default_rng(seed), network, 8)
    assert twoscale.verify(moved, images, executors=["reference", "torch", "onnxruntime"], against=network).ok


def test_a_network_on_the_grid_is_unchanged() -> None:
    network = random_network(np.random.default_rng(0))
    assert network.requantize() is network


def small(multiplier: float, zero_point: int = 100, weight: int = 100) -> twoscale.IntegerNetwork:
    spec = n.TensorSpec((4,), "uint8", 1.0, zero_point, 0, 255)
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=n.TensorSpec((4,), "uint8", 1.0, 0, 0, 255)),
        n.Linear(
            name="fc",
            inputs=("input",),
            output=spec,
            multiplier=n.Multiplier(np.array([multiplier], np.float32), None),
            weight=np.full((4, 4), weight, np.int8),
            bias_o=np.zeros(4, np.int32),
        ),
    )
    return twoscale.IntegerNetwork("small", layers, ("fc",))


def test_the_nearest_multiplier() -> None:
    found = onto_grid(small(1000.3 / 2**16))
    assert (found.multipliers, found.channels_rounded_again, found.zero_points) == (1, 0, 0)
    assert found.largest_change == pytest.approx(0.3 / 1000.3, rel=1e-3)
    layer = found.network["fc"]
    assert isinstance(layer, n.Linear)
    assert layer.multiplier is not None
    assert layer.multiplier.integers.tolist() == [1000]


def test_weights_make_up_for_a_multiplier_that_is_far_off() -> None:
    """2.5 becomes 3, and weights of 100 become 83: 250 against 249, where 2 would make 200 of it."""
    found = onto_grid(small(2.5 / 2**16))
    assert found.channels_rounded_again == 4
    layer = found.network["fc"]
    assert isinstance(layer, n.Linear)
    assert layer.multiplier is not None
    assert layer.multiplier.integers.tolist() == [3] * 4
    assert (layer.weight == 83).all()


@pytest.mark.parametrize("zero_point", [1, 101, 255])
def test_an_odd_zero_point_moves_by_one(zero_point: int) -> None:
    network = small(0.01, zero_point)
    found = onto_grid(network)
    assert found.zero_points == 1
    moved = found.network.spec("fc").zero_point
    assert (moved % 2, abs(moved - zero_point)) == (0, 1)
    images = np.arange(12, dtype=np.float32).reshape(3, 4)
    real = [x.logits(x_q) for x, x_q in ((network, _q(network, images)), (found.network, _q(found.network, images)))]
    inside = np.abs(real[0]) < 255 - max(moved, zero_point)
    assert np.abs(real[0] - real[1])[inside].max(initial=0) <= 1


def _q(network: twoscale.IntegerNetwork, images: np.ndarray) -> np.ndarray:
    from twoscale._ir.reference import ReferenceExecutor

    return ReferenceExecutor(network).run(images)["fc"]


@pytest.mark.parametrize("multiplier", [300.0, 2.0**-20])
def test_a_multiplier_beyond_the_grid_is_refused(multiplier: float) -> None:
    network = small(multiplier)
    mul = n.Mul(name="m", inputs=("fc", "fc"), output=dataclasses.replace(network.spec("fc")),
                multiplier=n.Multiplier(np.array([multiplier], np.float32), None))  # fmt: skip
    network = dataclasses.replace(network, layers=(*small(0.01).layers, mul), outputs=("m",))
    with pytest.raises(QuantizationError, match=r"layer m: its multiplier .* is not on the grid"):
        network.requantize()

"""Networks called with 8-bit pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import twoscale
from tests.quantization.small_models import images, residual_model
from twoscale import data
from twoscale.errors import ConfigurationError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FLOATS = images(61, 40)
PIXELS = np.random.default_rng(0).integers(0, 256, FLOATS[:8].shape, np.uint8)


@pytest.fixture(scope="module")
def network() -> twoscale.IntegerNetwork:
    return twoscale.quantize(residual_model(7), FLOATS)


def test_pixels_are_normalized_as_the_metadata_says(network: twoscale.IntegerNetwork) -> None:
    known = dataclasses.replace(network, metadata={"mean": list(MEAN), "std": list(STD)})
    expected = network(data.normalize(PIXELS, MEAN, STD))
    assert np.array_equal(known(PIXELS), expected)
    found = known(torch.from_numpy(PIXELS))
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), expected)


def test_a_network_that_normalizes_itself_takes_pixels(network: twoscale.IntegerNetwork) -> None:
    inside = {"normalization": {"mean": list(MEAN), "std": list(STD)}}
    known = dataclasses.replace(network, metadata=inside)
    assert np.array_equal(known(PIXELS), network(PIXELS.astype(np.float32)))
    both = dataclasses.replace(network, metadata={**inside, "mean": [0, 0, 0], "std": [1 / 255] * 3})
    assert np.array_equal(both(PIXELS), known(PIXELS))


@pytest.mark.parametrize(
    "metadata",
    [{}, {"mean": [0.5], "std": [0.5]}, {"mean": ["a"] * 3, "std": [1] * 3}, {"mean": [0] * 3, "std": [0] * 3}],
    ids=["none", "one channel", "text", "zero"],
)
def test_pixels_without_a_known_normalization_are_refused(
    network: twoscale.IntegerNetwork, metadata: dict[str, Any]
) -> None:
    unknown = dataclasses.replace(network, metadata=metadata)
    for pixels in (PIXELS, torch.from_numpy(PIXELS)):
        with pytest.raises(ConfigurationError, match=r"uint8 pixels, and .* does not say how it normalizes"):
            unknown(pixels)

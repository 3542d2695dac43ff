"""A layer taken from its network: its integers, its scale, and how it shows itself."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch

import twoscale
from tests.quantization.small_models import images, small_cnn
from twoscale._calibration.summaries import TensorSummary
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError, UnknownNameError

PIXELS = images(81, 40)


@pytest.fixture(scope="module", params=["default", "course"])
def network(request: pytest.FixtureRequest) -> IntegerNetwork:
    return twoscale.quantize(small_cnn(12), [PIXELS], scheme=request.param)


def test_its_integers_and_scale_are_the_weights(network: IntegerNetwork) -> None:
    model = dict(small_cnn(12).named_parameters())
    for name in ("conv1", "conv2", "fc1", "fc2"):
        layer = network[name]
        assert isinstance(layer, n.Accumulating)
        assert layer.weight_integers.dtype == np.int8
        assert layer.bias_integers.dtype == np.int32
        scale = layer.weight_scale.reshape(-1, *(1,) * (layer.weight_integers.ndim - 1))
        real = model[f"{name}.weight"].detach().numpy()
        steps = np.abs(layer.weight_integers * scale - real) / scale
        assert np.median(steps) <= 0.5  # error feedback moves a few by more
        if network.scheme == "course":
            assert float(layer.weight_scale[0]) == pytest.approx(np.abs(real).max() / 127, rel=1e-6)


def test_its_outputs_are_those_of_the_executor(network: IntegerNetwork) -> None:
    from twoscale._runtimes import create

    names = [layer.name for layer in network]
    expected = create("torch", network).run(PIXELS[:8], names)
    for name in names:
        found = network[name].integers(torch.from_numpy(PIXELS[:8]))
        assert found.dtype == expected[name].dtype
        assert np.array_equal(found, expected[name])


def test_histograms_of_weights_and_outputs(network: IntegerNetwork) -> None:
    layer = network["conv2"]
    assert isinstance(layer, n.Conv2d)
    weights = layer.histogram()
    assert isinstance(weights, TensorSummary)
    assert weights.count == layer.weight_integers.size
    assert (weights.min, weights.max) == (layer.weight_integers.min(), layer.weight_integers.max())
    assert weights.mean == pytest.approx(layer.weight_integers.mean())
    outputs = layer.histogram(PIXELS[:4])
    assert sum(outputs.histogram.counts) == outputs.count == layer.integers(PIXELS[:4]).size
    assert outputs._repr_svg_().startswith("<svg")
    with pytest.raises(ConfigurationError, match="layer input has no weights; pass images"):
        network["input"].histogram()


def test_it_shows_itself(network: IntegerNetwork) -> None:
    for layer in network:
        html = network[layer.name]._repr_html_()
        assert f">{layer.name}<" in html
        assert ("<svg" in html) == isinstance(layer, n.Accumulating)
    html = network["conv2"]._repr_html_()
    assert "Weight scale" in html
    assert "M = s_x·s_w/s_y" in html
    assert ("/65,536" in html) == network.on_grid
    assert "M = s_x·s_w/s_y" not in network["fc2"]._repr_html_()  # its accumulators are the output


def test_the_worked_sum_is_right(network: IntegerNetwork) -> None:
    from twoscale._ir.worked import worked_output

    for name in ("conv1", "fc1", "fc2"):
        layer = network[name]
        assert isinstance(layer, n.Accumulating)
        one = worked_output(network, layer, PIXELS[0])
        assert one.output == layer.integers(PIXELS[:1])[0].reshape(-1)[one.place]
        if one.multiplier is None:
            assert one.output == one.accumulator
        else:
            rounded = round(Fraction(one.accumulator) * Fraction(one.multiplier)) + layer.output.zero_point
            assert one.output == min(max(rounded, layer.output.lo), layer.output.hi)


def test_a_layer_of_no_network_says_so(network: IntegerNetwork) -> None:
    loose = dataclasses.replace(network["fc1"])
    assert "Weight scale" not in loose._repr_html_()
    with pytest.raises(
        ConfigurationError, match=r"layer fc1 belongs to no network; take it from one: network\['fc1'\]"
    ):
        loose.integers(PIXELS)
    with pytest.raises(UnknownNameError, match="unknown layer 'fc9'"):
        network["fc9"]


def test_taking_a_layer_changes_nothing(network: IntegerNetwork) -> None:
    before = network.fingerprint
    taken = network["fc1"]
    assert taken is network["fc1"]
    other = dataclasses.replace(network, metadata={"other": 1})
    assert other["fc1"].owner is other
    assert network["fc1"].owner is network
    for of in (network, other, dataclasses.replace(other)):
        taken_all = [of[layer.name] for layer in of]
        assert all(one is mine for one, mine in zip(taken_all, of.layers, strict=True))
    assert dataclasses.replace(network, layers=tuple(network[x.name] for x in network)).fingerprint == before

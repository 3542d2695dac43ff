"""Bits of single layers, the noise they cause, and the choice of bits for a size."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twoscale
from tests.quantization.small_models import accumulating, images, residual_model, small_cnn
from twoscale._calibration.profile import Profile, profile
from twoscale._formats import load
from twoscale._ir import float_graph as g
from twoscale._quantization import DEFAULT, Scheme, float_graph, quantize_graph
from twoscale._search import LayerSensitivity, Sensitivity, measure_choice, measure_sensitivity
from twoscale._search.bits import packed_bytes
from twoscale._verification import verify
from twoscale.errors import CalibrationError, ConfigurationError, UnknownNameError

PIXELS, TEST = images(31, 100), images(32, 150)
LABELS = np.random.default_rng(33).integers(0, 5, 150)
Prepared = tuple[g.FloatGraph, Profile]


@pytest.fixture(scope="module")
def residual() -> Prepared:
    graph = float_graph(residual_model(2), PIXELS)
    return graph, profile(graph, [PIXELS])


@pytest.fixture(scope="module")
def measured(residual: Prepared) -> Sensitivity:
    return measure_sensitivity(*residual, [(TEST, LABELS)], weight_bits=(2, 4), activation_bits=(4,))


def test_layers_keep_to_their_bits(residual: Prepared, tmp_path: Path) -> None:
    how = Scheme(layer_weight_bits=(("a", 3), ("fc", 2)), layer_activation_bits=(("input", 4), ("b", 5)))
    network = quantize_graph(*residual, how)
    widest = {layer.name: int(np.abs(layer.weight).max()) for layer in accumulating(network)}
    assert (widest["a"], widest["fc"], network.spec("input").hi, network.spec("b").hi) == (3, 1, 15, 31)
    assert min(widest[name] for name in ("stem", "b", "c", "d", "shortcut")) > 100
    assert network.on_grid
    network.save(tmp_path / "mixed.onnx")
    assert load(tmp_path / "mixed.onnx").fingerprint == network.fingerprint
    assert verify(network, [TEST], executors=("reference", "torch", "onnxruntime")).mismatches == 0


def test_wrong_bits_are_refused(residual: Prepared) -> None:
    with pytest.raises(ConfigurationError, match=r"layer_weight_bits of a is 1; expected 2 to 8"):
        Scheme(layer_weight_bits=(("a", 1),))
    with pytest.raises(ConfigurationError, match=r"layer_activation_bits of a is 1; expected 2 to 8"):
        Scheme(layer_activation_bits=(("a", 1),))
    with pytest.raises(ConfigurationError, match=r"layer_weight_bits names a more than once"):
        Scheme(layer_weight_bits=(("a", 4), ("a", 6)))
    with pytest.raises(UnknownNameError, match=r"unknown layer with weights 'stm': did you mean 'stem'"):
        quantize_graph(*residual, Scheme(layer_weight_bits=(("stm", 4),)))
    with pytest.raises(UnknownNameError, match=r"unknown layer with a scale of its own 'fc'"):
        quantize_graph(*residual, Scheme(layer_activation_bits=(("fc", 4),)))  # logits are accumulators


def test_every_layer_is_measured(measured: Sensitivity) -> None:
    assert measured.samples == 150
    by_kind = {
        (s.kind, s.bits): [x.layer for x in measured.layers if (x.kind, x.bits) == (s.kind, s.bits)]
        for s in measured.layers
    }
    weighted = ["stem", "a", "b", "c", "shortcut", "d", "fc"]
    assert sorted(by_kind["weight", 2]) == sorted(by_kind["weight", 4]) == sorted(weighted)
    assert sorted(by_kind["activation", 4]) == sorted(["input", *weighted[:-1], "mean"])
    two, four = ({s.layer: s.noise for s in measured.layers if (s.kind, s.bits) == ("weight", b)} for b in (2, 4))
    assert all(two[name] > four[name] for name in weighted)
    assert measured.top1 is not None


def test_a_layer_that_nothing_follows_is_the_network_of_its_scheme(residual: Prepared, measured: Sensitivity) -> None:
    # Nothing follows the head, so the network quantized with that scheme is the same.
    network = quantize_graph(*residual, Scheme(layer_weight_bits=(("fc", 2),)))
    expected = verify(network, [(TEST, LABELS)], executors=("reference",), model=residual[0])
    found = next(s for s in measured.layers if (s.layer, s.kind, s.bits) == ("fc", "weight", 2))
    assert expected.sqnr_db is not None
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-4)
    assert (found.agreement, found.top1) == (expected.agreement, expected.top1)


def test_without_corrections_an_early_layer_is_too(residual: Prepared) -> None:
    plain = dataclasses.replace(DEFAULT, error_feedback=False, bias_correction=False, tune_ranges=False)
    found = measure_sensitivity(*residual, [TEST], scheme=plain, weight_bits=(3,), activation_bits=(5,))
    for kind, layer, bits in (("weight", "a", 3), ("activation", "stem", 5), ("activation", "input", 5)):
        own: dict[str, Any] = {f"layer_{kind}_bits": ((layer, bits),)}
        how = dataclasses.replace(plain, **own)
        expected = verify(quantize_graph(*residual, how), [TEST], executors=("reference",), model=residual[0])
        one = next(s for s in found.layers if (s.kind, s.layer) == (kind, layer))
        assert expected.sqnr_db is not None
        assert one.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-4)
        assert (one.agreement, one.top1) == (expected.agreement, None)


def by_hand(weights: tuple[tuple[str, int, int, int], ...], noise: dict[tuple[str, int], float]) -> Sensitivity:
    layers = tuple(LayerSensitivity(name, "weight", bits, 1, n, None, 1.0, None) for (name, bits), n in noise.items())
    return Sensitivity("n", "default", 1, 100.0, 0.01, 40.0, 1.0, None, weights, layers)


@pytest.mark.parametrize("ratio", [0.3, 0.42, 0.5, 0.61, 0.8, 1.0])
def test_the_choice_is_the_best_of_all(ratio: float) -> None:
    rng = np.random.default_rng(7)
    weights = tuple((f"l{i}", int(rng.integers(100, 3000)), 4, 8) for i in range(5))
    noise = {
        (name, bits): float(rng.uniform(0, 1) * 4.0 ** (4 - bits)) for name, *_ in weights for bits in (2, 3, 4, 6)
    }
    found = by_hand(weights, noise)
    choice = found.choose(ratio)
    costs = {**noise, **{(name, 8): 0.0 for name, *_ in weights}}
    best = min(
        sum(costs[name, bits] for (name, *_), bits in zip(weights, picks, strict=True))
        for picks in itertools.product((2, 3, 4, 6, 8), repeat=5)
        if sum(packed_bytes(w, b, bits) for (_, w, b, _), bits in zip(weights, picks, strict=True))
        <= choice.budget_bytes
    )
    assert choice.size_bytes <= choice.budget_bytes == int(ratio * found.size_bytes)
    assert sum(costs[pair] for pair in choice.layer_weight_bits) == pytest.approx(best)
    assert choice.predicted_sqnr_db == pytest.approx(10 * math.log10(100 / (0.01 + best)))


def test_budgets_that_cannot_be() -> None:
    found = by_hand((("a", 800, 0, 8),), {("a", 4): 1.0})
    assert found.choose(400).layer_weight_bits == (("a", 4),)
    with pytest.raises(ConfigurationError, match=r"a budget of 399 bytes is too small: .* has 400 bytes"):
        found.choose(399)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="expected bytes, or a fraction"):
            found.choose(wrong)


def test_prediction_and_measurement_agree(residual: Prepared, measured: Sensitivity) -> None:
    choice = measured.choose(0.5)
    network, result = measure_choice(choice, *residual, [(TEST, LABELS)])
    assert result.sqnr_db is not None
    assert abs(result.sqnr_db - choice.predicted_sqnr_db) < 4
    limits = {name: 2 ** (bits - 1) - 1 for name, bits in choice.layer_weight_bits}
    assert all(np.abs(layer.weight).max() <= limits[layer.name] for layer in accumulating(network))
    uniform = verify(quantize_graph(*residual, Scheme(weight_bits=4)), [TEST], executors=("torch",), model=residual[0])
    assert uniform.sqnr_db is not None
    assert result.sqnr_db > uniform.sqnr_db - 1


def test_no_images() -> None:
    graph = float_graph(small_cnn(1), PIXELS)
    with pytest.raises(ConfigurationError, match="sensitivity got no test images"):
        measure_sensitivity(graph, profile(graph, [PIXELS]), [], weight_bits=(4,), activation_bits=())


def test_global_random_state_is_left_alone(residual: Prepared) -> None:
    before = torch.random.get_rng_state()
    measure_sensitivity(*residual, [TEST[:10]], weight_bits=(4,), activation_bits=())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_is_measured_from_python(residual: Prepared, measured: Sensitivity) -> None:
    found = twoscale.sensitivity(
        residual_model(2), [PIXELS], [(TEST, LABELS)], weight_bits=(2, 4), activation_bits=(4,), scheme="default"
    )
    assert found == measured
    choice = found.choose(0.5)
    network = twoscale.quantize(residual_model(2), [PIXELS], scheme=Scheme(layer_weight_bits=choice.layer_weight_bits))
    assert network.fingerprint == measure_choice(choice, *residual, [TEST])[0].fingerprint
    with pytest.raises(CalibrationError, match="calibration got no images"):
        twoscale.sensitivity(residual_model(2), [], [TEST])

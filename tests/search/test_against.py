"""verify against another network or a float model."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from tests.quantization.small_models import accumulating, images, residual_model, small_cnn
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._quantization import Scheme, quantize
from twoscale._verification import verify
from twoscale.errors import ConfigurationError

PIXELS = images(51, 60)
MODEL = small_cnn(6)


@functools.cache
def quantized(weight_bits: int) -> IntegerNetwork:
    return quantize(MODEL, [PIXELS], scheme=Scheme(weight_bits=weight_bits))


def test_a_network_and_itself() -> None:
    result = verify(quantized(8), [PIXELS], against=quantized(8))
    assert (result.agreement, result.sqnr_db, result.uncompared) == (1.0, None, ())
    assert all(layer.sqnr_db is None for layer in result.layers)
    assert result.against == "Model, scheme default"


def test_noise_is_that_of_the_real_values() -> None:
    result = verify(quantized(4), [PIXELS], against=quantized(8))
    expected, found = quantized(8)(PIXELS).astype(float), quantized(4)(PIXELS).astype(float)
    assert result.sqnr_db == pytest.approx(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))
    assert result.agreement == np.mean(expected.argmax(1) == found.argmax(1))
    by_layer = {layer.name: layer.sqnr_db for layer in result.layers}
    assert by_layer["input"] is None  # equal integers
    assert by_layer["conv1"] is not None


def test_the_first_layer_with_other_weights_is_the_first_with_noise() -> None:
    layer = next(layer for layer in accumulating(quantized(8)) if layer.name == "conv2")
    weight = layer.weight.copy()
    weight[0, 0, 0, 0] ^= 1
    planted = dataclasses.replace(layer, weight=weight)
    other = dataclasses.replace(
        quantized(8), layers=tuple(planted if it is layer else it for it in quantized(8).layers)
    )
    noisy = [check.name for check in verify(quantized(8), [PIXELS], against=other).layers if check.sqnr_db is not None]
    assert noisy[0] == "conv2"
    assert verify(quantized(8), [PIXELS]).mismatches == 0


def test_both_forms_of_residuals() -> None:
    model = residual_model(3)
    joined, apart = (quantize(model, [PIXELS], scheme=Scheme(join_residuals=join)) for join in (True, False))
    result = verify(joined, [PIXELS], against=apart)
    assert "b" in result.uncompared  # with the sum in it here, without it there
    assert "stem" not in result.uncompared
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25


def test_a_float_model_is_as_good() -> None:
    by_model, against = (verify(quantized(8), [PIXELS], **{how: MODEL}) for how in ("model", "against"))  # type: ignore[arg-type]
    assert by_model == against
    assert against.against == "float"


def test_what_cannot_be_compared() -> None:
    other = quantize(small_cnn(6, classes=7), [PIXELS])
    with pytest.raises(ConfigurationError, match=r"makes 5 classes of images \(3, 8, 8\), and Model, .* 7 of"):
        verify(quantized(8), [PIXELS], against=other)
    with pytest.raises(ConfigurationError, match="pass model or against, not both"):
        verify(quantized(8), [PIXELS], model=MODEL, against=quantized(8))

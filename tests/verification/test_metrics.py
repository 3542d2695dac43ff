"""Metrics get what they need: classes, two at least, or they are None; labels of other classes are errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import twoscale
from tests.quantization.small_models import images, seeded, small_cnn
from twoscale._metrics import Batch, OutputMetrics, labelled, predicted_classes
from twoscale._verification import accuracy
from twoscale.errors import CaptureError, ConfigurationError

PIXELS = images(51, 90)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return a binary classifier of one output whose decisions are balanced on the images."""
    found: Any = small_cnn(4, classes=1)
    with torch.no_grad():
        bias = found.fc2.bias
        bias -= found(torch.from_numpy(PIXELS)).median()
    classifier: nn.Module = found
    return classifier


@pytest.fixture(scope="module")
def network(model: nn.Module) -> twoscale.IntegerNetwork:
    return twoscale.quantize(model, PIXELS)


def broken(network: twoscale.IntegerNetwork) -> twoscale.IntegerNetwork:
    """Return a network whose output is the negative of the right one."""
    import dataclasses

    layers = list(network.layers)
    head: Any = layers[-1]
    layers[-1] = dataclasses.replace(head, weight=-head.weight, bias_o=-head.bias_o)
    return dataclasses.replace(network, layers=tuple(layers))


def test_one_output_separates_two_classes_by_its_sign(model: nn.Module, network: twoscale.IntegerNetwork) -> None:
    with torch.no_grad():
        positive = model(torch.from_numpy(PIXELS)).numpy()[:, 0] > 0
    assert 30 < positive.sum() < 60
    logits = network(PIXELS)[:, 0]
    result = twoscale.verify(network, [(PIXELS, positive.astype(int))], model=model)
    assert result.agreement == result.top1 == np.mean((logits > 0) == positive) > 0.9
    wrong = twoscale.verify(broken(network), [(PIXELS, positive.astype(int))], model=model)
    assert wrong.agreement == wrong.top1 == np.mean((-logits > 0) == positive) < 0.1
    assert accuracy(network, [(PIXELS, positive.astype(int))]) == (result.top1, 90)


def as_bool(labels: Any) -> Any:
    return labels.astype(bool)


def as_column(labels: Any) -> Any:
    return torch.from_numpy(labels[:, None].astype(np.float32))


@pytest.mark.parametrize("form", [as_bool, as_column], ids=["bool", "float column"])
def test_binary_labels_have_many_forms(network: twoscale.IntegerNetwork, form: Callable[[Any], Any]) -> None:
    labels = np.arange(90) % 2
    assert accuracy(network, [(PIXELS, form(labels))]) == accuracy(network, [(PIXELS, labels)])


def test_an_output_of_one_sign_says_nothing_about_agreement(model: nn.Module, network: twoscale.IntegerNetwork) -> None:
    positive = PIXELS[np.argsort(network(PIXELS)[:, 0])[-4:]]
    result = twoscale.verify(network, positive, model=model)
    assert result.agreement is None
    assert result.sqnr_db is not None
    assert "root mean square error" in result._repr_html_()


def test_real_targets_are_no_classes(model: nn.Module, network: twoscale.IntegerNetwork) -> None:
    targets = np.linspace(-3, 3, 90).astype(np.float32)
    result = twoscale.verify(network, [(PIXELS, targets)], model=model)
    with torch.no_grad():
        real = model(torch.from_numpy(PIXELS)).numpy().astype(np.float64)
    assert (result.top1, result.agreement) == (None, None)
    assert result.rms_error == pytest.approx(math.sqrt(np.mean((network(PIXELS) - real) ** 2)), rel=1e-4)
    with pytest.raises(ConfigurationError, match="accuracy needs labels; the batches hold real targets"):
        accuracy(network, [(PIXELS, targets)])


def test_real_targets_of_several_outputs() -> None:
    several = small_cnn(5, classes=3)
    made = twoscale.quantize(several, PIXELS)
    targets = np.random.default_rng(0).normal(size=(90, 3))
    result = twoscale.verify(made, [(PIXELS, targets)], model=several)
    assert (result.top1, result.agreement) == (None, None)
    assert result.sqnr_db is not None


WRONG: dict[str, tuple[int, Any, str]] = {
    "beyond the last class": (5, [0, 5], "batch 0 has the label 5; the network has 5 classes, 0 to 4"),
    "below the first class": (5, [-1, 0], "batch 0 has the label -1; the network has 5 classes, 0 to 4"),
    "a third class of two": (1, [0, 2], "batch 0 has the label 2; a network with one output has the classes 0 and 1"),
    "signs as labels": (1, [-1, 1], "batch 0 has the label -1; a network with one output has the classes 0 and 1"),
    "too few": (1, [0], "expected 0 or 1 for each image, or real targets"),
    "words": (1, ["a", "b"], "expected 0 or 1 for each image, or real targets"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_labels_are_refused(case: str) -> None:
    outputs, labels, message = WRONG[case]
    with pytest.raises(ConfigurationError, match=message):
        list(labelled([(PIXELS[:2], np.array(labels))], outputs))


def test_metrics_of_outputs() -> None:
    metrics = OutputMetrics()
    outputs = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    reference = np.array([[1.0, 3.0], [0.0, 3.0], [0.0, 1.0]])
    metrics.update(outputs, Batch(PIXELS[:3], np.array([1, 1, 0])), reference)
    assert (metrics.top1, metrics.agreement) == (1 / 3, 2 / 3)
    assert metrics.noise.rms_error == pytest.approx(math.sqrt((1 + 9 + 9) / 6))
    assert predicted_classes(np.array([[0.5], [-0.5], [0.0]])).tolist() == [1, 0, 0]


def test_plain_tensors_and_arrays_are_images() -> None:
    model = small_cnn(6)
    many = images(52, 230)
    expected = twoscale.quantize(model, [many[:100], many[100:200], many[200:]]).fingerprint
    for plain in (many, torch.from_numpy(many)):
        network = twoscale.quantize(model, plain)
        assert network.fingerprint == expected
        assert twoscale.verify(network, plain).samples == twoscale.inspect(model, plain).images == 230


def test_a_single_image_says_what_to_write() -> None:
    with pytest.raises(CaptureError, match="pass batches, not single images"):
        twoscale.quantize(small_cnn(6), [np.zeros((3, 32, 32), np.float32)])


def test_a_signal_of_one_dimension_can_be_quantized_as_the_error_says() -> None:
    with seeded(8):
        inner = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(x.flatten(1))
            return logits

    signals = np.random.default_rng(9).normal(size=(60, 16, 1, 1)).astype(np.float32)
    model = Flat().eval()
    result = twoscale.verify(twoscale.quantize(model, signals), signals, model=model)
    assert result.mismatches == 0
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25

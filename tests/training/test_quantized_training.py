"""Quantization-aware training: what is measured in training is what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import twoscale
from tests.training.made_up import QUANTIZED, Normed, Plain, dataset_of, seeded
from twoscale import data, models, training
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._verification import accuracy, verify
from twoscale.data import Dataset
from twoscale.errors import ConfigurationError
from twoscale.training import TrainConfig, TrainResult
from twoscale.training._quantized import QuantizedModel
from twoscale.training._record import NETWORK_FILE
from twoscale.training._step import Gradient


def run(dataset: Dataset, config: TrainConfig = QUANTIZED, **options: Any) -> TrainResult:
    return training.train(config, dataset, model=seeded(Normed).eval(), progress=False, **options)


def begun(result: TrainResult) -> IntegerNetwork:
    """Return the network that training began with."""
    assert isinstance(result.model, QuantizedModel)
    network: IntegerNetwork = result.model.network.network
    return network


def pixels(dataset: Dataset) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return dataset.test.images.astype(np.float32), dataset.test.labels


@pytest.fixture(scope="module")
def small() -> Dataset:
    return dataset_of(90, 37)


@pytest.fixture(scope="module")
def trained(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    return run(small, out=folder), folder


def test_the_file_has_the_integers_of_training(trained: tuple[TrainResult, Path], small: Dataset) -> None:
    result, folder = trained
    network = twoscale.load(folder / NETWORK_FILE)
    images, labels = pixels(small)
    assert verify(network, [images], executors=("reference", "torch", "onnxruntime")).mismatches == 0
    top1, samples = accuracy(network, [(images, labels)])
    assert (top1, samples) == (result.record.test_accuracy, 37)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (small.mean, small.std))
    with torch.no_grad():
        found = result.model((torch.from_numpy(images) / 255 - mean) / std)
    accumulators = network.spec(network.output)
    expected = ReferenceExecutor(network).run(images, {network.output})[network.output]
    assert np.array_equal(np.rint(found.numpy() / accumulators.scale), expected)
    assert not (folder / "model.safetensors").exists()


def test_two_processes_train_one_network(trained: tuple[TrainResult, Path], launched: Callable[..., Any]) -> None:
    found = launched("shares")["quantized"]
    assert found["agree"]
    assert found["accuracy"][0] == found["accuracy"][1]
    # Shares of a batch sum their gradients in another order, which may decide a rounding later on.
    (_, one), *_ = trained[0].record.losses
    (_, two), *_ = found["losses"]
    assert two == pytest.approx(one, rel=1e-3)


def test_training_moves_every_kind_of_parameter(trained: tuple[TrainResult, Path]) -> None:
    model = trained[0].model
    assert isinstance(model, QuantizedModel)
    for name, value in model.named_parameters():
        if name.endswith(("log_growth", "bias_change")) or ("log_growths" in name and value.requires_grad):
            assert bool((value != 0).any()), name


def test_bits_are_those_asked_for(trained: tuple[TrainResult, Path]) -> None:
    network = twoscale.load(trained[1] / NETWORK_FILE)
    first, last = (layer for layer in network if hasattr(layer, "weight"))
    assert np.abs(first.weight).max() > 7  # both are edges
    assert np.abs(last.weight).max() > 7
    assert {layer.output.hi for layer in network if layer.name == "conv"} == {255}  # the last layer reads it


def test_resumed_runs_give_the_same_network(small: Dataset, tmp_path: Path) -> None:
    model: dict[str, Any] = {"model": seeded(Plain).eval(), "progress": False}
    config = replace(QUANTIZED, edge_bits=None)
    whole = training.train(config, small, out=tmp_path / "whole", **model)
    training.train(replace(config, epochs=1), small, out=tmp_path / "parts", **model)
    parts = training.train(config, small, out=tmp_path / "parts", resume=True, **model)
    assert whole.record.losses == parts.record.losses
    networks = [twoscale.load(tmp_path / folder / NETWORK_FILE) for folder in ("whole", "parts")]
    assert networks[0].fingerprint == networks[1].fingerprint


def test_a_resumed_run_keeps_the_network_that_it_began_with(small: Dataset, tmp_path: Path) -> None:
    """Another machine may calibrate to other ranges: those of the checkpoint count."""
    config = replace(QUANTIZED, edge_bits=None)
    model: dict[str, Any] = {"model": seeded(Plain).eval(), "progress": False}
    whole = training.train(config, small, out=tmp_path / "whole", **model)
    training.train(replace(config, epochs=1), small, out=tmp_path / "parts", **model)
    brighter = small.train.images.copy()
    other = replace(small, train=data.Split(np.minimum(brighter, 100), small.train.labels))
    elsewhere = training.train(replace(config, epochs=1), other, out=tmp_path / "parts", resume=True, **model)
    first, second = (begun(result) for result in (whole, elsewhere))
    assert first.fingerprint == second.fingerprint


def test_integers_are_exact_whatever_the_precision(small: Dataset) -> None:
    result = run(small, replace(QUANTIZED, precision="bf16", epochs=1))
    assert isinstance(result.model, QuantizedModel)
    top1, _ = accuracy(result.model.to_network(), [pixels(small)])
    assert top1 == result.record.test_accuracy


def test_training_from_weights(tmp_path: Path) -> None:
    dataset = dataset_of(64, 32)
    training.train(TrainConfig(epochs=1, device="cpu", batch_size=8), dataset, out=tmp_path / "float", progress=False)
    weights = tmp_path / "float" / "model.safetensors"
    config = TrainConfig(epochs=1, lr=1e-9, device="cpu", batch_size=64, optimizer="adamw", start=str(weights))
    result = training.train(config, dataset, progress=False)
    loaded, _ = models.load_checkpoint(weights)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("text", ["W4", "4", "W4A4x", "int8", "W1A4", "W9A4"])
def test_what_is_no_number_of_bits_is_refused(text: str, small: Dataset) -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected bits of weights and activations, e.g. W4A4|expected 2 to 8"
    ):
        run(small, replace(QUANTIZED, quantize=text))


def test_training_begins_with_learned_roundings(small: Dataset) -> None:
    """The network that it begins with is nearer to the float network than the one rounded as by default."""
    config = replace(QUANTIZED, quantize="W2A2", edge_bits=None, epochs=1, lr=1e-12)
    images = small.train.images.astype(np.float32)  # that it learns from
    model = seeded(Normed).eval()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (small.mean, small.std))
    with torch.no_grad():
        wanted = model((torch.from_numpy(images) / 255 - mean) / std).double().numpy()
    errors = {}
    for rounding in ("feedback", "learned"):
        network = begun(run(small, replace(config, rounding=rounding)))
        found = ReferenceExecutor(network).run(images, {network.output})[network.output]
        errors[rounding] = np.square(network.logits(found) - wanted).mean()
    assert errors["learned"] < errors["feedback"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_distillation_mixes_labels_with_the_float_networks_predictions(share: float, reduction: str) -> None:
    torch.manual_seed(0)
    images, labels, weight = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(5, 3)
    config = replace(QUANTIZED, distillation=share, precision="fp32")
    gradient = Gradient.of(config, lambda x: x @ weight)
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    found = gradient.loss(lambda _: logits, images, labels, reduction)
    expected = torch.zeros((), dtype=torch.float64)
    for own, image, label in zip(logits, images, labels, strict=True):
        teacher = torch.exp((image @ weight).double() / 4)
        p, q = teacher / teacher.sum(), torch.exp(own / 4) / torch.exp(own / 4).sum()
        smooth = config.label_smoothing
        target = torch.full((3,), smooth / 3, dtype=torch.float64)
        target[label] += 1 - smooth
        mixed = (1 - share) * -(target * torch.log_softmax(own, 0)).sum() + share * 16 * (p * (p / q).log()).sum()
        expected = expected + mixed / (6 if reduction == "mean" else 1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    (slope,) = torch.autograd.grad(found, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(slope, wanted, rtol=1e-5, atol=1e-8)


def test_the_teacher_is_the_float_network(small: Dataset) -> None:
    images, _ = pixels(small)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (small.mean, small.std))
    normalized = (torch.from_numpy(images) / 255 - mean) / std
    trained = run(small, replace(QUANTIZED, epochs=1, distillation=1.0)).model
    assert isinstance(trained, QuantizedModel)
    with torch.no_grad():
        expected = seeded(Normed).eval()(normalized)
        found = trained.teacher(normalized)
    assert torch.allclose(found.float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", [{"rounding": "learned"}, {"distillation": 0.5}])
def test_options_of_integer_networks_need_one(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="is for integer networks; leave it out, or give quantize too"):
        TrainConfig(**option)


def test_a_share_of_the_loss_is_at_most_all() -> None:
    with pytest.raises(ConfigurationError, match=r"distillation is 1.5; expected 0 to 1"):
        TrainConfig(quantize="W4A4", distillation=1.5)


def test_images_are_normalized_as_the_weights_expect(tmp_path: Path) -> None:
    """Weights of a run on other numbers, or published ones, would be useless to begin with otherwise."""
    dataset = dataset_of(64, 32)
    training.train(TrainConfig(epochs=2, device="cpu", batch_size=8), dataset, out=tmp_path / "one", progress=False)
    weights = tmp_path / "one" / "model.safetensors"
    other = replace(dataset, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    config = TrainConfig(epochs=1, lr=1e-12, device="cpu", start=str(weights))
    result = training.train(config, other, out=tmp_path / "two", progress=False)
    _, info = models.load_checkpoint(tmp_path / "two")
    assert (info.mean, info.std) == (dataset.mean, dataset.std)
    before = models.load_checkpoint(weights)[1].test_accuracy
    assert result.record.test_accuracy == before
    given = replace(config, mean=(0.0, 0.0, 0.0), std=(0.5, 0.5, 0.5))
    training.train(given, other, out=tmp_path / "three", progress=False)
    _, info = models.load_checkpoint(tmp_path / "three")
    assert (info.mean, info.std) == (given.mean, given.std)


def test_published_weights_expect_their_own(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(models.create("resnet8").state_dict(), weights)
    dataset = dataset_of(32, 16)
    config = TrainConfig(model="resnet8", epochs=1, lr=1e-12, batch_size=32, device="cpu", start=str(weights))
    training.train(config, dataset, out=tmp_path / "run", progress=False)
    _, info = models.load_checkpoint(tmp_path / "run")
    assert (info.mean, info.std) == models.normalization("resnet8")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5,)}, "mean has 1 numbers, and images of digits have 3 channels; give one per channel"),
        ({"std": (1.0, 0.0, 1.0)}, "std is .*; expected positive numbers"),
        ({"mean": (float("nan"),) * 3}, "mean is .*; expected finite numbers"),
    ],
)
def test_normalizations_that_do_not_fit(given: dict[str, Any], message: str, small: Dataset) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(small, replace(QUANTIZED, **given))

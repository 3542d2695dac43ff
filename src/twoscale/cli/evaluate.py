"""``twoscale eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twoscale import data as data_room
from twoscale.cli.common import File, batches_of, console, load_model, print_json, require_file
from twoscale.errors import ConfigurationError

__all__ = ["EvalRecord", "eval_command"]


@dataclass(frozen=True)
class EvalRecord:
    """What ``twoscale eval --json`` prints."""

    file: str
    network: str
    data: str
    samples: int
    """Test images used."""
    top1: float
    """Fraction correct, 0..1."""


def eval_command(
    file: File,
    data: str | None = None,
    model: str | None = None,
    max_samples: int | None = None,
    json: bool = False,
) -> None:
    """Accuracy on the test images, of a float model or of an integer network.

    Args:
        file: Weights (.safetensors, .pt, .pth) or integer network (.onnx).
        data: Data set. Default: what the file was trained on, where it says so; else digits.
        model: Model of the weights, where the file does not say it, such as net or resnet18.
        max_samples: Use only the first images.
        json: Print JSON for programs.
    """
    if max_samples is not None and max_samples < 1:
        raise ConfigurationError(f"--max-samples is {max_samples}; expected at least 1")
    require_file(file, "weights (.safetensors, .pt, .pth) or an integer network (.onnx)")
    found = (_integer if file.suffix == ".onnx" else _float)(file, data, model, max_samples)
    if json:
        print_json(found)
        return
    console().print(f"{found.network}: {found.top1:.2%} of {found.samples:,} test images of {found.data} right")


def _float(file: Path, data: str | None, model: str | None, max_samples: int | None) -> EvalRecord:
    from twoscale import models
    from twoscale.training import evaluate

    mean_std = None
    if model is None:
        network, info = models.load_checkpoint(file)
        data, mean_std = data or info.data, (info.mean, info.std)
    else:
        network = load_model(file, model)
    dataset = data_room.load(data or "digits")
    mean, std = mean_std or (dataset.mean, dataset.std)
    top1 = evaluate(network, dataset.test, mean, std, max_samples=max_samples)
    samples = min(len(dataset.test), max_samples or len(dataset.test))
    return EvalRecord(str(file), type(network).__name__, dataset.name, samples, top1)


def _integer(file: Path, data: str | None, model: str | None, max_samples: int | None) -> EvalRecord:
    from twoscale import network as network_room
    from twoscale.verification import accuracy

    if model is not None:
        raise ConfigurationError("--model is for weights; an integer network says itself what it is")
    network = network_room.load(file)
    dataset = data_room.load(data or str(network.metadata.get("data", "digits")))
    top1, samples = accuracy(network, batches_of(dataset.test, dataset, limit=max_samples))
    return EvalRecord(str(file), network.name, dataset.name, samples, top1)

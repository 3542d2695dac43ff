"""``twoscale eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twoscale._cli.common import (
    AS_RECORDED,
    Channels,
    File,
    ModelArgs,
    ModelName,
    Pictures,
    batches_of,
    check_takes_pictures,
    dataset_for,
    is_integer_file,
    load_float,
    print_json,
    print_line,
    recorded,
    require_weights,
)
from twoscale._text import printable
from twoscale.errors import ConfigurationError
from twoscale.training._config import Views

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
    executor: str
    """What computed it: "torch" for a float model, else the fastest executor available."""


def eval_command(
    file: File,
    data: str | None = None,
    model: ModelName = None,
    model_args: ModelArgs = None,
    mean: Channels = None,
    std: Channels = None,
    pictures: Pictures = AS_RECORDED,
    max_samples: int | None = None,
    views: Views = "one",
    json: bool = False,
) -> None:
    """Measure the accuracy of a float model or an integer network on test images.

    Integer networks run on the fastest executor available: compiled C, or torch without a C compiler.

    Args:
        file: Weights (.safetensors, .pt, .pth, .pt2), or a float or integer network (.onnx, .tflite).
        data: Data set. Default: the one recorded in the file, or else digits.
        model: Model of the weights, where the file does not record it: a name such as resnet18, or FILE.py:CLASS for
            your own, whose code then runs.
        model_args: Options of that model.
        mean: Mean of pixels / 255, for normalizing the images. Default: the mean recorded in the file, or that of the
            model's published weights, or else 0.5.
        std: Standard deviation of pixels / 255, with the same defaults.
        pictures: How pictures of your own become pixels. Default: as the file records.
        max_samples: Use only the first N images.
        views: How a float model judges an image. one: by its logits. mirrored: by the mean of its logits and those of
            its mirror image. shifted: by the mean over both, and both shifted by one pixel in either direction.
        json: Print JSON instead of a sentence.
    """
    if max_samples is not None and max_samples < 1:
        raise ConfigurationError(f"--max-samples is {max_samples}; expected at least 1")
    if "#" not in file.name:
        require_weights(file, "weights (.safetensors, .pt, .pth, .pt2) or a network (.onnx, .tflite)", tflite=True)
    integers = is_integer_file(file)
    if integers:
        if views != "one":
            raise ConfigurationError("--views is for weights; an integer network judges each image once")
        found = _integer(file, data, model, mean, std, pictures, max_samples)
    else:
        found = _float(file, data, model, model_args, mean, std, pictures, max_samples, views)
    if json:
        print_json(found)
        return
    by = f", computed by the executor {found.executor}" if integers else ""
    print_line(
        f"{printable(found.network, 100)}: {found.top1:.2%} of {found.samples:,} test images of {found.data} right{by}"
    )


def _float(
    file: Path,
    data: str | None,
    model: str | None,
    model_args: str | None,
    mean: Channels,
    std: Channels,
    pictures: Pictures,
    max_samples: int | None,
    views: Views,
) -> EvalRecord:
    from twoscale.training import evaluate
    from twoscale.training._accuracy import model_name

    network, info = load_float(file, model, model_args)
    dataset = dataset_for(data, recorded(info), mean, std, pictures)
    check_takes_pictures(network, dataset)
    top1 = evaluate(network, dataset.test, dataset.mean, dataset.std, max_samples=max_samples, views=views)
    samples = min(len(dataset.test), max_samples or len(dataset.test))
    return EvalRecord(str(file), model_name(network), dataset.name, samples, top1, "torch")


def _integer(
    file: Path,
    data: str | None,
    model: str | None,
    mean: Channels,
    std: Channels,
    pictures: Pictures,
    max_samples: int | None,
) -> EvalRecord:
    from twoscale._formats import load
    from twoscale._runtimes import fastest
    from twoscale._verification import accuracy

    if model is not None:
        raise ConfigurationError("--model is for weights; an integer network needs no model")
    network = load(file)
    dataset = dataset_for(data, recorded(network), mean, std, pictures)
    check_takes_pictures(network, dataset)
    executor = fastest(network)
    top1, samples = accuracy(network, batches_of(dataset.test, dataset, limit=max_samples), executor=executor)
    return EvalRecord(str(file), network.name, dataset.name, samples, top1, executor.name)

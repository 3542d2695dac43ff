"""What several verbs share: output, and loading the models, networks and images that the user names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro
from rich.console import Console

from twoscale import data
from twoscale._files import record_to_json
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale.models import ModelInfo, Published

__all__ = [
    "Channels",
    "DataName",
    "File",
    "ModelName",
    "as_pixels",
    "at_least_one",
    "batches_of",
    "console",
    "dataset_for",
    "load_float",
    "load_model",
    "print_json",
    "recorded",
    "require_file",
]

File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
"""A file given as a positional argument."""

DataName = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
"""A data set; by default the one recorded in the file."""

ModelName = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
"""A model; by default the one recorded in the file."""

Channels = Annotated[tuple[float, float, float] | None, tyro.conf.arg(metavar="R G B")]
"""One number per colour channel."""


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would exit with 1, which here means that integers differ


def console() -> Console:
    """Return a console for tables on standard output."""
    return _Console(highlight=False)


def print_json(record: object) -> None:
    """Write a record to standard output as JSON."""
    sys.stdout.write(record_to_json(record))


def require_file(path: Path, what: str) -> Path:
    """Return ``path`` if it is a file.

    Raises:
        ConfigurationError: it is not; says what was expected.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no ordinary file" if path.exists() else "does not exist"
        raise ConfigurationError(f"{path} {found}; expected {what}")
    return path


def at_least_one(option: str, value: int | None) -> None:
    """Check a number of images.

    Raises:
        ConfigurationError: it is less than 1.
    """
    if value is not None and value < 1:
        raise ConfigurationError(f"{option} is {value}; expected at least 1")


def load_float(path: Path, model: str | None) -> tuple[nn.Module, ModelInfo | Published | None]:
    """Load weights: of this library, whose files name their model, or of any origin for a named model.

    Args:
        path: the file; "#part" after it names the weights to take where it holds several that fit.
        model: name of the model; None: the file names it.

    Returns:
        The model, and what is known of the images it expects: the file's metadata, or else how the model's published
        weights were trained.
    """
    from twoscale import models

    part = None
    if not path.exists() and "#" in path.name:
        name, part = path.name.split("#", 1)
        path = path.with_name(name)
    require_file(path, "weights (.safetensors, .pt or .pth)")
    if path.suffix == ".onnx":
        raise ConfigurationError(_not_weights(path))
    if model is None:
        return models.load_checkpoint(path)
    network = models.load(model, path, part=part)
    return network, models.read_info(path) or models.published(model)


def _not_weights(path: Path) -> str:
    """Return the error for an ONNX file given in place of weights."""
    from twoscale._formats import load
    from twoscale.errors import NetworkFileError

    try:
        load(path)
    except NetworkFileError:
        return f"{path} is an ONNX file; expected the weights of the float network (.safetensors, .pt or .pth)"
    return (
        f"{path} is an integer network already; check it with twoscale verify, write its C with twoscale export, or "
        "give the weights of the float network (.safetensors, .pt or .pth)"
    )


def load_model(path: Path, model: str | None) -> nn.Module:
    """Load weights without their description."""
    return load_float(path, model)[0]


def recorded(origin: ModelInfo | Published | IntegerNetwork | None) -> Mapping[str, Any]:
    """Return the "data", "mean" and "std" that a file records."""
    if origin is None:
        return {}
    metadata = getattr(origin, "metadata", None)
    if metadata is not None:
        return {key: metadata[key] for key in ("data", "mean", "std") if key in metadata}
    return {key: getattr(origin, key) for key in ("data", "mean", "std")}


def dataset_for(
    name: str | None,
    known: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> data.Dataset:
    """Load a data set with the normalization that a network expects.

    Args:
        name: the data set; None: the one in ``known``, else digits.
        known: from ``recorded``.
        mean: of pixels / 255 in each channel, instead of what is known.
        std: likewise.

    Raises:
        ConfigurationError: a deviation that is not positive.
        UnknownNameError: there is no such data set.
        DataError: it cannot be had.
    """
    if std is not None and not all(value > 0 for value in std):
        raise ConfigurationError(f"--std is {' '.join(f'{value:g}' for value in std)}; expected positive numbers")
    dataset = data.load(name or str(known.get("data", "digits")))
    means, deviations = (
        tuple(float(value) for value in given or known.get(key, own))
        for key, given, own in (("mean", mean, dataset.mean), ("std", std, dataset.std))
    )
    return replace(dataset, mean=means, std=deviations)


def as_pixels(dataset: data.Dataset) -> data.Dataset:
    """Return a data set whose images are pixels 0..255, not normalized."""
    channels = len(dataset.mean)
    return replace(dataset, mean=(0.0,) * channels, std=(1 / 255,) * channels)


def batches_of(
    split: data.Split, dataset: data.Dataset, *, batch_size: int = 500, limit: int | None = None
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield (normalized float32 images, labels), at most ``limit`` images."""
    part = split if limit is None else split.head(limit)
    for images, labels in data.batches(part.images, part.labels, batch_size):
        yield data.normalize(images, dataset.mean, dataset.std), labels

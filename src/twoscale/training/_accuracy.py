"""Accuracy of a float model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from twoscale.data import Dataset, Split, batches, normalize
from twoscale.data._pipeline import fitting_batch
from twoscale.errors import CaptureError, ConfigurationError, DataError, UnsupportedOperatorError
from twoscale.training._config import Views

__all__ = ["check_takes", "correct", "evaluate", "model_name", "output_for_one", "picture_options"]

_SURE = 0.5
"""Difference of the two largest probabilities from which on an image gets no further views."""


def evaluate(
    model: torch.nn.Module,
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 100,
    max_samples: int | None = None,
    views: Views = "one",
) -> float:
    """Return the fraction of images whose largest logit is their class, 0..1, each image counted once.

    A single logit separates two classes by its sign: class 1 if it is positive.

    Args:
        model: maps normalized images (N, C, H, W) to logits (N, classes), on any device. It is run in evaluation mode;
        its mode is restored.
        split: images and labels.
        mean: per channel, of pixels / 255.
        std: per channel, of pixels / 255.
        batch_size: images at a time; fewer if they are larger than 64 x 64. It affects at most the last bit of a logit.
        max_samples: use only this many of the first images.
        views: the logits used for each image. one: its logits; mirrored: the mean of its own and its mirror image's;
            shifted: the mean of that and of the same by a pixel up and left and by one down and right, the border
            mirrored (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3.5); selective: mirrored, and shifted for
            images whose two largest probabilities differ by less than 0.5.

    Raises:
        ConfigurationError: ``max_samples`` is less than 1.
        DataError: no images, or not of a shape that the model takes.
    """
    if max_samples is not None:
        if max_samples < 1:
            raise ConfigurationError(f"max_samples is {max_samples}; expected at least 1")
        split = split.head(max_samples)
    check_takes(model, split, mean, std, signs=True)
    return correct(model, split, mean, std, batch_size=batch_size, views=views) / len(split)


def correct(
    model: torch.nn.Module,
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 100,
    views: Views = "one",
) -> int:
    """Return the number of images that :func:`evaluate` counts as right."""
    tensor = next(iter(model.parameters()), torch.empty(0))
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=tensor.device)
    try:
        with torch.inference_mode():
            for images, labels in batches(split.images, split.labels, fitting_batch(batch_size, split.images.shape)):
                x = normalize(torch.from_numpy(images).to(tensor.device), mean, std).to(tensor.dtype)
                logits = _logits(model, x, views)
                chosen = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
                right += (chosen == torch.from_numpy(labels).to(tensor.device).long()).sum()
    finally:
        model.train(was_training)
    return int(right)


def _logits(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, views: Views) -> torch.Tensor:
    if views == "one":
        return model(x)
    height, width = x.shape[2:]

    def mirrored(x: torch.Tensor) -> torch.Tensor:
        return (model(x) + model(x.flip(-1))) / 2

    def shifted(x: torch.Tensor, centred: torch.Tensor) -> torch.Tensor:
        # As the border of shifted training images: fill is reflect. An image of one row or column has nothing to
        # mirror.
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect" if min(height, width) > 1 else "replicate")
        up_left, down_right = (padded[:, :, by : by + height, by : by + width] for by in (2, 0))
        return (centred + (mirrored(up_left) + mirrored(down_right)) / 2) / 2

    logits = mirrored(x)
    if views == "mirrored":
        return logits
    if views == "shifted":
        return shifted(x, logits)
    unsure = torch.nonzero(_margins(logits) < _SURE)[:, 0]
    if len(unsure):
        logits[unsure] = shifted(x[unsure], logits[unsure])
    return logits


def _margins(logits: torch.Tensor) -> torch.Tensor:
    """Return the difference of the two largest probabilities, (N,)."""
    if logits.shape[1] == 1:  # two classes, separated by the sign
        logits = F.pad(logits, (0, 1))
    likeliest = logits.float().softmax(1).topk(2, dim=1).values
    return likeliest[:, 0] - likeliest[:, 1]


def model_name(model: torch.nn.Module) -> str:
    """Return the name of a model as its ``repr`` begins: the class, or of an ONNX file the file's name."""
    return str(model._get_name())  # type: ignore[no-untyped-call]


def picture_options(dataset: Dataset) -> str:
    """Return the end of a message about the shape of pictures that are resized; empty for other images."""
    if dataset.preprocessing is None:
        return ""
    return "; give --channels and --size as the model takes them (in Python: Preprocessing)"


def check_takes(
    model: torch.nn.Module,
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    signs: bool = False,
    hint: str = "",
) -> None:
    """Run one image through the model, in evaluation mode.

    Args:
        model: as of :func:`evaluate`.
        split: images and labels.
        mean: per channel, of pixels / 255.
        std: per channel, of pixels / 255.
        signs: whether a single logit may separate two classes by its sign.
        hint: as of :func:`output_for_one`.

    Raises:
        DataError: there is no image, the model does not take it, or has too few outputs for the labels.
    """
    outputs = tuple(output_for_one(model, split, mean, std, hint=hint).shape)
    one_of_two = outputs == (1, 1) and signs
    if len(outputs) != 2 or outputs[0] != 1 or (1 if one_of_two else outputs[1] - 1) < int(split.labels.max()):
        shape = " x ".join(map(str, split.images.shape[1:]))
        raise DataError(
            f"{model_name(model)} gives an output of shape {outputs} for one image of {shape}; expected "
            f"(1, classes) with at least {int(split.labels.max()) + 1} classes"
        )


def output_for_one(
    model: torch.nn.Module, split: Split, mean: Sequence[float], std: Sequence[float], *, hint: str = ""
) -> torch.Tensor:
    """Return the model's output for the first image, in evaluation mode.

    Args:
        model: as of :func:`evaluate`.
        split: images and labels.
        mean: per channel, of pixels / 255.
        std: per channel, of pixels / 255.
        hint: end of the message if the model does not take the image.

    Raises:
        DataError: there is no image, or the model does not take it.
        UnsupportedOperatorError: the model is an ONNX file with an operator that is not read.
    """
    if not len(split):
        raise DataError("there are no images: expected at least 1")
    tensor = next(iter(model.parameters()), torch.empty(0))
    was_training = model.training
    model.eval()
    shape = " x ".join(map(str, split.images.shape[1:]))
    try:
        with torch.inference_mode():
            images = normalize(torch.from_numpy(np.asarray(split.images[:1])).to(tensor.device), mean, std)
            output: torch.Tensor = model(images.to(tensor.dtype))
    except UnsupportedOperatorError:
        raise
    except (RuntimeError, CaptureError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{model_name(model)} does not take images of {shape} ({reason}){hint}") from error
    finally:
        model.train(was_training)
    return output

"""Short training runs on one device: their images, and how well a model does on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from twoscale import data
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import Workload
from twoscale.scaling._measure.workload import device_of, load_images

__all__ = ["ImageSet", "Images", "accuracy", "image_sets", "mean_loss", "settle"]

Images = tuple[torch.Tensor, torch.Tensor]
"""Images (N, C, H, W), float32, normalized, and labels (N,), int64, on the device."""
_HELD_OUT = 10
"""One training image in this many is held out to choose learning rates."""
_PART = 256
"""Images that are looked at together."""


@dataclass(frozen=True)
class ImageSet:
    """Images on the device: for training, and to look at."""

    train: Images
    looked_at: Images

    def head(self, count: int) -> ImageSet:
        """Return the same with the first training images only."""
        return ImageSet((self.train[0][:count], self.train[1][:count]), self.looked_at)


def image_sets(workload: Workload) -> tuple[ImageSet, ImageSet]:
    """Return the training images with those held out of them, and all training images with the test images.

    Raises:
        ConfigurationError: the images are synthetic, which have nothing to learn.
    """
    if workload.data == "synthetic":
        raise ConfigurationError("the data are synthetic, which have nothing to learn; give --data")
    dataset = load_images(workload.data, workload.preprocessing)
    device = device_of(workload)

    def tensors(split: data.Split) -> Images:
        images = torch.from_numpy(np.asarray(split.images)).to(device)
        labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
        return data.normalize(images, dataset.mean, dataset.std), labels

    train, test = tensors(dataset.train), tensors(dataset.test)
    held = torch.arange(len(train[1]), device=device) % _HELD_OUT == 0
    search = ImageSet((train[0][~held], train[1][~held]), (train[0][held], train[1][held]))
    return search, ImageSet(train, test)


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parts(images: Images) -> Iterator[Images]:
    yield from zip(torch.split(images[0], _PART), torch.split(images[1], _PART), strict=True)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Return the share of images that are classified right, in evaluation mode."""
    model.eval()
    right = sum(int((model(part).argmax(1) == labels).sum().item()) for part, labels in _parts(images))
    model.train()
    return right / len(images[1])


@torch.no_grad()
def mean_loss(model: nn.Module, images: Images) -> float:
    """Return the mean cross-entropy over images, in evaluation mode."""
    model.eval()
    total = sum(F.cross_entropy(model(part), labels, reduction="sum").item() for part, labels in _parts(images))
    model.train()
    return total / len(images[1])

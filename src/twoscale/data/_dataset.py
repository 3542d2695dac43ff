"""A data set: uint8 images and labels, and the normalization of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale.data._pictures import Preprocessing
from twoscale.data._streamed import StreamedImages
from twoscale.errors import ConfigurationError, DataError

__all__ = ["CIFAR10_MEAN", "CIFAR10_STD", "LAB_MEAN", "LAB_STD", "Dataset", "Split"]

LAB_MEAN = (0.5, 0.5, 0.5)
"""The course lab's mean per channel, of pixels / 255; used for every data set."""
LAB_STD = (0.5, 0.5, 0.5)
"""The course lab's standard deviation per channel, of pixels / 255; the input becomes [-1, 1]."""
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of CIFAR-10's training pixels / 255: red, green, blue."""
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
"""Standard deviation of CIFAR-10's training pixels / 255, over all pixels of a channel."""


@dataclass(frozen=True, eq=False)
class Split:
    """One half of a data set.

    Raises:
        DataError: an array has another type or shape, or the lengths differ.
    """

    images: Any
    """uint8 (N, C, H, W), 0..255: an array, or for large sets of pictures :class:`StreamedImages`."""
    labels: NDArray[Any]
    """(N,), uint8, or uint16 for more than 256 classes: index into the data set's classes."""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        wrong_labels = labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 1
        if images.dtype != np.uint8 or images.ndim != 4 or wrong_labels:
            raise DataError(
                f"images {images.dtype}{images.shape} with labels {labels.dtype}{labels.shape}: "
                "expected uint8 (N, C, H, W) with uint8 (N,)"
            )
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images with {len(labels)} labels: expected one label per image")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {' x '.join(map(str, self.images.shape[1:]))})"

    @property
    def streamed(self) -> bool:
        """Whether the images are decoded when they are used."""
        return isinstance(self.images, StreamedImages)

    def head(self, n: int) -> Split:
        """Return the first ``n`` images, or all if there are fewer. No pixel is copied."""
        if n < 0:
            raise ConfigurationError(f"head({n}): expected a number of images of at least 0")
        return Split(self.images[:n], self.labels[:n])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set.

    Raises:
        DataError: a label has no class, or mean and std do not have one entry per channel.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    """Per channel, of pixels / 255; what the default normalization subtracts."""
    std: tuple[float, ...]
    """Per channel, of pixels / 255; what the default normalization divides by."""
    source: str
    """Its source, for records."""
    preprocessing: Preprocessing | None = None
    """From picture files to pixels; None for a named data set, which has pixels."""

    def __post_init__(self) -> None:
        for split_name, split in (("train", self.train), ("test", self.test)):
            if len(split) and int(split.labels.max()) >= len(self.classes):
                raise DataError(
                    f"{self.name}: {split_name} has label {int(split.labels.max())}, "
                    f"expected 0..{len(self.classes) - 1}"
                )
            channels = split.images.shape[1]
            if not channels == len(self.mean) == len(self.std):
                raise DataError(
                    f"{self.name}: {split_name} has {channels} channels, but there are "
                    f"{len(self.mean)} means and {len(self.std)} standard deviations"
                )

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, train={self.train!r}, test={self.test!r}, source={self.source!r})"

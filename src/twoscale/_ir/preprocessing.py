"""From pictures to a network's input: the steps that are recorded with a network, and the normalization of pixels,
which has the same bits in NumPy and torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import torch

__all__ = ["PictureSteps", "normalize", "normalizer", "picture_steps", "pixel_normalization"]

_MODES = {1: "grey", 3: "RGB", 4: "RGBA"}


@overload
def normalize(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]: ...
@overload
def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor: ...
def normalize(
    images: NDArray[np.uint8] | torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32] | torch.Tensor:
    """Return (images / 255 - mean) / std in float32, with one rounding for each of the three steps.

    Mean 0 and std 1/255 in every channel give the pixels 0..255 exactly, without a rounding.

    NumPy and torch give the same bits on every device (in eager mode; a compiler may contract the steps).

    Args:
        images: uint8, (..., C, H, W).
        mean: per channel, of pixels / 255.
        std: per channel, of pixels / 255, positive.

    Returns:
        float32 of the same shape; of the same kind and on the same device as ``images``.

    Raises:
        DataError: the images are not uint8, or have another number of channels than mean and std.
        ConfigurationError: an entry of std is not positive.
    """
    if str(images.dtype).removeprefix("torch.") != "uint8" or images.ndim < 3:
        raise DataError(f"normalize got {images.dtype}{tuple(images.shape)}, expected uint8 (..., C, H, W)")
    if not images.shape[-3] == len(mean) == len(std):
        raise DataError(
            f"normalize got images of {images.shape[-3]} channels with {len(mean)} means and "
            f"{len(std)} standard deviations, expected one of each per channel"
        )
    if not all(s > 0 for s in std):
        raise ConfigurationError(f"std is {tuple(std)}: expected positive numbers")
    if isinstance(images, np.ndarray):
        x = images.astype(np.float32)
        if _leaves_pixels(mean, std):
            return x
        x /= np.float32(255)
        x -= np.array(mean, np.float32)[:, None, None]
        x /= np.array(std, np.float32)[:, None, None]
        return x
    if not hasattr(images, "device"):
        raise DataError(
            f"normalize got {type(images).__name__}, expected a NumPy array or a tensor: take batches of it "
            "(twoscale.data.batches), or all of it (numpy.asarray)"
        )
    return normalizer(mean, std, images.device)(images)


def _leaves_pixels(mean: Sequence[float], std: Sequence[float]) -> bool:
    return all(value == 0 for value in mean) and all(value == 1 / 255 for value in std)


def normalizer(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return :func:`normalize` for uint8 tensors on ``device``. Its constants are made once, and it checks nothing."""
    import torch

    if _leaves_pixels(mean, std):
        return lambda images: images.float()

    def per_channel(values: Sequence[float]) -> torch.Tensor:
        # Filled on the device: a copy from the host would wait for it and could not be captured in a graph.
        filled = [torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values]
        return torch.stack(filled)

    # Divisors are tensors, because CUDA divides by a plain number by multiplying with its reciprocal, which rounds
    # differently.
    largest, means, deviations = per_channel([255.0]), per_channel(mean), per_channel(std)
    return lambda images: images.float().div_(largest).sub_(means).div_(deviations)


@dataclass(frozen=True)
class PictureSteps:
    """The steps from a picture to pixels; :class:`twoscale.data.Preprocessing` does them.

    Raises:
        ConfigurationError: a number outside its range.
    """

    size: int | tuple[int, int] = 224
    """Height and width of the result, 1 to 4096: one number for both, or (height, width)."""
    resize: Literal["shorter", "stretch", "none"] = "shorter"
    """shorter: the shorter side becomes ``resize_to``, and the other keeps the ratio, rounded down. stretch: the
    picture becomes ``size``, and its ratio changes; nothing is left to crop. none: it keeps its size."""
    resize_to: int | None = None
    """Length of the shorter side. Default: the larger side of ``size``; torchvision's evaluation of ImageNet has 256
    for 224."""
    crop: Literal["center"] = "center"
    """center: the middle; a position between two pixels is rounded to the even one. Smaller pictures get black
    borders."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    channels: Literal[1, 3, 4] = 3

    def __post_init__(self) -> None:
        if isinstance(self.size, tuple) and self.size[0] == self.size[1]:
            object.__setattr__(self, "size", self.size[0])  # one form, so that equal preprocessing compares equal
        for name, value in (("size", min(self.hw)), ("size", max(self.hw)), ("resize_to", self.resize_to)):
            if value is not None and not 1 <= value <= 4096:
                raise ConfigurationError(f"{name} is {value}; expected 1 to 4096")
        if self.channels not in _MODES:
            raise ConfigurationError(f"channels is {self.channels}; expected 1, 3 or 4")
        if self.resize != "shorter" and self.resize_to is not None:
            raise ConfigurationError(f"resize_to is for resize shorter; resize is {self.resize}")

    @property
    def hw(self) -> tuple[int, int]:
        """(H, W) of the result."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the result."""
        return self.channels, *self.hw

    def __str__(self) -> str:
        """Describe the steps in the order in which they happen."""
        height, width = self.hw
        steps = {
            "shorter": f"the shorter side resized to {self.resize_to or max(self.hw)}",
            "stretch": f"stretched to {height}x{width}",
            "none": "not resized",
        }
        how = steps[self.resize] + ("" if self.resize == "none" else f" ({self.interpolation}, antialias)")
        cropped = "" if self.resize == "stretch" else f", center crop {height}x{width}"
        return f"{_MODES[self.channels]}, {how}{cropped}"


def picture_steps(metadata: Mapping[str, Any]) -> PictureSteps | None:
    """Return the steps that a network's metadata records; None if there are none, or in another form."""
    import msgspec

    try:
        return msgspec.convert(metadata["preprocessing"], PictureSteps)
    except (KeyError, msgspec.ValidationError, ConfigurationError):
        return None


def pixel_normalization(
    metadata: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return (mean, std) that turn pixels / 255 into a network's input, per channel.

    The metadata has them as "mean" and "std". A network with "normalization" alone has the normalization inside, and
    takes pixels 0..255 as they are. None if there are neither, or not one number per channel.
    """
    if "mean" not in metadata and "std" not in metadata and "normalization" in metadata:
        return (0.0,) * channels, (1 / 255,) * channels
    mean, std = metadata.get("mean"), metadata.get("std")
    if not (isinstance(mean, list | tuple) and isinstance(std, list | tuple)):
        return None
    numbers = [value for value in (*mean, *std) if isinstance(value, int | float) and math.isfinite(value)]
    if not len(mean) == len(std) == channels or len(numbers) != 2 * channels or not all(value > 0 for value in std):
        return None
    return tuple(map(float, mean)), tuple(map(float, std))

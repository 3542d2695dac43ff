"""Normalization of pixels to a network's input, the same bits in NumPy and torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import torch

__all__ = ["normalize", "normalizer"]


@overload
def normalize(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]: ...
@overload
def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor: ...
def normalize(
    images: NDArray[np.uint8] | torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32] | torch.Tensor:
    """Return (images / 255 - mean) / std in float32, with one rounding for each of the three steps.

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


def normalizer(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return :func:`normalize` for uint8 tensors on ``device``. Its constants are made once, and it checks nothing."""
    import torch

    def per_channel(values: Sequence[float]) -> torch.Tensor:
        # Filled on the device: a copy from the host would wait for it and could not be captured in a graph.
        filled = [torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values]
        return torch.stack(filled)

    # Divisors are tensors, because CUDA divides by a plain number by multiplying with its reciprocal, which rounds
    # differently.
    largest, means, deviations = per_channel([255.0]), per_channel(mean), per_channel(std)
    return lambda images: images.float().div_(largest).sub_(means).div_(deviations)

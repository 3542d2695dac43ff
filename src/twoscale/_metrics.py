"""Metrics of networks, and the labelled batches over which they are computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError

__all__ = ["Batch", "SignalToNoise", "labelled"]

Batch = tuple[NDArray[Any], NDArray[Any] | None]


class SignalToNoise:
    """Streaming SQNR: 10·log10(Σ reference² / Σ (reference − value)²), in dB."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0

    def update(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Add values, of any shape, both alike."""
        reference = reference.astype(np.float64, copy=False)
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(reference - value).sum())

    @property
    def db(self) -> float | None:
        """The ratio in dB; None without noise or without signal."""
        if self.noise == 0.0 or self.signal == 0.0:
            return None
        return 10.0 * float(np.log10(self.signal / self.noise))


def labelled(batches: Iterable[Any]) -> Iterable[Batch]:
    """Yield (images, labels or None) from tensors, arrays, or tuples (images, labels, …); empty batches are left out.

    Raises:
        ConfigurationError: images of uint8 pixels, or labels that are not one class index per image.
    """
    for index, batch in enumerate(batches):
        images, *rest = batch if isinstance(batch, tuple | list) and len(batch) else (batch,)
        images = _array(images)
        if images.dtype == np.uint8:
            raise ConfigurationError(
                f"batch {index} holds uint8 pixels; expected the normalized float images the network takes"
            )
        labels = None if not rest or rest[0] is None else _array(rest[0])
        if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
            raise ConfigurationError(
                f"batch {index} has images {images.shape} with labels {labels.dtype}{labels.shape}; "
                "expected one class index for each image"
            )
        if images.shape[:1] != (0,):
            yield images, labels


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
    return np.asarray(value)

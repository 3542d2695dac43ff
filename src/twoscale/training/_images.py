"""The training images on the device, as uint8. Batches are gathered, shifted, mirrored and normalized there."""

from __future__ import annotations

import torch

from twoscale.data import Dataset, augmentation, crop_flip, epoch_order, normalizer
from twoscale.errors import ConfigurationError
from twoscale.training._config import TrainConfig

__all__ = ["DeviceImages"]


class DeviceImages:
    """Training images and labels on the model's device.

    Args:
        dataset: its training images.
        config: gives seed, crop, flip and memory layout.
        device: where they go.
        dtype: of the batches.

    Raises:
        ConfigurationError: shifts larger than what mirroring an image can fill.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
        smallest = min(dataset.train.images.shape[2:])
        if config.fill == "reflect" and config.crop >= smallest:
            raise ConfigurationError(
                f"crop is {config.crop}; expected less than {smallest}, the images' size, where fill is reflect"
            )
        self.images = torch.from_numpy(dataset.train.images).to(device)
        self.labels = torch.from_numpy(dataset.train.labels).to(device).long()
        self._config, self._dtype = config, dtype
        self._normalize = normalizer(dataset.mean, dataset.std, device)
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._augments = config.crop > 0 or config.flip != "none"
        # Always the same memory, because a CUDA graph reads it there.
        self._how = torch.zeros(len(self.labels) if self._augments else 0, 3, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def begin_epoch(self, epoch: int) -> torch.Tensor:
        """Draw an epoch's shifts and mirrors; return its order, (N,) on the device."""
        config, n = self._config, len(self)
        if self._augments:
            drawn = augmentation(n, seed=config.seed, epoch=epoch, padding=config.crop, flip=config.flip)
            self._how.copy_(torch.from_numpy(drawn))
        return torch.from_numpy(epoch_order(n, seed=config.seed, epoch=epoch)).to(self.labels.device)

    def take(self, where: torch.Tensor) -> torch.Tensor:
        """Return the images at ``where``, (n,), as (n, C, H, W), shifted, mirrored and normalized."""
        images = self.images[where]
        if self._augments:
            images = crop_flip(images, self._how[where], self._config.fill)
        return self._normalize(images).to(self._dtype, memory_format=self._layout)

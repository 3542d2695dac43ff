"""The training images on the device, as uint8. Batches are gathered, shifted, mirrored and normalized there.

Images of a streamed data set are decoded in time for each batch, and only the batch is on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from twoscale.data import Dataset, StreamedImages, augmentation, crop_flip, epoch_order, normalizer
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
        images = dataset.train.images
        self.streamed = isinstance(images, StreamedImages)
        """Whether images are decoded when they are used. Then ``images`` holds none."""
        self._source = images
        self.images = torch.empty(0) if isinstance(images, StreamedImages) else torch.from_numpy(images).to(device)
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
        return next(self.batches([where]))

    def batches(self, places: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield :meth:`take` of each of ``places``. Streamed images are decoded ahead."""
        if not isinstance(self._source, StreamedImages):
            for where in places:
                yield self._prepared(self.images[where], where)
            return
        ahead = list(places)
        pixels = self._source.stream(where.cpu().numpy() for where in ahead)
        for where, images in zip(ahead, pixels, strict=True):
            yield self._prepared(torch.from_numpy(images).to(self.labels.device), where)

    def _prepared(self, images: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        if self._augments:
            images = crop_flip(images, self._how[where], self._config.fill)
        return self._normalize(images).to(self._dtype, memory_format=self._layout)

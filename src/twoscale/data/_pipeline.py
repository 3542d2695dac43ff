"""From uint8 pixels to the network's input: order, batches, normalization, augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.preprocessing import normalize, normalizer
from twoscale.data._streamed import StreamedImages
from twoscale.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import torch

__all__ = [
    "augmentation",
    "batches",
    "crop_flip",
    "epoch_order",
    "fitting_batch",
    "normalize",
    "normalizer",
    "random_crop_flip",
]


def epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """Return the order in which an epoch visits ``n`` samples.

    It depends on (n, seed, epoch) only. It sorts the raw 64-bit output of PCG64, which NumPy promises never to change
    (NEP 19), unlike the permutations of its generators.

    Args:
        n: number of samples, at least 0.
        seed: at least 0.
        epoch: at least 0.
        shuffle: False gives 0, 1, ..., n - 1.

    Returns:
        A permutation of 0..n-1.

    Raises:
        ConfigurationError: a negative argument.
    """
    if min(n, seed, epoch) < 0:
        raise ConfigurationError(f"epoch_order got n={n}, seed={seed}, epoch={epoch}: none may be negative")
    if not shuffle:
        return np.arange(n, dtype=np.int64)
    # The epoch as spawn key: as a second seed word, (5 + 7 * 2**32, 0) would be the same as (5, 7).
    source = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(source.random_raw(n), kind="stable").astype(np.int64, copy=False)


@overload
def batches(
    images: NDArray[Any] | StreamedImages,
    labels: NDArray[Any],
    batch_size: int,
    order: NDArray[np.int64] | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]: ...
@overload
def batches(
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    order: NDArray[np.int64] | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...
def batches(
    images: Any,
    labels: Any,
    batch_size: int,
    order: NDArray[np.int64] | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Yield (images, labels) of at most ``batch_size`` samples at a time.

    Args:
        images: (N, ...), NumPy array, torch tensor on any device, or streamed pictures, which are decoded ahead.
        labels: (N,), likewise.
        batch_size: at least 1.
        order: the samples in the order to visit (``epoch_order``); None for all in stored order, without copying.
        drop_last: leave out a last batch that is smaller.

    Raises:
        ConfigurationError: the batch size is less than 1.
        DataError: the numbers of labels and images differ, or the order points outside.
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch size {batch_size}: expected at least 1")
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images with {len(labels)} labels: expected one label per image")
    n = len(images)
    if order is not None:
        if len(order) and not 0 <= order.min() <= order.max() < n:
            raise DataError(f"the order points at {order.min()}..{order.max()}, expected 0..{n - 1}")
        n = len(order)
    return _batches(images, labels, batch_size, order, n - n % batch_size if drop_last else n)


def _batches(
    images: Any, labels: Any, batch_size: int, order: NDArray[np.int64] | None, stop: int
) -> Iterator[tuple[Any, Any]]:
    if isinstance(images, StreamedImages):
        places = np.arange(stop) if order is None else order[:stop]
        parts = [places[start : start + batch_size] for start in range(0, stop, batch_size)]
        yield from zip(images.stream(parts), (labels[part] for part in parts), strict=True)
        return
    image_order, label_order = _index_for(images, order), _index_for(labels, order)
    for start in range(0, stop, batch_size):
        here = slice(start, min(start + batch_size, stop))
        if order is None:
            yield images[here], labels[here]
        else:
            yield images[image_order[here]], labels[label_order[here]]


def _index_for(values: object, order: NDArray[np.int64] | None) -> Any:
    """Return ``order`` as an index on the device of ``values``, so that it is copied there once."""
    if order is None or isinstance(values, np.ndarray):
        return order
    import torch

    assert isinstance(values, torch.Tensor)
    return torch.from_numpy(order).to(values.device)


def fitting_batch(batch_size: int, shape: tuple[int, ...]) -> int:
    """Return ``batch_size``, or fewer for images larger than 64 x 64 pixels, so that memory does not grow with them.

    A network's first layers hold tens of values per pixel: 100 images of 224 x 224 would take gigabytes.

    Args:
        batch_size: at least 1.
        shape: of an image, (C, H, W).
    """
    return max(1, min(batch_size, batch_size * 64 * 64 // max(1, shape[-1] * shape[-2])))


def augmentation(
    n: int, *, seed: int, epoch: int, padding: int = 0, flip: Literal["none", "random", "alternating"] = "none"
) -> NDArray[np.int64]:
    """Return the shift and the mirroring of each of ``n`` images in an epoch.

    It depends on the arguments only, not on the order of the images, their distribution over processes, or the device.

    Args:
        n: number of images, at least 0.
        seed: at least 0.
        epoch: at least 0.
        padding: pixels of the largest shift, 0 to 127.
        flip: "random" draws anew every epoch with probability 1/2; "alternating" draws once, and mirrors in each epoch
            the images that it did not mirror in the one before (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds").

    Returns:
        (n, 3): by how many rows and columns the image moves up and left, -padding..padding, and whether it is
        mirrored, 0 or 1.

    Raises:
        ConfigurationError: a number outside its range.
    """
    if min(n, seed, epoch) < 0 or not 0 <= padding < 128:
        raise ConfigurationError(
            f"augmentation got n={n}, seed={seed}, epoch={epoch}, padding={padding}: none may be negative, "
            "and padding must be below 128"
        )
    raw = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, 1))).random_raw(n)
    parts = [((raw >> np.uint64(shift)) & np.uint64(0xFFFFFF)).astype(np.int64) for shift in (0, 24)]
    top, left = (((part * (2 * padding + 1)) >> 24) - padding for part in parts)
    mirrored = (raw >> np.uint64(63)).astype(np.int64)
    if flip == "alternating":
        first = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0, 2))).random_raw(n)
        mirrored = ((first >> np.uint64(63)).astype(np.int64) + epoch) % 2
    return np.stack([top, left, mirrored if flip != "none" else np.zeros_like(mirrored)], axis=1)


def random_crop_flip(images_nchw: torch.Tensor, generator: torch.Generator, padding: int = 4) -> torch.Tensor:
    """Shift each image by up to ``padding`` pixels and mirror half of them: the usual CIFAR augmentation.

    Same as padding every side with 0, cropping to the old size at a random position, and flipping left to right with
    probability 1/2, for each image. 0 is black in uint8, the mean after normalization.

    Args:
        images_nchw: (N, C, H, W), uint8 or floating point, on any device.
        generator: its state advances by the same draws whatever the device of the images, so that a CPU
            generator gives the same augmentation everywhere.
        padding: pixels on each side, at least 0.

    Returns:
        A new tensor like ``images_nchw``.

    Raises:
        ConfigurationError: padding is negative.
        DataError: the images do not have four axes.
    """
    import torch

    if padding < 0:
        raise ConfigurationError(f"padding {padding}: expected at least 0")
    if images_nchw.ndim != 4:
        raise DataError(f"random_crop_flip got a shape of {tuple(images_nchw.shape)}, expected (N, C, H, W)")

    def draw(stop: int) -> torch.Tensor:
        drawn = torch.randint(stop, (len(images_nchw), 1), generator=generator, device=generator.device)
        return drawn.to(images_nchw.device, non_blocking=True)

    top, left, flip = draw(2 * padding + 1), draw(2 * padding + 1), draw(2)
    return crop_flip(images_nchw, torch.cat([top - padding, left - padding, flip], dim=1))


def crop_flip(
    images_nchw: torch.Tensor, how: torch.Tensor, fill: Literal["black", "reflect"] = "black"
) -> torch.Tensor:
    """Shift and mirror each image.

    Args:
        images_nchw: (N, C, H, W), uint8 or floating point, on any device.
        how: (N, 3), int64, on the same device, as :func:`augmentation` gives it.
        fill: value at the borders: "black", 0; or "reflect", the image mirrored at the border, up to its own size.

    Returns:
        A new tensor like ``images_nchw``.
    """
    import torch

    _, channels, height, width = images_nchw.shape
    device = images_nchw.device
    row = torch.arange(height, device=device) + how[:, :1]
    column = torch.arange(width, device=device)
    column = torch.where(how[:, 2:] != 0, width - 1 - column, column) + how[:, 1:2]

    def inside(place: torch.Tensor, size: int) -> torch.Tensor:
        if fill == "black":
            return place.clamp(0, size - 1)
        return size - 1 - (size - 1 - place.abs()).abs()

    # One gather over flat pixels is three times as fast on a CPU as indexing with four index tensors.
    pixel = (inside(row, height)[:, :, None] * width + inside(column, width)[:, None, :]).flatten(1)
    gathered = images_nchw.flatten(2).gather(2, pixel[:, None].expand(-1, channels, -1)).view(images_nchw.shape)
    if fill == "black":
        own_row, own_column = (row >= 0) & (row < height), (column >= 0) & (column < width)
        gathered = gathered * (own_row[:, None, :, None] & own_column[:, None, None, :])
    return gathered

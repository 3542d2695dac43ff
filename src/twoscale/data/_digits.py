"""Digits: 1,797 handwritten digits, embedded in the package, so that the lab needs no download.

The 8 x 8 pictures with values 0..16 that scikit-learn ships, from the UCI collection "Optical Recognition of
Handwritten Digits"; digits.txt beside this file has source and licence.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

from twoscale.data._arrays import Arrays, Digests, check

__all__ = ["CLASSES", "SHAPES", "embedded", "enlarge", "original", "test_indices"]

CLASSES = tuple("0123456789")
SHAPES = ((1437, 3, 32, 32), (1437,), (360, 3, 32, 32), (360,))
DIGESTS = Digests(
    train_images="add4dd6e33bede6ff8d7e7b8ef5872f192b1d873e294bba108730e403263dd80",
    train_labels="8d5491af5fc5741aba270283ca54c378b033a963f24b6cb0e76d1d0dd1069589",
    test_images="5ec8a0742b1a7970496eefb77db4f4c6ebf57a7fb3406ca799666fdbe631c069",
    test_labels="b6c4f560d77f57018c480a19fb73517789a9b35a9313976bc2e093eafa1c6611",
)
_TEST_PER_CLASS = 36


def original() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the original 1,797 pictures, (N, 8, 8) with values 0..16, and their labels (N,)."""
    with resources.files("twoscale.data").joinpath("digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        return stored["images"], stored["labels"]


def embedded() -> tuple[Arrays, str]:
    """Return the data set, 1,437 training and 360 test images of 3 x 32 x 32, and its source.

    Raises:
        DataError: the file in the package was altered.
    """
    images, labels = original()
    enlarged = enlarge(images)
    test = test_indices(labels)
    train = np.setdiff1d(np.arange(len(labels)), test)
    arrays = Arrays(enlarged[train], labels[train], enlarged[test], labels[test])
    check(arrays, SHAPES, DIGESTS, "the embedded file digits.npz")
    return arrays, "embedded (scikit-learn's digits, UCI Optical Recognition of Handwritten Digits)"


def test_indices(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return which images are for testing: 36 of each digit, evenly spaced in file order.

    The file is ordered by writer, so that each writer is in both parts. Nothing is random: the split is the same for
    every seed.
    """
    chosen = []
    for digit in range(len(CLASSES)):
        (places,) = np.nonzero(labels == digit)
        chosen.append(places[(2 * np.arange(_TEST_PER_CLASS) + 1) * len(places) // (2 * _TEST_PER_CLASS)])
    return np.sort(np.concatenate(chosen))


def enlarge(images_n8x8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge pictures of values 0..16, (N, 8, 8), to 0..255, (N, 3, 32, 32), the same in each channel.

    Bilinear with half-pixel centres: output i reads the input at (2i - 3) / 8, so that all weights are
    eighths and the sum is an integer. It is rounded once, half up: the same bits on every machine.
    """
    at = 2 * np.arange(32) - 3
    low, high = np.clip(at // 8, 0, 7), np.clip(at // 8 + 1, 0, 7)
    weight_high = at % 8
    sums = images_n8x8.astype(np.int32)
    sums = sums[:, low, :] * (8 - weight_high)[:, None] + sums[:, high, :] * weight_high[:, None]
    sums = sums[:, :, low] * (8 - weight_high) + sums[:, :, high] * weight_high  # 64 * (0..16)
    pixels = ((sums * 255 + 512) // 1024).astype(np.uint8)
    return np.repeat(pixels[:, None], 3, axis=1)


def stored_bytes() -> int:
    """Return the size of the embedded file."""
    with resources.files("twoscale.data").joinpath("digits.npz").open("rb") as file:
        return len(file.read())

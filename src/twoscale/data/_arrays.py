"""The four arrays every data set decodes to, and their check against known hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import DataError

__all__ = ["Arrays", "Digests", "check", "sha256"]


class Arrays(NamedTuple):
    """A decoded data set; all uint8, images (N, C, H, W), labels (N,)."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


class Digests(NamedTuple):
    """SHA-256 in hexadecimal of each array's bytes in C order."""

    train_images: str
    train_labels: str
    test_images: str
    test_labels: str


def sha256(array: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of ``array``'s bytes in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def check(arrays: Arrays, shapes: Sequence[tuple[int, ...]], digests: Digests, origin: str) -> None:
    """Check that ``arrays`` are exactly the published ones.

    Args:
        arrays: as decoded.
        shapes: expected shape of each array, which the hash does not cover.
        digests: expected hash of each array.
        origin: their source, for the message.

    Raises:
        DataError: an array differs; the message names the first.
    """
    for field, array, shape, expected in zip(Arrays._fields, arrays, shapes, digests, strict=True):
        what = field.replace("_", " ")
        if array.dtype != np.uint8 or array.shape != shape:
            raise DataError(
                f"{origin} is damaged or altered: its {what} are {array.dtype}{array.shape}, expected uint8{shape}"
            )
        found = sha256(array)
        if found != expected:
            raise DataError(
                f"{origin} is damaged or altered: its {what} have SHA-256 {found[:16]}..., expected {expected[:16]}..."
            )

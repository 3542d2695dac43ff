"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR along one dimension.

Every output is a fixed sum of inputs, so a dimension is resized by a product with a matrix. Nearest neighbours are
copies. Positions are computed in float32 as TensorFlow Lite's reference kernels do.
"""

from __future__ import annotations

import math

import numpy as np

from twoscale._frontends.tflite.resizing import distance, nearest_places
from twoscale._ir.builder import Place

__all__ = ["resize_bilinear", "resize_nearest"]

_MOST = 1 << 14
"""Entries along a dimension, so that a file cannot take the memory for its weights."""


def resize_bilinear(
    at: Place, name: str, axis: int, size: int, result: int, *, align_corners: bool, half_pixel_centers: bool
) -> str:
    """Append linear interpolation along one dimension.

    Args:
        at: where the nodes are appended.
        name: the tensor.
        axis: its dimension.
        size: of the dimension.
        result: size that it gets.
        align_corners: whether the first and the last value stay where they are.
        half_pixel_centers: whether values stand for the middles of pixels.
    """
    _require_bounded(at, size, result)
    scale = distance(size, result, align_corners)
    if size == result:
        return name
    matrix = np.zeros((result, size), np.float32)
    half = np.float32(0.5)
    for index, row in enumerate(matrix):
        x = np.float32(index)
        position = float((x + half) * scale - half if half_pixel_centers else x * scale)
        first = max(math.floor(position), 0)
        fraction = position - first
        row[min(first, size - 1)] += 1 - fraction
        row[min(math.ceil(position), size - 1)] += fraction
    return at.along(name, axis, matrix)


def resize_nearest(
    at: Place, name: str, axis: int, size: int, result: int, *, align_corners: bool, half_pixel_centers: bool
) -> str:
    """Append copies of the nearest values along one dimension; arguments as of ``resize_bilinear``."""
    _require_bounded(at, size, result)
    places = nearest_places(size, result, align_corners=align_corners, half_pixel_centers=half_pixel_centers)
    return at.copies(name, axis, places)


def _require_bounded(at: Place, size: int, result: int) -> None:
    if max(size, result) > _MOST:
        raise at.unsupported(f"resizing {size} values to {result}", f"use at most {_MOST} along each dimension")

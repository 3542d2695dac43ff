"""Positions that RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR read, in float32 as reference kernels do."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["distance", "nearest_places"]


def nearest_places(size: int, result: int, *, align_corners: bool, half_pixel_centers: bool) -> list[int]:
    """Return the nearest of ``size`` values for each of ``result`` values along one dimension."""
    scale = distance(size, result, align_corners)
    offset = np.float32(0.5 if half_pixel_centers else 0)
    places = []
    for index in range(result):
        position = float((np.float32(index) + offset) * scale)
        nearest = math.floor(position + 0.5) if align_corners else math.floor(position)
        places.append(min(max(nearest, 0), size - 1))
    return places


def distance(size: int, result: int, align_corners: bool) -> np.float32:
    """Return the distance in the input between neighbours in the result."""
    if align_corners and result > 1:
        return np.float32(size - 1) / np.float32(result - 1)
    return np.float32(size) / np.float32(result)

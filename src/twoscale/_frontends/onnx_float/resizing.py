"""Resize and Upsample: nearest neighbours, and linear and cubic interpolation.

Every output along one dimension is a fixed sum of inputs, so a dimension is resized by a product with a matrix. Nearest
neighbours are copies. The positions, weights and names of options are those of ONNX's definition of Resize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._frontends.onnx_float.reader import Reader

__all__ = ["resize"]


_MOST = 1 << 14
"""Entries along a dimension, so that a file cannot take the memory for its weights."""


@dataclass(frozen=True)
class _Resizing:
    """How one dimension is resized."""

    size: int
    result: int
    scale: float
    coordinates: str

    def position(self, index: int) -> float:
        """Return the position in the input that an index of the output is at, in float32 as runtimes compute it."""
        x, scale, size, result = np.float32(index), np.float32(self.scale), self.size, self.result
        half, one = np.float32(0.5), np.float32(1)
        if self.coordinates == "align_corners":
            return float(x * np.float32(size - 1) / np.float32(result - 1)) if result > 1 else 0.0
        if self.coordinates == "asymmetric":
            return float(x / scale)
        if self.coordinates == "pytorch_half_pixel" and result == 1:
            return 0.0
        offset = np.float32(0)
        if self.coordinates == "half_pixel_symmetric":  # the middle stays where it is if the size was rounded
            offset = np.float32(size) * half * (one - np.float32(result) / (scale * np.float32(size)))
        return float(offset + ((x + half) / scale - half))

    def nearest(self, rounding: str) -> list[int]:
        """Return the input that each output copies."""
        functions = {
            "round_prefer_floor": lambda x: math.ceil(x - 0.5),
            "round_prefer_ceil": lambda x: math.floor(x + 0.5),
            "floor": math.floor,
            "ceil": math.ceil,
        }
        found = (functions[rounding](self.position(index)) for index in range(self.result))
        return [min(max(position, 0), self.size - 1) for position in found]

    def weights(self, mode: str, cubic: float, *, exclude_outside: bool) -> NDArray[np.float32]:
        """Return the factors of each input in each output, (result, size). Positions outside are the nearest inside."""
        matrix = np.zeros((self.result, self.size))
        taps = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
        for index, row in enumerate(matrix):
            position = self.position(index)
            first = math.floor(position)
            for tap in taps:
                distance = abs(position - first - tap)
                inside = 0 <= first + tap < self.size
                factor = 1 - distance if mode == "linear" else _cubic(distance, cubic)
                if inside or not exclude_outside:
                    row[min(max(first + tap, 0), self.size - 1)] += factor
            row /= row.sum()
        return matrix.astype(np.float32)


def _cubic(distance: float, a: float) -> float:
    """Return the weight of a value by Keys' cubic convolution, 1981."""
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a if distance < 2 else 0.0


def resize(r: Reader, node: onnx.NodeProto) -> str:
    """Append the nodes for Resize or Upsample of any dimensions but the batch."""
    at, name = r.at(node), r.input(node)
    newer = node.op_type == "Resize" and r.opset >= 11
    mode = r.attribute(node, "mode", "nearest")
    coordinates = r.attribute(node, "coordinate_transformation_mode", "half_pixel" if newer else "asymmetric")
    rounding = r.attribute(node, "nearest_mode", "round_prefer_floor" if newer else "floor")
    known = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners")
    if mode not in ("nearest", "linear", "cubic") or coordinates not in known or r.attribute(node, "antialias", 0):
        raise at.unsupported(f"resizing by {mode} ({coordinates})", "use another mode, without antialiasing")
    for axis, part in enumerate(_dimensions(r, node, newer, coordinates)):
        if part.size == part.result and part.scale == 1:
            continue
        if mode == "nearest":
            name = at.copies(name, axis, part.nearest(rounding))
        else:
            a = float(r.attribute(node, "cubic_coeff_a", -0.75))
            weights = part.weights(mode, a, exclude_outside=bool(r.attribute(node, "exclude_outside", 0)))
            name = at.along(name, axis, weights)
    return name


def _dimensions(r: Reader, node: onnx.NodeProto, newer: bool, coordinates: str) -> list[_Resizing]:
    """Return how each dimension but the batch is resized."""
    at, before = r.at(node), (1, *r.shape(node))
    rank = len(before)
    scales, sizes = r.constant(node, 2 if newer else 1), r.constant(node, 3) if newer else None
    # Factors belong to the dimensions that ``axes`` names, by default to all.
    axes = [int(axis) % rank for axis in r.attribute(node, "axes", range(rank))]
    of_sizes = sizes is not None and sizes.size > 0
    values = sizes if of_sizes else r.attribute(node, "scales", []) if scales is None else scales
    given = [float(value) for value in np.asarray(values).reshape(-1)]
    if len(given) != len(axes) or r.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise at.unsupported(f"resizing of dimensions {axes} by {given}", "give one factor for each")
    if not all(0 < value < 2**20 for value in given):
        raise at.wrong(f"resizes by {given}; expected positive factors or sizes")
    found = []
    for axis, size in enumerate(before):
        value = given[axes.index(axis)] if axis in axes else float(size if of_sizes else 1)
        # The batch keeps its size, whatever number the exporter wrote there.
        scale = value / size if of_sizes else value
        if axis == 0 and not of_sizes and scale != 1:
            raise at.wrong(f"resizes the batch by {scale:g}; expected images to stay apart")
        found.append(
            _Resizing(
                size, int(value) if of_sizes else math.floor(np.float32(size) * np.float32(scale)), scale, coordinates
            )
        )
    if coordinates == "align_corners" and any(part.result != part.size * part.scale for part in found if not of_sizes):
        raise at.unsupported(f"resizing by {given} (align_corners)", "give sizes: runtimes differ in the last position")
    if any(part.result < 1 for part in found):
        raise at.wrong(f"resizes {before[1:]} by {given}, which leaves nothing")
    if any(part.result > _MOST for part in found[1:]):
        raise at.wrong(f"resizes {before[1:]} by {given}; expected at most {_MOST} along each dimension")
    return found[1:]

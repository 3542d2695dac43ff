"""Chooses the matrices that a convolution is divided into, for instruction sets that multiply matrices, by a model of
its cycles."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Matrices", "choose_matrices", "matrix_cycles"]

_ROWS = 16
"""Most pixels, and most words, of a matrix."""
_LOADED = 20.0
"""Cycles of a product whose matrices are loaded, however few pixels they have (measured)."""
_STORE = 5.5
"""Cycles to turn 16 sums into bytes (measured)."""
_PRODUCT = 25.0
"""Cycles to begin the sums of a matrix of pixels and one of weights."""


@dataclass(frozen=True)
class Matrices:
    """The sizes of matrices, and the cycles that they take."""

    words: int
    """Words of four bytes."""
    pixels: int
    row_pixels: int
    """Pixels from one row to the next, if a matrix may reach into the next row; otherwise 0."""
    cycles: float
    """Per image."""


def choose_matrices(
    out_h: int, out_w: int, vectors: int, *, segments: int, words: int, row_step: int, pixel_step: int, parts: int = 1
) -> Matrices:
    """Return the matrices for a layer of ``vectors`` · 16 channels.

    Args:
        out_h: rows of the result.
        out_w: pixels of a row.
        vectors: of 16 channels.
        segments: runs of a window.
        words: of a run, those whose weights are packed together counted once.
        row_step: bytes between the windows of neighbouring rows.
        pixel_step: bytes between the windows of neighbouring pixels.
        parts: words whose weights are packed together.
    """
    at_once = max(size for size in range(1, min(words, _ROWS // parts) + 1) if words % size == 0)
    steps = segments * words // at_once
    candidates = [0]
    if row_step % pixel_step == 0 and row_step >= out_w * pixel_step:
        candidates.append(row_step // pixel_step)
    found = []
    for row_pixels in candidates:
        _, length = _bands(out_h, out_w, row_pixels)
        pixels = math.ceil(length / math.ceil(length / _ROWS))
        cycles = matrix_cycles(out_h, out_w, vectors, steps=steps, pixels=pixels, row_pixels=row_pixels)
        found.append(Matrices(at_once * parts, pixels, row_pixels, cycles))
    return min(found, key=lambda matrices: matrices.cycles)


def matrix_cycles(out_h: int, out_w: int, vectors: int, *, steps: int, pixels: int, row_pixels: int) -> float:
    """Return the cycles per image of a layer of ``vectors`` · 16 channels.

    Args:
        out_h: rows of the result.
        out_w: pixels of a row.
        vectors: of 16 channels.
        steps: matrices of weights in a window.
        pixels: of a matrix.
        row_pixels: see ``Matrices``.
    """
    bands, length = _bands(out_h, out_w, row_pixels)
    count = math.ceil(length / pixels)
    return bands * count * vectors * (steps * max(_LOADED, pixels) + pixels * _STORE + _PRODUCT)


def _bands(out_h: int, out_w: int, row_pixels: int) -> tuple[int, int]:
    """Return how often matrices begin anew in an image, and the pixels until then."""
    return (1, (out_h - 1) * row_pixels + out_w) if row_pixels else (out_h, out_w)

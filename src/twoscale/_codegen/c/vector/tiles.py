"""Chooses the tile of pixels and channels that a convolution computes at a time, by a model of its cycles."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

__all__ = ["ACCUMULATORS", "LANES", "Tile", "choose_tile", "tile_cycles"]

LANES = 16
ACCUMULATORS = 24
"""Accumulators in the 32 vector registers. The others hold weights and an activation."""
_LATENCY = 5
"""Latency of an addition to a sum, in cycles. With fewer accumulators the multiplier waits."""
_DOT = 0.5
_LOAD = 0.52
"""Cycles of a product of vectors and of a load. There are two units for each, which are not always both busy
(measured)."""
_STORE = 2.5
"""Cycles to turn an accumulator into bytes."""
_TILE = 20.0
"""Cycles to begin a tile."""
_IMAGES = 8
"""Images of a block. A tile's rows may come from two of them."""


@dataclass(frozen=True)
class Tile:
    """Pixels per row, rows, and vectors of 16 channels."""

    pixels: int
    rows: int
    vectors: int


def choose_tile(out_h: int, out_w: int, vectors: int, words: int) -> tuple[Tile, float]:
    """Return the tile for ``vectors`` · 16 channels and windows of ``words`` · 4 bytes, and the cycles per image."""
    best: tuple[float, Tile] | None = None
    for together in (v for v in (1, 2, 3, 4) if vectors % v == 0):
        for rows, pixels in itertools.product((1, 2, 3, 4), range(1, ACCUMULATORS + 1)):
            used = rows * pixels * together
            if rows > out_h or pixels > out_w or used > ACCUMULATORS:
                continue
            tile = Tile(pixels, rows, together)
            cycles = tile_cycles(tile, out_h, out_w, vectors, words)
            if best is None or cycles < best[0]:
                best = cycles, tile
    assert best is not None
    return best[1], best[0]


def tile_cycles(tile: Tile, out_h: int, out_w: int, vectors: int, words: int) -> float:
    """Return the cycles per image of ``vectors`` · 16 channels and windows of ``words`` · 4 bytes with this tile."""
    used = tile.rows * tile.pixels * tile.vectors
    tiles = math.ceil(out_h * _IMAGES / tile.rows) / _IMAGES * math.ceil(out_w / tile.pixels)
    tiles *= vectors // tile.vectors
    loads = tile.rows * tile.pixels + tile.vectors
    return tiles * (words * (max(used * _DOT, _LATENCY, loads * _LOAD) + 0.5) + used * _STORE + _TILE)

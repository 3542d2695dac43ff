"""The table from 8-bit pixels to the network's integers. With it, a target needs no floating point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.operators.base import TensorSpec
from twoscale._ir.operators.vectorized import quantize_input
from twoscale._ir.preprocessing import normalize, pixel_normalization

__all__ = ["pixel_table"]


def pixel_table(spec: TensorSpec, metadata: Mapping[str, Any]) -> NDArray[Any] | None:
    """Return, for each channel, the input integers of pixels 0..255, (C, 256).

    None if the metadata has no normalization, (p / 255 − mean) / std, or if the input is not an image.

    Args:
        spec: of the network's input.
        metadata: of the network.
    """
    found = pixel_normalization(metadata, spec.shape[0]) if len(spec.shape) == 3 else None
    if found is None:
        return None
    mean, std = found
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8), (len(mean), 1, 256))
    return quantize_input(normalize(pixels, mean, std), spec).reshape(len(mean), 256)

"""Scales for files of real scales: float32 quotients that are multipliers exactly, equation (6b) of the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["adds_exactly", "product_is_exact", "weight_scales"]

Float32 = NDArray[np.float32]

_NEIGHBOURS = (0, 1, -1)
"""Float32 numbers tried around the nearest quotient, in order."""


def weight_scales(integers: Any, shift: int, x_scale: float, y_scale: float) -> Float32:
    """Return float32 scales w with fl(fl(x_scale · w) / y_scale) = m / 2**shift; NaN where there is none.

    Args:
        integers: the multipliers m, whole numbers below 2**24.
        shift: of the grid.
        x_scale: of the input, a float32 number.
        y_scale: of the output, a float32 number.
    """
    x, y = np.float32(x_scale), np.float32(y_scale)
    wanted = np.ldexp(np.asarray(integers, np.float64), -shift).astype(np.float32)
    nearest = (wanted.astype(np.float64) * float(y) / float(x)).astype(np.float32)
    found = np.full(wanted.shape, np.nan, np.float32)
    for step in reversed(_NEIGHBOURS):
        scales = nearest if step == 0 else np.nextafter(nearest, np.float32(step * np.inf))
        found = np.where((x * scales) / y == wanted, scales, found)
    return found


def product_is_exact(integer: int, shift: int, a_scale: float, b_scale: float, y_scale: float) -> bool:
    """Tell whether fl(fl(a_scale · b_scale) / y_scale) = m / 2**shift, for a product of two activations."""
    a, b, y = np.float32(a_scale), np.float32(b_scale), np.float32(y_scale)
    return bool((a * b) / y == np.float32(np.ldexp(float(integer), -shift)))


def adds_exactly(integer: int, shift: int, a_scale: float, y_scale: float) -> bool:
    """Whether a_scale / y_scale, in 21 bits as TFLite's ADD takes it, is m / 2**shift.

    ADD scales operands by whole numbers of 2**-20ths, or of 2**-19ths if a quotient is 2 or more.
    """
    quotient = np.float32(a_scale) / np.float32(y_scale)
    bits = 20 - max(0, int(np.floor(np.log2(max(quotient, np.float32(1))))))
    return bool(np.rint(np.ldexp(np.float64(quotient), bits)) == integer << (bits - shift))

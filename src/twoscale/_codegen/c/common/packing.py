"""Weights of few bits in few bytes, in two forms.

In pairs: two channels share a byte of 4 bits each, or of 2 bits for each of two taps. In words: two or four successive
words of a vector's bytes share one.

The bits come from the integers: a layer whose weights all fit 4 or 2 bits is stored so, whatever it was quantized to.
The weights u and v of a pair of channels are stored as one number, 16·v + u or 4·v + u. Sums of its products less
those of u are 16 or 4 times the sums of v, so kernels need not separate v.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["few_bits", "pack", "pack_words", "storage_bits", "stored_bytes"]


def few_bits(weight: NDArray[np.int8]) -> int:
    """Return 2 or 4 if all weights fit so many bits, else 8."""
    if not weight.size:
        return 8
    lowest, highest = int(weight.min()), int(weight.max())
    return next((bits for bits in (2, 4) if -(2 ** (bits - 1)) <= lowest and highest < 2 ** (bits - 1)), 8)


def storage_bits(weight: NDArray[np.int8]) -> int:
    """Return the bits of a weight stored in pairs: 2 or 4 if the layer's weights can be packed so, else 8.

    Numbers of pairs must fit two's complement: a second weight of −8 cannot be next to a negative one (at 2 bits, −2).
    Sums of their products with bytes must fit 32 bits.

    Args:
        weight: of one layer, output channel first.
    """
    if not weight.size or weight[0].size * 255 * 128 >= 2**31:
        return 8
    fits = few_bits(weight)
    return next((bits for bits in (2, 4) if bits >= fits and _pairs(weight, bits).min() >= -(2 ** (2 * bits - 1))), 8)


def stored_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Return the bytes of a layer's weights, output channel first, stored in pairs with 8, 4 or 2 bits each."""
    channels, per_group, *kernel = shape
    rows, columns = kernel or (1, 1)
    taps = columns * per_group
    if bits == 8:
        return channels * rows * taps
    return -(-channels // 2) * rows * (taps if bits == 4 else -(-taps // 2))


def pack(weight: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Return weights (channels, rows, taps of a row) packed, (pairs of channels, rows, bytes of a row).

    At 4 bits a byte has the number of one tap. At 2 bits it has those of two taps, the first in the low half. Missing
    channels and taps are 0.

    Args:
        weight: weights that fit ``bits``.
        bits: 4 or 2.
    """
    pairs = _pairs(weight, bits)
    if bits == 2:
        taps = np.pad(pairs, ((0, 0), (0, 0), (0, pairs.shape[2] % 2)))
        pairs = (taps[..., ::2] & 15) | taps[..., 1::2] << 4
    return pairs.astype(np.int8)


def pack_words(weight: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Return weights (..., words, bytes) of few bits as (..., words · bits / 8, bytes).

    The lowest bits of a byte have the weight of the first word.

    Args:
        weight: weights that fit ``bits``; a multiple of 8 / bits words.
        bits: 8, 4 or 2.
    """
    *outer, words, width = weight.shape
    parts = weight.view(np.uint8).reshape(*outer, words * bits // 8, 8 // bits, width) & (2**bits - 1)
    places = (np.arange(8 // bits, dtype=np.uint8) * bits)[:, None]
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts << places, axis=-2)
    return packed.view(np.int8)


def _pairs(weight: NDArray[np.int8], bits: int) -> NDArray[np.int16]:
    """Return the numbers of pairs of channels."""
    wide: NDArray[Any] = np.zeros((len(weight) + len(weight) % 2, *weight.shape[1:]), np.int16)
    wide[: len(weight)] = weight
    pairs: NDArray[np.int16] = (wide[1::2] << bits) + wide[::2]
    return pairs

"""Packed weights: which layers have them, and the kernels of fully connected layers that read them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.calls import Constant
from twoscale._codegen.c.common.packing import pack, storage_bits
from twoscale._codegen.c.common.program import Constants
from twoscale._codegen.c.portable import kernels as k
from twoscale._codegen.c.portable.parameters import Linear
from twoscale._ir import layers as n

__all__ = ["Linear2", "Linear4", "linear_of", "packed_bits", "stored"]


class Linear4(Linear):
    """A fully connected layer with packed weights of 4 bits."""

    kernel: ClassVar = k.LINEAR_4


class Linear2(Linear):
    """A fully connected layer with packed weights of 2 bits."""

    kernel: ClassVar = k.LINEAR_2


def packed_bits(layer: n.Conv2d | n.Linear) -> int | None:
    """Return the bits of a layer's packed weights; None if each has a byte."""
    bits = storage_bits(layer.weight)
    return None if bits == 8 else bits


def linear_of(layer: n.Linear) -> type[Linear]:
    """Return the call that computes a fully connected layer."""
    return {None: Linear, 4: Linear4, 2: Linear2}[packed_bits(layer)]


def stored(constants: Constants, weight: NDArray[np.int8], dimensions: tuple[int, ...]) -> Constant:
    """Make the array of weights (channels, rows, taps of a row); they are packed if they fit few bits.

    Args:
        constants: collects it.
        weight: the weights.
        dimensions: of the weights, for the comment.
    """
    bits = storage_bits(weight)
    if bits == 8:
        return constants.add("weight", "int8_t", weight, dimensions)
    return constants.add("weight", "int8_t", pack(weight, bits), dimensions, f"packed, {bits} bits each")

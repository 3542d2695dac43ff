"""Tensors as bytes: the order of their elements in memory, and how integers are stored as bytes.

An activation is one byte, q for uint8 and q + 128 for int8, so that kernels need only one type; no difference q − z
changes. Accumulators are four bytes in the machine's order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.layers import TensorSpec

__all__ = ["OutputsLayout", "Place", "Tensor", "outputs_layout"]


@dataclass(frozen=True, eq=False)
class Tensor:
    """The bytes of one tensor."""

    name: str
    spec: TensorSpec
    order: NDArray[np.int64]
    """For each place in memory, the index of its element in C order."""

    @property
    def item(self) -> int:
        """Bytes per element."""
        return 4 if self.spec.dtype == "int32" else 1

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.order) * self.item

    @property
    def shift(self) -> int:
        """Added to an integer to give the stored byte."""
        return 128 if self.spec.dtype == "int8" else 0

    @property
    def zero(self) -> int:
        """The zero point as stored."""
        return self.spec.zero_point + self.shift

    @property
    def lo(self) -> int:
        """The lower bound as stored."""
        return self.spec.lo + self.shift

    @property
    def hi(self) -> int:
        """The upper bound as stored."""
        return self.spec.hi + self.shift

    def to_memory(self, integers: NDArray[Any]) -> NDArray[Any]:
        """Return integers (N, ...) as stored: (N, size), uint8 or int32."""
        rows = integers.reshape(len(integers), -1)[:, self.order]
        return rows.astype(np.int32) if self.item == 4 else (rows.astype(np.int16) + self.shift).astype(np.uint8)

    def from_memory(self, kept: NDArray[Any]) -> NDArray[Any]:
        """Return stored bytes (N, size) as integers (N, ...) of the tensor's type."""
        integers = np.empty((len(kept), len(self.order)), self.spec.dtype)
        integers[:, self.order] = kept.astype(np.int64) - self.shift
        return integers.reshape(len(kept), *self.spec.shape)


@dataclass(frozen=True)
class Place:
    """The place of a tensor: in the caller's "image" or "output", or in the "arena"."""

    where: str
    offset: int = 0


@dataclass(frozen=True)
class OutputsLayout:
    """Where the outputs of one image are in the caller's memory."""

    offsets: tuple[int, ...]
    """Of each output, in bytes."""
    size: int
    """Of all, in bytes."""


def outputs_layout(specs: Sequence[TensorSpec]) -> OutputsLayout:
    """Lay out outputs as a C struct with one array per output."""
    offsets, end = [], 0
    items = [4 if spec.dtype == "int32" else 1 for spec in specs]
    for spec, item in zip(specs, items, strict=True):
        offsets.append(-(-end // item) * item)
        end = offsets[-1] + math.prod(spec.shape) * item
    alignment = max(items)
    return OutputsLayout(tuple(offsets), -(-end // alignment) * alignment)

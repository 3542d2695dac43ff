"""The positions of a tensor's rows, with or without a border of zero points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._codegen.c.common.tensors import Tensor

__all__ = ["Rows", "bordered", "dense"]


@dataclass(frozen=True)
class Rows:
    """The rows of one image's tensor: of equal length and at equal distances."""

    count: int
    length: int
    """Bytes of a row."""
    stride: int
    """Bytes from one row to the next."""
    first: int = 0
    """Bytes before the first row."""
    size: int = 0
    """Bytes of the tensor with its border."""

    @property
    def has_border(self) -> bool:
        """Whether there is a border."""
        return self.size != self.count * self.length


def dense(tensor: Tensor) -> Rows:
    """Return a tensor's rows without a border: the rows of an image, or else a single row."""
    if len(tensor.spec.shape) != 3:
        return Rows(1, tensor.size, tensor.size, 0, tensor.size)
    channels, height, width = tensor.spec.shape
    length = width * channels * tensor.item
    return Rows(height, length, length, 0, height * length)


def bordered(tensor: Tensor, padding: Sequence[int]) -> Rows:
    """Return a tensor's rows with a border. The border at the right of a row is also the left border of the next."""
    top, left, bottom, right = padding
    channels, height, width = tensor.spec.shape
    gap = max(left, right) * channels
    stride = width * channels + gap
    return Rows(height, width * channels, stride, top * stride + gap, (top + height + bottom) * stride + gap)

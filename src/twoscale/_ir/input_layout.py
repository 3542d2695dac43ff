"""Batches of a network with several inputs.

Outside, such a batch is a tuple with one array per input. Inside, it is one array (N, values): each row holds the
inputs of one sample, one after another, each in C order. So everything that cuts, joins and counts batches of images
takes it unchanged, and only executors split it. A network with one input takes its arrays as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["InputLayout", "parts_of"]


@dataclass(frozen=True)
class InputLayout:
    """The inputs of a network in one array."""

    shapes: tuple[tuple[int, ...], ...]
    """Of each input, without the batch."""

    @property
    def several(self) -> bool:
        """Whether there is more than one input."""
        return len(self.shapes) > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample in the array: that of the input if it is the only one, else (values,)."""
        return (sum(map(math.prod, self.shapes)),) if self.several else self.shapes[0]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Number of values before each input."""
        return (0, *itertools.accumulate(map(math.prod, self.shapes[:-1])))

    def split(self, batch: Any) -> list[Any]:
        """Return the inputs (N, ...) in a batch, a NumPy array or a tensor of torch."""
        if not self.several:
            return [batch]
        places = zip(self.offsets, self.shapes, strict=True)
        return [batch[:, at : at + math.prod(shape)].reshape(len(batch), *shape) for at, shape in places]

    def joined(self, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return inputs (N, ...) of these shapes as one array."""
        if not self.several:
            return inputs[0]
        return np.concatenate([np.reshape(part, (len(part), -1)) for part in inputs], 1)

    def text(self) -> str:
        """Return the shapes for an error message, such as "(N, 3, 32, 32) and (N, 5)"."""
        return " and ".join(f"(N, {', '.join(map(str, shape))})" for shape in self.shapes)


def parts_of(batch: Any, inputs: int) -> tuple[list[Any], list[Any]] | None:
    """Return the inputs in a batch of a loader, and what comes after them, such as labels.

    Args:
        batch: for one input, an array or a tuple that begins with it; for several, a tuple that begins with them or
            with a tuple of them: (a, b), (a, b, labels) or ((a, b), labels). One array is all inputs together.
        inputs: number of the network's inputs.

    Returns:
        None if the batch is a tuple that has fewer arrays than there are inputs.
    """
    if not isinstance(batch, tuple | list) or not len(batch):
        return [batch], []
    if inputs > 1 and isinstance(batch[0], tuple | list):
        return (list(batch[0]), list(batch[1:])) if len(batch[0]) == inputs else None
    return (list(batch[:inputs]), list(batch[inputs:])) if len(batch) >= inputs else None

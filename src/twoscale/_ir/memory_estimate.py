"""How much memory a network or graph needs, from its shapes alone, before any tensor is made.

A few bytes of a file can ask for any amount of memory: padding of 20,000 around a small image is a tensor of many
gigabytes. Loaders and executors ask here first and refuse with one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twoscale._environment import memory_bytes
from twoscale._ir.float_graph import Node
from twoscale._ir.layers import Layer

__all__ = ["MemoryEstimate", "estimate_memory", "refuse_beyond_memory"]

_VALUE_BYTES = 16
"""Bytes per value in the NumPy reference, which needs most: an int64, and a temporary of the same size."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The most memory that computing one operation takes, for one image."""

    bytes: int
    operation: str
    """Name of the operation that needs them."""


def estimate_memory(operations: Iterable[Layer | Node]) -> MemoryEstimate:
    """Estimate the memory for one image: inputs, padding and output of the operation that needs most.

    Weights are left out; they exist already.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    largest = MemoryEstimate(0, "")
    for operation in operations:
        shape = operation.output.shape if isinstance(operation, Layer) else operation.shape
        shapes[operation.name] = shape
        values = math.prod(shape)
        for name in operation.inputs:
            values += _padded_values(shapes[name], getattr(operation, "padding", (0, 0, 0, 0)))
        if values * _VALUE_BYTES > largest.bytes:
            largest = MemoryEstimate(values * _VALUE_BYTES, operation.name)
    return largest


def refuse_beyond_memory(
    name: str, operations: Iterable[Layer | Node], error: Callable[[str], Exception], limit: int | None = None
) -> None:
    """Refuse a network or graph that one image would take beyond the machine's memory.

    Args:
        name: of the network or its file, which begins the message.
        operations: its layers or nodes, in order.
        error: makes the exception from the message.
        limit: bytes; by default the memory of this machine. Where that is not known, nothing is refused.

    Raises:
        Exception: the one that ``error`` makes.
    """
    limit = memory_bytes() if limit is None else limit
    estimate = estimate_memory(operations)
    if limit is not None and estimate.bytes > limit:
        raise error(
            f"{name} needs about {estimate.bytes / 1e9:,.1f} GB for one image, at layer {estimate.operation}; this "
            f"machine has {limit / 1e9:,.1f} GB; expected smaller images, padding or windows"
        )


def _padded_values(shape: tuple[int, ...], padding: tuple[int, int, int, int]) -> int:
    if len(shape) != 3:
        return math.prod(shape)
    channels, height, width = shape
    top, left, bottom, right = padding
    return channels * (height + top + bottom) * (width + left + right)

"""The number of images that fit into a number of bytes while a network runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twoscale._ir import float_graph as g

__all__ = ["DEFAULT_MEMORY", "images_at_once", "images_within"]

DEFAULT_MEMORY = 1 << 30
"""Bytes for the tensors between layers. A fixed number: the integers must not depend on the machine's memory."""

_LARGE = 15 << 19
"""Values of the largest tensor of a run, just below 32 MiB. The C library uses the memory of such tensors again. Larger
ones get new pages from the operating system every time, which takes as long as computing them."""


def images_within(graph: g.FloatGraph, memory: int, *, networks: int = 1, keep_all: bool = False) -> int:
    """Return how many images can run through a graph at once, at least 1.

    Args:
        graph: the network.
        memory: bytes for the tensors, 4 bytes per value.
        networks: number of networks that run side by side. Each layer needs three more tensors of its output's size.
        keep_all: keep the outputs of all nodes, not only those still needed.
    """
    sizes = {node.name: math.prod(node.shape) for node in graph}
    peak = sum(sizes.values()) if keep_all else _widest_cut(graph.nodes, sizes)
    return max(1, memory // (4 * networks * peak))


def _widest_cut(nodes: Sequence[g.Node], sizes: dict[str, int]) -> int:
    last = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    live = widest = 0
    for index, node in enumerate(nodes):
        live += sizes[node.name]
        widest = max(widest, live + 3 * sizes[node.name])
        live -= sum(sizes[name] for name in {node.name, *node.inputs} if last.get(name, index) == index)
    return widest


def images_at_once(graph: g.FloatGraph, memory: int) -> int:
    """Return how many images run through a graph at once fastest, at least 1, within ``memory`` bytes."""
    return min(images_within(graph, memory), max(1, _LARGE // max(math.prod(node.shape) for node in graph)))

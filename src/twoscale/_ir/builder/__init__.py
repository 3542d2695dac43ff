"""Builds a FloatGraph node by node, for every front-end.

A front-end makes one ``FloatGraphBuilder`` for each network and asks it for a ``Place`` for each operator that it
translates. A place has the operator's name and the user's line. Its methods append nodes and return the name of the
resulting tensor. Shapes leave out the batch dimension.
"""

from __future__ import annotations

import dataclasses

from twoscale._ir.builder.attention import AttentionPlace
from twoscale._ir.builder.base import NodeList, Shape
from twoscale._ir.builder.pools import PoolsPlace
from twoscale._ir.builder.weights import WeightsPlace
from twoscale._ir.float_graph import FloatGraph, Input

__all__ = ["FloatGraphBuilder", "Place"]


class Place(WeightsPlace, PoolsPlace, AttentionPlace):
    """One operator of the user's network, with all the nodes that a front-end can append for it."""


class FloatGraphBuilder(NodeList):
    """The nodes of one graph, in the order in which they were appended.

    Args:
        name: of the graph.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def input(self, shape: Shape) -> str:
        """Append the node of the images; return its name."""
        self._nodes["input"] = Input(name="input", inputs=(), shape=shape)
        return "input"

    def place(self, path: str, operator: str, source: str) -> Place:
        """Return where the nodes of one operator are appended.

        Args:
            path: the name of its first node that computes, in the user's terms; the others get "_2", "_3" and so on.
            operator: what the front-end calls it, for messages.
            source: the user's line, for messages.
        """
        return Place(self, path, operator, source)

    def graph(self, *outputs: str) -> FloatGraph:
        """Return the graph with these outputs: the nodes that they need, and the input."""
        needed = {*outputs, "input"}
        for node in reversed(self._nodes.values()):
            if node.name in needed:
                needed.update(node.inputs)
        names = self.computing_names(needed)
        nodes = tuple(
            dataclasses.replace(
                node,
                name=names.get(node.name, node.name),
                inputs=tuple(names.get(name, name) for name in node.inputs),
            )
            for node in self._nodes.values()
            if node.name in needed
        )
        return FloatGraph(name=self.name, nodes=nodes, outputs=tuple(names.get(output, output) for output in outputs))

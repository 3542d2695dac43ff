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
from twoscale.errors import CaptureError

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

    def input(self, shape: Shape, name: str = "input") -> str:
        """Append the node of an input; return its name. All inputs come before the other nodes.

        Args:
            shape: without the batch.
            name: "input" if it is the only one.
        """
        return self.append_at(name, Input, inputs=(), shape=shape)

    def place(self, path: str, operator: str, source: str) -> Place:
        """Return where the nodes of one operator are appended.

        Args:
            path: the name of its first node that computes, in the user's terms; the others get "_2", "_3" and so on.
            operator: what the front-end calls it, for messages.
            source: the user's line, for messages.
        """
        return Place(self, path, operator, source)

    def graph(self, *outputs: str) -> FloatGraph:
        """Return the graph with these outputs: the nodes that they need, and the inputs.

        Raises:
            CaptureError: the outputs do not depend on one of several inputs.
        """
        needed = {*outputs}
        for node in reversed(self._nodes.values()):
            if node.name in needed:
                needed.update(node.inputs)
        inputs = [node.name for node in self._nodes.values() if isinstance(node, Input)]
        unused = next((name for name in inputs if name not in needed), None)
        if unused is not None and len(inputs) > 1:
            raise CaptureError(f"{self.name} has {len(inputs)} inputs and does not use {unused}; leave it out")
        needed.update(inputs)
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

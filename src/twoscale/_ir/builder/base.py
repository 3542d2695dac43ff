"""The list of nodes, and the base of everything that appends to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twoscale._ir.float_graph import Node
from twoscale.errors import CaptureError, UnsupportedOperatorError

__all__ = ["BasePlace", "NodeList", "Shape", "resized"]


Shape = tuple[int, ...]


class NodeList:
    """The nodes of one graph, in the order in which they were appended."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def append(self, node: Node) -> str:
        """Append a node and return its name, which must be free."""
        assert node.name not in self._nodes
        self._nodes[node.name] = node
        return node.name

    def free_name(self, path: str) -> str:
        """Return ``path``, with a number appended if it is taken."""
        name, count = path, 1
        while name in self._nodes:
            count += 1
            name = f"{path}_{count}"
        return name


@dataclass(frozen=True)
class BasePlace:
    """One operator of the user's network; the nodes that it appends get this operator's name and source."""

    nodes: NodeList
    path: str
    operator: str
    source: str

    def unsupported(self, what: str, remedy: str) -> UnsupportedOperatorError:
        """Return the error about an operator whose options have no integer form."""
        return UnsupportedOperatorError(f"{self.operator} at {self.source}: {what} has no integer form here; {remedy}")

    def wrong(self, what: str) -> CaptureError:
        """Return the error about an operator that mixes images or has no place in a classifier."""
        return CaptureError(f"{self.operator} at {self.source} {what}")

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor."""
        return self.nodes[name].shape

    def append(self, kind: type[Node], shape: Shape, *inputs: str, **fields: Any) -> str:
        """Append one node."""
        name = self.nodes.free_name(self.path)
        return self.nodes.append(kind(name=name, inputs=inputs, shape=shape, source=self.source, **fields))


def resized(shape: Shape, axis: int, size: int) -> Shape:
    """Return a shape with another size of one dimension."""
    return (*shape[:axis], size, *shape[axis + 1 :])

"""The list of nodes, and the base of everything that appends to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from twoscale._ir.float_graph import Node, Pad, Permute, Reshape, Slice
from twoscale.errors import CaptureError, UnsupportedOperatorError

__all__ = ["BasePlace", "NodeList", "Shape", "resized"]


Shape = tuple[int, ...]

_ARRANGING = (Pad, Permute, Reshape, Slice)
"""What comes before and after the node that an operator is about."""


class NodeList:
    """The nodes of one graph, in the order in which they were appended."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._paths: dict[str, str] = {}

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def append(self, node: Node) -> str:
        """Append a node and return its name, which must be free."""
        assert node.name not in self._nodes
        self._nodes[node.name] = node
        return node.name

    def append_at(self, path: str, kind: type[Node], **fields: Any) -> str:
        """Append a node that is called ``path``, with a number appended if that is taken."""
        name, count = path, 1
        while name in self._nodes:
            count += 1
            name = f"{path}_{count}"
        self._paths[name] = path
        return self.append(kind(name=name, **fields))

    def computing_names(self, names: Collection[str]) -> dict[str, str]:
        """Return new names, so that the node that an operator is about is called like it, not a reshape before it.

        Args:
            names: of the nodes that the graph will have.
        """
        changes: dict[str, str] = {}
        settled: set[str] = set()
        for name, node in self._nodes.items():
            path = self._paths.get(name)
            if path is None or path in settled or name not in names or isinstance(node, _ARRANGING):
                continue
            settled.add(path)
            if path not in names:
                changes[name] = path
            elif name != path and self._paths.get(path) == path:
                changes.update({name: path, path: name})
        return changes


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
        return self.nodes.append_at(self.path, kind, inputs=inputs, shape=shape, source=self.source, **fields)


def resized(shape: Shape, axis: int, size: int) -> Shape:
    """Return a shape with another size of one dimension."""
    return (*shape[:axis], size, *shape[axis + 1 :])

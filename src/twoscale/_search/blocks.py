"""Cuts a graph into blocks of layers whose roundings are learned together."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._ir import float_graph as g

__all__ = ["Block", "blocks_of"]

_MOST_LAYERS = 3
"""Layers with weights in a block that is joined from chains with one each."""


@dataclass(frozen=True)
class Block:
    """Layers that are learned together."""

    names: tuple[str, ...]
    """Of its layers, in order. The last one is its output."""
    source: str
    """The tensor that it reads."""


def blocks_of(graph: g.FloatGraph) -> list[Block]:
    """Cut a graph with one input where a single tensor connects what comes before with what follows.

    A residual block is one block. Layers of a chain are joined with their neighbours, up to three with weights. Layers
    without weights belong to the block after them, or to the last one.
    """
    last_reader = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last = len(graph.nodes) - 1
    blocks: list[Block] = []
    counts: list[int] = []
    source, start = graph.nodes[0].name, 1
    open_until = last_reader.get(source, 0)
    for index, node in enumerate(graph.nodes[1:], 1):
        if index < last and open_until > index:
            open_until = max(open_until, last_reader.get(node.name, index))
            continue
        names = tuple(inner.name for inner in graph.nodes[start : index + 1])
        count = sum(isinstance(graph[name], g.Conv2d | g.Linear) for name in names)
        if blocks and (not counts[-1] or (count == 1 and counts[-1] < _MOST_LAYERS and _is_chain(graph, blocks[-1]))):
            blocks[-1] = Block(blocks[-1].names + names, blocks[-1].source)
            counts[-1] += count
        else:
            blocks.append(Block(names, source))
            counts.append(count)
        source, start = node.name, index + 1
        open_until = last_reader.get(node.name, index)
    if len(blocks) > 1 and not counts[-1]:
        tail = blocks.pop()
        blocks[-1] = Block(blocks[-1].names + tail.names, blocks[-1].source)
    return blocks


def _is_chain(graph: g.FloatGraph, block: Block) -> bool:
    """Whether no tensor in a block is read twice."""
    readers = [name for inner in block.names for name in graph[inner].inputs]
    return len(readers) == len(set(readers))

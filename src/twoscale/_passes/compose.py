"""Composes chains of functions of one value into one function: one table with one rounding.

Written out, x · relu6(x + 3) / 6 is four operations. Each would be rounded to 8 bits, and each intermediate tensor
would need its own range. Together they are one function of x.
"""

from __future__ import annotations

import dataclasses

from twoscale._ir.float_graph import UNBOUNDED, Add, Bounds, ChannelAffine, Clamp, Elementwise, FloatGraph, Mul, Node
from twoscale._ir.functions import Composition, Step

__all__ = ["compose"]


def compose(graph: FloatGraph) -> FloatGraph:
    """Replace every result of two or more functions of one value by one Elementwise node.

    A chain ends at a value that another kind of node reads (a convolution, a sum with another tensor) or that is the
    output. If other nodes read a value in the middle of a chain, that value becomes a separate function.
    """
    roots = _roots(graph)
    inside = {
        name
        for name, root in roots.items()
        if name != root
        and name not in graph.outputs
        and graph.users[name]
        and all(roots[user.name] == root and user.name != root for user in graph.users[name])
    }
    changes: dict[str, Node] = {}
    for node in graph:
        if node.name in inside or roots[node.name] == node.name:
            continue
        members = _members(graph, node, roots[node.name])
        if sum(not isinstance(member, Clamp) for member in members) >= 2:
            changes[node.name] = Elementwise(
                name=node.name,
                inputs=(roots[node.name],),
                shape=node.shape,
                source=node.source,
                function=_composition(members, roots[node.name]),
            )
    return _without_unread(graph.replaced(changes)) if changes else graph


def _roots(graph: FloatGraph) -> dict[str, str]:
    """Return, for every node, the tensor of which it is a function of one value; for other nodes, their own output."""
    roots: dict[str, str] = {}
    for node in graph:
        sources = {roots[name] for name in node.inputs}
        shapes = {graph[name].shape for name in node.inputs}
        elementwise = isinstance(node, Clamp | Elementwise | Add | Mul) or (
            isinstance(node, ChannelAffine) and _uniform(node)
        )
        if elementwise and len(sources) == 1 and shapes == {node.shape}:
            roots[node.name] = sources.pop()
        else:
            roots[node.name] = node.name
    return roots


def _uniform(node: ChannelAffine) -> bool:
    return bool((node.scale_c == node.scale_c[0]).all() and (node.shift_c == node.shift_c[0]).all())


def _members(graph: FloatGraph, node: Node, root: str) -> list[Node]:
    """Return the nodes from the root, without it, to ``node``, in the graph's order."""
    wanted = {node.name}
    for candidate in reversed(graph.nodes):
        if candidate.name in wanted:
            wanted.update(name for name in candidate.inputs if name != root)
    return [candidate for candidate in graph if candidate.name in wanted]


def _composition(members: list[Node], root: str) -> Composition:
    places = {root: 0}
    steps: list[Step] = []
    for node in members:
        inputs = tuple(places[name] for name in node.inputs)
        bounds: Bounds = getattr(node, "bounds", UNBOUNDED)
        if isinstance(node, Elementwise):
            steps.extend(_steps_of(node, inputs[0], len(steps)))
        elif isinstance(node, ChannelAffine):
            steps.append(Step("affine", inputs, (float(node.scale_c[0]), float(node.shift_c[0]))))
        elif not isinstance(node, Clamp):
            steps.append(Step("add" if isinstance(node, Add) else "mul", inputs))
        if bounds != UNBOUNDED:
            steps.append(Step("clamp", inputs if isinstance(node, Clamp) else (len(steps),), bounds))
        else:
            places[node.name] = inputs[0] if isinstance(node, Clamp) else len(steps)
            continue
        places[node.name] = len(steps)
    return Composition(tuple(steps))


def _steps_of(node: Elementwise, x: int, before: int) -> list[Step]:
    if isinstance(node.function, str):
        return [Step(node.function, (x,), node.parameters)]
    return [
        dataclasses.replace(step, inputs=tuple(before + i if i else x for i in step.inputs))
        for step in node.function.steps
    ]


def _without_unread(graph: FloatGraph) -> FloatGraph:
    """Drop the nodes that no longer lead to an output."""
    wanted = {*graph.outputs, *(node.name for node in graph.inputs)}
    for node in reversed(graph.nodes):
        if node.name in wanted:
            wanted.update(node.inputs)
    return dataclasses.replace(graph, nodes=tuple(node for node in graph if node.name in wanted))

"""Passes over a FloatGraph that leave its function alone and make it fit for integers.

Each pass takes a graph and returns a new one. After ``fold`` there is no batch norm left (it is in the
convolution before it, or a 1x1 depthwise convolution of its own), and clamps (ReLU, ReLU6) and zero padding
are in the nodes that can take them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from twoscale.graph.nodes import (
    UNBOUNDED,
    Add,
    AveragePool2d,
    Bounded,
    ChannelAffine,
    Clamp,
    Conv2d,
    FloatGraph,
    Linear,
    Node,
    Pad,
)

__all__ = ["fold"]


def fold(graph: FloatGraph, *, join_residuals: bool = True) -> FloatGraph:
    """Apply every pass; the result computes the same function to float32 rounding.

    Args:
        graph: from ``capture``.
        join_residuals: let additions join the convolution before them, where its sum is read by nothing else: in
            integers that is one rounding fewer, equation (7b) instead of (3) and (7).
    """
    graph = _merge(graph, _affine_into_producer)
    graph = _merge(graph, _padding_into_consumer)
    graph = _merge(graph, _clamp_into_producer)
    graph = graph.replaced({node.name: _as_depthwise(node) for node in graph if isinstance(node, ChannelAffine)})
    return _with_residuals_joined(graph) if join_residuals else graph


def _with_residuals_joined(graph: FloatGraph) -> FloatGraph:
    """Turn convolution and addition into a convolution with a second input; it keeps the convolution's name."""
    nodes = list(graph.nodes)
    renamed: dict[str, str] = {}
    for node in graph:
        if not isinstance(node, Add) or node.inputs[0] == node.inputs[1]:
            continue
        for name, other in (node.inputs, node.inputs[::-1]):
            conv = next(made for made in nodes if made.name == renamed.get(name, name))
            alone = len(graph.users[name]) == 1 and name != graph.output
            if isinstance(conv, Conv2d) and len(conv.inputs) == 1 and conv.bounds == UNBOUNDED and alone:
                joint = dataclasses.replace(conv, inputs=(*conv.inputs, renamed.get(other, other)), bounds=node.bounds)
                # In the addition's place: both of its inputs have been made there.
                nodes[next(i for i, made in enumerate(nodes) if made.name == node.name)] = joint
                nodes.remove(conv)
                renamed[node.name] = conv.name
                nodes = [_renamed_input(made, node.name, conv.name) for made in nodes]
                break
    return dataclasses.replace(graph, nodes=tuple(nodes), output=renamed.get(graph.output, graph.output))


def _merge(graph: FloatGraph, rule: Callable[[Node, Node], Node | None]) -> FloatGraph:
    """Let ``rule(producer, node)`` join neighbours until nothing changes.

    The rule returns the joint node or None. Only a producer that nobody else reads is joined. The joint node
    keeps the producer's name if that is the one with weights, so that reports speak of "conv1", not "relu".
    """
    nodes = list(graph.nodes)
    output = graph.output
    position = 0
    while position < len(nodes):
        node = nodes[position]
        position += 1
        if len(node.inputs) != 1:
            continue
        producer = next(other for other in nodes if other.name == node.inputs[0])
        readers = sum(other.inputs.count(producer.name) for other in nodes)
        if readers != 1 or output == producer.name:
            continue
        joint = rule(producer, node)
        if joint is None:
            continue
        nodes[nodes.index(producer)] = joint
        nodes.remove(node)
        position = max(0, position - 2)
        if joint.name != node.name:
            nodes = [_renamed_input(other, node.name, joint.name) for other in nodes]
            output = joint.name if output == node.name else output
        if joint.name != producer.name:
            nodes = [_renamed_input(other, producer.name, joint.name) for other in nodes]
    return dataclasses.replace(graph, nodes=tuple(nodes), output=output)


def _renamed_input(node: Node, old: str, new: str) -> Node:
    if old not in node.inputs:
        return node
    return dataclasses.replace(node, inputs=tuple(new if name == old else name for name in node.inputs))


def _affine_into_producer(producer: Node, node: Node) -> Node | None:
    if not isinstance(node, ChannelAffine):
        return None
    scale = node.scale_c.astype(np.float64)
    if isinstance(producer, Conv2d) and producer.bounds == UNBOUNDED:
        return dataclasses.replace(
            producer,
            weight_oihw=(producer.weight_oihw * scale[:, None, None, None]).astype(np.float32),
            bias_o=(producer.bias_o * scale + node.shift_c).astype(np.float32),
        )
    if isinstance(producer, Linear) and producer.bounds == UNBOUNDED:
        return dataclasses.replace(
            producer,
            weight_oi=(producer.weight_oi * scale[:, None]).astype(np.float32),
            bias_o=(producer.bias_o * scale + node.shift_c).astype(np.float32),
        )
    if isinstance(producer, ChannelAffine) and producer.bounds == UNBOUNDED:
        return dataclasses.replace(
            producer,
            scale_c=(producer.scale_c * scale).astype(np.float32),
            shift_c=(producer.shift_c * scale + node.shift_c).astype(np.float32),
        )
    return None


def _padding_into_consumer(producer: Node, node: Node) -> Node | None:
    """A padding of height and width goes into the convolution or average pool that reads it."""
    if not isinstance(producer, Pad) or not isinstance(node, Conv2d | AveragePool2d):
        return None
    if len(producer.widths) != 3 or producer.widths[0] != (0, 0):
        return None
    (top, bottom), (left, right) = producer.widths[1:]
    p = node.padding
    return dataclasses.replace(
        node,
        inputs=producer.inputs,
        padding=(p[0] + top, p[1] + left, p[2] + bottom, p[3] + right),
    )


def _clamp_into_producer(producer: Node, node: Node) -> Node | None:
    if not isinstance(node, Clamp):
        return None
    lo, hi = node.bounds
    if isinstance(producer, Bounded | Clamp):
        before = producer.bounds
        return dataclasses.replace(producer, bounds=(min(max(before[0], lo), hi), max(min(before[1], hi), lo)))
    return None


def _as_depthwise(node: ChannelAffine) -> Node:
    """Return the same map as a convolution: per-channel weights are what integers have a form for."""
    channels = node.scale_c.shape[0]
    if len(node.shape) == 1:
        return Linear(
            name=node.name, inputs=node.inputs, shape=node.shape, source=node.source, bounds=node.bounds,
            weight_oi=np.diag(node.scale_c), bias_o=node.shift_c,
        )  # fmt: skip
    return Conv2d(
        name=node.name, inputs=node.inputs, shape=node.shape, source=node.source, bounds=node.bounds,
        weight_oihw=node.scale_c.reshape(channels, 1, 1, 1), bias_o=node.shift_c, groups=channels,
    )  # fmt: skip

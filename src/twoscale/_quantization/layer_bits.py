"""Bits of single layers that follow from a layer's place in a graph."""

from __future__ import annotations

import dataclasses

from twoscale._calibration.profile import moves_values
from twoscale._ir import float_graph as g
from twoscale._quantization.ranges import heads_of
from twoscale._quantization.scheme import Scheme

__all__ = ["with_layer_bits"]

_IMAGE_BITS = 8


def with_layer_bits(scheme: Scheme, graph: g.FloatGraph) -> Scheme:
    """Return the scheme with the bits that it gives to layers by their place, as bits of named layers.

    - Tensors before the first layer with weights hold the images. Images come in 8 bits, and fewer save neither memory
      nor time.
    - With ``edge_bits``, the weights of the first and of the last layer have these bits, and so has what the last layer
      reads.

    Bits that the scheme gives to a layer by its name are kept.

    Args:
        scheme: how the graph is quantized.
        graph: folded.
    """
    weighted = [node.name for node in graph if isinstance(node, g.Conv2d | g.Linear)]
    if not weighted:
        return scheme
    heads = heads_of(graph, scheme)
    activations: dict[str, int] = {}
    if scheme.activation_bits < _IMAGE_BITS:
        activations.update(dict.fromkeys(_images(graph), _IMAGE_BITS))
    weights: dict[str, int] = {}
    if scheme.edge_bits is not None:
        weights = {weighted[0]: scheme.edge_bits, weighted[-1]: scheme.edge_bits}
        activations[_origin(graph, graph[weighted[-1]].inputs[0])] = scheme.edge_bits
    activations = {name: bits for name, bits in activations.items() if name not in heads}
    activations |= dict(scheme.layer_activation_bits)
    weights |= dict(scheme.layer_weight_bits)
    return dataclasses.replace(
        scheme,
        edge_bits=None,
        layer_weight_bits=tuple(weights.items()),
        layer_activation_bits=tuple(activations.items()),
    )


def _images(graph: g.FloatGraph) -> list[str]:
    """Return the tensors with a scale of their own that depend on no weights."""
    images: set[str] = set()
    for node in graph:
        if not isinstance(node, g.Conv2d | g.Linear) and images.issuperset(node.inputs):
            images.add(node.name)
    return [node.name for node in graph if node.name in images and not moves_values(node)]


def _origin(graph: g.FloatGraph, name: str) -> str:
    """Return the tensor whose integers a tensor moves, or itself."""
    while moves_values(graph[name]):
        name = graph[name].inputs[0]
    return name

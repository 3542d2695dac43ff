"""The range of real values that the integers of each activation represent."""

from __future__ import annotations

from collections.abc import Mapping

from twoscale._calibration import RangeMethod, RealRange, TensorStatistics, choose_range, pixel_range
from twoscale._calibration.profile import moves_values
from twoscale._ir import float_graph as g
from twoscale._quantization.scheme import Scheme
from twoscale.errors import QuantizationError, UnknownNameError

__all__ = ["Ranges", "choose_ranges", "heads_of", "range_of"]

Ranges = Mapping[str, RealRange]
"""From the name of a node to the range of its output. Nodes that only move values share their input's range; heads
have none."""


def choose_ranges(graph: g.FloatGraph, statistics: Mapping[str, TensorStatistics], scheme: Scheme) -> Ranges:
    """Choose the range of every activation by the scheme's method.

    Args:
        graph: folded.
        statistics: of every node that does not only move values.
        scheme: how.

    Raises:
        QuantizationError: an output is clamped to a range without 0.
        UnknownNameError: the scheme gives bits to a layer that does not exist or has no integers of its own.
    """
    _check_layers(graph, scheme)
    heads = heads_of(graph, scheme)
    ranges: dict[str, RealRange] = {}
    for node in graph:
        bounds = getattr(node, "bounds", g.UNBOUNDED)
        if node.name in heads:
            continue
        if not bounds[0] <= 0.0 <= bounds[1]:
            raise QuantizationError(
                f"layer {node.name}: its output is clamped to [{bounds[0]:g}, {bounds[1]:g}], which leaves out 0, "
                "and integers must represent 0; clamp to bounds with 0 between them"
            )
        if not moves_values(node):
            ranges[node.name] = range_of(node, statistics[node.name], scheme)
    return ranges


def range_of(node: g.Node, seen: TensorStatistics, scheme: Scheme) -> RealRange:
    """Choose the range of one node's output."""
    lo, hi = scheme.activation_limits_of(node.name)
    pixels = pixel_range(seen, lo=lo, hi=hi) if isinstance(node, g.Input) else None
    method = RangeMethod.parse(scheme.activation_range)
    return pixels or choose_range(seen, method, lo=lo, hi=hi, symmetric=scheme.symmetric)


def heads_of(graph: g.FloatGraph, scheme: Scheme) -> frozenset[str]:
    """Find the layers with weights whose values are an output of the network, at most reshaped.

    Their int32 accumulators are that output, so they need no range. Nothing else may read them.
    There are none if outputs have 8 bits.
    """
    if scheme.output_bits < 32:
        return frozenset()
    heads = set()
    for output in graph.outputs:
        node, readers = graph[output], 0
        while len(graph.users[node.name]) == readers and (readers == 0 or node.name not in graph.outputs):
            if isinstance(node, g.Conv2d | g.Linear) and node.bounds == g.UNBOUNDED:
                heads.add(node.name)
            if not isinstance(node, g.Reshape):
                break
            node, readers = graph[node.inputs[0]], 1
    return frozenset(heads)


def _check_layers(graph: g.FloatGraph, scheme: Scheme) -> None:
    weighted = [node.name for node in graph if isinstance(node, g.Conv2d | g.Linear)]
    heads = heads_of(graph, scheme)
    own = [node.name for node in graph if not moves_values(node) and node.name not in heads]
    for what, wanted, known in (
        ("layer with weights", scheme.layer_weight_bits, weighted),
        ("layer with a scale of its own", scheme.layer_activation_bits, own),
    ):
        for name, _ in wanted:
            if name not in known:
                raise UnknownNameError(what, name, known)

"""FloatGraph and statistics → how every tensor is quantized."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from twoscale.calibration import RangeMethod, RealRange, TensorStatistics, affine_parameters, choose_range
from twoscale.calibration.profile import moves_values
from twoscale.errors import QuantizationError, UnknownNameError
from twoscale.graph import nodes as g
from twoscale.network.layers import TensorSpec
from twoscale.quantization.scheme import Scheme

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Which integers stand for which reals, before any weight is rounded."""

    graph: g.FloatGraph
    scheme: Scheme
    specs: Mapping[str, TensorSpec]
    """Node name to the quantization of its output; the head's is a placeholder until its weights are chosen."""
    head: str
    """The layer whose int32 accumulators are the logits; "" if the network ends in something else."""


def make_plan(
    graph: g.FloatGraph,
    statistics: Mapping[str, TensorStatistics],
    scheme: Scheme,
    *,
    ranges: dict[tuple[str, int, int], RealRange] | None = None,
) -> Plan:
    """Choose scale and zero point of every activation.

    Args:
        graph: folded.
        statistics: of every node that does not only move values.
        scheme: how.
        ranges: what was chosen for (layer, lo, hi) before, in plans that differ only in bits; is added to.

    Raises:
        QuantizationError: an output is clamped to a range without 0.
        UnknownNameError: the scheme gives bits to a layer that is not there or has none of its own.
    """
    _check_layers(graph, scheme)
    method = RangeMethod.parse(scheme.activation_range)
    head = _head(graph)
    chosen = {} if ranges is None else ranges
    specs: dict[str, TensorSpec] = {}
    for node in graph:
        if node.name == head:
            specs[node.name] = TensorSpec(node.shape, "int32", 1.0)
            continue
        bounds = getattr(node, "bounds", g.UNBOUNDED)
        if not bounds[0] <= 0.0 <= bounds[1]:
            raise QuantizationError(
                f"layer {node.name}: its output is clamped to [{bounds[0]:g}, {bounds[1]:g}], which leaves out 0, "
                "and integers must represent 0; clamp to bounds with 0 between them"
            )
        if moves_values(node):
            specs[node.name] = _bounded(specs[node.inputs[0]], node.shape, bounds)
            continue
        lo, hi = scheme.activation_limits_of(node.name)
        if (node.name, lo, hi) not in chosen:
            chosen[node.name, lo, hi] = choose_range(
                statistics[node.name], method, lo=lo, hi=hi, symmetric=scheme.signed_activations
            )
        range_ = chosen[node.name, lo, hi]
        scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=scheme.signed_activations)
        spec = TensorSpec(node.shape, scheme.activation_dtype, scale, zero_point, lo, hi)
        specs[node.name] = _bounded(spec, node.shape, bounds)
    return Plan(graph, scheme, specs, head)


def _check_layers(graph: g.FloatGraph, scheme: Scheme) -> None:
    weighted = [node.name for node in graph if isinstance(node, g.Conv2d | g.Linear)]
    own = [node.name for node in graph if not moves_values(node) and node.name != _head(graph)]
    for what, wanted, known in (
        ("layer with weights", scheme.layer_weight_bits, weighted),
        ("layer with a scale of its own", scheme.layer_activation_bits, own),
    ):
        for name, _ in wanted:
            if name not in known:
                raise UnknownNameError(what, name, known)


def _head(graph: g.FloatGraph) -> str:
    """Find the layer with weights that makes the logits, if nothing but reshaping comes after it."""
    node = graph[graph.output]
    while isinstance(node, g.Reshape) and len(graph.users[node.inputs[0]]) == 1:
        node = graph[node.inputs[0]]
    is_head = isinstance(node, g.Conv2d | g.Linear) and node.bounds == g.UNBOUNDED
    alone = len(graph.users[node.name]) == (0 if node.name == graph.output else 1)
    return node.name if is_head and alone else ""


def _bounded(spec: TensorSpec, shape: tuple[int, ...], bounds: g.Bounds) -> TensorSpec:
    """Return ``spec`` for another shape, its integers limited to real bounds (a ReLU's zero, a ReLU6's six)."""

    def integer(real: float, default: int) -> int:
        if math.isinf(real):
            return default
        return int(np.clip(np.rint(real / spec.scale) + spec.zero_point, spec.lo, spec.hi))

    lo, hi = integer(bounds[0], spec.lo), integer(bounds[1], spec.hi)
    return TensorSpec(shape, spec.dtype, spec.scale, spec.zero_point, lo, hi)

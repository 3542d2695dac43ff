"""FloatGraph and ranges → how every tensor is quantized."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from twoscale._calibration import RealRange, affine_parameters
from twoscale._calibration.profile import moves_values
from twoscale._ir import float_graph as g
from twoscale._ir.arithmetic import ADD_SHIFT, FLOAT32_LIMIT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT
from twoscale._ir.layers import TensorSpec
from twoscale._quantization.ranges import Ranges, heads_of
from twoscale._quantization.scheme import Scheme
from twoscale.errors import QuantizationError

__all__ = ["Plan", "activation_specs", "make_plan"]

_COARSER = 1.25
"""How many times coarser a tensor may become if it shares a concatenation's scale and other layers read it too.

Sharing saves the tensor's second rounding, in the concatenation, but its other readers see larger steps. Its range may
not become smaller by more than this factor either.
"""

_MOST_SHARED = 1 << (REQUANTIZE_SHIFT - 8)
"""Values over which a mean may have a scale that it did not choose, since it rounds its multiplier to the grid.

A sum of n 8-bit values times half a 65536th is within half a step for n ≤ 256. Beyond that, a mean over small values
could be off by any factor.
"""

_ADDEND_LIMIT = (FLOAT32_LIMIT - (1 << (8 + ADD_SHIFT))) / (1 << ADD_SHIFT)
"""Largest operand of an addition, in output steps, with which float32 sums are exact, condition (7c): 768."""

_ROUNDING_MARGIN = 1 + 2.0**-12
"""Multipliers are rounded to the grid."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which integers stand for which reals, before any weight is rounded."""

    graph: g.FloatGraph
    scheme: Scheme
    specs: Mapping[str, TensorSpec]
    """Node name to the quantization of its output; a head's is a placeholder until its weights are chosen."""
    heads: frozenset[str]
    """The layers whose int32 accumulators are outputs of the network."""


def make_plan(graph: g.FloatGraph, ranges: Ranges, scheme: Scheme) -> Plan:
    """Choose scale and zero point of every activation.

    Args:
        graph: folded.
        ranges: of its activations, from ``choose_ranges`` with the same graph and scheme, tuned or not.
        scheme: how.
    """
    return Plan(graph, scheme, activation_specs(graph, ranges, scheme), heads_of(graph))


def activation_specs(graph: g.FloatGraph, ranges: Ranges, scheme: Scheme) -> dict[str, TensorSpec]:
    """Return the quantization of every node's output; arguments as for ``make_plan``."""

    def spec_of(name: str, range_: RealRange) -> TensorSpec:
        lo, hi = scheme.activation_limits_of(name)
        scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=scheme.symmetric)
        return TensorSpec(graph[name].shape, scheme.activation_dtype, scale, zero_point, lo, hi)

    heads = heads_of(graph)
    shared = _shared_ranges(graph, ranges, spec_of)
    specs: dict[str, TensorSpec] = {}
    for node in graph:
        bounds = getattr(node, "bounds", g.UNBOUNDED)
        if node.name in heads:
            specs[node.name] = TensorSpec(node.shape, "int32", 1.0)
        elif moves_values(node):
            specs[node.name] = _bounded(specs[node.inputs[0]], node.shape, bounds)
        else:
            spec = spec_of(node.name, shared.get(node.name, ranges[node.name]))
            if isinstance(node, g.Softmax):
                spec = dataclasses.replace(spec, scale=_power_of_two(spec))
            elif scheme.on_grid:
                spec = dataclasses.replace(spec, scale=_scale_on_grid(node, spec, specs, free=node.name not in shared))
            specs[node.name] = _bounded(spec, node.shape, bounds)
    return specs


def _power_of_two(spec: TensorSpec) -> float:
    """Return the scale of a softmax, equation (15): the power of two nearest below, so that 1 becomes 255 / 256."""
    levels = spec.hi - spec.zero_point
    shift = math.floor(math.log2((levels + 1) / (levels * spec.scale)) + 1e-9)
    return math.ldexp(1.0, -min(max(shift, 0), 16))


def _scale_on_grid(node: g.Node, spec: TensorSpec, specs: Mapping[str, TensorSpec], *, free: bool) -> float:
    """Return the output scale, enlarged as far as the grid of multipliers needs; a shared one only if necessary.

    - A mean or a product has no weight scale with which its ratio could be put on the grid, equation (4), so its output
    scale is used. Otherwise a mean over thousands of pixels, with a multiplier of two digits, would be off by a
    percent.
    - A sum is exact only while one operand stays within 768 output steps, condition (7c). If a sum is that much
    narrower than its operands, its steps must be coarser for equal bits everywhere.
    """
    scale = spec.scale
    if free and isinstance(node, g.AveragePool2d | g.Mul | g.MatMul | g.SoftmaxMatMul):
        operands = node.inputs[1:] if isinstance(node, g.SoftmaxMatMul) else node.inputs
        ratio = math.prod(specs[name].scale for name in operands) / scale
        if isinstance(node, g.AveragePool2d):
            ratio /= node.kernel[0] * node.kernel[1]
        if isinstance(node, g.MatMul):
            ratio *= node.factor
        if ratio < math.ldexp(1.0 - 2.0**-8, -REQUANTIZE_SHIFT):  # its range would have to become smaller
            raise QuantizationError(
                f"layer {node.name}: its multiplier is {ratio:.3g}, expected at least 2**-{REQUANTIZE_SHIFT}; "
                "use two smaller windows, one after the other, instead of a single large one"
            )
        integer = min(max(math.floor(math.ldexp(ratio, REQUANTIZE_SHIFT)), 1), MULTIPLIER_LIMIT - 1)
        scale *= math.ldexp(ratio, REQUANTIZE_SHIFT) / integer
    elif len(node.inputs) == 2 and isinstance(node, g.Add | g.Conv2d):
        operands = node.inputs if isinstance(node, g.Add) else node.inputs[1:]
        reaches = [max(x.hi - x.zero_point, x.zero_point - x.lo) * x.scale for x in (specs[name] for name in operands)]
        scale = max(scale, min(reaches) * _ROUNDING_MARGIN / _ADDEND_LIMIT)
    return float(np.float32(scale))


def _shared_ranges(
    graph: g.FloatGraph,
    ranges: Ranges,
    spec_of: Callable[[str, RealRange], TensorSpec],
) -> dict[str, RealRange]:
    """Return the ranges of tensors that share one with a concatenation, so that it only copies them.

    An operand takes the concatenation's quantization if nothing else reads it, or if its steps do not become much
    coarser. Chains of concatenations (a dense block, a shuffled half) share one quantization, so values passed on are
    never rounded again.
    """
    roots = _roots(graph)
    passed_on = {
        name: all(isinstance(reader, g.Concat) for reader in readers) for name, readers in _final_readers(graph).items()
    }
    groups: dict[str, frozenset[str]] = {name: frozenset([name]) for name in ranges}

    def joint(members: frozenset[str]) -> RealRange:
        concats = [ranges[name] for name in members if isinstance(graph[name], g.Concat)]
        return RealRange(min(r.lo for r in concats), max(r.hi for r in concats))

    for node in graph:
        if not isinstance(node, g.Concat):
            continue
        for name in dict.fromkeys(roots[operand] for operand in node.inputs):
            if name not in ranges:  # a head
                continue
            if isinstance(found := graph[name], g.AveragePool2d) and math.prod(found.kernel) > _MOST_SHARED:
                continue
            members = groups[name] | groups[node.name]
            before = {member: spec_of(member, ranges[member]) for member in members}
            range_ = joint(members)
            scale = spec_of(node.name, range_).scale
            alike = len({(spec.lo, spec.hi) for spec in before.values()}) == 1
            # A tensor that goes into the concatenation through a ReLU has negative values for its other readers.
            reaching = {
                m for m in members if range_.lo <= ranges[m].lo / _COARSER and range_.hi >= ranges[m].hi / _COARSER
            }
            if alike and all(passed_on[m] or (m in reaching and scale <= _COARSER * before[m].scale) for m in members):
                groups.update(dict.fromkeys(members, members))
    return {name: joint(members) for name, members in groups.items() if len(members) > 1}


def _roots(graph: g.FloatGraph) -> dict[str, str]:
    """Return, for each tensor, the one whose integers it moves, or itself."""
    roots: dict[str, str] = {}
    for node in graph:
        roots[node.name] = roots[node.inputs[0]] if moves_values(node) else node.name
    return roots


def _final_readers(graph: g.FloatGraph) -> dict[str, list[g.Node]]:
    """Return, for each tensor, the nodes that compute with it, directly or after moving it."""
    readers: dict[str, list[g.Node]] = {}
    for node in reversed(graph.nodes):
        readers[node.name] = [
            final for user in graph.users[node.name] for final in (readers[user.name] if moves_values(user) else [user])
        ]
    return readers


def _bounded(spec: TensorSpec, shape: tuple[int, ...], bounds: g.Bounds) -> TensorSpec:
    """Return ``spec`` for another shape, its integers limited to real bounds (a ReLU's zero, a ReLU6's six)."""

    def integer(real: float, default: int) -> int:
        if math.isinf(real):
            return default
        return int(np.clip(np.rint(real / spec.scale) + spec.zero_point, spec.lo, spec.hi))

    lo, hi = integer(bounds[0], spec.lo), integer(bounds[1], spec.hi)
    return TensorSpec(shape, spec.dtype, spec.scale, spec.zero_point, lo, hi)

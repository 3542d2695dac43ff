"""FloatGraph and ranges → how every tensor is quantized."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twoscale._calibration import RealRange, affine_parameters
from twoscale._calibration.profile import moves_values
from twoscale._ir import float_graph as g
from twoscale._ir.arithmetic import ADD_SHIFT, FLOAT32_LIMIT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT
from twoscale._ir.float_scales import adds_exactly, product_is_exact, weight_scales
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

_LARGEST_ODD = 49_343
"""Multiplier of a sum's operand, with which (7c) holds whatever the other is."""

_TRIED = 1 << 10
"""Multipliers below the wanted one that are tried for an exact scale; about every second has one."""

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
    return Plan(graph, scheme, activation_specs(graph, ranges, scheme), heads_of(graph, scheme))


def activation_specs(graph: g.FloatGraph, ranges: Ranges, scheme: Scheme) -> dict[str, TensorSpec]:
    """Return the quantization of every node's output; arguments as for ``make_plan``."""

    def spec_of(name: str, range_: RealRange) -> TensorSpec:
        lo, hi = scheme.activation_limits_of(name)
        scale, zero_point = affine_parameters(range_, lo=lo, hi=hi, symmetric=scheme.symmetric)
        return TensorSpec(graph[name].shape, scheme.activation_dtype, scale, zero_point, lo, hi)

    heads = heads_of(graph, scheme)
    shared = _shared_ranges(graph, ranges, spec_of, exact=scheme.float32_scales)
    sums = _sums_of(graph, ranges, shared) if scheme.float32_scales else {}
    specs: dict[str, TensorSpec] = {}

    def own(name: str) -> TensorSpec:
        return spec_of(name, shared.get(name, ranges[name]))

    def resolve(node: g.Node) -> TensorSpec:
        if node.name in specs:
            return specs[node.name]
        bounds = getattr(node, "bounds", g.UNBOUNDED)
        if node.name in heads:
            found = TensorSpec(node.shape, "int32", 1.0)
        elif moves_values(node):
            found = _bounded(resolve(graph[node.inputs[0]]), node.shape, bounds)
        else:
            spec = own(node.name)
            if node.name in sums:
                scale = sum_scale(sums[node.name])
                spec = dataclasses.replace(spec, scale=scale)
            elif isinstance(node, g.Softmax):
                spec = dataclasses.replace(spec, scale=_power_of_two(spec))
            elif scheme.on_grid:
                inputs = [resolve(graph[name]) for name in node.inputs]
                scale = _scale_on_grid(node, spec, inputs, free=node.name not in shared, exact=scheme.float32_scales)
                spec = dataclasses.replace(spec, scale=scale)
            found = _bounded(spec, node.shape, bounds)
        specs[node.name] = found
        return found

    def sum_scale(sum_: _Sum) -> float:
        wanted = max(own(name).scale for name in sum_.same)
        return _scale_of_sum(resolve(graph[sum_.other]).scale if sum_.other else None, wanted)

    for node in graph:
        resolve(node)
    return specs


def _power_of_two(spec: TensorSpec) -> float:
    """Return the scale of a softmax, equation (15): the power of two nearest below, so that 1 becomes 255 / 256."""
    levels = spec.hi - spec.zero_point
    shift = math.floor(math.log2((levels + 1) / (levels * spec.scale)) + 1e-9)
    return math.ldexp(1.0, -min(max(shift, 0), 16))


@dataclass(frozen=True)
class _Sum:
    """An addition and the operands that get its scale."""

    same: tuple[str, ...]
    """The addition, and operands that only it reads and whose scales are free."""
    other: str
    """The operand with another scale; "" if there is none."""


def _sums_of(graph: g.FloatGraph, ranges: Ranges, shared: Mapping[str, RealRange]) -> dict[str, _Sum]:
    """Return the addition of every tensor whose scale is that of an addition, (7e).

    An operand's scale is free if its producer has weights or is a table. An addition without such an operand keeps a
    scale of its own.
    """
    found: dict[str, _Sum] = {}
    for node in graph:
        if not isinstance(node, g.Add):
            continue
        free = [
            name
            for name in dict.fromkeys(node.inputs)
            if isinstance(graph[name], g.Conv2d | g.Linear | g.Elementwise)
            and name in ranges
            and name not in shared
            and len(graph.users[name]) == 1
        ]
        if free:
            other = next((name for name in node.inputs if name not in free), "")
            one = _Sum((node.name, *free), other)
            found.update(dict.fromkeys(one.same, one))
    return found


def _scale_of_sum(other: float | None, wanted: float) -> float:
    """Return the float32 scale of a sum, at least ``wanted``, with an odd multiplier for the other operand's scale."""
    if other is None:
        return float(np.float32(wanted))
    integer = min(max(_odd(math.floor(math.ldexp(other / wanted, ADD_SHIFT))), 1), _LARGEST_ODD)
    while True:
        scale = float(np.float32(math.ldexp(other, ADD_SHIFT) / integer))
        if adds_exactly(integer, ADD_SHIFT, other, scale):
            return scale
        integer -= 2


def _odd(integer: int) -> int:
    """Return the largest odd number that is not above ``integer``."""
    return integer - 1 + integer % 2


def _scale_on_grid(node: g.Node, spec: TensorSpec, inputs: Sequence[TensorSpec], *, free: bool, exact: bool) -> float:
    """Return the output scale, enlarged as far as the grid of multipliers needs; a shared one only if necessary.

    - A mean or a product has no weight scale with which its ratio could be put on the grid, equation (4), so its output
    scale is used. Otherwise a mean over thousands of pixels, with a multiplier of two digits, would be off by a
    percent.
    - A sum is exact only while one operand stays within 768 output steps, condition (7c). If a sum is that much
    narrower than its operands, its steps must be coarser for equal bits everywhere.

    Args:
        node: whose output it is.
        spec: with the scale that its range has.
        inputs: of the node.
        free: whether no concatenation shares the scale.
        exact: whether float32 quotients must be the multiplier, (6b).
    """
    scale = spec.scale
    if free and isinstance(node, g.AveragePool2d | g.Mul | g.MatMul | g.SoftmaxMatMul):
        ratio = math.prod(x.scale for x in (inputs[1:] if isinstance(node, g.SoftmaxMatMul) else inputs)) / scale
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
        if exact and isinstance(node, g.AveragePool2d | g.Mul):
            return _exact_scale(node, inputs, scale * math.ldexp(ratio, REQUANTIZE_SHIFT), _odd(integer))
        scale *= math.ldexp(ratio, REQUANTIZE_SHIFT) / integer
    elif len(node.inputs) == 2 and isinstance(node, g.Add | g.Conv2d):
        reaches = [x.reach * x.scale for x in (inputs if isinstance(node, g.Add) else inputs[1:])]
        scale = max(scale, min(reaches) * _ROUNDING_MARGIN / _ADDEND_LIMIT)
    return float(np.float32(scale))


def _exact_scale(node: g.Node, inputs: Sequence[TensorSpec], product: float, integer: int) -> float:
    """Return the float32 scale of a mean or a product whose multiplier is ``integer``, or the next odd number below.

    Args:
        node: the mean or the product.
        inputs: its operands.
        product: of the scale and the multiplier in units of the grid.
        integer: odd.
    """
    for candidate in range(max(integer, 1), max(integer - _TRIED, 0), -2):
        scale = np.float32(product / candidate)
        for near in (scale, np.nextafter(scale, np.float32(np.inf)), np.nextafter(scale, np.float32(0))):
            if isinstance(node, g.Mul):
                exact = product_is_exact(candidate, REQUANTIZE_SHIFT, inputs[0].scale, inputs[1].scale, float(near))
            else:
                exact = not np.isnan(weight_scales([candidate], REQUANTIZE_SHIFT, inputs[0].scale, float(near)))[0]
            if exact:
                return float(near)
    raise QuantizationError(
        f"layer {node.name}: no float32 scale gives its multiplier exactly; use another scheme than tflite"
    )


def _shared_ranges(
    graph: g.FloatGraph,
    ranges: Ranges,
    spec_of: Callable[[str, RealRange], TensorSpec],
    *,
    exact: bool,
) -> dict[str, RealRange]:
    """Return the ranges of tensors that share one with a concatenation, so that it only copies them.

    An operand takes the concatenation's quantization if nothing else reads it, or if its steps do not become much
    coarser. Chains of concatenations (a dense block, a shuffled half) share one quantization, so values passed on are
    never rounded again.

    Sums, means and products keep a scale of their own if it must be ``exact``, (6b).
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
            if exact and isinstance(found, g.Add | g.AveragePool2d | g.Mul):
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

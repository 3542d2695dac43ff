"""Tunes activation ranges by the error of the logits instead of the error of the tensor.

Rounding errors of a tensor are independent and mostly cancel in the sums that follow. Clipping errors have one sign,
but the logits may not depend on the clipped values. So the range with the least squared error is seldom the one with
the least error in the logits. To first order, a tensor's error δ changes the logits by J·δ, where J is their Jacobian.
For a random vector v of ±1 over the classes, the mean of (vᵀ·J·δ)² is |J·δ|² (Hutchinson 1990), and vᵀ·J is one
backward pass of the float network. So evaluating a candidate takes a rounding and a product, but no run of the
network.

A large network has few images and vectors, too few to average out the noise of sampled rounding errors. Its rounding
errors are taken as independent, with the variance s²/12 of a uniform distribution. Only clipping errors are sampled.
Few images also show too little of what is clipped. So no range becomes so narrow that the squared error of the tensor
itself, over all calibration images, grows by more than a tenth.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._calibration import RealRange, TensorStatistics, affine_parameters, expected_squared_error
from twoscale._calibration.memory import DEFAULT_MEMORY, images_within
from twoscale._calibration.profile import Profile
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule, channels_last
from twoscale._ir.interpreter import interpret
from twoscale._ir.layers import TensorSpec
from twoscale._progress import report
from twoscale._quantization.plan import activation_specs
from twoscale._quantization.ranges import Ranges
from twoscale._quantization.scheme import Scheme

__all__ = ["tune_ranges"]

_FACTORS = np.geomspace(0.6, 1.5, 17)
"""Scales tried, relative to the current one."""

_PROJECTIONS = 4
_FEW_PROJECTIONS = 1
"""Random vectors per image, for small and for large networks."""

_BATCH = 32
_FEWEST_IMAGES = 16
_VALUES = 1 << 25
"""Number of activations used, over all images: enough for stable choices in a few seconds. A network that has more in
the fewest images is large."""

_CACHED = 1 << 13
"""Values of a tensor rounded at a time, to all candidates."""

_CLIPPED = 1 << 15
"""Values searched at a time for clipped ones."""

_MORE_CLIPPED = 1.1
"""Factor by which a narrower range may increase the squared error of a tensor of a large network."""

_BETTER = 0.97
"""Factor by which an error must be smaller to count. Estimates over a few hundred images are not more accurate."""


def tune_ranges(
    ranges: Ranges,
    graph: g.FloatGraph,
    found: Profile,
    scheme: Scheme,
    *,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
) -> Ranges:
    """Return the ranges with which each activation by itself changes the logits least, if the scheme tunes ranges.

    Args:
        ranges: from ``choose_ranges``. Their zero points do not change.
        graph: folded.
        found: its profile.
        scheme: how.
        seed: of the random vectors.
        memory: bytes for the tensors between layers and their gradients.
    """
    if not scheme.tunes_ranges:
        return ranges
    specs = activation_specs(graph, ranges, scheme)
    candidates = {name: _candidates(specs[name], found.statistics[name], scheme, name) for name in ranges}
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller has set
        errors = _errors(graph, candidates, found.samples_nchw, seed, memory)
        if _is_large(graph, candidates):
            for name, tried in candidates.items():
                errors[name][_too_narrow(tried, found.statistics[name])] = np.inf
    return {name: _range(candidates[name], errors[name], scheme, name) for name in ranges}


def _is_large(graph: g.FloatGraph, names: Collection[str]) -> bool:
    return _FEWEST_IMAGES * _values_per_image(graph, names) > _VALUES


def _values_per_image(graph: g.FloatGraph, names: Collection[str]) -> int:
    return sum(math.prod(graph[name].shape) for name in names)


def _errors(
    graph: g.FloatGraph,
    candidates: Mapping[str, list[TensorSpec]],
    samples_nchw: NDArray[np.float32],
    seed: int,
    memory: int,
) -> dict[str, NDArray[np.float64]]:
    """Return for each tensor the estimated error of the logits with each of its candidates."""
    module = GraphModule(graph)
    errors = {name: np.zeros(len(specs)) for name, specs in candidates.items()}
    images = samples_nchw[: max(_FEWEST_IMAGES, _VALUES // _values_per_image(graph, candidates))]
    large = _is_large(graph, candidates)
    projections, estimate = (_FEW_PROJECTIONS, _expected_errors) if large else (_PROJECTIONS, _sampled_errors)
    # Each value has its gradients beside it, and the gradients of one tensor are stacked. What torch keeps for the
    # backward passes needs as much memory again; small networks are bounded by _BATCH.
    budget = memory // 2 if large else memory
    batch = min(_BATCH, images_within(graph, budget, networks=2 + projections, keep_all=True))
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(images), batch):
        report("tuning ranges", start, len(images))
        values = _values(module, channels_last(torch.from_numpy(np.ascontiguousarray(images[start : start + batch]))))
        sensitive = [name for name in candidates if values[name].requires_grad]  # not the constants
        outputs = [values[name] for name in graph.outputs if values[name].requires_grad]
        if not outputs:  # after a comparison nothing is known of the slopes
            break
        # Each of several outputs counts alike, whatever its unit.
        units = [float(output.detach().square().mean().sqrt()) or 1.0 for output in outputs]
        units = units if len(graph.outputs) > 1 else [1.0]
        slopes: list[list[torch.Tensor]] = [[] for _ in sensitive]
        for index in range(projections):
            total = torch.zeros(())
            for output, unit in zip(outputs, units, strict=True):
                signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
                total = total + (output * signs).sum() / unit
            found = torch.autograd.grad(
                total,
                [values[name] for name in sensitive],
                retain_graph=index + 1 < projections,
                allow_unused=True,
            )
            for rows, slope in zip(slopes, found, strict=True):
                if slope is not None:
                    rows.append(slope)
        with torch.no_grad():
            for name, rows in zip(sensitive, slopes, strict=True):
                if rows:
                    x, *rows = _flat([values[name].detach(), *rows])
                    stacked = torch.stack(rows, 1) if len(rows) > 1 else rows[0][:, None]
                    errors[name] += estimate(x, stacked, candidates[name])
    return errors


def _candidates(there: TensorSpec, seen: TensorStatistics, scheme: Scheme, name: str) -> list[TensorSpec]:
    """Return the current quantization, one that clips nothing, and other scales with the current zero point."""
    lo, hi = scheme.activation_limits_of(name)
    whole = RealRange(min(seen.min, 0.0), max(seen.max, 0.0))
    pairs = [
        (there.scale, there.zero_point),
        affine_parameters(whole, lo=lo, hi=hi, symmetric=scheme.symmetric),
    ]
    pairs += [(there.scale * factor, there.zero_point) for factor in _FACTORS]
    return [TensorSpec(there.shape, there.dtype, scale, zero_point, lo, hi) for scale, zero_point in pairs]


def _values(module: GraphModule, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the output of every node, with the gradients that lead to it."""
    images = images.requires_grad_()
    nodes = module.graph.nodes
    given = module.graph.given(images)
    return interpret(
        nodes, lambda node, x: module.compute(node, x) if x else given[node.name], keep=[node.name for node in nodes]
    )


def _flat(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors (N, ...) of one shape as (N, values), in an order of the values that copies the first least."""
    if tensors[0].ndim == 4 and tensors[0].is_contiguous(memory_format=torch.channels_last):
        tensors = [tensor.permute(0, 2, 3, 1) for tensor in tensors]
    return [tensor.flatten(1) for tensor in tensors]


def _sampled_errors(x: torch.Tensor, slopes: torch.Tensor, specs: list[TensorSpec]) -> NDArray[np.float64]:
    """Return Σ (vᵀ·J·δ)² for each candidate; x: (N, values), slopes: (N, projections, values)."""
    scales = torch.tensor([spec.scale for spec in specs]).float()
    per_step = scales.reciprocal()[:, None]
    bounds = [(spec.lo - spec.zero_point, spec.hi - spec.zero_point) for spec in specs]
    # Neighbours with the same bounds are clamped together; with a tensor of bounds torch takes fifty times as long.
    edges = [i for i in range(len(specs) + 1) if i in (0, len(specs)) or bounds[i] != bounds[i - 1]]
    # vᵀ·J·δ = s·(vᵀ·J·q) − vᵀ·J·x, so values are neither scaled back nor subtracted one by one.
    products = torch.zeros(len(x), slopes.shape[1], len(specs), dtype=torch.float64)
    integers = torch.empty(len(specs), min(_CACHED, x.shape[1]))
    for image in range(len(x)):
        for start in range(0, x.shape[1], _CACHED):
            values, slope = x[image, start : start + _CACHED], slopes[image, :, start : start + _CACHED]
            part = integers[:, : len(values)]
            torch.mul(values, per_step, out=part)
            part.round_()
            for first, last in itertools.pairwise(edges):
                part[first:last].clamp_(*bounds[first])
            products[image] += (slope @ part.T).mul_(scales).sub_((slope @ values)[:, None])
    found: NDArray[np.float64] = products.square().sum((0, 1)).numpy()
    return found


def _expected_errors(x: torch.Tensor, slopes: torch.Tensor, specs: list[TensorSpec]) -> NDArray[np.float64]:
    """Return E Σ (vᵀ·J·δ)² for each candidate, over independent rounding errors; arguments as for _sampled_errors."""
    lows, highs = (
        torch.tensor([[(limit(spec) - spec.zero_point) * spec.scale] for spec in specs]).float()
        for limit in (operator.attrgetter("lo"), operator.attrgetter("hi"))
    )
    low, high = float(lows.max()), float(highs.min())
    clipped = torch.zeros(len(x), slopes.shape[1], len(specs))  # vᵀ·J·δ of clipping
    rounded = torch.zeros(len(specs))  # Σ (vᵀ·J)² over what is rounded; zeros are exact
    for image in range(len(x)):
        for start in range(0, x.shape[1], _CLIPPED):
            values, slope = x[image, start : start + _CLIPPED], slopes[image, :, start : start + _CLIPPED]
            squares = slope.square().sum(0)
            rounded += squares @ values.sign().square_()
            outside = values.clamp(low, high).ne(values).nonzero()[:, 0]  # by the narrowest candidates
            if len(outside):
                values = values[outside]
                beyond = values - torch.minimum(torch.maximum(values, lows), highs)
                clipped[image] += slope[:, outside] @ beyond.T
                rounded -= beyond.sign().square_() @ squares[outside]
    steps = np.array([spec.scale**2 / 12 for spec in specs])
    found: NDArray[np.float64] = clipped.double().square().sum((0, 1)).numpy() + steps * rounded.double().numpy()
    return found


def _too_narrow(specs: list[TensorSpec], seen: TensorStatistics) -> NDArray[np.bool_]:
    """Return which candidates are narrower than the current one and increase the tensor's own error too much."""
    own = np.array(
        [
            expected_squared_error(seen, scale=spec.scale, zero_point=spec.zero_point, lo=spec.lo, hi=spec.hi)
            for spec in specs
        ]
    )
    narrower = np.array([spec.scale < specs[0].scale for spec in specs])
    found: NDArray[np.bool_] = narrower & (own > _MORE_CLIPPED * own[0])
    return found


def _range(specs: list[TensorSpec], errors: NDArray[np.float64], scheme: Scheme, name: str) -> RealRange:
    lo, hi = scheme.activation_limits_of(name)
    best = int(errors.argmin())
    chosen = specs[best if errors[best] < _BETTER * errors[0] else 0]
    if scheme.symmetric:
        reach = chosen.scale * min(hi, -lo)
        return RealRange(-reach, reach)
    return RealRange(chosen.scale * (lo - chosen.zero_point), chosen.scale * (hi - chosen.zero_point))

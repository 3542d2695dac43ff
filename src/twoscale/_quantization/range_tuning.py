"""Activation ranges by what they do to the logits, not to the tensor alone.

Rounding errors of a tensor are independent and mostly cancel in the sums that follow; clipping errors have one sign,
but may lie where the logits do not depend on them. So the range of the least squared error is seldom that of the least
error in the logits. To first order a tensor's error δ moves the logits by J·δ, with J their Jacobian; with v a random
vector of ±1 over the classes, the mean of (vᵀ·J·δ)² is |J·δ|² (Hutchinson 1990), and vᵀ·J is one backward pass of the
float network. So a candidate costs a rounding and a product, and no run of the network.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._calibration import RealRange, TensorStatistics, affine_parameters
from twoscale._calibration.profile import Profile, moves_values
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._ir.layers import TensorSpec
from twoscale._quantization.plan import Plan, make_plan
from twoscale._quantization.scheme import Scheme

__all__ = ["tuned_plan", "tuned_ranges"]

_FACTORS = np.geomspace(0.6, 1.5, 17)
"""Scales tried, in units of the one that is there."""

_PROJECTIONS = 4
_BATCH = 32
_VALUES = 1 << 26
"""Activations looked at, over all images: enough for stable choices, a few seconds."""

_BETTER = 0.97
"""What counts as a smaller error: estimates over a few hundred images are not finer."""


def tuned_plan(
    graph: g.FloatGraph,
    found: Profile,
    scheme: Scheme,
    *,
    ranges: dict[tuple[str, int, int], RealRange] | None = None,
) -> Plan:
    """Make a plan, with the ranges tuned where the scheme says so.

    Args:
        graph: folded.
        found: its profile.
        scheme: how.
        ranges: as for ``make_plan``.
    """
    chosen = {} if ranges is None else ranges
    plan = make_plan(graph, found.statistics, scheme, ranges=chosen)
    if not scheme.tunes_ranges:
        return plan
    chosen.update(tuned_ranges(plan, found.statistics, found.samples_nchw))
    return make_plan(graph, found.statistics, scheme, ranges=chosen)


def tuned_ranges(
    plan: Plan, statistics: Mapping[str, TensorStatistics], samples_nchw: NDArray[np.float32], *, seed: int = 0
) -> dict[tuple[str, int, int], RealRange]:
    """Return the ranges for ``make_plan`` with which each activation alone moves the logits least.

    Args:
        plan: made without them; its zero points stay.
        statistics: what it was made from.
        samples_nchw: calibration images, float32 (N, C, H, W).
        seed: of the random vectors.
    """
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        return _tuned_ranges(plan, statistics, samples_nchw, seed)


def _tuned_ranges(
    plan: Plan, statistics: Mapping[str, TensorStatistics], samples_nchw: NDArray[np.float32], seed: int
) -> dict[tuple[str, int, int], RealRange]:
    graph, module = plan.graph, GraphModule(plan.graph)
    own = [node.name for node in graph if not moves_values(node) and node.name != plan.head]
    candidates = {name: _candidates(plan, name, statistics[name]) for name in own}
    errors = {name: np.zeros(len(specs)) for name, specs in candidates.items()}
    per_image = sum(int(np.prod(graph[name].shape)) for name in own)
    images = samples_nchw[: max(_BATCH, _VALUES // per_image)]
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(images), _BATCH):
        values = _values(graph, module, torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH])))
        sensitive = [name for name in own if values[name].requires_grad]  # not the constants
        logits = values[graph.output]
        slopes: list[list[torch.Tensor]] = [[] for _ in sensitive]
        for index in range(_PROJECTIONS):
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1.0
            found = torch.autograd.grad(
                (logits * signs).sum(),
                [values[name] for name in sensitive],
                retain_graph=index + 1 < _PROJECTIONS,
                allow_unused=True,
            )
            for rows, slope in zip(slopes, found, strict=True):
                if slope is not None:
                    rows.append(slope.flatten(1))
        with torch.no_grad():
            for name, rows in zip(sensitive, slopes, strict=True):
                if rows:
                    errors[name] += _logit_errors(
                        values[name].detach().flatten(1), torch.stack(rows, 1), candidates[name]
                    )
    lo_hi = {name: plan.scheme.activation_limits_of(name) for name in own}
    return {(name, *lo_hi[name]): _range(plan, candidates[name], errors[name], *lo_hi[name]) for name in own}


def _candidates(plan: Plan, name: str, seen: TensorStatistics) -> list[TensorSpec]:
    """Return what is there, what clips nothing, and other scales with the zero point that is there."""
    lo, hi = plan.scheme.activation_limits_of(name)
    symmetric = plan.scheme.signed_activations
    whole = RealRange(min(seen.min, 0.0), max(seen.max, 0.0))
    there = plan.specs[name]
    pairs = [(there.scale, there.zero_point), affine_parameters(whole, lo=lo, hi=hi, symmetric=symmetric)]
    pairs += [(there.scale * factor, there.zero_point) for factor in _FACTORS]
    return [TensorSpec(there.shape, there.dtype, scale, zero_point, lo, hi) for scale, zero_point in pairs]


def _values(graph: g.FloatGraph, module: GraphModule, images: torch.Tensor) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}
    for node in graph:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = module.compute(node, inputs) if inputs else images.requires_grad_()
    return values


def _logit_errors(x: torch.Tensor, slopes: torch.Tensor, specs: list[TensorSpec]) -> NDArray[np.float64]:
    """Return Σ (vᵀ·J·δ)² for each candidate; x: (N, values), slopes: (N, projections, values)."""
    errors = np.zeros(len(specs))
    for index, spec in enumerate(specs):
        rounded = (x / spec.scale).round_().clamp_(spec.lo - spec.zero_point, spec.hi - spec.zero_point)
        error = rounded.mul_(spec.scale).sub_(x)
        errors[index] = float(torch.bmm(slopes, error.unsqueeze(2)).double().square().sum())
    return errors


def _range(plan: Plan, specs: list[TensorSpec], errors: NDArray[np.float64], lo: int, hi: int) -> RealRange:
    best = int(errors.argmin())
    chosen = specs[best if errors[best] < _BETTER * errors[0] else 0]
    if plan.scheme.signed_activations:
        reach = chosen.scale * min(hi, -lo)
        return RealRange(-reach, reach)
    return RealRange(chosen.scale * (lo - chosen.zero_point), chosen.scale * (hi - chosen.zero_point))

"""Tuned ranges against the measured error of the logits with each candidate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.quantization.small_models import images, plan_of, residual_model
from twoscale._calibration import affine_parameters
from twoscale._calibration.profile import Profile, profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._passes.fold import fold
from twoscale._quantization import COURSE, DEFAULT, quantize
from twoscale._quantization.plan import Plan
from twoscale._quantization.range_tuning import tune_ranges
from twoscale._quantization.ranges import choose_ranges
from twoscale._quantization.scheme import Scheme

Prepared = tuple[g.FloatGraph, Profile]
PIXELS = images(3, 48)
FOUR = dataclasses.replace(DEFAULT, activation_bits=4)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    graph = fold(capture(residual_model(9), torch.from_numpy(PIXELS[:1])))
    return graph, profile(graph, [PIXELS])


def logit_error(graph: g.FloatGraph, plan: Plan, name: str) -> float:
    """Return the mean squared error of the logits when only one tensor is rounded."""
    module = GraphModule(graph)

    def rounded(node: g.Node, value: torch.Tensor) -> torch.Tensor:
        if node.name != name:
            return value
        spec = plan.specs[name]
        q = torch.clamp(torch.round(value / spec.scale) + spec.zero_point, spec.lo, spec.hi)
        return (q - spec.zero_point) * spec.scale

    x = torch.from_numpy(PIXELS)
    return float((module.run(x, replace=rounded)[graph.output] - module(x)).square().mean())


@pytest.mark.parametrize("scheme", [DEFAULT, FOUR], ids=["8 bits", "4 bits"])
def test_no_tensor_alone_is_worse_and_together_they_are_better(prepared: Prepared, scheme: Scheme) -> None:
    graph, found = prepared
    before, after = (plan_of(graph, found, scheme, tuned=tuned) for tuned in (False, True))
    moved = [name for name in before.specs if before.specs[name] != after.specs[name] and name in found.statistics]
    assert moved
    errors = np.array([[logit_error(graph, plan, name) for plan in (before, after)] for name in moved])
    assert (errors[:, 1] < 1.1 * errors[:, 0]).all()  # an estimate, to first order
    assert errors[:, 1].sum() < 0.97 * errors[:, 0].sum()


def test_the_same_images_give_the_same_ranges(prepared: Prepared) -> None:
    graph, found = prepared
    ranges = choose_ranges(graph, found.statistics, DEFAULT)
    state = torch.get_rng_state()
    first, second = (tune_ranges(ranges, graph, found, DEFAULT) for _ in range(2))
    assert first == second
    assert (torch.get_rng_state() == state).all()


def test_signed_ranges_stay_symmetric(prepared: Prepared) -> None:
    graph, found = prepared
    how = dataclasses.replace(COURSE, activation_range="mse", tune_ranges=True)
    ranges = choose_ranges(graph, found.statistics, how)
    for name, chosen in tune_ranges(ranges, graph, found, how).items():
        lo, hi = how.activation_limits_of(name)
        assert chosen.lo == -chosen.hi, name
        assert affine_parameters(chosen, lo=lo, hi=hi, symmetric=True)[1] == 0


@pytest.mark.parametrize("how", [{"tune_ranges": False}, {"activation_range": "minmax"}])
def test_other_methods_keep_their_ranges(prepared: Prepared, how: dict[str, object]) -> None:
    graph, found = prepared
    scheme = dataclasses.replace(DEFAULT, **how)  # type: ignore[arg-type]
    assert plan_of(graph, found, scheme, tuned=True).specs == plan_of(graph, found, scheme, tuned=False).specs


def test_a_caller_in_inference_mode_gets_the_same_network() -> None:
    model = residual_model(9)
    expected = quantize(model, [PIXELS]).fingerprint
    with torch.inference_mode():
        assert quantize(model, [PIXELS]).fingerprint == expected

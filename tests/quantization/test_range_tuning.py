"""Tuned ranges against the measured error of the logits with each candidate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.quantization.small_models import images, plan_of, residual_model
from twoscale._calibration import affine_parameters, expected_squared_error
from twoscale._calibration.profile import Profile, profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._ir.layers import TensorSpec
from twoscale._passes.fold import fold
from twoscale._quantization import COURSE, DEFAULT, quantize, range_tuning
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


def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune every network as a large one."""
    monkeypatch.setattr(range_tuning, "_VALUES", 1)


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


def test_the_tensors_of_a_large_network_are_better_together(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_large(monkeypatch)
    graph, found = prepared
    before, after = (plan_of(graph, found, FOUR, tuned=tuned) for tuned in (False, True))
    moved = [name for name in before.specs if before.specs[name] != after.specs[name] and name in found.statistics]
    errors = np.array([[logit_error(graph, plan, name) for plan in (before, after)] for name in moved])
    assert (errors[:, 1] < 1.25 * errors[:, 0]).all()
    assert errors[:, 1].sum() < errors[:, 0].sum()


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


def test_large_networks_expect_uniform_rounding_errors_and_sum_clipping_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_tuning, "_CLIPPED", 100)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 250)) * (rng.random((3, 250)) < 0.7)).astype(np.float32)
    slopes = rng.normal(size=(3, 2, 250)).astype(np.float32)
    specs = [TensorSpec((250,), "uint8", scale, 100, 0, 255) for scale in (0.02, 0.004, 0.0125)]
    wanted = []
    for spec in specs:
        clipped = x - np.clip(x, -100 * spec.scale, 155 * spec.scale).astype(np.float32)
        rounded = (x != 0) & (clipped == 0)
        changes = np.einsum("npv,nv->np", slopes.astype(np.float64), clipped)
        wanted.append(
            (changes**2).sum() + spec.scale**2 / 12 * (slopes.astype(np.float64) ** 2 * rounded[:, None]).sum()
        )
    found = range_tuning._expected_errors(torch.from_numpy(x), torch.from_numpy(slopes), specs)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_large_networks_do_not_clip_what_only_other_images_show(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_large(monkeypatch)
    graph, _ = prepared
    bright = profile(graph, [PIXELS[:1], *[5 * PIXELS[1:]] * 4])  # only dark images are tuned with
    dark = dataclasses.replace(bright, samples_nchw=PIXELS[:16])

    def worse() -> list[str]:
        before, after = (plan_of(graph, dark, DEFAULT, tuned=tuned).specs for tuned in (False, True))
        own = {
            name: [
                expected_squared_error(
                    seen, scale=s[name].scale, zero_point=s[name].zero_point, lo=s[name].lo, hi=s[name].hi
                )
                for s in (before, after)
            ]
            for name, seen in dark.statistics.items()
            if before[name].dtype == "uint8"
        }
        return [name for name, (old, new) in own.items() if new > 1.2 * old and after[name].scale < before[name].scale]

    assert not worse()
    monkeypatch.setattr(range_tuning, "_MORE_CLIPPED", np.inf)
    assert worse()

"""Error feedback and bias correction, judged by errors computed from the weights and images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.quantization.small_models import (
    Model,
    accumulating,
    columns,
    float_weight,
    images,
    plan_of,
    residual_model,
    seeded,
    small_cnn,
)
from twoscale._calibration.profile import Profile, profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._passes.fold import fold
from twoscale._quantization import DEFAULT, Scheme, corrections, quantize, quantize_graph
from twoscale._quantization.build import build
from twoscale._quantization.corrections import correct
from twoscale._quantization.scales import weight_scales

Float64 = NDArray[np.float64]

FEEDBACK = dataclasses.replace(DEFAULT, bias_correction=False)
BIAS = dataclasses.replace(DEFAULT, error_feedback=False)
NEITHER = dataclasses.replace(DEFAULT, error_feedback=False, bias_correction=False)


def grouped_model() -> nn.Module:
    """Convolutions in groups, depthwise, strided, dilated and without symmetry."""
    with seeded(3):
        return Model(
            lambda m, x: m.fc(torch.relu(m.dilated(torch.relu(m.depthwise(torch.relu(m.grouped(x)))))).flatten(1)),
            grouped=nn.Conv2d(3, 9, (3, 2), padding=(1, 0), groups=3),
            depthwise=nn.Conv2d(9, 9, 3, stride=(2, 1), groups=9),
            dilated=nn.Conv2d(9, 4, 2, dilation=(1, 2), bias=False),
            fc=nn.Linear(24, 5),
        ).eval()


MODELS = {"cnn": small_cnn(1), "residual": residual_model(2), "grouped": grouped_model()}
PIXELS = images(21, 120)
every_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def profiles() -> dict[str, tuple[g.FloatGraph, Profile]]:
    """Folded graphs and their profiles, made once."""
    found = {}
    for name, model in MODELS.items():
        graph = fold(capture(model, torch.from_numpy(PIXELS[:1])))
        found[name] = graph, profile(graph, [PIXELS])
    return found


Profiles = dict[str, tuple[g.FloatGraph, Profile]]


def uncorrected(graph: g.FloatGraph, found: Profile, how: Scheme) -> IntegerNetwork:
    return build(plan_of(graph, found, how, tuned=True))


def integers_of(network: IntegerNetwork) -> dict[str, Float64]:
    """Return q − z of every layer over the calibration images."""
    values = ReferenceExecutor(network).run(PIXELS, [layer.name for layer in network])
    return {name: q.astype(np.float64) - network.spec(name).zero_point for name, q in values.items()}


def output_errors(weight: Float64, layer: n.Accumulating, scales: Float64, x: list[Float64]) -> Float64:
    """Return Σ ((w − s·q)·x)² of each output channel, (O,)."""
    rounded = layer.weight.reshape(len(weight), -1) * np.broadcast_to(scales, len(weight))[:, None]
    parts = zip(np.split(weight - rounded, len(x)), x, strict=True)
    return np.concatenate([np.square(errors @ inputs).sum(1) for errors, inputs in parts])


@pytest.mark.sweep
@every_model
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_error_feedback_is_never_worse_than_rounding_to_the_nearest(profiles: Profiles, model: str, bits: int) -> None:
    graph, found = profiles[model]
    how = dataclasses.replace(FEEDBACK, weight_bits=bits)
    nearest, fed_back = uncorrected(graph, found, how), quantize_graph(graph, found, how)
    integers = integers_of(fed_back)
    ratios = []
    for before, after in zip(accumulating(nearest), accumulating(fed_back), strict=True):
        x = columns(after, integers[after.inputs[0]])
        scales = weight_scales(after, fed_back.spec(after.inputs[0]))
        weight = float_weight(graph, after.name)
        errors_before, errors_after = (output_errors(weight, layer, scales, x) for layer in (before, after))
        assert (errors_after <= errors_before * (1 + 1e-6)).all(), after.name
        ratios.append(errors_after.sum() / errors_before.sum())
    assert min(ratios) < 0.8  # and it is a substantial gain


@pytest.mark.sweep
@every_model
@pytest.mark.parametrize("how", [DEFAULT, BIAS], ids=["both", "bias only"])
@pytest.mark.parametrize("bits", [4, 8])
def test_bias_correction_leaves_less_than_an_accumulator_step(
    profiles: Profiles, model: str, how: Scheme, bits: int
) -> None:
    graph, found = profiles[model]
    network = quantize_graph(graph, found, dataclasses.replace(how, weight_bits=bits))
    remaining, untouched = (
        channel_errors(graph, corrected)
        for corrected in (network, uncorrected(graph, found, dataclasses.replace(how, weight_bits=bits)))
    )
    for name, errors in remaining.items():
        # A bias is an integer, so an error of half a step remains; float32 sums in the float network add a little.
        assert np.abs(errors).max() < 0.75, name
    assert max(np.abs(errors).max() for errors in untouched.values()) > 5  # a planted bias of 5 steps would be seen


@every_model
def test_images_may_be_computed_one_at_a_time(profiles: Profiles, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, found = profiles[model]
    whole = quantize_graph(graph, found)
    monkeypatch.setattr(corrections, "_CHUNK", 1)
    single = quantize_graph(graph, found)
    for a, b in zip(accumulating(whole), accumulating(single), strict=True):
        assert np.mean(a.weight != b.weight) < 0.05  # ties in float32 sums of another order
    for errors in channel_errors(graph, single).values():
        assert np.abs(errors).max() < 0.75


def channel_errors(graph: g.FloatGraph, network: IntegerNetwork) -> dict[str, Float64]:
    """Return each channel's mean error after the ReLU, in accumulator steps: integer network minus float network."""
    integers = integers_of(network)
    real: dict[str, torch.Tensor] = {}
    exact = GraphModule(graph, dtype=torch.float64)
    exact.run(torch.from_numpy(PIXELS), lambda node, value: real.__setitem__(node.name, value.clone()))
    errors = {}
    for layer in accumulating(network):
        node = graph[layer.name]
        assert isinstance(node, g.Conv2d | g.Linear)
        x = columns(layer, integers[layer.inputs[0]])
        rows = np.split(layer.weight.reshape(len(layer.bias_o), -1).astype(np.float64), len(x))
        sums: Float64 = (
            np.concatenate([part @ inputs for part, inputs in zip(rows, x, strict=True)]) + layer.bias_o[:, None]
        )
        scales = weight_scales(layer, network.spec(layer.inputs[0]))
        unit = np.broadcast_to(network.spec(layer.inputs[0]).scale * scales, layer.bias_o.shape)[:, None]
        if len(layer.inputs) == 2:
            residual = integers[layer.inputs[1]] * network.spec(layer.inputs[1]).scale
            sums = sums + residual.swapaxes(0, 1).reshape(sums.shape) / unit
        means = np.clip(sums, node.bounds[0] / unit, node.bounds[1] / unit).mean(1)
        wanted = real[layer.name]
        errors[layer.name] = means - wanted.mean([0, *range(2, wanted.ndim)]).numpy() / unit[:, 0]
    return errors


@pytest.mark.sweep
@every_model
@pytest.mark.parametrize("how", [DEFAULT, FEEDBACK, BIAS], ids=["both", "feedback only", "bias only"])
def test_corrections_leave_scales_alone(profiles: Profiles, model: str, how: Scheme) -> None:
    graph, found = profiles[model]
    before, after = uncorrected(graph, found, how), quantize_graph(graph, found, how)
    changed = {"weight": 0, "bias_o": 0}
    for old, new in zip(before, after, strict=True):
        for field in dataclasses.fields(old):
            was, is_now = getattr(old, field.name), getattr(new, field.name)
            same = np.array_equal(was, is_now) if isinstance(was, np.ndarray) else was == is_now
            if field.name in changed:
                changed[field.name] += not same
            else:
                assert same, (old.name, field.name)
    assert bool(changed["weight"]) == how.error_feedback
    assert bool(changed["bias_o"]) == how.bias_correction


def test_without_corrections_nothing_changes(profiles: Profiles) -> None:
    graph, found = profiles["cnn"]
    plan = plan_of(graph, found, NEITHER, tuned=False)
    network = build(plan)
    assert correct(network, plan, PIXELS) is network
    both = plan_of(graph, found, DEFAULT, tuned=False)
    assert correct(network, both, PIXELS[:0]) is network  # no images to use


def test_corrections_bring_the_logits_nearer(profiles: Profiles) -> None:
    """On images that were not used for calibration."""
    fresh = images(22, 200)
    for name, (graph, found) in profiles.items():
        expected = GraphModule(graph, dtype=torch.float64)(torch.from_numpy(fresh)).numpy()
        errors = {}
        for how in (NEITHER, DEFAULT):
            network = quantize_graph(graph, found, dataclasses.replace(how, weight_bits=4))
            errors[how] = np.square(network(fresh) - expected).sum()
        assert errors[DEFAULT] < 0.9 * errors[NEITHER], name


@pytest.mark.sweep(1)
@every_model
def test_two_runs_give_the_same_integers(model: str) -> None:
    first, second = (quantize(MODELS[model], [PIXELS]) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_the_last_bit_is_in_the_fingerprint(profiles: Profiles) -> None:
    graph, found = profiles["cnn"]
    network = quantize_graph(graph, found)
    layers = list(network.layers)
    index = next(i for i, layer in enumerate(layers) if isinstance(layer, n.Linear))
    head = layers[index]
    assert isinstance(head, n.Linear)
    layers[index] = dataclasses.replace(head, bias_o=head.bias_o + np.eye(len(head.bias_o), dtype=np.int32)[0])
    assert dataclasses.replace(network, layers=tuple(layers)).fingerprint != network.fingerprint


@every_model
def test_how_the_images_are_cut_into_batches_hardly_matters(profiles: Profiles, model: str) -> None:
    """Statistics do not depend on the cut, but a convolution's float32 sums may, in their last bit."""
    graph, found = profiles[model]
    whole = quantize_graph(graph, found)
    for sizes in ([1] * len(PIXELS), [7] * 18, [50, 0, 70]):
        ends = np.cumsum(sizes)
        batches = [PIXELS[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        cut = quantize_graph(graph, profile(graph, batches))
        for a, b in zip(whole, cut, strict=True):
            assert (a.output.zero_point, a.output.lo, a.output.hi) == (b.output.zero_point, b.output.lo, b.output.hi)
            assert a.output.scale == pytest.approx(b.output.scale, rel=1e-5)
        for one, other in zip(accumulating(whole), accumulating(cut), strict=True):
            assert np.mean(one.weight != other.weight) < 0.05
        np.testing.assert_allclose(cut(PIXELS), whole(PIXELS), atol=0.05 * np.abs(whole(PIXELS)).max())


def test_inputs_that_are_always_zero(profiles: Profiles) -> None:
    """Their second moments are zero, so any weight is right, and rounding to the nearest remains."""
    pixels = PIXELS.copy()
    pixels[:, 1] = 0.0
    graph = profiles["cnn"][0]
    network = quantize_graph(graph, profile(graph, [pixels]))
    first = accumulating(network)[0]
    assert isinstance(first, n.Conv2d)
    scales = weight_scales(first, network.spec("input"))
    steps = float_weight(graph, first.name).reshape(first.weight.shape)[:, 1] / scales[:, None, None]
    assert np.abs(first.weight[:, 1] - steps.clip(-127, 127)).max() <= 0.5 + 1e-9


def test_one_image_is_enough() -> None:
    network = quantize(MODELS["residual"], [PIXELS[:1]])
    assert np.isfinite(network(PIXELS)).all()

"""The integer network with gradients: its forward pass gives the integers of the reference, whatever was learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from tests.quantization.small_models import Model, images, residual_model, seeded, small_cnn
from twoscale._calibration.profile import profile
from twoscale._ir.interpreter import interpret
from twoscale._ir.reference import ReferenceExecutor
from twoscale._quantization import COURSE, DEFAULT, Scheme, float_graph, quantize_graph, straight_through
from twoscale._quantization.trainable import TrainableNetwork
from twoscale.errors import ConfigurationError

CALIBRATION, TEST = images(51, 40), images(52, 12)


def branches() -> nn.Module:
    """Concatenation, means, a product with a gate, a table, a sum, a flattened head."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = F.relu(m.a(x)), m.b(x)
        x = torch.cat([a, F.avg_pool2d(b, 3, 1, 1)], 1)
        gate = torch.sigmoid(m.gate(F.adaptive_avg_pool2d(x, 1)))
        x = F.silu(m.c(x * gate)) + x
        return torch.as_tensor(m.fc(x.mean((2, 3))))

    with seeded(5):
        return Model(
            forward,
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(3, 4, 1),
            gate=nn.Conv2d(8, 8, 1),
            c=nn.Conv2d(8, 8, 3, padding=1, groups=2),
            fc=nn.Linear(8, 5),
        ).eval()


def made(model: nn.Module, scheme: Scheme) -> TrainableNetwork:
    graph = float_graph(model, CALIBRATION, scheme)
    return TrainableNetwork(quantize_graph(graph, profile(graph, [CALIBRATION]), scheme), graph, scheme)


def integers(network: TrainableNetwork) -> dict[str, NDArray[Any]]:
    """Return every layer's integers in the forward pass of training."""
    x = torch.from_numpy(TEST)
    source = network.network.input
    with torch.no_grad():
        first = network.executor.compute(source, [x]).float()
        names = [layer.name for layer in network.network]
        found = interpret(
            network.network.layers, lambda layer, given: network.compute(layer, given) if given else first, names
        )
    return {name: value.numpy() for name, value in found.items()}


def differing(network: TrainableNetwork) -> int:
    """Return how many integers differ between the forward pass of training and the reference."""
    other = network.to_network()
    assert other.on_grid
    expected = ReferenceExecutor(other).run(TEST, {layer.name for layer in other})
    found = integers(network)
    assert found.keys() == expected.keys()
    return sum(int(np.count_nonzero(found[name] != value)) for name, value in expected.items())


def moved(network: TrainableNetwork) -> TrainableNetwork:
    """Change every parameter, as training does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in network.parameters():
            if one.requires_grad:
                one.add_(0.03 * torch.randn(one.shape, generator=generator))
    return network


MODELS = {"residual": residual_model, "cnn": small_cnn, "branches": branches}


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 3)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_integers_are_those_of_the_reference(name: str, bits: tuple[int, int]) -> None:
    network = made(MODELS[name](), Scheme(weight_bits=bits[0], activation_bits=bits[1], edge_bits=8))
    assert differing(network) == 0
    for begun, given in zip(network.to_network(), network.network, strict=True):  # nothing changes at first
        for field in ("weight", "bias_o", "multiplier", "residual_multiplier", "multipliers"):
            assert repr(getattr(begun, field, None)) == repr(getattr(given, field, None)), (begun.name, field)
    before = network.to_network().fingerprint
    assert differing(moved(network)) == 0
    assert network.to_network().fingerprint != before


def test_a_multiplier_off_the_grid_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    network = moved(made(residual_model(), Scheme(weight_bits=4, activation_bits=4)))
    monkeypatch.setattr(straight_through, "multipliers", lambda ratio, shift: ratio * 2.0**shift)
    found = integers(network)
    monkeypatch.undo()
    expected = ReferenceExecutor(network.to_network()).run(TEST, set(found))
    assert any(np.any(found[name] != value) for name, value in expected.items())


def test_logits_are_the_accumulators() -> None:
    network = made(small_cnn(), DEFAULT)
    other = network.to_network()
    accumulators = ReferenceExecutor(other).run(TEST, {other.output})[other.output]
    with torch.no_grad():
        logits = network(torch.from_numpy(TEST))
    assert np.array_equal(logits.numpy(), accumulators * np.float64(other.spec(other.output).scale))
    assert np.array_equal(logits.argmax(1).numpy(), accumulators.argmax(1))


def test_gradients_of_weights_and_their_scales() -> None:
    """Against automatic differentiation of LSQ's formula: round(clamp(w / s)) · s, rounding straight through."""
    generator = torch.Generator().manual_seed(1)
    real = torch.randn((3, 7), generator=generator, requires_grad=True)
    scale = torch.tensor([[0.3], [0.2], [0.5]], requires_grad=True)
    wanted = torch.randn((3, 7), generator=generator)

    def lsq() -> torch.Tensor:
        steps = (real / scale).clamp(-2 - 0.5, 1 + 0.5)
        return ((steps + (steps.round().clamp(-2, 1) - steps).detach()) * scale * wanted).sum()

    expected = torch.autograd.grad(lsq(), [real, scale])
    found = straight_through.rounded_weights(real, scale, -2, 1)
    gradients = torch.autograd.grad((found * scale * wanted).sum(), [real, scale])
    inside = ((real / scale) > -2.5) & ((real / scale) < 1.5)
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(gradients[0][inside], expected[0][inside])
    torch.testing.assert_close(gradients[0][~inside], wanted[~inside])  # they can come back
    # The formula's clamp is half a step beyond the last integer; a scale moves the last integer itself.
    beyond = (wanted * torch.where(real > 0, 0.5, -0.5) * ~inside).sum(1, keepdim=True)
    torch.testing.assert_close(gradients[1], expected[1] + 0 * beyond)


def test_gradients_of_requantization() -> None:
    """Against automatic differentiation of the formula, away from the ends of the range."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-40, 40, (2, 3, 4, 4), generator=generator).float().requires_grad_()
    residual = torch.randint(0, 15, (2, 3, 4, 4), generator=generator).float().requires_grad_()
    m, r = torch.full((1, 3, 1, 1), 0.21, requires_grad=True), torch.full((1, 1, 1, 1), 0.4, requires_grad=True)
    value = x * m + residual * r
    clamped = value.clamp(0, 15)
    expected = clamped + (clamped.round() - clamped).detach()
    found = straight_through.requantized(0, 15, 0, None, x, m, residual, r)
    assert torch.equal(found, expected)
    weights = torch.rand(x.shape, generator=generator)
    inputs = [x, m, residual, r]
    away = ((value - 0).abs() > 1e-6) & ((value - 15).abs() > 1e-6)
    for one, other in zip(
        torch.autograd.grad((found * weights * away).sum(), inputs),
        torch.autograd.grad((expected * weights * away).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_multipliers_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="course"):
        made(small_cnn(), COURSE)


def test_masks_have_their_share() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masks = straight_through.Masks(0.25)
        mask = masks.like(torch.empty(40, 30, 20).transpose(0, 2))
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    assert abs(float(mask.mean()) - 0.25) < 0.01

"""Branches of a concatenation that differ a lot in range keep their bits by default."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.quantization.small_models import images, seeded, small_cnn
from twoscale import _quantization as quantization
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir.float_module import GraphModule
from twoscale._passes import equalize
from twoscale._passes.equalize import balance_concatenations
from twoscale._passes.fold import fold
from twoscale._verification import verify
from twoscale.errors import ConfigurationError

PIXELS = images(7, 128)


class Branches(nn.Module):
    """Three branches; each is made larger by its factor, and the weights that read it smaller: one function."""

    def __init__(self, seed: int, factors: tuple[float, ...]) -> None:
        super().__init__()
        with seeded(seed):
            self.branches = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1) for _ in factors)
            self.join = nn.Conv2d(24, 16, 3, padding=1)
            self.fc = nn.Linear(16, 5)
        with torch.no_grad():
            for i, (branch, factor) in enumerate(zip(self.branches, factors, strict=True)):
                branch.weight.mul_(factor)  # type: ignore[operator]
                branch.bias.mul_(factor)  # type: ignore[operator]
                self.join.weight[:, 8 * i : 8 * i + 8].div_(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([branch(x).relu() for branch in self.branches], 1)
        return torch.as_tensor(self.fc(self.join(joined).relu().mean((2, 3))))


def sqnr(model: nn.Module) -> float:
    found = verify(quantization.quantize(model, [PIXELS[:64]]), [PIXELS], executors=["reference"], against=model)
    assert found.sqnr_db is not None
    return found.sqnr_db


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_network_loses_no_more_than_its_twin_of_equal_branches(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    apart, twin = (Branches(seed, factors).eval() for factors in ((1.0, 100.0, 0.01), (1.0, 1.0, 1.0)))
    found = sqnr(apart)
    # The same integers but for rounding; a branch without its 6 to 7 bits loses about 6 dB for each.
    assert found > sqnr(twin) - 1
    monkeypatch.setattr(equalize, "balance_concatenations", lambda graph, images_nchw: graph)
    assert sqnr(apart) < found - 12


def test_the_function_is_the_same() -> None:
    graph = fold(capture(Branches(3, (1.0, 100.0, 0.01)), torch.from_numpy(PIXELS[:1])))
    balanced = balance_concatenations(graph, PIXELS)
    assert len(balanced.branch_factors) == 3
    x = torch.from_numpy(PIXELS)
    expected, found = (GraphModule(it, dtype=torch.float64)(x).numpy() for it in (graph, balanced))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_every_layer_is_compared_with_the_float_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Branches(4, (1.0, 100.0, 0.01)).eval()
    network = quantization.quantize(model, [PIXELS])
    result = verify(network, [PIXELS], executors=["reference"], against=model)
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 25 for layer in result.layers)
    # Without the factors that the network records, the branches seem to be wrong.
    plain = dataclasses.replace(
        network, metadata={key: value for key, value in network.metadata.items() if key != "branch_factors"}
    )
    assert min(layer.sqnr_db or 0.0 for layer in verify(plain, [PIXELS], against=model).layers) < 5


@pytest.mark.parametrize("factors", [3, {"no such layer": 2.0}, {"join": "x"}, {"join": -1.0}, {"join": float("nan")}])
def test_factors_that_do_not_fit_are_refused(factors: Any) -> None:
    model = small_cnn(4)
    network = quantization.quantize(model, [PIXELS])
    forged = dataclasses.replace(network, metadata={**network.metadata, "branch_factors": factors})
    with pytest.raises(ConfigurationError, match="branch_factors that do not fit the model"):
        verify(forged, [PIXELS], executors=["reference"], against=model)


def test_similar_branches_stay_as_they_are() -> None:
    for model in (small_cnn(4), Branches(5, (1.0, 4.0, 1.0))):
        graph = fold(capture(model, torch.from_numpy(PIXELS[:1])))
        assert balance_concatenations(graph, PIXELS) is graph

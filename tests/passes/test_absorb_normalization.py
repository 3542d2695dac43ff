"""Normalization in the first weights: the same function, exact pixels, and only for networks that allow it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twoscale import quantize, verify
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir.float_module import GraphModule
from twoscale._passes.absorb_normalization import with_normalization
from twoscale._passes.fold import fold
from twoscale.errors import ConfigurationError

# 255 · mean is no whole number, and half-way between two for the second channel.
MEAN, STD = (0.485, 0.5, 0.1), (0.229, 0.5, 0.31)
PIXELS = np.random.default_rng(5).integers(0, 256, (64, 3, 8, 8)).astype(np.float32)


def normalized(pixels: np.ndarray) -> torch.Tensor:
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (MEAN, STD))
    return torch.from_numpy((pixels / 255.0 - mean) / std)


class Normalizing(nn.Module):
    """A model that has its normalization in it, as many deployed ones do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.normalize = nn.BatchNorm2d(3, affine=False, eps=0.0)
        self.normalize.running_mean = torch.tensor(MEAN) * 255
        self.normalize.running_var = (torch.tensor(STD) * 255) ** 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(self.normalize(x))
        return result


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.a(x) + self.b(x)).mean((2, 3))


def padded() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))


def unpadded() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))


def depthwise() -> nn.Module:  # has no weights that could add another channel
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5))


def pooled() -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "padded": (padded, ["normalize.channel", "normalize.constant", "normalize", "0", "3"]),
    "unpadded": (unpadded, ["0", "3"]),
    "two readers": (TwoReaders, ["normalize.channel", "normalize.constant", "normalize", "b", "a", "mean"]),
    "depthwise": (depthwise, ["normalize", "0", "3"]),
    "pooled": (pooled, ["normalize", "0", "1", "4"]),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name][0]().eval()


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_function_of_pixels(name: str) -> None:
    model, expected = made(name), MODELS[name][1]
    graph = fold(with_normalization(capture(model, normalized(PIXELS[:1]).float()), MEAN, STD))
    assert [node.name for node in graph if node.op not in ("Input", "Reshape")] == expected
    found = GraphModule(graph, dtype=torch.float64)(torch.from_numpy(PIXELS))
    assert torch.allclose(found, model.double()(normalized(PIXELS)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_pixels_are_not_rounded(name: str) -> None:
    model = made(name)
    network = quantize(model, [PIXELS], normalization=(MEAN, STD))
    assert (network.input.output.scale, network.input.output.zero_point) == (1.0, 0)
    result = verify(network, [PIXELS], executors=("reference", "torch", "onnxruntime"), model=model)
    assert result.mismatches == 0
    assert result.layers[0].sqnr_db is None  # no noise at all
    assert result.sqnr_db is not None
    assert result.sqnr_db > 30
    if name in ("padded", "unpadded"):  # the others end in a mean, or round the images after all
        plain = verify(quantize(model, [normalized(PIXELS).float()]), [normalized(PIXELS).float()], model=model)
        assert plain.sqnr_db is not None
        assert result.sqnr_db > plain.sqnr_db


def test_a_normalization_in_the_model_goes_the_same_way() -> None:
    model = Normalizing(made("padded")).eval()
    network = quantize(model, [PIXELS])
    assert [layer.name for layer in network][:5] == [
        "input",
        "normalize.channel",
        "normalize.constant",
        "normalize",
        "model.0",
    ]
    result = verify(network, [PIXELS], executors=("reference", "torch", "c"), model=model)
    assert result.mismatches == 0
    assert result.layers[0].sqnr_db is None


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5,)), ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5)), ((0.5, 0.5), (0.5, 0.5))]
)
def test_a_normalization_that_does_not_fit_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    says = f"normalization is mean {mean} and standard deviation {std}; expected one number for each of 3 channels"
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        quantize(made("padded"), [PIXELS], normalization=(mean, std))

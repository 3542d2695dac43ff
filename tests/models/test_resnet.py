"""The registry's residual networks: published sizes, and the input of their published weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from twoscale import data, models
from twoscale.errors import TwoscaleError
from twoscale.models import ModelInfo, Published, save_model
from twoscale.training import evaluate

PUBLISHED = Path(os.environ.get("TWOSCALE_PUBLISHED_MODELS", Path(__file__).parents[3] / "shared" / "models"))
IMAGES = 300

# The CIFAR ResNets by table 6 of He et al. 2015 have 0.27M, 0.46M, 0.66M and 0.85M parameters; ResNet-18 with a 3×3
# stem and projection shortcuts 11,173,962; MLPerf Tiny's ResNet-8, its batch norms folded, 77,706.
PARAMETERS = {
    "resnet8": 77_706,
    "resnet18": 11_173_962,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_published(name: str) -> None:
    model = models.create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_normalization_of_published_weights() -> None:
    assert models.normalization("resnet20") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    found = models.normalization("resnet8")
    assert found is not None
    pixels = torch.tensor([0.0, 128.0, 255.0])
    assert torch.allclose((pixels / 255 - found[0][0]) / found[1][0], pixels)
    assert models.normalization("net") is None
    assert models.published("resnet56") == Published("cifar10", *(models.normalization("resnet56") or ()))
    assert models.published("no such model") is None


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    info = ModelInfo(
        model="net", data="digits", classes=("0",), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), seed=1, epochs=2,
        test_accuracy=None,
    )  # fmt: skip
    model = models.create("net")
    save_model(tmp_path / "own.safetensors", model, info)
    torch.save(model.state_dict(), tmp_path / "foreign.pt")
    assert models.read_info(tmp_path / "own.safetensors") == info
    assert models.read_info(tmp_path / "foreign.pt") is None
    with pytest.raises(TwoscaleError, match=r"missing\.pt"):
        models.read_info(tmp_path / "missing.pt")


@pytest.mark.parametrize(("name", "least"), [("resnet20", 0.87), ("resnet8", 0.81)])
def test_published_weights_have_their_accuracy(name: str, least: float) -> None:
    """Within three standard errors of 91.73% and 87.19% of all test images."""
    path = PUBLISHED / f"{name}-cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"the published weights are not at {path}; TWOSCALE_PUBLISHED_MODELS says where they are")
    try:
        dataset = data.load("cifar10", fetch=False)
    except TwoscaleError as error:
        pytest.skip(f"CIFAR-10 is not in the cache: {error}")
    mean_std = models.normalization(name)
    assert mean_std is not None
    assert evaluate(models.load(name, path), dataset.test, *mean_std, max_samples=IMAGES) >= least

"""Networks that others trained and published, on real images; only where both are on this machine already.

The weights lie beside the repository, in shared/models; CIFAR-10 lies in the cache once ``twoscale data fetch
cifar10`` has run. Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twoscale import data, models
from twoscale._ir import layers as n
from twoscale._quantization import COURSE, Scheme, quantize
from twoscale._verification import verify
from twoscale.errors import DataError

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"

NORMALIZATION = {
    "resnet8": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),  # raw pixels
    "resnet20": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Published: 87.2 and 91.73 on all 10,000 test images; 300 of them scatter by two points.
TOP1 = {"resnet8": 0.82, "resnet20": 0.87}
SQNR_DB = {"resnet8": 34.0, "resnet20": 29.0}


@pytest.fixture(scope="module")
def cifar10() -> data.Dataset:
    try:
        return data.load("cifar10", fetch=False)
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not on this machine: {error}")


def batches(
    split: data.Split, name: str, start: int, stop: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    for at in range(start, stop, 50):
        part = slice(at, min(at + 50, stop))
        yield data.normalize(split.images[part], *NORMALIZATION[name]), split.labels[part]


def published(name: str) -> Path:
    path = MODELS / f"{name}-cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"the published weights of {name} are not beside this repository")
    return path


@pytest.mark.parametrize("name", NORMALIZATION)
def test_published_networks_keep_their_accuracy(name: str, cifar10: data.Dataset) -> None:
    model = models.load(name, published(name))
    network = quantize(model, batches(cifar10.train, name, 0, 100))
    assert network.on_grid
    assert any(isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None for layer in network)
    equal = verify(network, batches(cifar10.test, name, 0, 40), model=model)
    assert equal.ok, equal.first_divergence
    assert all(bound.float32_exact for bound in network.bounds)
    result = verify(network, batches(cifar10.test, name, 0, 300), executors=["torch"], model=model)
    assert result.top1 is not None
    assert result.agreement is not None
    assert result.sqnr_db is not None
    assert result.top1 >= TOP1[name]
    assert result.agreement >= 0.97
    assert result.sqnr_db >= SQNR_DB[name]


@pytest.mark.parametrize(
    ("how", "least_db"),
    [(COURSE, 12.0), (Scheme(weight_bits=4, activation_bits=8), 12.0)],
    ids=["course", "4-bit weights"],
)
def test_harder_schemes_lose_more_but_not_all(how: Scheme, least_db: float, cifar10: data.Dataset) -> None:
    model = models.load("resnet8", published("resnet8"))
    network = quantize(model, batches(cifar10.train, "resnet8", 0, 100), scheme=how)
    result = verify(network, batches(cifar10.test, "resnet8", 0, 200), executors=["torch"], model=model)
    assert result.sqnr_db is not None
    assert least_db < result.sqnr_db < SQNR_DB["resnet8"]
    assert result.top1 is not None
    assert result.top1 >= TOP1["resnet8"] - 0.1

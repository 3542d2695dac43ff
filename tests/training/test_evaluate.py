from dataclasses import replace

import pytest
import torch
from torch import nn

from twoscale import models
from twoscale.data import Dataset, Split
from twoscale.errors import ConfigurationError, DataError
from twoscale.training import evaluate


def test_every_image_counts_once(dataset: Dataset) -> None:
    model = models.create("net", seed=1).train()
    split, mean, std = dataset.test, dataset.mean, dataset.std
    assert len(split) == 37
    right = []
    with torch.no_grad():
        for image, label in zip(split.images, split.labels, strict=True):
            x = (torch.from_numpy(image).float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
                3, 1, 1
            )
            right.append(int(model(x[None]).argmax()) == label)
    for batch_size in (1, 5, 36, 37, 100):
        assert evaluate(model, split, mean, std, batch_size=batch_size) == sum(right) / 37
    for count in (1, 20, 37, 1000):
        expected = sum(right[:count]) / min(count, 37)
        assert evaluate(model, split, mean, std, batch_size=8, max_samples=count) == expected
    assert 0 < sum(right) < 37
    assert model.training


def test_dropout_is_off_and_statistics_stay(dataset: Dataset) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(3072, 10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = {evaluate(model, dataset.test, dataset.mean, dataset.std) for _ in range(3)}
    assert len(results) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_logit_separates_two_classes_by_its_sign(dataset: Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 1))
    labels = (dataset.test.labels % 2).astype(dataset.test.labels.dtype)
    split = Split(dataset.test.images, labels)
    x = torch.from_numpy(split.images).float() / 255
    x = (x - torch.tensor(dataset.mean).view(3, 1, 1)) / torch.tensor(dataset.std).view(3, 1, 1)
    with torch.no_grad():
        positive = (model(x)[:, 0] > 0).numpy()
    assert 0 < positive.sum() < len(split)
    assert evaluate(model, split, dataset.mean, dataset.std) == (positive == (labels == 1)).mean()
    with pytest.raises(DataError, match=r"expected \(1, classes\) with at least 10 classes"):
        evaluate(model, dataset.test, dataset.mean, dataset.std)


def test_bad_input(dataset: Dataset) -> None:
    model = models.create("net")
    mean, std = dataset.mean, dataset.std
    with pytest.raises(ConfigurationError, match="max_samples is 0; expected at least 1"):
        evaluate(model, dataset.test, mean, std, max_samples=0)
    with pytest.raises(DataError, match="there are no images"):
        evaluate(model, dataset.test.head(0), mean, std)
    gray = Split(dataset.test.images[:, :1].copy(), dataset.test.labels)
    with pytest.raises(DataError, match=r"Net does not take images of 1 x 32 x 32 \(Given groups=1, weight of size"):
        evaluate(model, gray, (0.5,), (0.5,))
    with pytest.raises(DataError, match=r"gives an output of shape \(1, 5\) for one image of 3 x 32 x 32; expected"):
        evaluate(models.create("net", classes=5), dataset.test, mean, std)
    with pytest.raises(DataError, match=r"an output of shape \(1, 3, 32, 32\)"):
        evaluate(nn.Identity(), replace(dataset, name="x").test, mean, std)

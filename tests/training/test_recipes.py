"""Recipes, initial weights, and the options that a run on one processor can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.made_up import Normed, dataset_of
from twoscale import data, models, training
from twoscale.data import Dataset
from twoscale.errors import ConfigurationError, UnknownNameError
from twoscale.training import RECIPES, TrainConfig, recipe
from twoscale.training import _construction as construction
from twoscale.training._config import Views
from twoscale.training._initialization import whiten, zero_init_residual
from twoscale.training._step import Gradient


def test_recipes_by_name() -> None:
    assert recipe("lab") == TrainConfig()
    assert recipe("fast", epochs=3, whiten=False) == replace(RECIPES["fast"], epochs=3, whiten=False)
    with pytest.raises(UnknownNameError, match="unknown recipe 'fats': did you mean 'fast'"):
        recipe("fats")
    for config in RECIPES.values():
        if config.data == "cifar10":
            assert 50_000 % config.batch_size == 0  # no smaller last batch, which would be compiled once more


def test_whitened_patches_are_uncorrelated() -> None:
    dataset = data.load("digits")
    first = nn.Conv2d(3, 64, 3, padding=1)
    model = nn.Sequential(first, nn.Conv2d(64, 1, 1))
    left = first.weight[54:].clone()
    # Photographs in three colours: the digits are grey, and their colours the same.
    noise = np.random.default_rng(0).integers(0, 60, dataset.train.images.shape)
    mixed = replace(
        dataset, train=data.Split((dataset.train.images // 2 + noise).astype(np.uint8), dataset.train.labels)
    )
    whiten(model, mixed)
    images = torch.from_numpy(data.normalize(mixed.train.images, mixed.mean, mixed.std))
    out = nn.functional.conv2d(images, first.weight[:27]).transpose(0, 1).flatten(1)
    covariance = out @ out.T / out.shape[1]
    assert torch.allclose(covariance, torch.eye(27), atol=0.05)
    assert torch.equal(first.weight[27:54], -first.weight[:27])
    assert torch.equal(first.weight[54:], left)


def test_whitening_has_the_threads_of_the_run(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(construction, "whiten", lambda *_: found.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    for threads in (1, 2):
        config = TrainConfig(epochs=1, batch_size=30, whiten=True, threads=threads, device="cpu")
        training.train(config, dataset, progress=False)
    assert found == [1, 2]
    assert torch.get_num_threads() == before


def test_residual_blocks_begin_as_their_shortcuts() -> None:
    model = models.create("resnet20").eval()
    assert zero_init_residual(model) == 9
    block: Any = model.get_submodule("layer1.0")
    x = torch.rand(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)
    with pytest.raises(ConfigurationError, match="Net has no residual blocks; leave it out"):
        zero_init_residual(models.create("net"))
    with pytest.raises(ConfigurationError, match="does not begin with a convolution"):
        whiten(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), dataset_of(10, 10))


def run(dataset: Dataset, config: TrainConfig, **options: Any) -> training.TrainResult:
    return training.train(replace(config, device="cpu", threads=1), dataset, progress=False, **options)


def test_accuracy_as_often_as_asked(dataset: Dataset, tmp_path: Path) -> None:
    config = TrainConfig(epochs=5, batch_size=30, lr=0.01, evaluate_every=2)
    record = run(dataset, config, out=tmp_path).record
    assert [epoch.accuracy is None for epoch in record.epochs] == [True, False, True, False, False]
    each = run(dataset, replace(config, evaluate_every=1)).record
    assert [epoch.accuracy for epoch in each.epochs if epoch.accuracy is not None][1::2] == list(
        record.epoch_accuracy[:2]
    )
    assert record.test_accuracy == each.test_accuracy
    assert [epoch.loss for epoch in record.epochs] == [epoch.loss for epoch in each.epochs]


@pytest.mark.parametrize("views", ["one", "mirrored", "shifted"])
def test_accuracy_with_other_views_of_the_test_images(dataset: Dataset, views: Views) -> None:
    # A linear model of noise, and as labels what it says of the right views: of others it says something else.
    noise = np.random.default_rng(0).integers(0, 256, (500, *dataset.test.images.shape[1:]), np.uint8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(noise[0].size, 10)).double()
    x = data.normalize(noise, dataset.mean, dataset.std)
    rows, columns = x.shape[2:]
    bordered = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    seen = [(1, x)]
    if views == "shifted":
        seen = [(2, x), (1, bordered[:, :, :rows, :columns]), (1, bordered[:, :, 2:, 2:])]
    if views != "one":
        seen += [(weight, view[..., ::-1]) for weight, view in seen]
    with torch.inference_mode():
        logits = sum(weight * model(torch.from_numpy(view.astype(np.float64))) for weight, view in seen)
    split = data.Split(noise, logits.argmax(1).numpy().astype(np.uint8))
    assert training.evaluate(model, split, dataset.mean, dataset.std, views=views) == 1
    config = TrainConfig(epochs=1, batch_size=30, lr=1e-12, test_views=views)
    assert run(replace(dataset, test=split), config, model=model).record.test_accuracy == 1


def test_bf16_computes_in_bf16_and_keeps_float32(dataset: Dataset) -> None:
    seen = []

    class Watched(models.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    result = run(dataset, TrainConfig(epochs=1, batch_size=30, precision="bf16"), model=Watched())
    assert seen.count(torch.bfloat16) == 3
    assert {value.dtype for value in result.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parts_of_a_batch_add_up_to_its_gradient(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 12, generator=generator, dtype=torch.float64).requires_grad_()
    x, y = torch.randn(7, 12, generator=generator, dtype=torch.float64), torch.arange(7)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return Gradient(label_smoothing=smoothing).loss(lambda x: x @ weight.T, x, y)

    expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(x @ weight.T, y)
    [gradient] = torch.autograd.grad(expected, [weight])
    for parts in (1, 2, 3, 9):
        value, [found] = Gradient(accumulation=parts).compute(loss, [weight], x, y)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-14)


def test_options_that_cannot_be_had_are_said(dataset: Dataset) -> None:
    notes = run(dataset, TrainConfig(epochs=1, batch_size=30, step="cuda-graph")).record.notes
    assert notes == ("steps run eagerly", "CUDA graphs need a GPU: it runs eagerly instead")
    _, note = run(dataset, TrainConfig(epochs=1, batch_size=30, warmup_epochs=1)).record.notes
    assert note == "the warm-up of 3 updates does not end in this run of 3: the learning rate never reaches its peak"
    with pytest.raises(ConfigurationError, match="Normed has no parameters to train"):
        run(dataset, TrainConfig(), model=Normed().requires_grad_(False))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="device is cuda, but PyTorch finds no GPU; use --device cpu"):
            training.train(TrainConfig(device="cuda"), dataset, progress=False)


def by_torch(dataset: Dataset, config: TrainConfig, model: nn.Module, fault: str = "") -> dict[str, torch.Tensor]:
    """Train by a recipe with PyTorch's own parts: images padded and cut one by one, the schedule's closed form."""
    n, batch, pad = len(dataset.train), config.batch_size, config.crop
    assert config.epochs is not None
    assert config.base_batch is not None
    per_epoch = -(-n // batch)
    warm, total = round(config.warmup_epochs * per_epoch), config.epochs * per_epoch
    matrices = [value for value in model.parameters() if value.ndim > 1]
    vectors = [value for value in model.parameters() if value.ndim <= 1]
    decays = [(matrices, config.weight_decay), (vectors, config.weight_decay if fault == "decayed norm" else 0.0)]
    optimizer = torch.optim.SGD(
        [{"params": some, "weight_decay": decay} for some, decay in decays],
        lr=config.lr, momentum=config.momentum, nesterov=config.nesterov,
    )  # fmt: skip
    peak = config.lr * batch / config.base_batch

    def rate(done: int) -> float:
        if done < warm:
            return 1 + (peak / config.lr - 1) * done / warm
        angle = np.pi * (done - warm) / (total - warm)
        return float(peak / config.lr * (1 + np.cos(angle)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    model.train()
    for epoch in range(config.epochs):
        drawn = data.augmentation(
            n, seed=config.seed, epoch=0 if fault == "same shifts" else epoch, padding=pad, flip="random"
        )
        order = data.epoch_order(n, seed=config.seed, epoch=epoch)
        for start in range(0, n, batch):
            where = order[start : start + batch]
            batch_of = []
            for i in where:
                top, left, mirrored = drawn[i]
                padded = np.pad(dataset.train.images[i], ((0, 0), (pad, pad), (pad, pad)))
                cut = padded[:, pad + top : pad + top + 32, pad + left : pad + left + 32]
                pixels = torch.from_numpy((cut[:, :, ::-1] if mirrored else cut).copy())
                batch_of.append(((pixels.float() / 255 - mean) / std).double())
            loss = criterion(model(torch.stack(batch_of)), torch.from_numpy(dataset.train.labels[where]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.state_dict()


@pytest.mark.parametrize("step", ["eager", "captured"])
def test_a_recipe_is_what_pytorch_s_own_parts_make_of_it(dataset: Dataset, step: Any) -> None:
    """Every image, learning rate and decay of --recipe standard, and BatchNorm's statistics, the uneven batch too."""
    config = recipe("standard", data="digits", batch_size=35, base_batch=7, epochs=4, warmup_epochs=2, lr=0.01,
                    weight_decay=0.05, precision="fp32", zero_init_residual=False, step=step)  # fmt: skip

    def model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Normed().double()

    ours = run(dataset, config, model=model()).model.state_dict()
    theirs = by_torch(dataset, config, model())
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11)
    # and it would notice
    for fault in ("decayed norm", "same shifts") if step == "eager" else ():
        planted = by_torch(dataset, config, model(), fault)
        assert max(float((ours[name] - value).abs().max()) for name, value in planted.items()) > 1e-6


def test_shifts_and_mirrors_are_drawn_for_each_image_and_epoch() -> None:
    """All 81 places alike often, each by itself, and none of it the same in the next epoch."""
    n = 81 * 500
    first, second = (data.augmentation(n, seed=0, epoch=epoch, padding=4, flip="random") for epoch in (5, 6))
    for drawn in (first, second):
        counts = np.zeros((9, 9, 2))
        np.add.at(counts, (drawn[:, 0] + 4, drawn[:, 1] + 4, drawn[:, 2]), 1)
        expected = n / 162
        # Chi-squared with 161 degrees of freedom: below 240 in all but one of 10,000 draws.
        assert ((counts - expected) ** 2 / expected).sum() < 240
    together = np.corrcoef(np.concatenate([first, second], axis=1).T) - np.eye(6)
    assert np.abs(together).max() < 5 / n**0.5
    order = data.epoch_order(n, seed=0, epoch=5)
    assert np.abs(np.corrcoef(order, first.T) - np.eye(4)).max() < 5 / n**0.5

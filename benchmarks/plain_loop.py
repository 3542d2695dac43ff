"""The usual training loop, with which the benchmarks compare ours.

``torch.utils.data.DataLoader`` with workers that turn one image after the other into a PIL image, a tensor, and a
normalized tensor, as torchvision's CIFAR10, ToTensor and Normalize do (written out here, torchvision is not needed);
shuffled mini-batches; an eager fp32 step with ``torch.optim.SGD``; ``loss.item()`` at every step; a printed line every
2,000.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

from twoscale import data, models
from twoscale.training import TrainConfig

__all__ = ["PilImages", "plain_loop", "plain_recipe"]


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """Like torchvision.datasets.CIFAR10 with transforms.Compose([ToTensor(), Normalize(mean, std)])."""

    def __init__(self, split: data.Split, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.images: NDArray[np.uint8] = np.ascontiguousarray(split.images.transpose(0, 2, 3, 1))
        self.labels = [int(label) for label in split.labels]
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index])
        # ToTensor
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], len(image.getbands()))
        tensor = pixels.permute((2, 0, 1)).contiguous().to(dtype=torch.get_default_dtype()).div(255)
        # Normalize
        tensor = tensor.clone()
        mean = torch.as_tensor(self.mean, dtype=tensor.dtype, device=tensor.device)
        std = torch.as_tensor(self.std, dtype=tensor.dtype, device=tensor.device)
        if (std == 0).any():
            raise ValueError("std evaluated to zero")
        return tensor.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)), self.labels[index]


def plain_loop(
    dataset: data.Dataset,
    model: str = "net",
    *,
    batch_size: int = 4,
    warm_up: int,
    steps: int | None = None,
    epochs: int = 1,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 2,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[nn.Module, float]:
    """Train a model; return it and the steps per second after the warm-up.

    Args:
        dataset: its training images.
        model: its name.
        batch_size: images of a mini-batch.
        warm_up: steps before the clock starts, for workers and first allocations.
        steps: number of timed steps, after which training ends. Default: all of ``epochs``.
        epochs: passes over the images, if ``steps`` is not given.
        seed: of weights and order.
        device: where the model is.
        workers: of the DataLoader.
        now: reads the clock, after what the device still has to do.
    """
    torch.manual_seed(seed)
    net = models.create(model, seed=seed, classes=len(dataset.classes)).to(device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    loader = DataLoader(
        PilImages(dataset.train, dataset.mean, dataset.std), batch_size=batch_size, shuffle=True, num_workers=workers
    )
    done, epoch, clock = 0, 0, now()
    while epoch < epochs or steps is not None:
        running_loss = 0.0
        for i, (inputs, labels) in enumerate(loader, 0):
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 2000 == 1999:
                print(f"  [{epoch + 1}, {i + 1:5d}] loss: {running_loss / 2000:.3f}", flush=True)
                running_loss = 0.0
            done += 1
            if done == warm_up:
                clock = now()
            if steps is not None and done == warm_up + steps:
                return net, steps / (now() - clock)
        epoch += 1
    return net, (done - warm_up) / (now() - clock)


def plain_recipe(dataset: data.Dataset, config: TrainConfig, device: str) -> float:
    """Train by a recipe of SGD, reimplemented with PyTorch's own parts, and return the test accuracy, 0..1.

    Orders, shifts and mirrors are drawn by torch. Everything else follows ``config``. The library's accuracy with the
    recipe must not differ by more than that of different seeds.

    Args:
        dataset: to train and test on.
        config: SGD with linear scaling, warm-up and a cosine; zero-padded shifts and random mirrors.
        device: where to train.
    """
    assert config.optimizer == "sgd"
    assert config.schedule == "cosine"
    assert config.base_batch is not None
    assert (config.fill, config.flip, config.bias_lr, config.whiten) == ("black", "random", 1, False)
    epochs, batch = config.epochs or 1, config.batch_size
    torch.manual_seed(config.seed)
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    images, labels, test_images, test_labels = (
        torch.from_numpy(array).to(device)
        for split in (dataset.train, dataset.test) for array in (split.images, split.labels.astype(np.int64))
    )  # fmt: skip
    count, size, pad = len(images), images.shape[-1], config.crop
    padded = nn.functional.pad(images, (pad,) * 4)
    net = models.create(config.model, seed=config.seed, classes=len(dataset.classes)).to(device)
    if config.zero_init_residual:
        for name, weight in net.named_parameters():
            if name.endswith("bn2.weight"):
                nn.init.zeros_(weight)
    matrices = [value for value in net.parameters() if value.ndim > 1]
    vectors = [value for value in net.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    per_epoch = -(-count // batch)
    total, warm, peak = (
        epochs * per_epoch,
        round(config.warmup_epochs * per_epoch),
        config.lr * batch / config.base_batch,
    )
    done = 0
    for _ in range(epochs):
        net.train()
        shifted = torch.empty_like(images)
        row, column = (torch.randint(2 * pad + 1, (count,), device=device) for _ in range(2))
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                chosen = (row == top) & (column == left)
                shifted[chosen] = padded[chosen, :, top : top + size, left : left + size]
        mirrored = torch.rand(count, device=device) < 0.5
        shifted[mirrored] = shifted[mirrored].flip(-1)
        for where in torch.split(torch.randperm(count, device=device), batch):
            rate = config.lr + (peak - config.lr) * done / warm if done < warm else 0.0
            if done >= warm:
                rate = peak * (1 + math.cos(math.pi * (done - warm) / (total - warm))) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = criterion(net((shifted[where] / 255 - mean) / std), labels[where])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    net.eval()
    with torch.no_grad():
        right = [
            (net((some / 255 - mean) / std).argmax(1) == their).sum()
            for some, their in zip(torch.split(test_images, 1000), torch.split(test_labels, 1000), strict=True)
        ]
    return int(torch.stack(right).sum()) / len(test_labels)

"""Networks for 224×224 images, as published, with random weights: for measuring time and memory.

Weights decide neither. They are scaled by He's rule, and batch norms take their statistics from images, so that
activations have the magnitude of a trained network's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

__all__ = ["NETWORKS", "make_images", "make_network"]

CLASSES = 1000


def conv_bn(
    channels_in: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """Return a convolution that keeps the size at stride 1, its batch norm and its activation."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), act()]


class Sum(nn.Module):
    """Adds a shortcut to a branch, then applies an activation."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.act = branch, shortcut, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.act(self.branch(x) + self.shortcut(x)))


def pooled_head(channels: int, dropout: float = 0.0) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, CLASSES)]


def resnet50() -> nn.Module:
    """He et al. 2015, with the stride in the 3×3 convolutions, as everyone trains it."""
    layers: list[nn.Module] = [*conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            stride = first if index == 0 else 1
            branch = nn.Sequential(
                *conv_bn(channels, width, 1),
                *conv_bn(width, width, 3, stride),
                *conv_bn(width, 4 * width, 1, act=nn.Identity),
            )
            straight = stride == 1 and channels == 4 * width
            shortcut = [] if straight else conv_bn(channels, 4 * width, 1, stride, act=nn.Identity)
            layers.append(Sum(branch, nn.Sequential(*shortcut), nn.ReLU()))
            channels = 4 * width
    return nn.Sequential(*layers, *pooled_head(channels))


def vgg16() -> nn.Module:
    """Simonyan and Zisserman 2014, configuration D."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for inputs in (25088, 4096):
        layers += [nn.Linear(inputs, 4096), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(4096, CLASSES))


class DenseLayer(nn.Module):
    """Appends ``growth`` channels to its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), *conv_bn(channels, 4 * growth, 1),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.new(x)], 1)


def densenet121() -> nn.Module:
    """Huang et al. 2016."""
    layers: list[nn.Module] = [*conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels, growth = 64, 32
    for index, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if index < 3:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, *pooled_head(channels))


class Gate(nn.Module):
    """Multiplies each channel by a number in 0..1 computed from the means of all."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


def inverted_residuals(
    stages: Sequence[tuple[int, int, int, int, int]], channels: int, act: Callable[[], nn.Module], *, gated: bool
) -> list[nn.Module]:
    """Return the blocks of stages of (expansion, channels, blocks, stride, kernel)."""
    blocks: list[nn.Module] = []
    for expansion, out, count, first, kernel in stages:
        for index in range(count):
            stride, wide = first if index == 0 else 1, channels * expansion
            branch = [
                *(conv_bn(channels, wide, 1, act=act) if expansion != 1 else []),
                *conv_bn(wide, wide, kernel, stride, wide, act),
                *([Gate(wide, max(1, channels // 4))] if gated else []),
                *conv_bn(wide, out, 1, act=nn.Identity),
            ]
            whole = nn.Sequential(*branch)
            blocks.append(Sum(whole, nn.Identity(), nn.Identity()) if stride == 1 and channels == out else whole)
            channels = out
    return blocks


def mobilenetv2() -> nn.Module:
    """Sandler et al. 2018."""
    stages = (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )  # fmt: skip
    blocks = inverted_residuals(stages, 32, nn.ReLU6, gated=False)
    last = conv_bn(320, 1280, 1, act=nn.ReLU6)
    return nn.Sequential(*conv_bn(3, 32, 3, 2, act=nn.ReLU6), *blocks, *last, *pooled_head(1280, 0.2))


def efficientnet_b0() -> nn.Module:
    """Tan and Le 2019."""
    stages = (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )  # fmt: skip
    blocks = inverted_residuals(stages, 32, nn.SiLU, gated=True)
    return nn.Sequential(*conv_bn(3, 32, 3, 2, act=nn.SiLU), *blocks, *conv_bn(320, 1280, 1, act=nn.SiLU),
                         *pooled_head(1280, 0.2))  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenetv2": mobilenetv2,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "efficientnet_b0": efficientnet_b0,
    "vgg16": vgg16,
}


def make_images(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Return normalized images, float32 (N, 3, 224, 224): smooth random shapes with noise, as photographs are."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 3, 224, 224), np.float32)
    for size, weight in ((7, 1.0), (28, 0.5), (224, 0.15)):
        coarse = rng.normal(size=(count, 3, size, size)).astype(np.float32)
        images += weight * coarse.repeat(224 // size, 2).repeat(224 // size, 3)
    return images


def make_network(name: str) -> nn.Module:
    """Return a network with random weights and the statistics of 8 images in its batch norms, ready to be run."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        model.train()(torch.from_numpy(make_images(8, 1)))
    return model.eval()

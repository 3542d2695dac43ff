"""A network for 94% on CIFAR-10 in little time, after Jordan's airbench ("94% on CIFAR-10 in 3.29 seconds", 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["SpeedNet"]

_MOMENTUM = 0.4
"""Of BatchNorm's running statistics: a run has about 200 updates, too few for PyTorch's 0.1."""
_HEAD_SCALE = 1 / 9
"""Of the last layer's initial weights. Small logits at the beginning, as in airbench, which divides them by 9."""


def _norm(channels: int) -> nn.BatchNorm2d:
    """Return a BatchNorm whose biases are trained and whose weights stay 1: Muon gives filters a fixed scale."""
    norm = nn.BatchNorm2d(channels, momentum=_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm


def _filters(channels_in: int, channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution of which the first filters copy their input."""
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:channels_in].detach())
    return conv


class _Group(nn.Module):
    """Two 3×3 convolutions; the first halves the resolution by max-pooling."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _filters(channels_in, channels)
        self.norm1 = _norm(channels)
        self.conv2 = _filters(channels, channels)
        self.norm2 = _norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H/2, W/2)."""
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class SpeedNet(nn.Module):
    """Seven convolutions, few and wide; with 10 classes 1,972,792 parameters, 118 million multiply-adds per image.

    The 24 filters of 2×2 pixels at the beginning are not trained. ``whiten`` of a training run sets them.

    Args:
        classes: number of outputs.
        width: channels of the first group; the others have four times as many.
    """

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise TypeError(f"width is {width}; expected at least 1")
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.group1 = _Group(24, width)
        self.group2 = _Group(width, 4 * width)
        self.group3 = _Group(4 * width, 4 * width)
        self.head = nn.Linear(4 * width, classes, bias=False)
        with torch.no_grad():
            self.head.weight.mul_(_HEAD_SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalized images (N, 3, 32, 32) to logits (N, classes)."""
        x = self.group3(self.group2(self.group1(F.gelu(self.whiten(x)))))
        logits: torch.Tensor = self.head(F.max_pool2d(x, 3).flatten(1))
        return logits

"""The other networks of MLPerf Tiny: keyword spotting, person detection and anomaly detection.

Banbury et al., "MLPerf Tiny benchmark", 2021. The networks are those of its reference implementation in Keras, with
TensorFlow's padding "same", which puts an odd pixel on the right and at the bottom. ResNet-8 is in ``_resnet``.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["DSCNN", "Autoencoder", "MobileNetV1"]


class _Separable(nn.Module):
    """A 3×3 convolution of each channel by itself, then a 1×1 convolution; batch norm and ReLU after both."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        padding = 1 if stride == 1 else 0
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride, padding, groups=channels_in)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H/stride, W/stride)."""
        if self.stride == 2:
            x = F.pad(x, (0, 1, 0, 1))
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class DSCNN(nn.Module):
    """The keyword spotter: 24,908 parameters and statistics with 12 classes, 2.7 million multiply-adds.

    The input is (N, 1, 49, 10): 49 frames of 10 mel-frequency cepstral coefficients each.

    Args:
        classes: number of outputs.
    """

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 64, (10, 4), 2)
        self.bn = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(*(_Separable(64, 64) for _ in range(4)))
        self.pool = nn.AvgPool2d((24, 5))
        self.dense = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, 1, 49, 10) to logits (N, classes)."""
        x = F.relu(self.bn(self.conv(F.pad(x, (1, 1, 4, 5)))))
        # The 24 windows of the reference's pool leave out the last of 25 rows.
        logits: torch.Tensor = self.dense(self.pool(self.blocks(x)).flatten(1))
        return logits


class MobileNetV1(nn.Module):
    """The person detector, MobileNetV1 of width 0.25: 221,794 parameters and statistics with 2 classes.

    Howard et al., "MobileNets", 2017. The input is (N, 3, 96, 96), in 0..1. 7.5 million multiply-adds.

    Args:
        classes: number of outputs.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.bn = nn.BatchNorm2d(8)
        channels = (8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
        strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
        self.blocks = nn.Sequential(
            *(_Separable(*sizes) for sizes in zip(channels[:-1], channels[1:], strides, strict=True))
        )
        self.dense = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, 96, 96) to logits (N, classes)."""
        x = F.relu(self.bn(self.conv(F.pad(x, (0, 1, 0, 1)))))
        logits: torch.Tensor = self.dense(self.blocks(x).mean((2, 3)))
        return logits


class Autoencoder(nn.Module):
    """The anomaly detector: 269,992 parameters and statistics, 264,192 multiply-adds.

    It has no classes: its output is its input, as far as 8 values describe it. The error is the measure of an anomaly.
    The input is (N, 640): 5 frames of 128 mel bands, in decibels.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
        layers: list[nn.Module] = []
        for size_in, size in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, size), nn.BatchNorm1d(size), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 640))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, 640) to their reconstruction (N, 640)."""
        reconstruction: torch.Tensor = self.layers(x)
        return reconstruction

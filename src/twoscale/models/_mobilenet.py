"""MobileNetV2 for 32×32 images: inverted residuals of pointwise and depthwise convolutions.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018. Three of the strides that the paper has
for 224×224 images are 1 here, so that the last convolutions still see 4×4 pixels.
"""

from __future__ import annotations

import torch
from torch import nn

from twoscale.errors import ConfigurationError

__all__ = ["MobileNetV2"]

# Expansion, output channels, blocks, stride of the first block (table 2 of the paper, but for strides).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _round_channels(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8, and never less than nine tenths of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class _InvertedResidual(nn.Module):
    """Expand channels, convolve each by itself, project back. The input is added if the shape allows it."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        expand = [*_conv(channels_in, wide, 1), nn.ReLU6()] if expansion != 1 else []
        depthwise = [*_conv(wide, wide, 3, stride, groups=wide), nn.ReLU6()]
        self.branch = nn.Sequential(*expand, *depthwise, *_conv(wide, channels, 1))
        self.adds = stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H/stride, W/stride)."""
        out: torch.Tensor = self.branch(x)
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """53 layers with weights; 2,236,682 parameters and 88 million multiply-adds per image with 10 classes.

    Args:
        classes: number of outputs.
        width: multiplier of the paper's numbers of channels, above 0. The last convolution never has fewer than 1,280.

    Raises:
        ConfigurationError: ``width`` is not above 0.
    """

    def __init__(self, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if not width > 0:
            raise ConfigurationError(f"width is {width}; expected a factor above 0, such as 0.5")
        channels = _round_channels(32 * width)
        self.stem = nn.Sequential(*_conv(3, channels, 3), nn.ReLU6())
        blocks: list[nn.Module] = []
        for expansion, stage_channels, count, stride in _STAGES:
            out = _round_channels(stage_channels * width)
            for index in range(count):
                blocks.append(_InvertedResidual(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        last = _round_channels(1280 * max(1.0, width))
        self.head = nn.Sequential(*_conv(channels, last, 1), nn.ReLU6())
        self.linear = nn.Linear(last, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalized images (N, 3, H, W) to logits (N, classes)."""
        logits: torch.Tensor = self.linear(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return logits

"""Residual networks for 32×32 images: ResNet-18, the CIFAR ResNets of the original paper, and MLPerf Tiny's.

He et al., "Deep residual learning for image recognition", 2015.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CifarResNet", "ResNet8", "ResNet18", "resnet20", "resnet32", "resnet44", "resnet56"]


class _Block(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def shortcut_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the second convolution's output."""
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut_of(x))


class _ProjectionBlock(_Block):
    """The shortcut is a 1×1 convolution if the shape changes (option B of the paper)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def shortcut_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the second convolution's output."""
        projected: torch.Tensor = self.shortcut(x)
        return projected


class _PaddingBlock(_Block):
    """The shortcut drops every other pixel and pads channels with zeros on both sides (option A of the paper)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.stride = stride
        self.more = channels - channels_in

    def shortcut_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the second convolution's output."""
        if self.stride == 1 and not self.more:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


def _stage(block: type[_Block], channels_in: int, channels: int, count: int, stride: int) -> nn.Sequential:
    blocks = [block(channels_in, channels, stride)]
    blocks += [block(channels, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


class ResNet18(nn.Module):
    """ResNet-18 as usual for CIFAR: a 3×3 stem, no pooling after it; 11,173,962 parameters with 10 classes.

    Args:
        classes: number of outputs.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(_ProjectionBlock, 64, 64, 2, 1)
        self.layer2 = _stage(_ProjectionBlock, 64, 128, 2, 2)
        self.layer3 = _stage(_ProjectionBlock, 128, 256, 2, 2)
        self.layer4 = _stage(_ProjectionBlock, 256, 512, 2, 2)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalized images (N, 3, 32, 32) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: torch.Tensor = self.linear(x)
        return logits


class CifarResNet(nn.Module):
    """ResNet-20, 32, 44, 56 of the paper's section 4.2: three stages of 16, 32, 64 channels, option-A shortcuts.

    Args:
        depth: 6n + 2 layers, e.g. 20.
        classes: number of outputs.
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        count = (depth - 2) // 6
        if depth < 8 or 6 * count + 2 != depth:
            raise TypeError(f"depth is {depth}; expected 6n + 2, e.g. 20, 32, 44, 56")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(_PaddingBlock, 16, 16, count, 1)
        self.layer2 = _stage(_PaddingBlock, 16, 32, count, 2)
        self.layer3 = _stage(_PaddingBlock, 32, 64, count, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalized images (N, 3, 32, 32) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits


resnet20 = functools.partial(CifarResNet, 20)
resnet32 = functools.partial(CifarResNet, 32)
resnet44 = functools.partial(CifarResNet, 44)
resnet56 = functools.partial(CifarResNet, 56)


class _TinyStack(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1 if stride == 1 else 0)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # TensorFlow pads stride-2 convolutions of even sizes on the right and bottom only.
        padded = F.pad(x, (0, 1, 0, 1)) if self.stride == 2 else x
        out = self.conv2(F.relu(self.conv1(padded)))
        return F.relu(out + self.shortcut(x))


class ResNet8(nn.Module):
    """The image classifier of MLPerf Tiny, its batch norms folded; takes raw pixels 0..255 as floats.

    Banbury et al., "MLPerf Tiny benchmark", 2021.

    Args:
        classes: number of outputs.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stack1 = _TinyStack(16, 16, 1)
        self.stack2 = _TinyStack(16, 32, 2)
        self.stack3 = _TinyStack(32, 64, 2)
        self.dense = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pixels (N, 3, 32, 32) in 0..255 to logits (N, classes)."""
        x = self.stack3(self.stack2(self.stack1(F.relu(self.stem(x)))))
        logits: torch.Tensor = self.dense(x.mean((2, 3)))
        return logits

"""The small CNN of the quantization lab, without any bias and with one on the last layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Net", "NetWithBias"]


class Net(nn.Module):
    """Two convolutions and three linear layers, ReLU between them, no bias anywhere.

    3×32×32 images, 61,770 parameters with 10 classes.

    Args:
        classes: number of outputs.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, bias=False)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.fc1 = nn.Linear(16 * 5 * 5, 120, bias=False)
        self.fc2 = nn.Linear(120, 84, bias=False)
        self.fc3 = nn.Linear(84, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalized images (N, 3, 32, 32) to logits (N, classes)."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 400)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


class NetWithBias(Net):
    """:class:`Net` with a bias on the last layer only, 61,780 parameters with 10 classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.fc3 = nn.Linear(84, classes)

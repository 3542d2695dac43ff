"""Made-up data, small networks, and the runs that one process and two are compared on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from twoscale.data import Dataset, Split
from twoscale.training import TrainConfig


def dataset_of(train: int, test: int, *, seed: int = 0, classes: int = 10) -> Dataset:
    """Random pixels, each class brighter than the one before so that there is something to learn."""
    rng = np.random.default_rng(seed)

    def split(n: int) -> Split:
        labels = rng.integers(0, classes, n).astype(np.uint8)
        noise = rng.integers(0, 60, (n, 3, 32, 32))
        return Split((noise + 20 * labels[:, None, None, None]).astype(np.uint8), labels)

    return Dataset(
        name="digits",
        classes=tuple(str(i) for i in range(classes)),
        train=split(train),
        test=split(test),
        mean=(0.5, 0.4, 0.5),
        std=(0.5, 0.25, 0.5),
        source="made up",
    )


class Plain(nn.Module):
    """A few hundred parameters, no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, stride=4)
        self.last = nn.Linear(4 * 49, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(torch.relu(self.conv(x)).flatten(1))
        return logits


class Normed(Plain):
    """With BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits


def seeded(kind: type[nn.Module]) -> nn.Module:
    """Return a model with the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


_EVEN = TrainConfig(
    epochs=2, batch_size=18, lr=0.05, momentum=0.9, seed=3, log_every=4, crop=2, flip="random", threads=1, device="cpu",
)  # fmt: skip
CONFIG = {
    "even": _EVEN,
    # 90 images: shares of 4 and 3, and a last batch of 6.
    "uneven": replace(_EVEN, batch_size=7),
    # The last batch has one image, and the second process none.
    "one left": replace(_EVEN, batch_size=89),
    "rest": replace(
        _EVEN, batch_size=28, accumulation=3, clip_norm=0.5, label_smoothing=0.1, schedule="cosine", base_batch=14,
        warmup_epochs=1, weight_decay=0.01, nesterov=True, flip="alternating",
    ),
    "lars": replace(_EVEN, batch_size=31, optimizer="lars", weight_decay=0.01),
    "lamb": replace(_EVEN, batch_size=31, optimizer="lamb", weight_decay=0.01, lr=0.01),
    "muon": replace(_EVEN, batch_size=31, optimizer="muon", weight_decay=0.01, lr=0.01, freeze=(0.4,)),
}  # fmt: skip

OF_THE_COMMAND = TrainConfig(
    model="net", data="digits", device="cpu", batch_size=50, lr=0.01, epochs=4, checkpoint_every=5, threads=1,
)  # fmt: skip
"""What the runs that are killed and interrupted are to come to."""

QUANTIZED = TrainConfig(
    epochs=2, lr=0.003, batch_size=16, optimizer="adamw", log_every=4, device="cpu", quantize="W3A3", edge_bits=8
)


def plain_list(model: nn.Module) -> dict[str, list[float]]:
    """Return parameters and buffers as numbers for JSON, which keeps float64 to the bit."""
    return {name: value.double().flatten().tolist() for name, value in model.state_dict().items()}

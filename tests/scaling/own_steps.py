"""Training steps of a user's own, as ``twoscale scale FILE.py:NAME`` takes them."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

SLEEP = 0.004
"""Seconds per sample."""
BATCH = 5


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """Forty samples, each some seconds late."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        return {"x": torch.full((16,), float(index)), "y": torch.tensor(float(index % 2))}


def _loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.mse_loss(module(batch["x"])[:, 0], batch["y"])


def make(seconds: float = 0.0) -> tuple[Any, ...]:
    """A step of a small network."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
    data = Numbers(seconds)
    sampler: Any = DistributedSampler(data) if dist.is_initialized() else None
    loader = DataLoader(data, BATCH, sampler=sampler, drop_last=True)
    return module, _loss, torch.optim.Adam(module.parameters(), lr=1e-3), loader


def slow() -> tuple[Any, ...]:
    """The same with a slow loader."""
    return make(SLEEP)


def slow_shared() -> tuple[Any, ...]:
    """The same with a loader that is slow only where ranks share it."""
    return make(SLEEP if dist.is_initialized() and dist.get_world_size() > 1 else 0.0)


def wrong() -> tuple[Any, ...]:
    """Three values."""
    return make()[:3]


def network() -> nn.Module:
    """A model, not a step."""
    return nn.Linear(4, 4)

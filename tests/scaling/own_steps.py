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
PAUSE = 0.1
"""Seconds."""


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


class _Pause(torch.autograd.Function):
    """The identity, which takes some seconds forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
        ctx.seconds = backward
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradient, None, None


class Pause(nn.Module):
    """A layer that takes some seconds."""

    def __init__(self, forward: float, backward: float) -> None:
        super().__init__()
        self.seconds = forward, backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        paused: torch.Tensor = _Pause.apply(x, *self.seconds)  # type: ignore[no-untyped-call]
        return paused


class SlowSGD(torch.optim.SGD):
    """SGD that takes some seconds."""

    def step(self, closure: Any = None) -> Any:
        time.sleep(PAUSE)
        return super().step(closure)


def sleepy(part: str) -> tuple[Any, ...]:
    """A step that sleeps in one of its parts."""
    torch.manual_seed(0)
    pause = Pause(PAUSE if "forward" in part else 0.0, PAUSE if "backward" in part else 0.0)
    module = nn.Sequential(nn.Linear(16, 8), pause, nn.Linear(8, 1))
    optimizer = (SlowSGD if part == "update" else torch.optim.SGD)(module.parameters(), lr=0.1)
    return module, _loss, optimizer, DataLoader(Numbers(PAUSE / BATCH if part == "data" else 0.0), BATCH)


def wrong() -> tuple[Any, ...]:
    """Three values."""
    return make()[:3]


def network() -> nn.Module:
    """A model, not a step."""
    return nn.Linear(4, 4)

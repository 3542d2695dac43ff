"""Optimizers as pure rules: which state they keep, and the update in place.

They know tensors only, so that the update is part of a recorded step like everything else in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["SGD", "Optimizer"]


class Optimizer(Protocol):
    """What the loop needs of an optimizer."""

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the initial state; names are unique, and stay the same for the same parameters."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], state: list[torch.Tensor]) -> None:
        """Change parameters and state in place."""


@dataclass(frozen=True)
class SGD:
    """v ← momentum·v + g; w ← w − lr·v (Sutskever et al. 2013, as torch.optim.SGD has it)."""

    lr: float
    momentum: float

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return v = 0 for every parameter."""
        return {f"momentum.{name}": torch.zeros_like(value) for name, value in parameters.items()}

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], state: list[torch.Tensor]) -> None:
        """Update every parameter; three kernels each, the ones of ``torch.optim.SGD(foreach=True)``."""
        torch._foreach_mul_(state, self.momentum)
        torch._foreach_add_(state, gradients)
        torch._foreach_add_(parameters, state, alpha=-self.lr)

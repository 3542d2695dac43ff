"""Optimizers as pure rules: which state they keep, and the update in place.

They know tensors only, so that the update is part of a recorded step like everything else in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["SGD", "Optimizer"]


class Optimizer(Protocol):
    """What the loop needs of an optimizer."""

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the initial state; names are unique, and stay the same for the same parameters."""

    def update(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], state: Sequence[torch.Tensor]
    ) -> None:
        """Change parameters and state in place."""


@dataclass(frozen=True)
class SGD:
    """v ← momentum·v + g; w ← w − lr·v (Sutskever et al. 2013, as torch.optim.SGD has it)."""

    lr: float
    momentum: float

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return v = 0 for every parameter."""
        return {f"momentum.{name}": torch.zeros_like(value) for name, value in parameters.items()}

    def update(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], state: Sequence[torch.Tensor]
    ) -> None:
        """Update all parameters in one kernel call, the one of ``torch.optim.SGD(fused=True)``."""
        torch._fused_sgd_(
            list(parameters),
            list(gradients),
            list(state),
            weight_decay=0.0,
            momentum=self.momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

"""What a training run is to do."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Literal

from twoscale.errors import ConfigurationError

__all__ = ["TrainConfig"]

_EPOCHS = 2
_EPOCHS_OF_SMALL_SETS = {"digits": 12}
"""1,437 images need more than 2 passes at the lab's learning rate."""
_SMALL_BATCH = 16
"""Below this, a second thread costs more than it brings, on tensors this small."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the quantization lab's recipe.

    Stochastic gradient descent with momentum on the mean cross-entropy of each mini-batch.

    Raises:
        ConfigurationError: a number outside its range.
    """

    model: str = "net"
    """Name of the model."""
    data: str = "digits"
    """Name of the data set."""
    epochs: int | None = None
    """Passes over the training images. Default: 12 for digits, which are few; else 2."""
    batch_size: int = 4
    """Images in a mini-batch; the last of an epoch may have fewer."""
    lr: float = 0.001
    """Learning rate."""
    momentum: float = 0.9
    """Momentum, 0 up to but not including 1."""
    seed: int = 0
    """Decides initial weights and the order of the images."""
    log_every: int = 2000
    """Mini-batches between two entries of the loss."""
    checkpoint_every: int | None = None
    """Mini-batches between checkpoints, besides those at the end of each epoch."""
    step: Literal["auto", "captured", "compiled", "eager"] = "auto"
    """How steps run. eager: op by op, through module and autograd. captured: the ops recorded once, then replayed
    alone, the same bits. compiled: the record compiled, which takes tens of seconds. auto: captured in long runs."""
    threads: int | None = None
    """Threads of each operation. Default: 1 for mini-batches below 16, else all cores."""

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 1, "batch_size": 1, "seed": 0, "log_every": 1, "checkpoint_every": 1, "threads": 1,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} is {value}; expected at least {least}")
        if self.seed >= 2**63:
            raise ConfigurationError(f"seed is {self.seed}; expected less than 2**63")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigurationError(f"lr is {self.lr}; expected a positive number")
        if not 0 <= self.momentum < 1:
            raise ConfigurationError(f"momentum is {self.momentum}; expected at least 0 and less than 1")

    def resolved(self) -> TrainConfig:
        """Return the configuration with every default that depends on others, or on the machine, filled in."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return dataclasses.replace(
            self,
            epochs=self.epochs or _EPOCHS_OF_SMALL_SETS.get(self.data, _EPOCHS),
            threads=self.threads or (1 if self.batch_size < _SMALL_BATCH else cores),
        )

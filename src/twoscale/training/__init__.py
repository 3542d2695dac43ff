"""Training and evaluating float models.

``train(TrainConfig(...), dataset, out=folder)`` trains and writes checkpoints; ``evaluate(model, split, mean, std)``
gives accuracy. Importing this package does not import torch. Training does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twoscale._extras import requires_extras
from twoscale.models._files import ModelInfo, load_checkpoint
from twoscale.training._config import TrainConfig
from twoscale.training._recipes import RECIPES, recipe
from twoscale.training._record import EpochRecord, RunRecord

if TYPE_CHECKING:
    from twoscale.training._accuracy import evaluate
    from twoscale.training._loop import TrainingInterrupted, TrainResult, train

__all__ = [
    "RECIPES",
    "EpochRecord",
    "ModelInfo",
    "RunRecord",
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "evaluate",
    "load_checkpoint",
    "recipe",
    "train",
]

_LAZY = {
    "TrainResult": "_loop",
    "TrainingInterrupted": "_loop",
    "evaluate": "_accuracy",
    "train": "_loop",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    with requires_extras(f"{__name__}.{name}"):
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    return value

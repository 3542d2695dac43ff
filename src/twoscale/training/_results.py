"""A run's record and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from twoscale._environment import current_environment, gpu_name, peak_resident_bytes
from twoscale.data import Dataset
from twoscale.models import ModelInfo, save_model
from twoscale.training._checkpoint import Position
from twoscale.training._ranks import Ranks
from twoscale.training._record import RunRecord

__all__ = ["peak_memory", "run_record", "save_result"]


def run_record(
    position: Position,
    total: int,
    model: nn.Module,
    device: torch.device,
    ranks: Ranks,
    *,
    prepare_seconds: float,
    training_flops: int | None,
    how: tuple[str, ...],
) -> RunRecord:
    """Return the record of a run.

    Args:
        position: its progress.
        total: mini-batches of the whole run.
        model: that is trained.
        device: where it runs.
        ranks: this process among those that train together.
        prepare_seconds: time to prepare the step.
        training_flops: floating-point operations of the mini-batches done.
        how: notes on how the steps ran, and on anything that was not as requested.
    """
    measured = tuple(epoch.accuracy for epoch in position.epochs if epoch.accuracy is not None)
    return RunRecord(
        config=position.config,
        finished=position.done == total,
        parameters=sum(value.numel() for value in model.parameters()),
        mini_batches=position.done,
        losses=tuple(position.losses),
        epoch_accuracy=measured,
        test_accuracy=measured[-1] if measured else None,
        seconds=position.seconds,
        steps_per_second=position.done / position.seconds if position.seconds else None,
        prepare_seconds=prepare_seconds,
        training_flops=training_flops,
        notes=how,
        environment=current_environment("safetensors"),
        epochs=tuple(position.epochs),
        device=gpu_name(device) if device.type == "cuda" else "cpu",
        world_size=ranks.size,
        backend=ranks.backend,
    )


def save_result(
    path: Path, model: nn.Module, record: RunRecord, dataset: Dataset, options: dict[str, Any] | None
) -> None:
    """Write the weights of a finished run, and what they are.

    Args:
        path: the file.
        model: in evaluation mode.
        record: of the run.
        dataset: it was trained on.
        options: with which the model was made by its name; None for a module of the user's own.
    """
    config = record.config
    assert config.epochs is not None  # resolved
    info = ModelInfo(
        model=config.model if options is not None else type(model).__name__,
        data=config.data,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        seed=config.seed,
        epochs=config.epochs,
        test_accuracy=record.test_accuracy,
        options=options or {},
        preprocessing=dataset.preprocessing,
    )
    save_model(path, model, info)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes reserved on the GPU, or resident for this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_resident_bytes()

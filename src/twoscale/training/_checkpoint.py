"""A run's checkpoint: one file from which the run continues to the same weights, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import safetensors
import torch

from twoscale._launching.torchrun import launch, restarted
from twoscale.errors import CheckpointError, ConfigurationError
from twoscale.models._tensorfile import copy_into, fit, read_tensors, write_tensors
from twoscale.training._config import TrainConfig
from twoscale.training._record import EpochRecord

__all__ = ["Position", "SavedState", "begun_here", "noted", "read_state", "write_state"]

_RECENT, _EPOCH = "recent_losses", "epoch_loss"
_KEY = "twoscale.training"
# Fields that may differ between the sessions of a run without changing the result.
_FREE = frozenset({"epochs", "checkpoint_every", "step", "threads", "device", "test_views", "evaluate_every"})


@dataclass
class Position:
    """The progress of a run: everything except weights and optimizer state."""

    config: TrainConfig
    labels: int
    """CRC-32 of the training labels, which detects another data set of the same name."""
    done: int = 0
    """Mini-batches."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(mini-batches done, mean loss since the entry before)."""
    epochs: list[EpochRecord] = field(default_factory=list)
    """The complete epochs."""
    seconds: float = 0.0
    """Of training alone."""
    epoch_seconds: float = 0.0
    """Of the current epoch."""
    epoch_data_wait: float = 0.0
    world_size: int = 1
    """Number of processes of the session that wrote it."""
    launch: str = ""
    """The launch of that session."""
    notes: list[str] = field(default_factory=list)
    """Changes of sessions against the sessions before them."""


@dataclass(frozen=True)
class SavedState:
    """The state of a run without model and optimizer."""

    position: Position
    recent_losses: list[float]
    """Of the mini-batches since the last entry in ``position``."""
    epoch_loss: float
    """Sum of the losses of the current epoch."""
    random_states: list[bytes]
    """Torch's, of each process."""


def write_state(path: Path, saved: SavedState, model: torch.nn.Module, optimizer: dict[str, torch.Tensor]) -> None:
    """Write the state of a run, completely or not at all.

    Args:
        path: the file.
        saved: the run's progress.
        model: its parameters and buffers are written.
        optimizer: name to state.

    Raises:
        TwoscaleError: the folder cannot be written, or the disk is full.
    """
    tensors = {
        **{f"model.{name}": value for name, value in model.state_dict().items()},
        **{f"optimizer.{name}": value for name, value in optimizer.items()},
        _RECENT: torch.tensor(saved.recent_losses, dtype=torch.float64),
        _EPOCH: torch.tensor(saved.epoch_loss, dtype=torch.float64),
        **{
            f"random_state.{rank}": torch.frombuffer(bytearray(state), dtype=torch.uint8)
            for rank, state in enumerate(saved.random_states)
        },
    }
    write_tensors(path, tensors, {_KEY: msgspec.json.encode(saved.position).decode()})


def read_state(
    path: Path, expected: Position, model: torch.nn.Module, optimizer: dict[str, torch.Tensor]
) -> SavedState:
    """Load the state of a run into ``model`` and ``optimizer``.

    Args:
        path: the file.
        expected: the state of the session that resumes.
        model: gets the parameters and buffers.
        optimizer: name to state.

    Returns:
        The run's progress.

    Raises:
        ConfigurationError: it belongs to another run; the message names the difference.
        CheckpointError: missing, damaged, not the state of a run, or it does not fit.
    """
    content = read_tensors(path)
    try:
        position = msgspec.json.decode(content.metadata[_KEY], type=Position)
        saved = SavedState(
            position,
            content.tensors[_RECENT].tolist(),
            float(content.tensors[_EPOCH]),
            [content.tensors[f"random_state.{rank}"].numpy().tobytes() for rank in range(position.world_size)],
        )
    except (KeyError, TypeError, RuntimeError, RecursionError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{path} is not the state of a training run ({error}); start anew") from error

    _check_continues(position, expected, path)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in content.tensors.items() if name.startswith(prefix)}

    copy_into(optimizer, part("optimizer."), str(path), "the optimizer")
    fit(model, part("model."), str(path))
    return saved


def begun_here(path: Path) -> bool:
    """Return whether torchrun has restarted this process, and a checkpoint is of the same launch."""
    if not restarted():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            return msgspec.json.decode((opened.metadata() or {})[_KEY], type=Position).launch == launch()
    except (OSError, safetensors.SafetensorError, KeyError, msgspec.MsgspecError):
        return False


def _check_continues(found: Position, position: Position, path: Path) -> None:
    """Raise ConfigurationError if ``path`` has another run than the one to continue."""
    schedule = found.config.schedule
    free = _FREE if schedule == "constant" else _FREE - {"epochs"}
    differences = [
        f"{name} was {getattr(found.config, name)}, is {getattr(position.config, name)}"
        for name in found.config.__dataclass_fields__
        if name not in free and getattr(found.config, name) != getattr(position.config, name)
    ]
    if schedule != "constant" and found.config.epochs != position.config.epochs:
        differences.append(
            f"the {schedule} schedule ends with the run, which therefore cannot get more or fewer epochs"
        )
    if not differences and found.labels != position.labels:
        differences = ["the training labels are others"]
    if differences:
        raise ConfigurationError(
            f"{path.parent} holds another run: {'; '.join(differences)}; continue it with its own options, "
            "or choose another folder"
        )


def noted(found: Position, position: Position) -> list[str]:
    """Return the changes of a session against the one that it continues, one line each.

    Args:
        found: the saved state.
        position: of this session, its configuration with every default filled in.
    """
    notes = []
    then, now = found.config, position.config
    if then.threads != now.threads:
        notes.append(f"resumed with {now.threads} threads after {then.threads}: the last bits may differ")
    if then.device != now.device:
        notes.append(f"resumed on {now.device} after {then.device}: the last bits may differ")
    if then.step != now.step:
        notes.append(f"resumed with {now.step} steps after {then.step}: the last bits may differ")
    if then.test_views != now.test_views:
        notes.append(
            f"resumed with test_views {now.test_views} after {then.test_views}: accuracies from here on do not compare "
            "with those before"
        )
    if found.world_size != position.world_size:
        notes.append(
            f"resumed in {position.world_size} processes after {found.world_size}: batches are the same, but sums are "
            "in another order, BatchNorm sees other shares of a batch, and dropout draws anew"
        )
    return notes

"""The record of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._environment import Environment
from twoscale.training._config import TrainConfig

__all__ = ["NETWORK_FILE", "RECORD_FILE", "STATE_FILE", "EpochRecord", "RunRecord"]

# In the folder of a run, beside MODEL_FILE or, of a network of integers, instead of it.
NETWORK_FILE = "network.onnx"
RECORD_FILE = "run.json"
STATE_FILE = "training-state.safetensors"


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training images."""

    loss: float
    """Mean of its mini-batches' losses."""
    accuracy: float | None
    """Fraction of the test images classified correctly after it, 0..1; None if not measured."""
    seconds: float
    """Of training alone."""
    images_per_second: float
    """Training images in those, of all processes together."""
    data_wait_seconds: float
    """Of them, the time that this process waited for the next images; on a GPU, the time to queue their
    preparation."""
    evaluation_seconds: float
    """Of computing the accuracy; not in ``seconds``."""
    peak_memory_bytes: int | None
    """Largest so far: reserved on the GPU, or else resident memory of the process; None if unknown."""
    training_flops: int | None = None
    """Floating-point operations of the run up to its end."""


@dataclass(frozen=True)
class RunRecord:
    """run.json: a finished training run, or its progress so far."""

    config: TrainConfig
    """With every default filled in."""
    finished: bool
    parameters: int
    mini_batches: int
    """Done so far."""
    losses: tuple[tuple[int, float], ...]
    """(mini-batches done, mean loss since the entry before)."""
    epoch_accuracy: tuple[float, ...]
    """Fraction of the test images classified correctly after each epoch in which it was measured, 0..1."""
    test_accuracy: float | None
    """The last of those, for the saved weights; None before the first epoch's end."""
    seconds: float
    """Of training alone: no start-up, evaluation or checkpoints; over all sessions of a resumed run."""
    steps_per_second: float | None
    """Mini-batches per second of that time."""
    prepare_seconds: float
    """Of recording, or compiling, the step; not in ``seconds``."""
    notes: tuple[str, ...]
    """How the steps ran, and anything that was not as requested."""
    environment: Environment
    epochs: tuple[EpochRecord, ...] = ()
    """Every epoch that is complete."""
    device: str = "cpu"
    """Name of the accelerator, or cpu."""
    world_size: int = 1
    """Number of processes that shared each batch."""
    backend: str | None = None
    """Backend that exchanged their gradients; None for one process."""
    training_flops: int | None = None
    """Floating-point operations of the mini-batches done, all processes together: two per multiply-accumulate of
    convolutions and linear layers, forward and backward. That is about three times the forward pass, less with frozen
    layers. None if there is no such layer."""

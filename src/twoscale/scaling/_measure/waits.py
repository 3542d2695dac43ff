"""What a step of DistributedDataParallel waits for, seen from outside its communication, in a training loop.

A step waits twice: before the inner module's forward pass begins, while buffers are broadcast, and between its last
gradient and the end of the backward pass, while the last bucket is averaged. The clock leaves DDP's own all-reduces in
place: a communication hook in Python would take the place of what is to be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from twoscale.scaling._measure.marks import Mark, mark, seconds_between

__all__ = ["StepWaits", "WaitClock"]


@dataclass(frozen=True)
class StepWaits:
    """What one rank waits for in one step, seconds."""

    buffers: float
    """From the start of the step to the inner module's forward pass."""
    gradients: float
    """From the last gradient to the end of the backward pass."""


class WaitClock:
    """Notes the waits of every step.

    Args:
        module: the one inside DDP.
        device: of its parameters.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._steps: list[tuple[Mark, Mark, Mark, Mark]] = []
        self._begin: Mark = None
        self._forward: Mark = None
        self._ready: Mark = None
        self._last = ""
        module.register_forward_pre_hook(lambda *_: self._note_forward())
        # Runs before DDP starts to average the bucket of that gradient.
        self._handles: dict[str, RemovableHandle] = {
            name: parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._note_gradient, name)
            )
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def _note_forward(self) -> None:
        self._forward = mark(self._device)

    def _note_gradient(self, name: str, _: torch.Tensor) -> None:
        self._ready, self._last = mark(self._device), name

    def begin(self) -> None:
        """Start a step."""
        self._begin = mark(self._device)

    def end(self) -> None:
        """End the step's backward pass."""
        self._steps.append((self._begin, self._forward, self._ready, mark(self._device)))
        # The first step shows which gradient comes last; the others need no hook.
        for name in [name for name in self._handles if name != self._last]:
            self._handles.pop(name).remove()

    def take(self) -> list[StepWaits]:
        """Return the steps since the last call and forget them; the device must be synchronized."""
        found = [
            StepWaits(seconds_between(begin, forward), seconds_between(ready, end))
            for begin, forward, ready, end in self._steps
        ]
        self._steps = []
        return found

"""A training step of the user's own: a function that returns (module, loss, optimizer, loader).

    def step():
        module = Net()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        loader = DataLoader(dataset, batch_size=64, sampler=...)
        return module, lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]), optimizer, loader

The function is called in each rank, after the process group was made, once for each arm of a measurement.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from twoscale._user_code import reason
from twoscale.errors import ConfigurationError
from twoscale.models import _references

__all__ = ["OwnStep", "batch_length", "endless", "find_step", "make_step"]

_EXPECTED = "(module, loss, optimizer, loader)"


class OwnStep(nn.Module):
    """The user's module with its loss: the forward pass of a batch gives the loss."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[nn.Module, Any], torch.Tensor],
        optimizer: torch.optim.Optimizer,
        loader: Iterable[Any],
    ) -> None:
        super().__init__()
        self.module = module
        self._loss = loss
        self.optimizer = optimizer
        self.loader = loader

    def forward(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch of the loader."""
        return self._loss(self.module, batch)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnStep:
        """Return the same step of a copied module, without its optimizer and loader, which nobody needs there."""
        import copy

        return OwnStep(copy.deepcopy(self.module, memo), self._loss, self.optimizer, ())


def _options(model_args: str | None) -> dict[str, Any]:
    return {} if model_args is None else _references.options_of(model_args)


def find_step(reference: str, model_args: str | None) -> OwnStep | None:
    """Return the step that a reference's function makes; None if it is a model.

    Args:
        reference: FILE.py:NAME or MODULE:NAME, whose file or module is imported, and whose function is called.
        model_args: its options, as name=value,name=value.

    Raises:
        ConfigurationError: the file cannot be imported, or the function returns four values that are no step.
        UnknownNameError: it has no such name.
    """
    function, options = _references.find(reference), _options(model_args)
    if isinstance(function, type | nn.Module):
        return None
    try:
        found: Any = function(**options)
    except Exception:  # the user's code: if it is a model, it is called again with a model's options
        return None
    return _checked(reference, found) if isinstance(found, tuple) else None


def make_step(reference: str, model_args: str | None, device: torch.device) -> OwnStep:
    """Return a new step, on a device and in training mode.

    Raises:
        ConfigurationError: the function fails, or returns something else.
    """
    try:
        found = _references.find(reference)(**_options(model_args))
    except Exception as error:  # the user's code
        raise ConfigurationError(f"cannot make the step {reference}: {reason(error)}") from error
    return _checked(reference, found).to(device).train()


def _checked(reference: str, found: Any) -> OwnStep:
    kinds = tuple(type(one).__name__ for one in found) if isinstance(found, tuple) else (type(found).__name__,)
    if len(kinds) == 4:
        module, loss, optimizer, loader = found
        right = (
            isinstance(module, nn.Module),
            callable(loss),
            isinstance(optimizer, torch.optim.Optimizer),
            isinstance(loader, Iterable),
        )
        if all(right):
            return OwnStep(module, loss, optimizer, loader)
    raise ConfigurationError(f"{reference} returns ({', '.join(kinds)}); expected {_EXPECTED}")


def batch_length(batch: Any) -> int:
    """Return the samples of a batch: the length of its first tensor.

    Raises:
        ConfigurationError: it has no tensor with an axis.
    """
    for tensor in _tensors(batch):
        if tensor.dim():
            return len(tensor)
    raise ConfigurationError("a batch of the step's loader has no tensor; expected one whose first axis is the samples")


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from (tensor for value in batch.values() for tensor in _tensors(value))
    elif isinstance(batch, list | tuple):
        yield from (tensor for value in batch for tensor in _tensors(value))


def _moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(_moved(value, device) for value in batch)
    return batch


def endless(loader: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Give the batches of a loader on a device, epoch after epoch; its sampler is told the epoch.

    Raises:
        ConfigurationError: an epoch has no batch.
    """
    move = functools.partial(_moved, device=device)
    epoch = 0
    while True:
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        count = 0
        for batch in loader:
            count += 1
            yield batch if device.type == "cpu" else move(batch)
        if not count:
            raise ConfigurationError("the step's loader gives no batch; expected at least one")
        epoch += 1

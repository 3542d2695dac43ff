"""Floating-point operations of training, counted from shapes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

__all__ = ["LayerWork", "training_flops", "work_of"]


@dataclass(frozen=True)
class LayerWork:
    """A convolution or linear layer."""

    macs: int
    """Multiply-accumulates of the forward pass of one image."""
    weight: str | None
    """Name of its weight; None if that is never trained."""
    parameters: tuple[str, ...]
    """Names of what trains in it."""


def work_of(model: nn.Module, image: torch.Tensor) -> tuple[LayerWork, ...]:
    """Return the layers of a model in the order in which they run.

    Args:
        model: that is trained. It is run in evaluation mode.
        image: (1, C, H, W), normalized.
    """
    found: list[LayerWork] = []

    def count(prefix: str, module: nn.Module, _: object, output: torch.Tensor) -> None:
        trained = tuple(f"{prefix}{name}" for name, value in module.named_parameters() if value.requires_grad)
        weight = f"{prefix}weight"
        macs = output.numel() * module.get_parameter("weight")[0].numel()
        found.append(LayerWork(macs, weight if weight in trained else None, trained))

    hooks = [
        module.register_forward_hook(functools.partial(count, f"{name}." if name else ""))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(image)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return tuple(found)


def training_flops(
    work: Sequence[LayerWork], frozen: Sequence[tuple[int, frozenset[str]]], done: int, images: int, batch: int
) -> int:
    """Return the floating-point operations of the updates done, two per multiply-accumulate.

    A layer's forward pass, the gradient of its weights and the gradient of its input take as many multiply-accumulates
    each. Without the gradients that are not needed: of weights that do not train, and of inputs before which nothing
    trains. Convolutions and linear layers only; the optimizer and everything element by element are left out.

    Args:
        work: the layers, in the order in which they run.
        frozen: from which update on which parameters do not train.
        done: updates.
        images: of an epoch.
        batch: images of an update.
    """

    def trained_on(updates: int) -> int:
        epochs, more = divmod(updates, -(-images // batch))
        return epochs * images + more * batch

    total = 0
    for (start, names), (end, _) in pairwise([*frozen, (done, frozenset[str]())]):
        count = trained_on(min(end, done)) - trained_on(min(start, done))
        macs, before = 0, False
        for layer in work:
            macs += layer.macs * (1 + (layer.weight is not None and layer.weight not in names) + before)
            before = before or any(name not in names for name in layer.parameters)
        total += 2 * macs * count
    return total

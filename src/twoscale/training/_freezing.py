"""Layers that stop training in the course of a run, the first ones first.

A frozen layer keeps its weights and biases. The backward pass ends at the first layer that still trains, so that each
update costs less. BatchNorm's running statistics go on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from twoscale.errors import ConfigurationError
from twoscale.training._config import TrainConfig
from twoscale.training._optimizers import Groups, Optimizer

__all__ = ["Part", "frozen_at", "part_of", "trained_layers"]


def trained_layers(model: nn.Module) -> list[list[str]]:
    """Return the names of each layer's trained parameters, in the model's order.

    A layer is a module with a weight of at least two dimensions, and what follows it without one, such as its
    BatchNorm.
    """
    layers: list[list[str]] = []
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not layers or any(value.dim() > 1 for value in own.values()):
            layers.append([])
        layers[-1] += [f"{prefix}.{name}" if prefix else name for name, value in own.items() if value.requires_grad]
    return [names for names in layers if names]


def frozen_at(config: TrainConfig, model: nn.Module, total: int) -> list[tuple[int, frozenset[str]]]:
    """Return from which update on which parameters no longer train, the first entry at 0.

    Args:
        config: with ``freeze``.
        model: that is trained.
        total: updates of the run.

    Raises:
        ConfigurationError: it would freeze every layer.
    """
    layers = trained_layers(model)
    if len(config.freeze) >= max(1, len(layers)) and config.freeze:
        raise ConfigurationError(
            f"freeze has {len(config.freeze)} fractions; expected fewer than the {len(layers)} layers of "
            f"{type(model).__name__} that train"
        )
    found, names = {0: frozenset[str]()}, frozenset[str]()
    for place, layer in zip(config.freeze, layers, strict=False):
        names |= frozenset(layer)
        found[math.ceil(place * total)] = names
    return sorted(found.items())


@dataclass(frozen=True)
class Part:
    """The parameters that train, with their part of an optimizer."""

    names: tuple[str, ...]
    optimizer: Optimizer

    def parameters(self, values: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return those of all parameters, by name, that train."""
        return [values[name] for name in self.names]

    def state(self, values: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return the optimizer's state of those; what belongs to no parameter is always part of it."""
        mine = set(self.names)
        return [value for key, value in values.items() if "." not in key or key.split(".", 1)[1] in mine]


def part_of(optimizer: Optimizer, names: Sequence[str], frozen: frozenset[str]) -> Part:
    """Return what trains when some parameters are frozen.

    Args:
        optimizer: of all parameters.
        names: of all parameters, in the optimizer's order.
        frozen: names of those that do not train.
    """
    kept = [i for i, name in enumerate(names) if name not in frozen]
    if len(kept) == len(names):
        return Part(tuple(names), optimizer)
    groups = optimizer.groups
    some = Groups(
        decayed=tuple(groups.decayed[i] for i in kept if groups.decayed),
        adapted=tuple(groups.adapted[i] for i in kept if groups.adapted),
        lr_factors=tuple(groups.lr_factors[i] for i in kept if groups.lr_factors),
    )
    return Part(tuple(names[i] for i in kept), dataclasses.replace(optimizer, groups=some))  # type: ignore[type-var]

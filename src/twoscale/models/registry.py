"""Models by name. A model's module, and with it torch, is imported when the model is created."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twoscale.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["create", "names"]

# To add a model: write its class in a file of this folder and name it here.
_MODELS = {
    "net": ("net", "Net"),
    "net-with-bias": ("net", "NetWithBias"),
    "resnet18": ("resnet", "ResNet18"),
    "resnet8": ("resnet", "ResNet8"),
    "resnet20": ("resnet", "resnet20"),
    "resnet32": ("resnet", "resnet32"),
    "resnet44": ("resnet", "resnet44"),
    "resnet56": ("resnet", "resnet56"),
}


def names() -> tuple[str, ...]:
    """Every name that :func:`create` takes, sorted."""
    return tuple(sorted(_MODELS))


def create(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make the model ``name``, on the CPU, in training mode.

    Args:
        name: one of :func:`names`.
        seed: decides the initial weights, wholly; torch's global random state is neither read nor changed.
        options: the model's own, such as ``classes=100``.

    Raises:
        UnknownNameError: there is no such model.
        ConfigurationError: the model has no such option.
    """
    if name not in _MODELS:
        raise UnknownNameError("model", name, _MODELS)
    import torch

    module, attribute = _MODELS[name]
    kind = getattr(importlib.import_module(f"twoscale.models.{module}"), attribute)
    # devices=[] and default_generator: the generators of accelerators stay out of it.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model: nn.Module = kind(**options)
        except TypeError as error:
            raise ConfigurationError(f"cannot create model '{name}': {error}") from error
    return model

"""Image classifiers, by name or by class, and the files of their weights.

``names()`` and ``create(name)`` work on the registry; ``load(name, path)`` reads weights of any origin,
``load_checkpoint(path)`` a file of this library. Importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twoscale._extras import requires_extras
from twoscale.models._files import ModelInfo, load, load_checkpoint, read_info, save_model
from twoscale.models._registry import Published, create, names, normalization, published

if TYPE_CHECKING:
    from twoscale.models._net import Net, NetWithBias

__all__ = [
    "ModelInfo",
    "Net",
    "NetWithBias",
    "Published",
    "create",
    "load",
    "load_checkpoint",
    "names",
    "normalization",
    "published",
    "read_info",
    "save_model",
]

_CLASSES = ("Net", "NetWithBias")


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    with requires_extras(f"twoscale.models.{name}"):
        return getattr(importlib.import_module("twoscale.models._net"), name)

"""Image classifiers, by name or by class.

``names()`` and ``create(name)`` work on the registry; ``load(name, path)`` reads weights from a file.
Importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twoscale.models.registry import create, names

if TYPE_CHECKING:
    from twoscale.models.net import Net, NetWithBias

__all__ = ["Net", "NetWithBias", "create", "names"]

_LAZY = {"Net": "twoscale.models.net", "NetWithBias": "twoscale.models.net"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

"""Train PyTorch image classifiers data-parallel, and turn them into integer-only networks.

>>> network = twoscale.quantize(model, batches)      # an IntegerNetwork
>>> twoscale.verify(network, test_batches, model=model)
>>> network.save("net.onnx"); network = twoscale.load("net.onnx")

The names below are imported when they are first used: ``import twoscale`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twoscale.errors import TwoscaleError
    from twoscale.network import IntegerNetwork, load
    from twoscale.quantization import Scheme, quantize
    from twoscale.verification import verify

__all__ = ["IntegerNetwork", "Scheme", "TwoscaleError", "load", "quantize", "verify"]

__version__ = "0.1.0"

_HOMES = {
    "IntegerNetwork": "twoscale.network",
    "Scheme": "twoscale.quantization",
    "TwoscaleError": "twoscale.errors",
    "load": "twoscale.network",
    "quantize": "twoscale.quantization",
    "verify": "twoscale.verification",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'twoscale' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""Train PyTorch image classifiers data-parallel, and turn them into integer-only networks.

>>> network = twoscale.quantize(model, batches)      # an IntegerNetwork
>>> twoscale.verify(network, test_batches, model=model)
>>> network.save("net.onnx"); network = twoscale.load("net.onnx")

The names below are imported when they are first used: ``import twoscale`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twoscale import _delegates

if TYPE_CHECKING:
    from collections.abc import Callable

    from twoscale._formats import load
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._quantization import Scheme, quantize
    from twoscale._verification import verify
    from twoscale.errors import TwoscaleError

__all__ = ["IntegerNetwork", "Scheme", "TwoscaleError", "load", "quantize", "verify"]

_HOMES = {
    "IntegerNetwork": "twoscale._ir.integer_network",
    "Scheme": "twoscale._quantization",
    "TwoscaleError": "twoscale.errors",
    "load": "twoscale._formats",
    "quantize": "twoscale._quantization",
    "verify": "twoscale._verification",
}


def _lazily(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its home when it is first called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


# What methods of lower packages call in higher ones.
_delegates.register("compile", _lazily("twoscale._runtimes.classifier", "CompiledClassifier"))
_delegates.register("save", _lazily("twoscale._formats", "save"))
_delegates.register("network_html", _lazily("twoscale._display.networks", "network_html"))
_delegates.register("verify_html", _lazily("twoscale._display.networks", "verify_html"))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from twoscale._environment import VERSION

        return VERSION
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'twoscale' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

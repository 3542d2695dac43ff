"""Train PyTorch image classifiers data-parallel, and turn them into integer-only networks.

>>> network = twoscale.quantize(model, batches)      # an IntegerNetwork
>>> twoscale.verify(network, test_batches, model=model)
>>> network.save("net.onnx"); network = twoscale.load("net.onnx")

The names below are imported when they are first used: ``import twoscale`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twoscale import delegates

if TYPE_CHECKING:
    from collections.abc import Callable

    from twoscale.errors import TwoscaleError
    from twoscale.formats import load
    from twoscale.ir.integer_network import IntegerNetwork
    from twoscale.quantization import Scheme, quantize
    from twoscale.verification import verify

__all__ = ["IntegerNetwork", "Scheme", "TwoscaleError", "load", "quantize", "verify"]

_HOMES = {
    "IntegerNetwork": "twoscale.ir.integer_network",
    "Scheme": "twoscale.quantization",
    "TwoscaleError": "twoscale.errors",
    "load": "twoscale.formats",
    "quantize": "twoscale.quantization",
    "verify": "twoscale.verification",
}


def _lazily(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its home when it is first called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


# What methods of lower packages call in higher ones.
delegates.register("compile", _lazily("twoscale.runtimes.classifier", "CompiledClassifier"))
delegates.register("save", _lazily("twoscale.formats", "save"))
delegates.register("network_html", _lazily("twoscale.display.networks", "network_html"))
delegates.register("verify_html", _lazily("twoscale.display.networks", "verify_html"))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from twoscale.environment import VERSION

        return VERSION
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'twoscale' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

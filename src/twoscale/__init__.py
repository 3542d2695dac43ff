"""Train PyTorch image classifiers data-parallel, and turn them into integer-only networks.

>>> network = twoscale.quantize(model, batches)      # an IntegerNetwork
>>> twoscale.verify(network, test_batches, model=model)
>>> network.save("net.onnx"); network = twoscale.load("net.onnx")
>>> classify = twoscale.compile(network)

The public API is the names below and the modules ``twoscale.data``, ``models``, ``training``, ``scaling`` and
``errors``. Everything else has a leading underscore. Names are imported when first used, so ``import twoscale``
is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twoscale import _delegates

if TYPE_CHECKING:
    from collections.abc import Callable

    from twoscale._calibration.inspection import inspect
    from twoscale._codegen.c import export_c as export
    from twoscale._formats import load
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._quantization import Scheme, quantize
    from twoscale._runtimes.classifier import compile
    from twoscale._runtimes.saving import load_compiled, save_compiled
    from twoscale._runtimes.wasm import export_wasm
    from twoscale._search import LearnedRounding, learn_rounding, sensitivity
    from twoscale._verification import verify
    from twoscale.errors import TwoscaleError

__all__ = [
    "IntegerNetwork",
    "LearnedRounding",
    "Scheme",
    "TwoscaleError",
    "compile",
    "export",
    "export_wasm",
    "inspect",
    "learn_rounding",
    "load",
    "load_compiled",
    "quantize",
    "save_compiled",
    "sensitivity",
    "verify",
]

_HOMES = {
    "IntegerNetwork": "twoscale._ir.integer_network:IntegerNetwork",
    "LearnedRounding": "twoscale._search:LearnedRounding",
    "Scheme": "twoscale._quantization:Scheme",
    "TwoscaleError": "twoscale.errors:TwoscaleError",
    "compile": "twoscale._runtimes.classifier:compile",
    "export": "twoscale._codegen.c:export_c",
    "export_wasm": "twoscale._runtimes.wasm:export_wasm",
    "inspect": "twoscale._calibration.inspection:inspect",
    "learn_rounding": "twoscale._search:learn_rounding",
    "load": "twoscale._formats:load",
    "load_compiled": "twoscale._runtimes.saving:load_compiled",
    "quantize": "twoscale._quantization:quantize",
    "save_compiled": "twoscale._runtimes.saving:save_compiled",
    "sensitivity": "twoscale._search:sensitivity",
    "verify": "twoscale._verification:verify",
}

# Functions of higher packages that methods of lower ones call.
_FUNCTIONS = {
    "compile": "twoscale._runtimes.classifier:compile",
    "inspection_html": "twoscale._display.statistics:inspection_html",
    "integer_summary": "twoscale._display.layers:integer_summary",
    "layer_html": "twoscale._display.layers:layer_html",
    "network_html": "twoscale._display.networks:network_html",
    "save": "twoscale._formats:save",
    "stages_html": "twoscale._lab.page:stages_html",
    "summary_svg": "twoscale._display.statistics:summary_svg",
    "verify_html": "twoscale._display.verification:verify_html",
}


def _find(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _lazily(path: str) -> Callable[..., Any]:
    """Return a function that imports and calls the one at ``path``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return _find(path)(*args, **kwargs)

    return call


for _name, _path in _FUNCTIONS.items():
    _delegates.register(_name, _lazily(_path))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from twoscale._environment import VERSION

        return VERSION
    if name in _HOMES:
        from twoscale._extras import requires_extras

        with requires_extras(f"twoscale.{name}"):
            value = _find(_HOMES[name])
        globals()[name] = value
        return value
    raise AttributeError(f"module 'twoscale' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

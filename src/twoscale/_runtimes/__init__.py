"""Executors: each computes an integer network with one framework, and knows nothing of the others.

An executor is made from a network and runs float images to integers. Adding one is one file with a class of
this interface, and one line in ``EXECUTORS``.
"""

from __future__ import annotations

import importlib

from twoscale._ir.execution import Executor
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError, ExecutorError, UnknownNameError

__all__ = ["EXECUTORS", "create", "fastest"]

EXECUTORS = {
    "c": "twoscale._runtimes.c:CExecutor",
    "onnxruntime": "twoscale._runtimes.onnxruntime:OnnxRuntimeExecutor",
    "reference": "twoscale._ir.reference:ReferenceExecutor",
    "torch": "twoscale._runtimes.torch:TorchExecutor",
}

_FASTEST_FIRST = ("c", "torch", "onnxruntime")


def create(name: str, network: IntegerNetwork) -> Executor:
    """Make the executor of that name.

    Raises:
        UnknownNameError: there is no such executor.
        ExecutorError: it cannot run here, e.g. a package is missing.
    """
    if name not in EXECUTORS:
        raise UnknownNameError("executor", name, EXECUTORS)
    module, attribute = EXECUTORS[name].split(":")
    executor: Executor = getattr(importlib.import_module(module), attribute)(network)
    return executor


def fastest(network: IntegerNetwork) -> Executor:
    """Make the fastest executor that can run the network here; its ``name`` says which.

    Compiled C where there is a compiler and the network is one of integers only; else torch, else NumPy.
    """
    for name in _FASTEST_FIRST:
        try:
            return create(name, network)
        except (ConfigurationError, ExecutorError, ImportError):
            continue
    return create("reference", network)

"""Executors: each computes an integer network with one framework, independently of the others.

An executor is made from a network, takes float images, and returns integers. To add one, write a class with this
interface in a file of its own, and enter it in ``EXECUTORS``.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence

from twoscale._extras import requires_extras
from twoscale._ir.execution import Executor
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes.ports import PREFIX
from twoscale.errors import ConfigurationError, ExecutorError, UnknownNameError

__all__ = ["EXECUTORS", "create", "default_pair", "fastest"]

EXECUTORS = {
    "c": "twoscale._runtimes.c:CExecutor",
    "torch": "twoscale._runtimes.torch:TorchExecutor",
    "onnxruntime": "twoscale._runtimes.onnxruntime:OnnxRuntimeExecutor",
    "litert": "twoscale._runtimes.litert:LiteRtExecutor",
    "reference": "twoscale._ir.reference:ReferenceExecutor",
}
""""module:class" of each, the fastest first. The last one runs every network everywhere."""


def create(name: str, network: IntegerNetwork) -> Executor:
    """Make the executor of that name, or the one on a board for "remote:ADDRESS".

    Raises:
        UnknownNameError: there is no such executor.
        ExecutorError: it cannot run here.
        MissingPackageError: its package is not installed.
    """
    if name.startswith(PREFIX):
        from twoscale._runtimes.remote import RemoteExecutor

        return RemoteExecutor(network, name.removeprefix(PREFIX))
    if name not in EXECUTORS:
        raise UnknownNameError("executor", name, EXECUTORS)
    module, attribute = EXECUTORS[name].split(":")
    with requires_extras(f"the {name} executor"):
        executor: Executor = getattr(importlib.import_module(module), attribute)(network)
    return executor


def fastest(network: IntegerNetwork) -> Executor:
    """Make the fastest executor that can run the network here. Its ``name`` tells which one it is.

    That is compiled C if there is a compiler and the network is on the grid; else torch, else NumPy. If C could compute
    the network but cannot run here, a warning gives the reason.
    """
    return _first_that_runs(tuple(EXECUTORS), network)


def default_pair(network: IntegerNetwork) -> list[Executor]:
    """Make the executors that verify compares by default: the reference, and torch or its replacement here."""
    pair = [create("reference", network), _first_that_runs(("torch", "onnxruntime", "c", "reference"), network)]
    return pair if pair[0].name != pair[1].name else pair[:1]


def _first_that_runs(names: Sequence[str], network: IntegerNetwork) -> Executor:
    """Make the first executor that can run the network here. The last name must be one that always can."""
    for name in names[:-1]:
        try:
            return create(name, network)
        except ExecutorError as error:
            if name == "c":
                warnings.warn(f"{network.name} is not computed in C: {error}", stacklevel=3)
        except (ConfigurationError, ImportError):
            continue
    return create(names[-1], network)

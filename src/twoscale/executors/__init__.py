"""Executors: each computes an integer network with one framework, and knows nothing of the others.

An executor is made from a network and runs float images to integers. Adding one is one file with a class of
this interface, and one line in ``EXECUTORS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError, ExecutorError, UnknownNameError
from twoscale.network.network import IntegerNetwork

__all__ = ["EXECUTORS", "Executor", "check_images", "create", "fastest", "layers_to_keep", "run_logits"]

EXECUTORS = {
    "c": "twoscale.executors.c:CExecutor",
    "onnxruntime": "twoscale.executors.onnxruntime:OnnxRuntimeExecutor",
    "reference": "twoscale.executors.reference:ReferenceExecutor",
    "torch": "twoscale.executors.torch:TorchExecutor",
}

_FASTEST_FIRST = ("c", "torch", "onnxruntime")


class Executor(Protocol):
    """What verify asks of an executor."""

    name: str

    def __init__(self, network: IntegerNetwork) -> None: ...

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch.

        Args:
            images_nchw: float32 images (N, C, H, W), normalized as the network was calibrated.
            keep: layers whose integers to return; by default only the output's.

        Returns:
            Layer name to integers, (N, ...) in the dtype of the layer's spec.

        Raises:
            ConfigurationError: images of another shape, or NaN or infinity among them.
            UnknownNameError: ``keep`` names a layer that the network does not have.
        """
        ...


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


def check_images(network: IntegerNetwork, images: Any) -> NDArray[np.float32]:
    """Return images as a float32 array that fits the network.

    Raises:
        ConfigurationError: wrong shape, or NaN or infinity among the values.
    """
    array = np.asarray(images.detach().cpu().float() if hasattr(images, "detach") else images)
    if array.dtype.kind not in "fiub":
        raise ConfigurationError(f"images are arrays of numbers, got {type(images).__name__} of {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported below
        array = np.require(array, np.float32, "W")  # torch warns of arrays that it must not write to
    expected = network.input.output.shape
    if array.ndim != 1 + len(expected) or array.shape[1:] != expected:
        raise ConfigurationError(
            f"{network.name} takes images of shape (N, {', '.join(map(str, expected))}), got {array.shape}"
        )
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise ConfigurationError(
            f"the images hold {len(bad)} values that are NaN or infinite, the first in image {bad[0][0]}; "
            "expected finite, normalized pixels"
        )
    return array


def layers_to_keep(network: IntegerNetwork, keep: Collection[str] | None) -> set[str]:
    """Return the layers whose integers ``Executor.run`` returns: those in ``keep``, or the output's.

    Raises:
        UnknownNameError: the network has no layer of such a name.
    """
    if keep is None:
        return {network.output}
    names = [layer.name for layer in network]
    for name in keep:
        if name not in names:
            raise UnknownNameError("layer", name, names)
    return set(keep)


def run_logits(network: IntegerNetwork, images: Any, executor: str = "reference") -> Any:
    """Return float32 logits (N, classes) of images, as the kind of array the images are."""
    array = check_images(network, images)
    result = network.logits(create(executor, network).run(array)[network.output])
    if hasattr(images, "detach"):
        import torch

        return torch.from_numpy(result).to(images.device)
    return result

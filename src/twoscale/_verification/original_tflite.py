"""Runs a `.tflite` file in LiteRT's reference kernels, to compare with the network read from it.

The network computes what TensorFlow Lite for Microcontrollers does. LiteRT's reference kernels do the same, except that
FULLY_CONNECTED rounds once, and LOGISTIC and TANH are tables of float numbers. Layers from these on are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._extras import requires_extras
from twoscale._frontends.tflite import read
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.vectorized import quantize_input
from twoscale._verification.original import LayerComparison
from twoscale.errors import ExecutorError, NetworkFileError

__all__ = ["TfliteFile"]

_MOST_IMAGES = 100
"""Reference kernels are slow, and run one image at a time."""


class TfliteFile:
    """A `.tflite` file in LiteRT's reference kernels.

    Args:
        path: the file.
        network: read from it.

    Raises:
        ExecutorError: the file cannot be read or run, or another network was read from it.
        MissingPackageError: ai-edge-litert is not installed.
    """

    @requires_extras("comparing with a .tflite file")
    def __init__(self, path: Path, network: IntegerNetwork) -> None:
        from ai_edge_litert import interpreter

        self.path = path
        self.name = f"litert's reference kernels on {path.name}"
        self._network = network
        try:
            content = path.read_bytes()
            found = read(path, content)
        except (OSError, NetworkFileError) as error:
            raise ExecutorError(f"cannot read {path}, which {network.name} was read from: {error}") from error
        if found.network.fingerprint != network.fingerprint:
            raise ExecutorError(f"{path} is not the file that {network.name} was read from: it makes another network")
        try:
            self._interpreter = interpreter.Interpreter(
                model_content=content,
                experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF,
                experimental_preserve_all_tensors=True,
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExecutorError(f"LiteRT does not run {path}: {str(error).splitlines()[0]}") from error
        beyond = _beyond(network)
        self._tensors = {name: index for name, index in found.tensors.items() if name not in beyond}
        self.uncompared = tuple(layer.name for layer in network if layer.name not in self._tensors)
        self._left = _MOST_IMAGES

    def compare(self, images: NDArray[np.float32], integers: dict[str, NDArray[Any]]) -> Iterator[LayerComparison]:
        """Yield each layer with its tensor, for the first images of all batches.

        Args:
            images: a batch.
            integers: of each layer, computed by the reference.
        """
        count = min(self._left, len(images))
        self._left -= count
        if not count:
            return
        q = quantize_input(images[:count], self._network.input.output)
        runs = [self._run(image) for image in q]
        for name in self._tensors:
            found = np.array([run[name] for run in runs])
            found = found.transpose(0, 3, 1, 2) if found.ndim == 4 else found
            yield LayerComparison(self._network[name], integers[name][:count], found)

    def _run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the tensors for one image of integers (C, H, W)."""
        entry = self._interpreter.get_input_details()[0]["index"]
        stored = image.transpose(1, 2, 0) if image.ndim == 3 else image
        try:
            self._interpreter.set_tensor(entry, np.ascontiguousarray(stored[None]))
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise ExecutorError(f"LiteRT does not run {self.path}: {str(error).splitlines()[0]}") from error
        return {name: self._interpreter.get_tensor(index)[0].copy() for name, index in self._tensors.items()}


def _beyond(network: IntegerNetwork) -> set[str]:
    """Return the layers that LiteRT's kernels round in another way, and those that depend on them."""
    found: set[str] = set()
    for layer in network:
        if isinstance(layer, n.Linear | n.Table) or found.intersection(layer.inputs):
            found.add(layer.name)
    return found

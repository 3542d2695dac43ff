"""Runs a `.tflite` file in LiteRT's reference kernels, to compare with the network read from it.

The network computes what TensorFlow Lite for Microcontrollers does. LiteRT's reference kernels do the same, except that
FULLY_CONNECTED rounds once, and LOGISTIC and TANH are tables of float numbers. These layers are compared with what they
compute in LiteRT's arithmetic. Layers after them are computed from the tensors of the file, so that they are compared
on the same operands.
"""

from __future__ import annotations

import dataclasses
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
            raise ExecutorError(f"LiteRT does not run {path}: {_first_line(error)}") from error
        self._in_litert = found.in_litert
        self._tensors = found.tensors
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
        runs = [self._run(image) for image in quantize_input(images[:count], self._network.input.output)]
        operands: dict[str, NDArray[Any]] = {}
        differing: set[str] = set()
        """Layers that LiteRT computes in another way, and those that depend on them."""
        for layer in self._network:
            expected = integers[layer.name][:count]
            if isinstance(layer, n.Linear) or layer.name in self._in_litert or differing.intersection(layer.inputs):
                differing.add(layer.name)
                expected = self._computed(layer, [operands[name] for name in layer.inputs])
            operands[layer.name] = expected
            if layer.name in self._tensors:
                found = np.array([run[layer.name] for run in runs])
                found = found.transpose(0, 3, 1, 2) if found.ndim == 4 else found
                operands[layer.name] = found
                yield LayerComparison(layer, expected, found)

    def _computed(self, layer: n.Layer, operands: list[NDArray[Any]]) -> NDArray[Any]:
        """Return what a layer computes in LiteRT's arithmetic."""
        layer = self._in_litert.get(layer.name, layer)
        specs = [self._network.spec(name) for name in layer.inputs]
        return _rounded_once(layer, specs, operands) if isinstance(layer, n.Linear) else layer.compute(specs, operands)

    def _run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the tensors for one image of integers (C, H, W)."""
        entry = self._interpreter.get_input_details()[0]
        stored = image.transpose(1, 2, 0) if image.ndim == 3 else image
        if entry["dtype"] == np.float32:  # the file quantizes these numbers to the same integers
            spec = self._network.input.output
            stored = (stored.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)
        try:
            self._interpreter.set_tensor(entry["index"], np.ascontiguousarray(stored[None]))
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise ExecutorError(f"LiteRT does not run {self.path}: {_first_line(error)}") from error
        return {name: self._interpreter.get_tensor(index)[0].copy() for name, index in self._tensors.items()}


def _rounded_once(layer: n.Linear, specs: list[n.TensorSpec], operands: list[NDArray[Any]]) -> NDArray[Any]:
    """Return FULLY_CONNECTED as LiteRT computes it: product and shift are rounded together, half a step up."""
    multiplier = layer.multiplier
    assert isinstance(multiplier, n.FixedPoint)
    acc = dataclasses.replace(layer, multiplier=None).compute(specs, operands).astype(np.int64)
    shift = 31 - multiplier.exponents.astype(np.int64)
    rounded = (acc * multiplier.mantissas.astype(np.int64) + (1 << (shift - 1))) >> shift
    return np.asarray(np.clip(rounded + layer.output.zero_point, layer.output.lo, layer.output.hi))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

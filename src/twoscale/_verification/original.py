"""Runs another tool's file in ONNX Runtime, to compare with the network read from it.

The other executors run the network, so they cannot detect a constant that was read wrong. A layer has the name of its
tensor in the file and is compared with that tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes.onnxruntime import kernels_saturate, require_runtime
from twoscale.errors import ExecutorError

__all__ = ["LayerComparison", "OriginalFile"]


@dataclass(frozen=True)
class LayerComparison:
    """A layer's output for a batch, and its tensor in the file."""

    layer: n.Layer
    expected: NDArray[Any]
    """Of the network: integers, or real numbers if the file has those."""
    found: NDArray[Any]
    """In the file, (N, ...)."""


class OriginalFile:
    """An ONNX file in ONNX Runtime, with default optimizations.

    Args:
        path: the file.
        network: read from it.

    Raises:
        ExecutorError: onnxruntime is not installed or does not run the file, or the file has none of the layers.
    """

    def __init__(self, path: Path, network: IntegerNetwork) -> None:
        self._runtime = require_runtime()
        self.path = path
        self.name = f"onnxruntime on {path.name}"
        self._network = network
        import onnx

        try:
            model = onnx.load_model_from_string(path.read_bytes())
        except Exception as error:  # OSError, and protobuf's own
            raise ExecutorError(f"cannot read {path}, which {network.name} was read from: {error}") from error
        self._model = model
        self._outputs = [value.name for value in model.graph.output][: len(network.outputs)]
        made = {name for node in model.graph.node for name in node.output}
        self._layers = [layer for layer in network if layer.name in made]
        self.uncompared = tuple(layer.name for layer in network if layer.name not in made)
        if not self._layers:
            raise ExecutorError(
                f"{path} has no tensor named as a layer of {network.name}; expected the file it came from"
            )
        # Additional outputs prevent ONNX Runtime from fusing some nodes, so the outputs come from the unchanged file.
        self._plain = self._session(model)
        extended = onnx.ModelProto()
        extended.CopyFrom(model)
        there = {value.name for value in model.graph.output}
        extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names if name not in there)
        self._whole = self._session(extended)

    @property
    def _names(self) -> list[str]:
        return [layer.name for layer in self._layers]

    def _session(self, model: Any) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        if kernels_saturate():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return self._runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common base class
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExecutorError(f"ONNX Runtime does not run {self.path}: {reason}") from error

    def compare(self, images: NDArray[np.float32], integers: dict[str, NDArray[Any]]) -> Iterator[LayerComparison]:
        """Yield each layer with its tensor, and finally the layers of the outputs with the file's outputs.

        Args:
            images: a batch.
            integers: of each layer, computed by the reference.
        """
        found = self._run(self._whole, self._names, images)
        for layer, tensor in zip(self._layers, found, strict=True):
            yield self._beside(layer, tensor, integers[layer.name])
        for name, tensor in zip(self._network.outputs, self._run(self._plain, self._outputs, images), strict=True):
            yield self._beside(self._network[name], tensor, integers[name])

    def _beside(self, layer: n.Layer, tensor: NDArray[Any], q: NDArray[Any]) -> LayerComparison:
        expected: NDArray[Any] = q
        if tensor.dtype.kind == "f":
            # Like DequantizeLinear, with accumulators converted to float32 first.
            expected = (q.astype(np.int64) - layer.output.zero_point).astype(np.float32) * np.float32(
                layer.output.scale
            )
        if tensor.size != expected.size:
            raise ExecutorError(
                f"{self.path}: {layer.name} has shape {tensor.shape}, expected {expected.shape}; is it the file that "
                f"{self._network.name} was read from?"
            )
        return LayerComparison(layer, expected, tensor.reshape(expected.shape))

    def _run(self, session: Any, names: list[str], images: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Run a batch, in parts if the file has a fixed batch size."""
        entry = session.get_inputs()[0]
        fixed = entry.shape[0] if entry.shape and isinstance(entry.shape[0], int) else len(images)
        parts = []
        for start in range(0, len(images), max(1, fixed)):
            part = images[start : start + fixed]
            padding = np.zeros((fixed - len(part), *images.shape[1:]), np.float32)
            try:
                results = session.run(names, {entry.name: np.concatenate([part, padding])})
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ExecutorError(f"ONNX Runtime does not run {self.path} on these images: {reason}") from error
            parts.append([np.asarray(result)[: len(part)] for result in results])
        return [np.concatenate(tensors) for tensors in zip(*parts, strict=True)]

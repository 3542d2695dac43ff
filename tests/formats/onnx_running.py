"""Runs ONNX models in ONNX Runtime, and makes networks for the tests of the saved form."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.onnxruntime import LEVELS

__all__ = ["mismatches", "reference", "run_model", "sweep_input"]


def run_model(
    model: onnx.ModelProto, images: NDArray[np.float32], outputs: Collection[str], level: str = "all"
) -> dict[str, NDArray[Any]]:
    """Run a model; ``outputs`` may name any tensor that the graph describes."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(info for info in model.graph.value_info if info.name in set(outputs) - known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(outputs)
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def reference(network: IntegerNetwork, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return every layer's integers."""
    return ReferenceExecutor(network).run(images, [layer.name for layer in network])


def mismatches(
    model: onnx.ModelProto, network: IntegerNetwork, images: NDArray[np.float32], level: str = "all"
) -> dict[str, int]:
    """Return, for each layer that differs, how many integers differ between the model and the reference."""
    expected = reference(network, images)
    found = run_model(model, images, [f"{name}/q" for name in expected], level)
    counts = {name: int((found[f"{name}/q"] != q).sum()) for name, q in expected.items()}
    return {name: count for name, count in counts.items() if count}


def sweep_input(shape: tuple[int, ...], dtype: str = "uint8") -> n.QuantizeInput:
    """Return an input layer that represents pixels exactly."""
    limits = np.iinfo(dtype)
    return n.QuantizeInput(name="input", inputs=(), output=n.TensorSpec(shape, dtype, 1.0, 0, limits.min, limits.max))

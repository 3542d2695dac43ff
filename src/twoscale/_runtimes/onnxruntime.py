"""The ONNX Runtime executor: runs the graph that ``network.save`` writes.

If integers of layers are requested, the layers become additional outputs of the same graph. There is one session per
set of layers.

x86 processors without VNNI multiply uint8 by int8 with vpmaddubsw, whose 16-bit pair sums saturate. The executor tests
once whether ONNX Runtime does that. If so, it passes the same weights as uint8 with zero point 128: the kernels are
slower, but the integers are right. A program that runs the saved file on such a processor can set ONNX Runtime's
session option "session.x64quantprecision" to "1", which does the same for networks of uint8 activations.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import core_count
from twoscale._formats import to_model
from twoscale._ir.checks import refuse_fixed_point
from twoscale._ir.execution import check_images, layers_to_keep
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ExecutorError, UnknownNameError

if TYPE_CHECKING:
    import onnx

__all__ = ["LEVELS", "OnnxRuntimeExecutor", "kernels_saturate", "require_runtime", "with_unsigned_weights"]

LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""Graph optimization levels with ONNX Runtime's names for them."""

_WEIGHT_INPUTS = {"MatMulInteger": (1, 3), "QLinearConv": (3, 5)}
"""Indices of an operator's weights and their zero point. In the file, ConvInteger's weights have its input's type."""


class OnnxRuntimeExecutor:
    """Runs a network in ONNX Runtime on the CPU.

    Args:
        network: what to run.
        threads: of ONNX Runtime's pool; by default one per core that this process may use.
        optimization: graph optimization level, one of ``LEVELS``; on the grid it cannot change an integer.

    Raises:
        ConfigurationError: the network has TensorFlow Lite's arithmetic, which has no ONNX form.
        ExecutorError: onnxruntime is not installed.
        UnknownNameError: there is no such optimization level.
    """

    name = "onnxruntime"

    def __init__(self, network: IntegerNetwork, *, threads: int | None = None, optimization: str = "all") -> None:
        if optimization not in LEVELS:
            raise UnknownNameError("optimization level", optimization, LEVELS)
        refuse_fixed_point(network, "ONNX")
        self.network = network
        runtime = require_runtime()
        self._options = runtime.SessionOptions()
        self._options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, LEVELS[optimization])
        self._options.intra_op_num_threads = threads or core_count()
        self._sessions: dict[frozenset[str], Any] = {}

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        from twoscale._formats.onnx.graph_builder import input_name  # which imports onnx

        wanted = layers_to_keep(self.network, keep)
        names = [layer.name for layer in self.network if layer.name in wanted]
        given = self.network.given(check_images(self.network, images_nchw))
        feeds = {input_name(self.network, name): np.ascontiguousarray(value) for name, value in given.items()}
        results = self._session(names).run([f"{name}/q" for name in names], feeds)
        return dict(zip(names, results, strict=True))

    def _session(self, names: list[str]) -> Any:
        """Return the session with these layers as additional outputs, and keep it."""
        key = frozenset(names)
        if key not in self._sessions:
            model = to_model(self.network)
            integers = {info.name: info for info in model.graph.value_info}
            model.graph.output.extend(integers[f"{name}/q"] for name in names)
            if kernels_saturate():
                with_unsigned_weights(model, self.network)
            self._sessions[key] = _start(model, self._options)
        return self._sessions[key]


def with_unsigned_weights(model: onnx.ModelProto, network: IntegerNetwork) -> None:
    """Turn int8 weights of layers with uint8 inputs into uint8 with zero point 128, which gives the same products."""
    from onnx import numpy_helper

    unsigned = {f"{layer.name}/q" for layer in network if layer.output.dtype == "uint8"}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def shift(name: str) -> None:
        shifted = (numpy_helper.to_array(initializers[name]).astype(np.int16) + 128).astype(np.uint8)
        initializers[name].CopyFrom(numpy_helper.from_array(shifted, name))

    for node in model.graph.node:
        weight, zero_point = _WEIGHT_INPUTS.get(node.op_type, (0, 0))
        if not weight or node.input[0] not in unsigned or node.input[weight] not in initializers:
            continue
        shift(node.input[weight])
        if zero_point < len(node.input):
            shift(node.input[zero_point])
        else:
            name = f"{node.name}_weight_zero_point"
            model.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), name))
            node.input.append(name)


@functools.cache
def kernels_saturate() -> bool:
    """Return whether ONNX Runtime's uint8 × int8 products saturate on this processor; tried once per process."""
    from onnx import TensorProto, helper, numpy_helper

    size = 64
    x = np.full((size, size), 255, np.uint8)
    weight = numpy_helper.from_array(np.full((size, size), 127, np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, x.shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    (y,) = _start(model, require_runtime().SessionOptions()).run(None, {"x": x})
    return not bool((y == size * 255 * 127).all())


def _start(model: onnx.ModelProto, options: Any) -> Any:
    options.log_severity_level = 3  # errors only; warnings report optimizations that it could not do
    return require_runtime().InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def require_runtime() -> Any:
    """Return the module onnxruntime.

    Raises:
        ExecutorError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExecutorError(
            f"the onnxruntime executor cannot start ({error}); install it with: pip install 'twoscale[onnxruntime]'"
        ) from error
    return onnxruntime

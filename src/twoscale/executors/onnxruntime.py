"""The ONNX Runtime executor: runs the very graph that ``network.save`` writes.

It also shows the integers inside: layers that are asked for become extra outputs of the same graph, in one
session for each set of layers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ExecutorError
from twoscale.network.network import IntegerNetwork
from twoscale.network.onnx_file import to_model

__all__ = ["OnnxRuntimeExecutor"]

LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""Graph optimization levels, by ONNX Runtime's names."""


class OnnxRuntimeExecutor:
    """Runs a network in ONNX Runtime on the CPU.

    Args:
        network: what to run.
        threads: of ONNX Runtime's pool; by default one for each core this process may use.
        optimization: graph optimization level, one of ``LEVELS``; on the grid it cannot change an integer.

    Raises:
        ExecutorError: onnxruntime is not installed.
    """

    name = "onnxruntime"

    def __init__(self, network: IntegerNetwork, *, threads: int | None = None, optimization: str = "all") -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ExecutorError(
                f"the onnxruntime executor cannot start ({error}); install it with: pip install 'twoscale[onnxruntime]'"
            ) from error
        self.network = network
        self._runtime = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[optimization])
        if threads is not None:
            self._options.intra_op_num_threads = threads
        self._sessions: dict[frozenset[str], Any] = {}

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        wanted = frozenset((self.network.output,) if keep is None else keep)
        names = [layer.name for layer in self.network if layer.name in wanted]
        images = np.ascontiguousarray(images_nchw, dtype=np.float32)
        results = self._session(wanted).run([f"{name}/q" for name in names], {"input": images})
        return dict(zip(names, results, strict=True))

    def _session(self, wanted: frozenset[str]) -> Any:
        if wanted not in self._sessions:
            model = to_model(self.network)
            integers = {info.name: info for info in model.graph.value_info}
            model.graph.output.extend(integers[f"{name}/q"] for name in sorted(wanted))
            self._sessions[wanted] = self._runtime.InferenceSession(
                model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[wanted]

"""The LiteRT executor: runs the `.tflite` file that ``network.save`` writes, on its default path (XNNPACK)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import core_count
from twoscale._extras import requires_extras
from twoscale._formats.tflite import Written, write
from twoscale._ir.execution import check_images, layers_to_keep
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.vectorized import quantize_input

__all__ = ["KERNELS", "LiteRtExecutor"]

KERNELS = ("default", "reference")
"""LiteRT's default path, XNNPACK, and its reference kernels, which round twice: their integers may differ."""


class LiteRtExecutor:
    """Runs a network in LiteRT on the CPU. Layers whose integers are requested become outputs of the file.

    Args:
        network: what to run.
        threads: of LiteRT; by default one per core that this process may use.
        kernels: one of ``KERNELS``.

    Raises:
        ConfigurationError: a layer has no `.tflite` form with the same integers.
        MissingPackageError: ai-edge-litert is not installed.
    """

    name = "litert"

    @requires_extras("the litert executor")
    def __init__(self, network: IntegerNetwork, *, threads: int | None = None, kernels: str = "default") -> None:
        from ai_edge_litert import interpreter

        self.network = network
        types = interpreter.OpResolverType
        self._kernels = types.AUTO if kernels == "default" else types.BUILTIN_REF
        self._interpreter = interpreter.Interpreter
        self._threads = threads or core_count()
        self._sessions: dict[frozenset[str], tuple[Written, Any]] = {}
        write(network)  # refuses what it cannot run

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        wanted = layers_to_keep(self.network, keep)
        images = check_images(self.network, images_nchw)
        written, session = self._session([layer.name for layer in self.network if layer.name in wanted])
        spec = self.network.input.output
        entry = written.layers[self.network.input.name]
        integers = quantize_input(images, spec).astype(np.int16) - entry.offset
        integers = integers.transpose(0, *(axis + 1 for axis in entry.stored)).astype(np.int8)
        index = session.get_input_details()[0]["index"]
        if tuple(session.get_input_details()[0]["shape"]) != integers.shape:
            session.resize_tensor_input(index, integers.shape)
            session.allocate_tensors()
        session.set_tensor(index, integers)
        session.invoke()
        found = {}
        for name in wanted:
            placed = written.layers[name]
            values = placed.integers(session.get_tensor(placed.tensor))
            found[name] = np.ascontiguousarray(values.astype(self.network.spec(name).dtype))
        return found

    def _session(self, names: list[str]) -> tuple[Written, Any]:
        """Return the session with these layers as additional outputs, and keep it."""
        key = frozenset(names)
        if key not in self._sessions:
            written = write(self.network, outputs=names)
            session = self._interpreter(
                model_content=written.data,
                num_threads=self._threads,
                experimental_op_resolver_type=self._kernels,
            )
            session.allocate_tensors()
            self._sessions[key] = written, session
        return self._sessions[key]

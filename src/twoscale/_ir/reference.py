"""The NumPy reference executor. It computes every layer exactly, by its definition.

The other executors are compared with it. The arithmetic of each layer is the ``compute`` method of its class in
``twoscale._ir.operators``; tests compare it with twoscale._ir.arithmetic, the definition on Python integers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.execution import check_images, layers_to_keep
from twoscale._ir.interpreter import interpret

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["ReferenceExecutor"]


class ReferenceExecutor:
    """Runs a network in NumPy."""

    name = "reference"

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        wanted = layers_to_keep(self.network, keep)
        images = check_images(self.network, images_nchw)
        given = self.network.given(images)
        return interpret(
            self.network.layers,
            lambda layer, inputs: self.compute(layer, inputs if layer.inputs else [given[layer.name]]),
            wanted,
        )

    def compute(self, layer: n.Layer, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Compute one layer from its inputs."""
        specs = [self.network.spec(name) for name in layer.inputs]
        return layer.compute(specs, inputs).astype(layer.output.dtype, copy=False)

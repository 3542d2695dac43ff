"""The network's input: real images, and their integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from twoscale._ir.operators.base import Layer, Node, Shape, TensorSpec
from twoscale._ir.operators.operation import operation
from twoscale._ir.operators.vectorized import quantize_input

__all__ = ["InputNode", "QuantizeInput"]


@operation
class InputNode(Node):
    """The images."""


@operation
class QuantizeInput(Layer):
    """Real images to integers, equation (11)."""

    @property
    def arity(self) -> int:
        """None: its input is the images, not a layer."""
        return 0

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the images' shape, a field of the layer."""
        return self.output.shape

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Quantize float32 images."""
        return quantize_input(x[0], self.output)

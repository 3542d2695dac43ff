"""Functions of one value: clamps, and tables of any other function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.functions import Composition
from twoscale._ir.operators.base import Bounds, Layer, Node, Shape, TensorSpec
from twoscale._ir.operators.operation import operation
from twoscale.errors import QuantizationError

__all__ = ["Clamp", "ClampNode", "ElementwiseNode", "Table"]


@operation
class ClampNode(Node):
    """y = min(max(x, lo), hi): ReLU is (0, ∞), ReLU6 is (0, 6)."""

    moves_values: ClassVar[bool] = True

    bounds: Bounds


@operation
class ElementwiseNode(Node):
    """A function of one value, by its name in twoscale._ir.functions or composed of several."""

    function: str | Composition
    parameters: tuple[float, ...] = ()


@operation
class Clamp(Layer):
    """Integers saturated to the output's [lo, hi], equation (9): a ReLU that could not be merged into its producer."""

    moves_values: ClassVar[bool] = True
    narrows: ClassVar[bool] = True

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's shape."""
        return inputs[0].shape

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Clamp the integers."""
        saturated: NDArray[Any] = np.clip(x[0], self.output.lo, self.output.hi)
        return saturated


@operation
class Table(Layer):
    """Any function of one 8-bit integer, equation (10): q_y = table[q_x − type minimum], 256 entries."""

    table: NDArray[np.int16]

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the input's shape."""
        return inputs[0].shape

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check that the table has 256 entries within the output's range."""
        table, out = self.table, self.output
        if table.shape != (256,) or table.dtype != np.int16 or table.min() < out.lo or table.max() > out.hi:
            raise QuantizationError(
                f"layer {self.name}: expected a table of 256 int16 in [{out.lo}, {out.hi}], got {table.dtype} "
                f"{table.shape}" + (f" in [{table.min()}, {table.max()}]" if table.size else "")
            )

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Look up every integer."""
        lowest = int(np.iinfo(inputs[0].dtype).min)
        return self.table[x[0].astype(np.int64) - lowest]

"""The layers of an integer network: data only, with the bounds of their accumulators.

What a layer computes is equation (n) of docs/arithmetic.md; how, is each executor's business. Shapes leave out
the batch; convolution weights are O,I/groups,H,W, linear ones O,I; padding is (top, left, bottom, right) and
holds the input's zero point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.arithmetic import MULTIPLIER_LIMIT, REQUANTIZE_SHIFT

__all__ = [
    "Accumulating",
    "Add",
    "AveragePool2d",
    "Clamp",
    "Concat",
    "Conv2d",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Mul",
    "Multiplier",
    "Pad",
    "Permute",
    "QuantizeInput",
    "Requantize",
    "Reshape",
    "Slice",
    "Table",
    "TensorSpec",
]

Padding = tuple[int, int, int, int]


@dataclass(frozen=True)
class TensorSpec:
    """An integer tensor: r = scale · (q − zero_point), q in [lo, hi], equation (1).

    ``dtype`` is "uint8" or "int8" for activations and "int32" for accumulators that leave the network.
    ``lo`` and ``hi`` are the bounds after a ReLU or ReLU6, so they may be narrower than the type.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int = 0
    lo: int = -(2**31)
    hi: int = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Multiplier:
    """Real factors of a requantization: one, or one per output channel.

    On the grid they are ``integers / 2**shift`` with 0 < integers < 2**24. Off the grid (``shift`` is None)
    they are the float32 numbers ``values``, and executors may differ in the last bit of a rounding.
    """

    values: NDArray[np.float32]
    shift: int | None = REQUANTIZE_SHIFT

    @staticmethod
    def on_grid(integers: NDArray[np.int64], shift: int = REQUANTIZE_SHIFT) -> Multiplier:
        """Make multipliers of integers / 2**shift; the integers must be in (0, 2**24)."""
        integers = np.atleast_1d(np.asarray(integers, np.int64))
        if integers.min() <= 0 or integers.max() >= MULTIPLIER_LIMIT:
            raise ValueError(f"multipliers must be in (0, 2**24), got {integers.min()}..{integers.max()}")
        return Multiplier(np.ldexp(integers.astype(np.float32), -shift), shift)

    @property
    def integers(self) -> NDArray[np.int64]:
        """The whole numbers of 2**-shift; only on the grid."""
        assert self.shift is not None
        return np.ldexp(self.values.astype(np.float64), self.shift).astype(np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Multiplier) and self.shift == other.shift and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One operation on integer tensors; its output has the layer's name."""

    name: str
    inputs: tuple[str, ...]
    output: TensorSpec

    @property
    def op(self) -> str:
        """Name of the operation."""
        return type(self).__name__


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizeInput(Layer):
    """Real images to integers, equation (11)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Requantize(Layer):
    """A layer whose accumulators become 8-bit integers by equation (3), unless ``multiplier`` is None."""

    multiplier: Multiplier | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Accumulating(Requantize):
    """A layer with weights: int32 accumulators by equation (2)."""

    weight: NDArray[np.int8]
    """Output channel first."""
    bias_o: NDArray[np.int32]

    def partial_bound(self, x: TensorSpec) -> NDArray[np.int64]:
        """Return Σ|q_w|·max(z − lo, hi − z) + |b| of each output channel, (O,), equation (13).

        It bounds every partial sum too, in any order of summation.
        """
        weight = np.abs(self.weight.astype(np.int64)).reshape(len(self.bias_o), -1).sum(1)
        bound: NDArray[np.int64] = weight * max(x.zero_point - x.lo, x.hi - x.zero_point)
        return bound + np.abs(self.bias_o.astype(np.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(Accumulating):
    """Convolution, weights O,I/groups,H,W.

    A second input, if there is one, joins before requantization by equation (7b).
    """

    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual_multiplier: Multiplier | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Accumulating):
    """Fully connected layer, weights O,I."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Layer):
    """Sum of two tensors, equation (7)."""

    multipliers: tuple[Multiplier, Multiplier]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mul(Requantize):
    """Product of two tensors, dimensions of size 1 broadcast: (3) with acc = (q_a − z_a)·(q_b − z_b)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool2d(Requantize):
    """Mean over windows: (3) with acc = Σ (q − z), the divisor being part of the multiplier, equation (8)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool2d(Layer):
    """Maximum over windows; padding never wins, equation (9)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Layer):
    """Concatenation along ``axis``; each operand is requantized by (3), or copied where its multiplier is None."""

    axis: int
    multipliers: tuple[Multiplier | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Layer):
    """The same integers under another shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Permute(Layer):
    """Dimensions in another order; ``axes`` leave out the batch."""

    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice(Layer):
    """q[..., start:stop:step, ...] along one dimension."""

    axis: int
    start: int
    stop: int
    step: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Pad(Layer):
    """Zero points around: (before, after) for each dimension."""

    widths: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clamp(Layer):
    """Integers saturated to the output's [lo, hi]: a ReLU that no producer could take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table(Layer):
    """Any function of one 8-bit integer, equation (10): q_y = table[q_x − type minimum], 256 entries."""

    table: NDArray[np.int16]

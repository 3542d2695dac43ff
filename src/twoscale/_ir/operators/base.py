"""Shared by all operators: nodes, layers, the quantization of a tensor, and the multipliers of requantization."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twoscale import _delegates as delegates
from twoscale._ir.arithmetic import MULTIPLIER_LIMIT, REQUANTIZE_SHIFT
from twoscale._ir.operators.operation import Operation, operation
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = [
    "UNBOUNDED",
    "Bounded",
    "Bounds",
    "FixedPoint",
    "Float32",
    "Layer",
    "Multiplier",
    "Node",
    "Padding",
    "Requantize",
    "Shape",
    "TensorSpec",
    "WindowQuotient",
    "window_shape",
]

Shape = tuple[int, ...]
Padding = tuple[int, int, int, int]
"""(top, left, bottom, right)."""
Float32 = NDArray[np.float32]
Bounds = tuple[float, float]

UNBOUNDED: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True)
class TensorSpec:
    """An integer tensor: r = scale · (q − zero_point), q in [lo, hi], equation (1).

    ``dtype`` is "uint8" or "int8" for activations and "int32" for accumulators that are the network's output.
    ``lo`` and ``hi`` are the bounds after a ReLU or ReLU6, so they may be narrower than the type.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int = 0
    lo: int = -(2**31)
    hi: int = 2**31 - 1

    @property
    def reach(self) -> int:
        """The largest |q − zero_point|."""
        return max(self.hi - self.zero_point, self.zero_point - self.lo)


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
        """The numerators over 2**shift; only on the grid."""
        assert self.shift is not None
        return np.ldexp(self.values.astype(np.float64), self.shift).astype(np.int64)

    @property
    def is_free(self) -> bool:
        """Whether it is a float32 number, with which executors may differ in the last bit of a rounding."""
        return self.shift is None

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The numbers that decide the integers."""
        return (self.values,)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Multiplier)
            and type(self) is type(other)
            and self.shift == other.shift
            and all(np.array_equal(mine, theirs) for mine, theirs in zip(self.arrays, other.arrays, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class FixedPoint(Multiplier):
    """TensorFlow Lite's factors: mantissa · 2**(exponent − 31), applied in two roundings, equation (18).

    ``values`` are the same factors as float32, for what only needs their size.
    """

    mantissas: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Positive; one, or one per output channel."""
    exponents: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    """In [−31, 30], as many."""

    @staticmethod
    def of(mantissas: Any, exponents: Any) -> FixedPoint:
        """Make multipliers."""
        m, e = np.atleast_1d(np.asarray(mantissas, np.int32)), np.atleast_1d(np.asarray(exponents, np.int8))
        return FixedPoint(np.ldexp(m.astype(np.float64), e.astype(np.int32) - 31).astype(np.float32), None, m, e)

    @property
    def is_free(self) -> bool:
        """False: integers decide the result."""
        return False

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Mantissas and exponents."""
        return self.mantissas, self.exponents


@dataclass(frozen=True, eq=False)
class WindowQuotient(Multiplier):
    """One over the number of values in a window, as TensorFlow Lite's AVERAGE_POOL_2D divides, equation (20)."""

    @staticmethod
    def of(count: int) -> WindowQuotient:
        """Make the factor of whole windows of ``count`` values."""
        return WindowQuotient(np.array([1 / count], np.float32), None)

    @property
    def is_free(self) -> bool:
        """False: integers decide the result."""
        return False


@operation
class Node(Operation):
    """One operation of a float graph; its output tensor has the node's name."""

    moves_values: ClassVar[bool] = False
    """Whether the output holds only values of the input (and zeros), so that both share scale and integers."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    """Of the output, without the batch."""
    source: str = ""
    """The user's line, as "file:line: code"."""

    @property
    def op(self) -> str:
        """Name of the operation."""
        return type(self).__name__.removesuffix("Node")


@operation
class Bounded(Node):
    """A node into which a following clamp (ReLU, ReLU6) can be merged."""

    bounds: Bounds = UNBOUNDED
    """The output is clamped to [lo, hi] (real units)."""


@operation
class Layer(Operation, ABC):
    """One operation on integer tensors; its output has the layer's name.

    ``inputs`` in the methods below are the specs of the tensors that the layer reads.
    """

    moves_values: ClassVar[bool] = False
    """Whether the output holds only integers of the input (and zero points), equation (9)."""
    narrows: ClassVar[bool] = False
    """Whether the output's [lo, hi] may exclude some of the integers copied into it."""
    reads_accumulators: ClassVar[bool] = False
    """Whether int32 inputs are allowed."""

    name: str
    inputs: tuple[str, ...]
    output: TensorSpec

    @property
    def op(self) -> str:
        """Name of the operation."""
        return type(self).__name__

    def of(self, network: IntegerNetwork) -> Layer:
        """Return the layer as one of ``network``: it then knows its input's scale and can be run.

        A layer that is already another network's is copied.
        """
        owner = vars(self).get("_owner")
        mine = self if owner is None or owner is network else copy.copy(self)
        object.__setattr__(mine, "_owner", network)
        return mine

    @property
    def owner(self) -> IntegerNetwork:
        """The network that the layer was taken from.

        Raises:
            ConfigurationError: none.
        """
        owner: IntegerNetwork | None = vars(self).get("_owner")
        if owner is None:
            raise ConfigurationError(
                f"layer {self.name} belongs to no network; take it from one: network['{self.name}']"
            )
        return owner

    def integers(self, images_nchw: Any) -> NDArray[Any]:
        """Return the layer's output for float images, (N, ...), as integers in the type of its spec.

        Raises:
            ConfigurationError: images of another shape, or a layer that was not taken from a network.
        """
        return self.owner.integers(self.name, images_nchw)

    def histogram(self, images_nchw: Any = None) -> Any:
        """Return statistics and histogram of the weight integers, or with images of the output's; notebooks show it.

        Raises:
            ConfigurationError: no images, where the layer has no weights; or as for ``integers``.
        """
        values = getattr(self, "weight", None) if images_nchw is None else self.integers(images_nchw)
        if values is None:
            raise ConfigurationError(f"layer {self.name} has no weights; pass images for a histogram of its output")
        return delegates.call("integer_summary", self.name, values, is_weight=images_nchw is None)

    def _repr_html_(self) -> str:
        html: str = delegates.call("layer_html", self)
        return html

    @property
    def arity(self) -> int:
        """Number of tensors that the layer reads."""
        return 1

    @property
    def accumulates(self) -> bool:
        """Whether the output is int32 accumulators."""
        return False

    @property
    def multiplier_shift(self) -> int:
        """Multipliers on the grid count 2**-multiplier_shift."""
        return REQUANTIZE_SHIFT

    def channels_of(self, multiplier: Multiplier) -> int:
        """Return the number of values that one of the layer's multipliers may have besides a single one."""
        return 1

    def accumulator_reach(self, inputs: Sequence[TensorSpec]) -> NDArray[np.int64]:
        """Return a bound on what TensorFlow Lite's multipliers are applied to, one or one per channel: (18), (19)."""
        return np.array([1 << 29], np.int64)

    @abstractmethod
    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return the output's shape.

        Raises:
            ValueError: the layer does not fit these inputs, with the reason. IndexError and TypeError mean the same.
        """

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check weights, tables and bounds. The number of inputs is checked already.

        Raises:
            QuantizationError: a condition does not hold; the message names the layer.
        """
        return

    def copied(self, inputs: Sequence[TensorSpec]) -> Sequence[TensorSpec]:
        """Return the inputs whose integers are in the output unchanged. They must have its scale and zero point."""
        return inputs if self.moves_values else ()

    def sum_bounds(self, inputs: Sequence[TensorSpec]) -> tuple[int, int] | None:
        """Return the largest products of an addition on the grid, in 2**-14ths, for (7c); None for other layers."""
        return None

    @abstractmethod
    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Compute a batch exactly, in NumPy. The result may have any type that holds the integers.

        Args:
            inputs: the quantization of the arrays.
            x: the layer's inputs, (N, ...) each.
        """


@operation
class Requantize(Layer):
    """A layer whose accumulators become 8-bit integers by equation (3), unless ``multiplier`` is None."""

    multiplier: Multiplier | None

    @property
    def accumulates(self) -> bool:
        """Whether the output is int32 accumulators."""
        return self.multiplier is None


def window_shape(
    x: Shape,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:
    """Return how many windows fit into (C, H, W), down and across.

    Raises:
        ValueError: another number of dimensions, or sizes that are not positive.
    """
    _, *size = x
    if len(size) != 2 or min(*stride, *dilation, *kernel) < 1 or min(padding) < 0:
        raise ValueError("expected (C, H, W), positive strides, kernels and dilations, padding of 0 or more")
    rows, columns = (
        (size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return rows, columns

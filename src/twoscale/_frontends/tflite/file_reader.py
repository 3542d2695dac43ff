"""What the readers of integer and of float files share: the current operator's tensors, constants and options.

A tensor (batch, H, W, C) of the file is (C, H, W) in networks and graphs here; others keep their order, without the
batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from twoscale._frontends.tflite.flatbuffer import EMPTY, Table
from twoscale._frontends.tflite.model import Model, Operator, Tensor
from twoscale._ir.operators.base import Padding
from twoscale._text import printable
from twoscale.errors import NetworkFileError

__all__ = ["Cut", "FileReader", "layer_axis", "layer_shape", "mixes"]


def layer_axis(axis: int, rank: int) -> int:
    """Return the layer's dimension for one of the file, both without the batch."""
    return (1, 2, 0)[axis] if rank == 3 else axis


def layer_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of the file, with the batch, as the layer has it."""
    return (shape[3], shape[1], shape[2]) if len(shape) == 4 else tuple(shape[1:])


def mixes(shape: tuple[int, ...]) -> bool:
    """Whether the values of (C, H, W) have another order as (H, W, C)."""
    return shape[0] > 1 and shape[1] * shape[2] > 1


@dataclass(frozen=True)
class Cut:
    """Part of a tensor along one dimension."""

    axis: int
    """Of the layer's output."""
    start: int
    stop: int
    step: int


class FileReader(ABC):
    """Gives access to one operator after another.

    Args:
        path: of the file, for messages.
        model: what is in it.

    Attributes:
        operator: the current one.
    """

    def __init__(self, path: Path, model: Model) -> None:
        self.path = path
        self.model = model
        self.operator = Operator(-1, "", (), (), None)

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error with the reason why the operator cannot be read."""
        what = f"operator {self.operator.number} ({self.operator.name}): " if self.operator.name else ""
        raise NetworkFileError(f"{self.path}: {what}{printable(reason, 300)}")

    # ------------------------------------------------------------ tensors

    def tensor(self, index: int) -> Tensor:
        """Return an input of the operator.

        Raises:
            NetworkFileError: it is left out.
        """
        if index >= len(self.operator.inputs) or self.operator.inputs[index] < 0:
            self.refuse(f"its input {index} is missing")
        return self.model.tensors[self.operator.inputs[index]]

    def has(self, index: int) -> bool:
        """Whether the operator has an input."""
        return index < len(self.operator.inputs) and self.operator.inputs[index] >= 0

    @property
    def result(self) -> Tensor:
        """The operator's only output."""
        if len(self.operator.outputs) != 1 or self.operator.outputs[0] < 0:
            self.refuse(f"it has {len(self.operator.outputs)} outputs; expected one")
        return self.model.tensors[self.operator.outputs[0]]

    def constant(self, index: int) -> NDArray[Any]:
        """Return the values of an input that must be a constant."""
        tensor = self.tensor(index)
        if not tensor.is_constant:
            self.refuse(f"its input {index} depends on the image; expected a constant")
        return self.model.array(tensor)

    def axes(self, index: int, rank: int) -> list[int]:
        """Return the dimensions that a constant input names, in order, without the batch.

        Raises:
            NetworkFileError: one is the batch, or there is none such.
        """
        given = sorted({int(axis) + (rank if axis < 0 else 0) for axis in self.constant(index).ravel()[:8]})
        if not given or given[0] < 1 or given[-1] >= rank:
            self.refuse(f"it is along the dimensions {given} of {rank}; expected some of 1 to {rank - 1}")
        return [axis - 1 for axis in given]

    @abstractmethod
    def depends_on_images(self, index: int) -> bool:
        """Whether a tensor was computed from the images."""

    def only_shapes(self, operator: Operator) -> bool:
        """Whether an operator computes shapes, which the file has: integers that do not depend on the images."""
        kinds = {self.model.tensors[index].dtype for index in operator.outputs if index >= 0}
        return kinds <= {"int32", "int64"} and not any(self.depends_on_images(index) for index in operator.inputs)

    # ------------------------------------------------------------ options

    @property
    def options(self) -> Table:
        """The operator's options."""
        return self.operator.options or EMPTY

    def factor(self, field: int, kind: str = "i", default: int = 0, least: int = 1, most: int = 1 << 16) -> int:
        """Return a number of the options within bounds."""
        value = self.options.number(field, kind, default)
        if not least <= value <= most:
            self.refuse(f"its option {field} is {value}; expected {least} to {most}")
        return value

    def padding(
        self, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)
    ) -> Padding:
        """Return the padding of windows over an image of ``size`` (H, W), which the options' first field tells."""
        kind = self.options.number(0, "b")
        if kind not in (0, 1):
            self.refuse(f"its padding has the number {kind}; expected SAME or VALID")
        if kind == 1:
            return 0, 0, 0, 0
        (top, bottom), (left, right) = (_same_padding(size[i], kernel[i], stride[i], dilation[i]) for i in (0, 1))
        return top, left, bottom, right

    def pool_window(self, size: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int], Padding]:
        """Return kernel, stride and padding of a pool over an image of ``size`` (H, W)."""
        kernel, stride = (self.factor(4), self.factor(3)), (self.factor(2), self.factor(1))
        return kernel, stride, self.padding(size, kernel, stride)

    def strides_and_dilations(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the stride and the dilation of a convolution, (height, width) each."""
        wide, high = (5, 6) if self.is_depthwise else (4, 5)
        return (self.factor(2), self.factor(1)), (self.factor(high, default=1), self.factor(wide, default=1))

    @property
    def is_depthwise(self) -> bool:
        """Whether the operator is a depthwise convolution."""
        return self.operator.name == "DEPTHWISE_CONV_2D"

    def oihw(self, weight: NDArray[Any], channels: int) -> tuple[NDArray[Any], int]:
        """Return a convolution's weights in the order O, I/groups, H, W, and its groups, for an input's channels."""
        if weight.ndim != 4 or (self.is_depthwise and (len(weight) != 1 or weight.shape[3] % channels)):
            self.refuse(f"it has weights {weight.shape} for {channels} channels")
        if self.is_depthwise:
            return weight.transpose(3, 0, 1, 2), channels
        if channels % weight.shape[3]:
            self.refuse(f"it has weights for {weight.shape[3]} channels, and its input has {channels}")
        return weight.transpose(0, 3, 1, 2), channels // weight.shape[3]

    # ------------------------------------------------------------ moving

    def permutation(self, rank: int) -> tuple[int, ...]:
        """Return the order of the dimensions of a layer by which TRANSPOSE permutes a tensor of ``rank``."""
        order = [int(axis) for axis in self.constant(1).ravel()]
        if sorted(order) != list(range(rank)) or order[0] != 0:
            self.refuse(f"it has the order {order[:9]}; expected the batch first")
        axes = [0] * (rank - 1)
        for place, source in enumerate(order[1:]):
            axes[layer_axis(place, rank - 1)] = layer_axis(source - 1, rank - 1)
        return tuple(axes)

    def widths(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Return (before, after) of each dimension of a layer by which PAD pads a tensor of ``rank``."""
        widths = self.constant(1)
        if widths.shape != (rank, 2) or widths.min() < 0 or widths.max() > 1 << 16 or widths[0].any():
            self.refuse(
                f"it has the widths {widths.ravel()[:8].tolist()}; expected two for each dimension, and no batch"
            )
        ordered = [(0, 0)] * (rank - 1)
        for place in range(rank - 1):
            before, after = widths[place + 1]
            ordered[layer_axis(place, rank - 1)] = (int(before), int(after))
        return tuple(ordered)

    def cuts(self) -> Iterator[Cut]:
        """Yield the parts that SLICE and STRIDED_SLICE take, along dimensions of which they leave something out."""
        shape = self.tensor(0).shape
        for axis, (start, stop, step) in enumerate(self._spans(shape)):
            if axis == 0:
                if (start, step) != (0, 1) or stop < 1:
                    self.refuse("it takes part of the batch")
            elif not 0 <= start < stop <= shape[axis]:
                self.refuse(f"it takes {start} to {stop} of {shape[axis]} values")
            elif (start, stop, step) != (0, shape[axis], 1):
                yield Cut(layer_axis(axis - 1, len(shape) - 1), start, stop, step)

    def _spans(self, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
        if self.operator.name == "SLICE":
            begin, size = (self.constant(index).ravel().tolist() for index in (1, 2))
            if not len(begin) == len(size) == len(shape):
                self.refuse("it has another number of starts than dimensions")
            return [
                (start, whole if count == -1 else start + count, 1)
                for start, count, whole in zip(begin, size, shape, strict=True)
            ]
        begin, end, step = (self.constant(index).ravel().tolist() for index in (1, 2, 3))
        open_begin, open_end, *others = (self.options.number(field, "i") for field in range(5))
        if any(others) or not len(begin) == len(end) == len(step) <= len(shape) or min(step, default=0) < 1:
            self.refuse("it has masks or steps that are not supported")
        return [
            slice(None if open_begin >> axis & 1 else first, None if open_end >> axis & 1 else last, by).indices(
                shape[axis]
            )
            for axis, (first, last, by) in enumerate(zip(begin, end, step, strict=True))
        ]


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding of one dimension."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2

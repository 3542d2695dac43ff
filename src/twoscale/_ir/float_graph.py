"""FloatGraph: a captured classifier as typed nodes with NumPy weights, without torch.

Shapes leave out the batch dimension: an image tensor is (C, H, W), a vector is (features,). Weights are
float32, convolutions O,I/groups,H,W and linear layers O,I. Padding is (top, left, bottom, right).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Add",
    "AveragePool2d",
    "ChannelAffine",
    "Clamp",
    "Concat",
    "Conv2d",
    "Elementwise",
    "FloatGraph",
    "Input",
    "Linear",
    "MaxPool2d",
    "Mul",
    "Node",
    "Pad",
    "Permute",
    "Reshape",
    "Slice",
    "WindowAverage2d",
    "window_weights",
]

Float32 = NDArray[np.float32]
Padding = tuple[int, int, int, int]
Bounds = tuple[float, float]
Windows = tuple[tuple[int, int, int], ...]
"""(start, stop, divisor) of each output position along one dimension."""

UNBOUNDED: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One operation; its output tensor has the node's name."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    """Of the output, without the batch."""
    source: str = ""
    """The user's line, as "file:line: code"."""

    @property
    def op(self) -> str:
        """Name of the operation."""
        return type(self).__name__


@dataclass(frozen=True, kw_only=True, eq=False)
class Input(Node):
    """The images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounded(Node):
    """A node that can take a following clamp (ReLU, ReLU6) into itself."""

    bounds: Bounds = UNBOUNDED
    """The output is clamped to [lo, hi] (real units)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(Bounded):
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    A second input, of the output's shape, is added before the bounds apply.
    """

    weight_oihw: Float32
    bias_o: Float32
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Bounded):
    """y = x·Wᵀ + b over the last dimension."""

    weight_oi: Float32
    bias_o: Float32


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelAffine(Bounded):
    """y = x·scale + shift per channel: a batch norm with its statistics fixed."""

    scale_c: Float32
    shift_c: Float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Clamp(Node):
    """y = min(max(x, lo), hi): ReLU is (0, ∞), ReLU6 is (0, 6)."""

    bounds: Bounds


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Bounded):
    """Sum of two tensors of the same shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mul(Bounded):
    """Product of two tensors; dimensions of size 1 broadcast."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Node):
    """Concatenation along one dimension of ``shape`` (0 is the channel)."""

    axis: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool2d(Node):
    """Maximum over windows; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool2d(Bounded):
    """Mean over windows; zero padding counts as values."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowAverage2d(Node):
    """Mean over windows that differ from place to place; ``fold`` leaves none.

    y[i, j] = Σ x[h, w] / (d_i · d_j) over h in [start_i, stop_i) and w in [start_j, stop_j): adaptive pools whose sizes
    do not divide, pools that do not count padding, partial windows.
    """

    rows: Windows
    columns: Windows


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Node):
    """The same values in C order under another shape (flatten, view, unsqueeze, squeeze)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Permute(Node):
    """Dimensions in another order; ``axes`` leave out the batch."""

    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice(Node):
    """x[..., start:stop:step, ...] along one dimension of the input (0 is the channel)."""

    axis: int
    start: int
    stop: int
    step: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Pad(Node):
    """One value around: (before, after) for each dimension."""

    widths: tuple[tuple[int, int], ...]
    value: float = 0.0
    """0, or −∞ before a max pool, which takes it into itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Elementwise(Node):
    """A function of one value, by name (see graph/functions.py)."""

    function: str
    parameters: tuple[float, ...] = ()


def window_weights(windows: Windows, size: int) -> NDArray[np.float64]:
    """Return the weights of windows along a dimension of ``size`` inputs as a matrix (outputs, inputs)."""
    weights = np.zeros((len(windows), size))
    for row, (start, stop, divisor) in zip(weights, windows, strict=True):
        row[start:stop] = 1.0 / divisor
    return weights


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Nodes in an order in which every node comes after its inputs; the first is the Input."""

    name: str
    nodes: tuple[Node, ...]
    output: str
    """Name of the node that gives the logits, of shape (classes,)."""

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @property
    def input(self) -> Node:
        """The node of the images."""
        return self.nodes[0]

    @cached_property
    def users(self) -> dict[str, tuple[Node, ...]]:
        """Tensor name to the nodes that read it, once for each time they read it."""
        users: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                users[name].append(node)
        return {name: tuple(readers) for name, readers in users.items()}

    def replaced(self, changes: dict[str, Node]) -> FloatGraph:
        """Return the graph with the named nodes replaced by others of the same name."""
        return dataclasses.replace(self, nodes=tuple(changes.get(node.name, node) for node in self.nodes))

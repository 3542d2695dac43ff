"""FloatGraph: a captured network as typed nodes with NumPy weights, without torch.

The nodes are collected from ``twoscale._ir.operators``; the module is imported as ``g``. Shapes leave out the batch
dimension: an image tensor is (C, H, W), a vector is (features,). Weights are float32, convolutions O,I/groups,H,W and
linear layers O,I. Padding is (top, left, bottom, right).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from twoscale._ir.input_layout import InputLayout
from twoscale._ir.operators.accumulating import ChannelAffineNode as ChannelAffine
from twoscale._ir.operators.accumulating import Conv2dNode as Conv2d
from twoscale._ir.operators.accumulating import LinearNode as Linear
from twoscale._ir.operators.attention import MatMulNode as MatMul
from twoscale._ir.operators.attention import SoftmaxMatMulNode as SoftmaxMatMul
from twoscale._ir.operators.attention import SoftmaxNode as Softmax
from twoscale._ir.operators.base import UNBOUNDED, Bounded, Bounds, Node, Padding
from twoscale._ir.operators.elementwise import ClampNode as Clamp
from twoscale._ir.operators.elementwise import ElementwiseNode as Elementwise
from twoscale._ir.operators.moving import PadNode as Pad
from twoscale._ir.operators.moving import PermuteNode as Permute
from twoscale._ir.operators.moving import ReshapeNode as Reshape
from twoscale._ir.operators.moving import SliceNode as Slice
from twoscale._ir.operators.normalizing import NormalizeNode as Normalize
from twoscale._ir.operators.pooling import AveragePool2dNode as AveragePool2d
from twoscale._ir.operators.pooling import MaxPool2dNode as MaxPool2d
from twoscale._ir.operators.pooling import WindowAverage2dNode as WindowAverage2d
from twoscale._ir.operators.pooling import Windows, window_weights
from twoscale._ir.operators.products import MulNode as Mul
from twoscale._ir.operators.quantizing import InputNode as Input
from twoscale._ir.operators.sums import AddNode as Add
from twoscale._ir.operators.sums import ConcatNode as Concat

__all__ = [
    "NODES",
    "UNBOUNDED",
    "Add",
    "AveragePool2d",
    "Bounded",
    "Bounds",
    "ChannelAffine",
    "Clamp",
    "Concat",
    "Conv2d",
    "Elementwise",
    "FloatGraph",
    "Input",
    "Linear",
    "MatMul",
    "MaxPool2d",
    "Mul",
    "Node",
    "Normalize",
    "Pad",
    "Padding",
    "Permute",
    "Reshape",
    "Slice",
    "Softmax",
    "SoftmaxMatMul",
    "WindowAverage2d",
    "Windows",
    "window_weights",
]

NODES: tuple[type[Node], ...] = (
    Input,
    Conv2d,
    Linear,
    ChannelAffine,
    Clamp,
    Add,
    Mul,
    Concat,
    MaxPool2d,
    AveragePool2d,
    WindowAverage2d,
    Reshape,
    Permute,
    Slice,
    Pad,
    Elementwise,
    MatMul,
    Softmax,
    SoftmaxMatMul,
    Normalize,
)
"""All kinds of nodes."""


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Nodes in an order in which every node comes after its inputs; the first are the network's inputs."""

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    """Names of the nodes whose values the network returns, of any shape: one for most networks."""
    branch_factors: Mapping[str, float] = field(default_factory=dict)
    """Concatenated tensors that were divided by a factor, which the weights that read them make up for."""

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @property
    def output(self) -> str:
        """Name of the first output's node."""
        return self.outputs[0]

    @property
    def input(self) -> Node:
        """The node of the images, the first input."""
        return self.nodes[0]

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The nodes of the network's inputs, in the order in which the network takes them: one for most networks."""
        return tuple(node for node in self.nodes if isinstance(node, Input))

    @cached_property
    def input_layout(self) -> InputLayout:
        """How a batch of all inputs is one array."""
        return InputLayout(tuple(node.shape for node in self.inputs))

    def given(self, batch: Any) -> dict[str, Any]:
        """Return the inputs in a batch by their names; the batch is an array or tensor as of ``input_layout``."""
        return dict(zip((x.name for x in self.inputs), self.input_layout.split(batch), strict=True))

    @cached_property
    def users(self) -> dict[str, tuple[Node, ...]]:
        """From the name of a tensor to the nodes that read it, once for each time they read it."""
        users: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                users[name].append(node)
        return {name: tuple(readers) for name, readers in users.items()}

    def replaced(self, changes: dict[str, Node]) -> FloatGraph:
        """Return the graph with the named nodes replaced by others of the same name."""
        return dataclasses.replace(self, nodes=tuple(changes.get(node.name, node) for node in self.nodes))

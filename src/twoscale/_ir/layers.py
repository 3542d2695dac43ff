"""The layers of an integer network, collected from ``twoscale._ir.operators``; imported as ``n``.

Shapes leave out the batch; convolution weights are O,I/groups,H,W, linear ones O,I; padding is (top, left, bottom,
right) and holds the input's zero point.
"""

from __future__ import annotations

from twoscale._ir.operators.accumulating import Accumulating, Conv2d, Linear
from twoscale._ir.operators.attention import FixedPointSoftmax, MatMul, Softmax, SoftmaxMatMul
from twoscale._ir.operators.base import (
    FixedPoint,
    Layer,
    Multiplier,
    Padding,
    Requantize,
    TensorSpec,
    WindowQuotient,
)
from twoscale._ir.operators.elementwise import Clamp, Table
from twoscale._ir.operators.moving import Pad, Permute, Reshape, Slice
from twoscale._ir.operators.normalizing import Normalize
from twoscale._ir.operators.pooling import AveragePool2d, MaxPool2d
from twoscale._ir.operators.products import Mul
from twoscale._ir.operators.quantizing import QuantizeInput
from twoscale._ir.operators.sums import Add, Concat

__all__ = [
    "LAYERS",
    "Accumulating",
    "Add",
    "AveragePool2d",
    "Clamp",
    "Concat",
    "Conv2d",
    "FixedPoint",
    "FixedPointSoftmax",
    "Layer",
    "Linear",
    "MatMul",
    "MaxPool2d",
    "Mul",
    "Multiplier",
    "Normalize",
    "Pad",
    "Padding",
    "Permute",
    "QuantizeInput",
    "Requantize",
    "Reshape",
    "Slice",
    "Softmax",
    "SoftmaxMatMul",
    "Table",
    "TensorSpec",
    "WindowQuotient",
]

LAYERS: tuple[type[Layer], ...] = (
    QuantizeInput,
    Conv2d,
    Linear,
    Add,
    Mul,
    AveragePool2d,
    MaxPool2d,
    Concat,
    Reshape,
    Permute,
    Slice,
    Pad,
    Clamp,
    Table,
    MatMul,
    Softmax,
    SoftmaxMatMul,
    Normalize,
    FixedPointSoftmax,
)
"""All kinds of layers."""

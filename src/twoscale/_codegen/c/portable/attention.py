"""Calls of the kernels of attention and norms, and their parameters, from layers and their tensors in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from twoscale._codegen.c.common.calls import Call, Constant, Operand, Params
from twoscale._codegen.c.common.program import Constants
from twoscale._codegen.c.common.storage import memory_axes, memory_steps
from twoscale._codegen.c.common.tensors import Tensor
from twoscale._codegen.c.portable import kernels as k
from twoscale._codegen.c.portable.parameters import OfOne, OfTwo, Requantization
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import NORM_BITS, REQUANTIZE_SHIFT

__all__ = [
    "MatMul",
    "MatMulParams",
    "Normalize",
    "NormalizeParams",
    "Softmax",
    "SoftmaxFixed",
    "SoftmaxFixedParams",
    "SoftmaxMatMul",
    "SoftmaxMatMulParams",
    "SoftmaxParams",
    "matmul_call",
    "normalize_call",
    "softmax_call",
    "softmax_fixed_call",
    "softmax_matmul_call",
]

_LOOPS = 3


@dataclass(frozen=True)
class MatMulParams(Params):
    """Parameters of products of matrices."""

    struct: ClassVar = "matmul_params"
    matrices: int
    rows: int
    inner: int
    columns: int
    a_step: tuple[int, ...]
    b_step: tuple[int, ...]
    y_step: tuple[int, ...]
    a_zero: int
    b_zero: int
    to: Requantization


class MatMul(OfTwo[MatMulParams]):
    """Products of matrices of activations."""

    kernel: ClassVar = k.MATMUL


@dataclass(frozen=True)
class SoftmaxParams(Params):
    """Parameters of a softmax."""

    struct: ClassVar = "softmax_params"
    outer: int
    count: int
    inner: int
    table: Constant
    shift: int
    zero: int
    lo: int
    hi: int


class Softmax(OfOne[SoftmaxParams]):
    """A softmax along one dimension."""

    kernel: ClassVar = k.SOFTMAX


@dataclass(frozen=True)
class SoftmaxFixedParams(Params):
    """Parameters of a softmax in TensorFlow Lite's arithmetic."""

    struct: ClassVar = "softmax_fixed_params"
    outer: int
    count: int
    inner: int
    table: Constant


class SoftmaxFixed(OfOne[SoftmaxFixedParams]):
    """A softmax along one dimension in TensorFlow Lite's arithmetic."""

    kernel: ClassVar = k.SOFTMAX_FIXED


@dataclass(frozen=True)
class SoftmaxMatMulParams(Params):
    """Parameters of means weighted by a softmax."""

    struct: ClassVar = "softmax_matmul_params"
    matrices: int
    rows: int
    inner: int
    columns: int
    scores_step: tuple[int, ...]
    values_step: tuple[int, ...]
    y_step: tuple[int, ...]
    values_zero: int
    table: Constant
    multiplier: int
    zero: int
    lo: int
    hi: int


@dataclass(frozen=True)
class SoftmaxMatMul(Call):
    """Means of values, weighted by a softmax of scores."""

    kernel: ClassVar = k.SOFTMAX_MATMUL
    parameters: SoftmaxMatMulParams
    scores: Operand
    values: Operand
    y: Operand


@dataclass(frozen=True)
class NormalizeParams(Params):
    """Parameters of a norm: three loops over groups, and three within a group."""

    struct: ClassVar = "normalize_params"
    groups: tuple[int, ...]
    group_step: tuple[int, ...]
    group_channel: tuple[int, ...]
    within: tuple[int, ...]
    within_step: tuple[int, ...]
    within_channel: tuple[int, ...]
    count: int
    centered: int
    epsilon: int
    shift: int
    in_zero: int
    gain: Constant
    bias: Constant
    to: Requantization


class Normalize(OfOne[NormalizeParams]):
    """A norm by the statistics of the image."""

    kernel: ClassVar = k.NORMALIZE


def matmul_call(layer: n.MatMul, a: Tensor, b: Tensor, to: Requantization) -> MatMul:
    """Return the call that multiplies matrices."""
    matrices, rows, inner = a.spec.shape
    params = MatMulParams(
        matrices=matrices,
        rows=rows,
        inner=inner,
        columns=b.spec.shape[2],
        a_step=memory_steps(a.spec.shape),
        b_step=memory_steps(b.spec.shape),
        y_step=memory_steps(layer.output.shape),
        a_zero=a.zero,
        b_zero=b.zero,
        to=to,
    )
    return MatMul(params, Operand(a.name), Operand(b.name), Operand(layer.name))


def softmax_call(layer: n.Softmax, x: Tensor, y: Tensor, constants: Constants) -> Softmax:
    """Return the call of a softmax."""
    shape = x.spec.shape
    inner = memory_steps(shape)[layer.axis]
    count = shape[layer.axis]
    params = SoftmaxParams(
        outer=math.prod(shape) // (count * inner),
        count=count,
        inner=inner,
        table=constants.add("table", "uint16_t", layer.table.astype(np.uint16), (256,)),
        shift=layer.shift,
        zero=y.zero,
        lo=y.lo,
        hi=y.hi,
    )
    return Softmax(params, Operand(x.name), Operand(layer.name))


def softmax_fixed_call(layer: n.FixedPointSoftmax, x: Tensor, constants: Constants) -> SoftmaxFixed:
    """Return the call of a softmax in TensorFlow Lite's arithmetic."""
    shape = x.spec.shape
    inner, count = memory_steps(shape)[layer.axis], shape[layer.axis]
    outer = math.prod(shape) // (count * inner)
    params = SoftmaxFixedParams(outer, count, inner, constants.add("table", "int32_t", layer.table, (256,)))
    return SoftmaxFixed(params, Operand(x.name), Operand(layer.name))


def softmax_matmul_call(
    layer: n.SoftmaxMatMul, scores: Tensor, values: Tensor, y: Tensor, constants: Constants
) -> SoftmaxMatMul:
    """Return the call that takes means weighted by a softmax."""
    assert layer.multiplier is not None
    matrices, rows, inner = scores.spec.shape
    params = SoftmaxMatMulParams(
        matrices=matrices,
        rows=rows,
        inner=inner,
        columns=values.spec.shape[2],
        scores_step=memory_steps(scores.spec.shape),
        values_step=memory_steps(values.spec.shape),
        y_step=memory_steps(layer.output.shape),
        values_zero=values.zero,
        table=constants.add("table", "uint16_t", layer.table.astype(np.uint16), (256,)),
        multiplier=int(layer.multiplier.integers[0]),
        zero=y.zero,
        lo=y.lo,
        hi=y.hi,
    )
    return SoftmaxMatMul(params, Operand(scores.name), Operand(values.name), Operand(layer.name))


def normalize_call(layer: n.Normalize, x: Tensor, y: Tensor, constants: Constants) -> Normalize:
    """Return the call of a norm.

    Raises:
        ValueError: it has more nested loops than the kernel.
    """
    spec, shape = x.spec, x.spec.shape
    steps, channel = memory_steps(shape), 1
    channels = [0] * len(shape)
    for axis in reversed(range(len(shape))):
        if layer.gain.shape[axis] > 1:
            channels[axis], channel = channel, channel * shape[axis]
    loops: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}
    for axis in memory_axes(len(shape)):
        inner = (shape[axis], steps[axis], channels[axis])
        found = loops[axis in layer.axes]
        if found and found[-1][1:] == (inner[0] * inner[1], inner[0] * inner[2]):
            found[-1] = (found[-1][0] * inner[0], *inner[1:])
        elif inner[0] > 1:
            found.append(inner)
    if max(len(found) for found in loops.values()) > _LOOPS:
        raise ValueError(f"normalizes in more than {_LOOPS} nested loops")
    (groups, group_step, group_channel), (within, within_step, within_channel) = (
        tuple(tuple(column) for column in zip(*[(1, 0, 0)] * (_LOOPS - len(found)), *found, strict=True))
        for found in loops.values()
    )
    params = NormalizeParams(
        groups=groups,
        group_step=group_step,
        group_channel=group_channel,
        within=within,
        within_step=within_step,
        within_channel=within_channel,
        count=layer.count(spec),
        centered=int(layer.centered),
        epsilon=layer.epsilon,
        shift=layer.deviation_shift(spec),
        in_zero=x.zero,
        gain=constants.add("gain", "int32_t", layer.gain, layer.gain.shape),
        bias=constants.add("bias", "int32_t", layer.bias, layer.bias.shape),
        to=Requantization(shift=NORM_BITS + REQUANTIZE_SHIFT, zero=y.zero, lo=y.lo, hi=y.hi),
    )
    return Normalize(params, Operand(x.name), Operand(layer.name))

"""Factors with which sums of integers round as ONNX Runtime's floats do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from twoscale._frontends.onnx_integer.fusing import chain_of
from twoscale._frontends.onnx_integer.reader import Reader
from twoscale._frontends.onnx_integer.settling import runtime_result, settle
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT

__all__ = ["joint_multipliers", "multiplier_of", "settled", "without_zero_point"]


def without_zero_point(q: NDArray[Any], x: n.Layer) -> NDArray[np.float32]:
    """Return q − z of a layer's integers as float32."""
    return (q.astype(np.int32) - x.output.zero_point).astype(np.float32)


def settled(
    reader: Reader,
    node: onnx.NodeProto,
    operands: dict[int, NDArray[Any]],
    factors: Sequence[np.float32],
    compute: Callable[[Sequence[np.float32]], NDArray[np.float32]],
    spec: n.TensorSpec,
    expected: NDArray[Any] | None = None,
) -> Sequence[np.float32]:
    """Return multipliers that give ONNX Runtime's integer for every operand pair."""
    reader.usual(node, np.asarray(factors), "multiplier")
    if expected is None:
        expected = runtime_result(chain_of(reader.step, operands), operands, reader.value, spec.dtype, reader.opset)
    if expected is None:
        reader.refuse(
            node,
            "its rounding can only be taken over by running it in ONNX Runtime, which is not installed or refuses it; "
            "install it with: pip install onnxruntime",
        )
    settled = settle(factors, compute, spec, expected)
    if settled is None:
        reader.refuse(
            node,
            "no float32 multipliers give the integers of ONNX Runtime for all operands; quantize the float model "
            "with twoscale.quantize",
        )
    return settled


def multiplier_of(factors: NDArray[np.float32] | np.float32, shift: int = REQUANTIZE_SHIFT) -> n.Multiplier:
    """Return multipliers on the grid if the factors are, else free ones."""
    values = np.atleast_1d(np.asarray(factors, np.float32))
    integers = np.ldexp(values.astype(np.float64), shift)
    whole = (integers == np.rint(integers)) & (integers > 0) & (integers < MULTIPLIER_LIMIT)
    return n.Multiplier(values, shift if whole.all() else None)


def joint_multipliers(factors: NDArray[np.float32], residual: np.float32) -> tuple[n.Multiplier, n.Multiplier]:
    """Return the multipliers of a convolution and its residual: both on the grid of equation (7b), or both free."""
    found = multiplier_of(factors, ADD_SHIFT), multiplier_of(residual, ADD_SHIFT)
    if any(each.shift is None for each in found):
        found = n.Multiplier(found[0].values, None), n.Multiplier(found[1].values, None)
    return found

"""Makes imported arithmetic equal to ONNX Runtime's for every operand pair.

ONNX Runtime's kernels for additions, products, concatenations and tables of quantized tensors do their float32 steps in
their own order. While a file is read, ONNX Runtime is therefore run on every operand pair. Multipliers are moved by a
few units in the last place if that makes all pairs equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from twoscale._ir import layers as n

__all__ = ["runtime_result", "settle", "values_of"]

_TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}
_STEPS = 3
"""Units in the last place by which a multiplier may move."""


def values_of(dtype: str) -> NDArray[Any]:
    """Return the 256 integers of an 8-bit type, in order."""
    limits = np.iinfo(dtype)
    return np.arange(limits.min, limits.max + 1).astype(dtype)


def runtime_result(
    chain: Sequence[onnx.NodeProto],
    operands: dict[int, NDArray[Any]],
    constants: Callable[[str], NDArray[Any]],
    dtype: str,
    opset: int,
) -> NDArray[Any] | None:
    """Return what ONNX Runtime makes of one node, or of a few that follow each other.

    Args:
        chain: the nodes, from tensors "operand0" and so on to the tensor "result"; their other inputs are constants.
        operands: integers of the operands, which broadcast.
        constants: gives the value of a constant by name.
        dtype: of the result.
        opset: version of the standard operators.

    Returns:
        Integers; None where onnxruntime is not installed or does not run the nodes.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    names = {index: f"operand{index}" for index in operands}
    made = {*names.values(), *(name for node in chain for name in node.output)}
    given = sorted({name for node in chain for name in node.input if name and name not in made})
    initializers = [numpy_helper.from_array(np.asarray(constants(name)), name) for name in given]
    graph = helper.make_graph(
        list(chain),
        "one",
        [
            helper.make_tensor_value_info(names[index], _TYPES[str(values.dtype)], values.shape)
            for index, values in operands.items()
        ],
        [helper.make_tensor_value_info("result", _TYPES[dtype], None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        result = session.run(None, {names[index]: values for index, values in operands.items()})[0]
    except Exception:  # its errors have no common base class
        return None
    return np.asarray(result)


def settle(
    factors: Sequence[np.float32],
    compute: Callable[[Sequence[np.float32]], NDArray[np.float32]],
    spec: n.TensorSpec,
    expected: NDArray[Any],
) -> tuple[np.float32, ...] | None:
    """Return multipliers near ``factors`` that give the expected integers, or None.

    Args:
        factors: float32 multipliers.
        compute: float32 products or sums in steps of the output, of all operand pairs.
        spec: of the output.
        expected: its integers.
    """
    steps = sorted(range(-_STEPS, _STEPS + 1), key=abs)
    for moves in sorted(itertools.product(steps, repeat=len(factors)), key=lambda moves: sum(map(abs, moves))):
        moved = tuple(_moved(factor, by) for factor, by in zip(factors, moves, strict=True))
        rounded = np.clip(np.rint(compute(moved)) + np.float32(spec.zero_point), spec.lo, spec.hi)
        if np.array_equal(rounded, expected):
            return moved
    return None


def _moved(value: np.float32, by: int) -> np.float32:
    return np.float32((np.asarray(value, np.float32).view(np.int32) + np.int32(by)).view(np.float32))

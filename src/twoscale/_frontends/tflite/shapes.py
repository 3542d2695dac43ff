"""Shape arithmetic of `.tflite` files, computed when a file is read.

Keras computes the shapes of its reshapes while a network runs: SHAPE, STRIDED_SLICE and PACK before a RESHAPE. The
shape of every tensor is known here, so these operators become constants. The shapes that the file states for the
results are not used, because converters write 1 for sizes that they do not know.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.flatbuffer import EMPTY, Damage, Table
from twoscale._frontends.tflite.model import MOST_VALUES, Model, Operator, Tensor

__all__ = ["SHAPED", "with_shapes"]

SHAPED: Mapping[str, tuple[int, int]] = {"RESHAPE": (0, 1), "TRANSPOSE_CONV": (2, 0)}
"""Operators whose output has the shape of an operand: the places of their tensor and of the shape."""

_LONGEST = 64
"""Values of a shape."""

Integers = NDArray[np.int64]


def with_shapes(model: Model) -> Model:
    """Return a model whose shape arithmetic is constants.

    Raises:
        Damage: an operand has another number of values than its shape.
    """
    tensors, kept = list(model.tensors), []
    known: dict[int, Integers] = {}
    for operator in model.operators:
        computed = _computed(operator, tensors, known, model)
        if computed is not None:
            index = operator.outputs[0]
            known[index] = computed
            data = memoryview(computed.astype(tensors[index].dtype).tobytes())
            tensors[index] = dataclasses.replace(tensors[index], shape=computed.shape, data=data)
            continue
        kept.append(operator)
        _state_shape(operator, tensors, known)
    return model.replaced(tuple(tensors), tuple(kept)) if known else model


def _computed(
    operator: Operator, tensors: Sequence[Tensor], known: Mapping[int, Integers], model: Model
) -> Integers | None:
    """Return what an operator computes, or nothing if it depends on more than shapes."""
    if operator.name not in _FOLDED or len(operator.outputs) != 1 or not operator.inputs:
        return None
    result = tensors[operator.outputs[0]] if operator.outputs[0] >= 0 else None
    if result is None or result.dtype not in ("int32", "int64") or result.is_constant:
        return None
    operands = [tensors[index] for index in operator.inputs if index >= 0]
    if operator.name == "SHAPE":
        return np.array(operands[0].shape, np.int64)
    found = []
    for operand in operands:
        if operand.index in known:
            found.append(known[operand.index])
        elif operand.is_constant and operand.dtype in ("int32", "int64") and math.prod(operand.shape) <= _LONGEST:
            found.append(model.array(operand).astype(np.int64))
        else:
            return None
    value = np.asarray(_FOLDED[operator.name](found, operator.options or EMPTY), np.int64)
    return value if value.size <= _LONGEST and (np.abs(value) <= MOST_VALUES).all() else None


def _state_shape(operator: Operator, tensors: list[Tensor], known: Mapping[int, Integers]) -> None:
    """Give an operator's output the shape that was computed for it."""
    x, place = SHAPED.get(operator.name, (0, len(operator.inputs)))
    if max(x, place) >= len(operator.inputs) or operator.inputs[place] not in known or len(operator.outputs) != 1:
        return
    shape = [int(size) for size in known[operator.inputs[place]].ravel()]
    if shape.count(-1) == 1 and operator.inputs[x] >= 0:
        rest = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(tensors[operator.inputs[x]].shape) // max(1, rest)
    if min(shape, default=0) < 1 or math.prod(shape) > MOST_VALUES:
        raise Damage(f"operator {operator.number} computes the shape {shape}")
    if operator.outputs[0] >= 0:
        tensors[operator.outputs[0]] = dataclasses.replace(tensors[operator.outputs[0]], shape=tuple(shape))


def _strided_slice(operands: list[Integers], options: Table) -> Any:
    values, begin, end, step = operands
    if values.ndim != 1 or not begin.size == end.size == step.size == 1:
        raise Damage("it slices a shape in more than one dimension")
    open_begin, open_end, _, _, shrinks = (options.number(field, "i") for field in range(5))
    if shrinks & 1:
        return values[int(begin.ravel()[0])]
    first = None if open_begin & 1 else int(begin.ravel()[0])
    return values[first : None if open_end & 1 else int(end.ravel()[0]) : int(step.ravel()[0])]


_FOLDED: Mapping[str, Callable[[list[Integers], Table], Any]] = {
    "ADD": lambda x, _: x[0] + x[1],
    "CAST": lambda x, _: x[0],
    "CONCATENATION": lambda x, options: np.concatenate(x, options.number(0, "i")),
    "GATHER": lambda x, _: x[0][x[1]],
    "MUL": lambda x, _: x[0] * x[1],
    "PACK": lambda x, options: np.stack(x, options.number(1, "i")),
    "REDUCE_PROD": lambda x, _: x[0].prod(keepdims=False),
    "SHAPE": lambda x, _: x[0],
    "STRIDED_SLICE": _strided_slice,
    "SUB": lambda x, _: x[0] - x[1],
}
"""What shapes are computed with."""

"""What is in a `.tflite` file: tensors and operators of its one subgraph, as the schema has them.

Source: ``tensorflow/compiler/mlir/lite/schema/schema.fbs``, whose field and operator numbers never change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.flatbuffer import Damage, Table, root

__all__ = ["MOST_VALUES", "OPERATOR_NAMES", "Model", "Operator", "Tensor", "parse"]

OPERATOR_NAMES: Mapping[int, str] = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU",
    20: "RELU_N1_TO_1", 21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH",
    28: "TANH", 32: "CUSTOM", 34: "PAD", 36: "GATHER", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 42: "DIV",
    43: "SQUEEZE", 45: "STRIDED_SLICE", 47: "EXP", 49: "SPLIT", 53: "CAST", 54: "PRELU", 55: "MAXIMUM", 56: "ARG_MAX",
    57: "MINIMUM", 59: "NEG", 60: "PADV2", 65: "SLICE", 67: "TRANSPOSE_CONV", 70: "EXPAND_DIMS", 74: "SUM",
    75: "SQRT", 76: "RSQRT", 77: "SHAPE", 82: "REDUCE_MAX", 83: "PACK", 92: "SQUARE", 97: "RESIZE_NEAREST_NEIGHBOR",
    98: "LEAKY_RELU", 100: "MIRROR_PAD", 101: "ABS", 111: "ELU", 114: "QUANTIZE", 117: "HARD_SWISH", 124: "DENSIFY",
    126: "BATCH_MATMUL", 150: "GELU",
    7: "EMBEDDING_LOOKUP", 8: "FLOOR", 11: "L2_NORMALIZATION", 16: "LSTM", 37: "BATCH_TO_SPACE_ND",
    38: "SPACE_TO_BATCH_ND", 44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 48: "TOPK_V2", 50: "LOG_SOFTMAX", 66: "SIN",
    69: "TILE", 73: "LOG", 78: "POW", 81: "REDUCE_PROD", 88: "UNPACK", 94: "FILL", 96: "RANGE",
    99: "SQUARED_DIFFERENCE", 102: "SPLIT_V", 105: "REVERSE_V2", 108: "COS", 118: "IF", 119: "WHILE",
    123: "SELECT_V2",
}  # fmt: skip

_TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 7: "int16", 9: "int8"}
_TYPE_NAMES = {5: "string", 6: "bool", 17: "int4"}
_INT4 = 17

MOST_VALUES = 1 << 28
"""Of one tensor."""
_MOST_OPERATORS = 1 << 12
_COPIES = 8
"""Constants may be used several times; all uses together read at most so many times the file."""


@dataclass(frozen=True)
class Tensor:
    """One tensor, with the batch as its first dimension if it is no constant."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    """float32, float16, int8, uint8, int16, int32 or int64."""
    scales: NDArray[np.float32]
    """Empty if it is not quantized."""
    zero_points: NDArray[np.int64]
    axis: int
    """Of several scales."""
    data: memoryview
    """Of a constant; else empty."""
    half_bytes: bool = False
    """Whether the constant's values have 4 bits each."""

    @property
    def is_constant(self) -> bool:
        """Whether it has data in the file."""
        return len(self.data) > 0


@dataclass(frozen=True)
class Operator:
    """One operator."""

    number: int
    """Its place in the file, from 0."""
    name: str
    inputs: tuple[int, ...]
    """Indices of tensors; −1 for one that is left out."""
    outputs: tuple[int, ...]
    options: Table | None


class Model:
    """A parsed file."""

    def __init__(
        self, tensors: tuple[Tensor, ...], operators: tuple[Operator, ...], inputs: tuple[int, ...],
        outputs: tuple[int, ...], description: str, size: int,
    ) -> None:  # fmt: skip
        self.tensors = tensors
        self.operators = operators
        self.inputs = inputs
        self.outputs = outputs
        self.description = description
        self._left = _COPIES * size

    def replaced(self, tensors: tuple[Tensor, ...], operators: tuple[Operator, ...]) -> Model:
        """Return the model with other tensors and operators."""
        made = copy.copy(self)
        made.tensors, made.operators = tensors, operators
        return made

    @property
    def is_float(self) -> bool:
        """Whether the inputs and what the operators compute are real numbers."""
        kinds = self._kinds
        return bool(self.inputs) and "float32" in kinds and not kinds & {"int8", "uint8", "int16"}

    @property
    def has_int16(self) -> bool:
        """Whether any activation is int16."""
        return "int16" in self._kinds

    @property
    def _kinds(self) -> set[str]:
        """The types of the inputs and of what the operators compute."""
        computed = [index for operator in self.operators for index in operator.outputs]
        return {self.tensors[index].dtype for index in (*self.inputs, *computed) if index >= 0}

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """Return a constant's values.

        Raises:
            Damage: it has another number of bytes than its shape, or all constants read so far are too many.
        """
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        values = math.prod(tensor.shape)
        expected = -(-values // 2) if tensor.half_bytes else values * dtype.itemsize
        if len(tensor.data) != expected:
            raise Damage(f"its constant has {len(tensor.data)} bytes; expected {expected} for the shape {tensor.shape}")
        self._left -= expected
        if self._left < 0:
            raise Damage("its operators use the file's constants too often")
        if tensor.half_bytes:
            pairs = np.frombuffer(tensor.data, np.uint8)
            halves = np.stack([pairs << 4, pairs & 0xF0], axis=1).view(np.int8) >> 4
            return halves.reshape(-1)[:values].reshape(tensor.shape)
        return np.frombuffer(tensor.data, dtype).reshape(tensor.shape).astype(tensor.dtype)


def parse(data: bytes) -> Model:
    """Return what is in a file.

    Raises:
        Damage: it is no `.tflite` file, is damaged, or has several subgraphs.
    """
    file = root(data, b"TFL3")
    if file.number(0, "I") != 3:
        raise Damage(f"its schema has the version {file.number(0, 'I')}; expected 3")
    graphs = list(file.tables(2))
    if len(graphs) != 1:
        raise Damage(f"it has {len(graphs)} subgraphs; expected one")
    graph = graphs[0]
    codes = [_operator_name(code) for code in file.tables(1)]
    buffers = [buffer.bytes(0) for buffer in file.tables(4)]
    tensors = tuple(_tensor(index, table, buffers) for index, table in enumerate(graph.tables(0)))
    operators = tuple(_operators(graph, codes, len(tensors)))
    inputs, outputs = (_indices(graph, field, len(tensors)) for field in (1, 2))
    return Model(tensors, operators, inputs, outputs, file.text(3), len(data))


def _operator_name(code: Table) -> str:
    number = max(code.number(3, "i"), code.number(0, "b"))
    return OPERATOR_NAMES.get(number, f"operator {number}")


def _tensor(index: int, table: Table, buffers: list[memoryview]) -> Tensor:
    name = table.text(3)[:200]
    shape = tuple(int(size) for size in table.array(0, "i"))
    if any(size < 1 for size in shape) or math.prod(shape) > MOST_VALUES:
        raise Damage(f"tensor {index} has the shape {shape}")
    kind, buffer = table.number(1, "b"), table.number(2, "I")
    data = buffers[buffer] if buffer < len(buffers) else memoryview(b"")
    half_bytes = kind == _INT4 and len(data) > 0
    if kind not in _TYPES and not half_bytes:
        found = _TYPE_NAMES.get(kind, f"of type {kind}")
        raise Damage(f"tensor {index} is {found}; expected float32, float16, int8 or uint8")
    if buffer >= max(1, len(buffers)):
        raise Damage(f"tensor {index} has the buffer {buffer}, and the file has {len(buffers)}")
    if table.table(6) is not None:
        raise Damage(f"tensor {index} is sparse")
    scales, zero_points, axis = np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    quantization = table.table(4)
    if quantization is not None:
        scales = quantization.array(2, "f").astype(np.float32)
        zero_points = quantization.array(3, "q").astype(np.int64)
        axis = quantization.number(6, "i")
        if len(zero_points) == 0:
            zero_points = np.zeros(len(scales), np.int64)
        if len(zero_points) != len(scales) or not (np.isfinite(scales) & (scales > 0)).all():
            raise Damage(f"tensor {index} has {len(scales)} scales and {len(zero_points)} zero points that do not fit")
    return Tensor(
        index, name, shape, "int8" if half_bytes else _TYPES[kind], scales, zero_points, axis, data, half_bytes
    )


def _indices(table: Table, field: int, count: int) -> tuple[int, ...]:
    found = tuple(int(index) for index in table.array(field, "i"))
    if any(not -1 <= index < count for index in found):
        raise Damage(f"it names a tensor that is none of its {count}")
    return found


def _operators(graph: Table, codes: list[str], tensors: int) -> list[Operator]:
    found = []
    for number, table in enumerate(graph.tables(3)):
        code = table.number(0, "I")
        if number >= _MOST_OPERATORS:
            raise Damage(f"it has more than {_MOST_OPERATORS} operators")
        if code >= len(codes):
            raise Damage(f"operator {number} has the code {code}, and the file has {len(codes)}")
        inputs, outputs = (_indices(table, field, tensors) for field in (1, 2))
        found.append(Operator(number, codes[code], inputs, outputs, table.table(4)))
    return found

"""One TensorFlow Lite graph, operator by operator, as the schema's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._extras import requires_extras

__all__ = ["GraphBuilder"]

_VERSIONS = {
    "ADD": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 12,  # with a scale per output channel
    "GATHER": 2,
    "MAXIMUM": 2,
    "MAX_POOL_2D": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "STRIDED_SLICE": 2,
    "TRANSPOSE": 2,
}
"""The first version of each operator that takes int8; 1 for the others."""

_TYPES = {"float16": "FLOAT16", "float32": "FLOAT32", "int8": "INT8", "int32": "INT32", "uint8": "UINT8"}

_FILE_ID = b"TFL3"
_SCHEMA_VERSION = 3


class GraphBuilder:
    """Tensors and operators of one subgraph. Shapes include the batch, 1 in the file, of any size when it is run.

    Args:
        name: of the network.
    """

    @requires_extras("a .tflite file")
    def __init__(self, name: str) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self._model = schema.ModelT()
        self._model.version = _SCHEMA_VERSION
        self._model.description = name
        self._model.buffers = [schema.BufferT()]  # the first is empty by convention
        self._model.operatorCodes, self._model.metadata = [], []
        self._graph = schema.SubGraphT()
        self._graph.name = name
        self._graph.tensors, self._graph.operators = [], []
        self._model.subgraphs = [self._graph]
        self._codes: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        scale: Any = None,
        zero_point: int = 0,
        *,
        axis: int = 0,
        batch: bool = True,
        data: NDArray[Any] | None = None,
    ) -> int:
        """Append a tensor and return its index.

        Args:
            name: of the tensor.
            shape: its sizes.
            dtype: "int8", "uint8", "int32", "float16" or "float32".
            scale: one number, or one for each index of ``axis``; none for plain integers.
            zero_point: of all scales.
            axis: of several scales.
            batch: whether the first dimension is the batch.
            data: of a constant.
        """
        s = self.schema
        tensor = s.TensorT()
        tensor.name, tensor.type, tensor.hasRank = name, getattr(s.TensorType, _TYPES[dtype]), True
        tensor.shape = np.array(shape, np.int32)
        if batch and data is None:
            tensor.shapeSignature = np.array([-1, *shape[1:]], np.int32)
        if scale is not None:
            tensor.quantization = quantization = s.QuantizationParametersT()
            quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            quantization.zeroPoint = np.full(quantization.scale.shape, zero_point, np.int64)
            quantization.quantizedDimension = axis
        tensor.buffer = 0 if data is None else self._buffer(np.ascontiguousarray(data).tobytes())
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def constant(self, name: str, data: NDArray[Any], scale: Any = None, zero_point: int = 0, *, axis: int = 0) -> int:
        """Append a constant and return its index."""
        return self.tensor(name, data.shape, str(data.dtype), scale, zero_point, axis=axis, batch=False, data=data)

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        output: int,
        options: str = "",
        *,
        further: Sequence[int] = (),
        **fields: Any,
    ) -> int:
        """Append an operator with the options' fields, and return its output, the first if there are further ones."""
        s = self.schema
        operator = s.OperatorT()
        operator.opcodeIndex = self._code(name)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output, *further], np.int32)
        if options:
            operator.builtinOptionsType = getattr(s.BuiltinOptions, options)
            operator.builtinOptions = made = getattr(s, f"{options}T")()
            for field, value in fields.items():
                setattr(made, field, value)
        self._graph.operators.append(operator)
        return output

    def metadata(self, entries: Mapping[str, bytes]) -> None:
        """Append named bytes for programs that read the file."""
        for name, data in entries.items():
            entry = self.schema.MetadataT()
            entry.name, entry.buffer = name, self._buffer(data)
            self._model.metadata.append(entry)

    def to_bytes(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the file."""
        import flatbuffers

        self._graph.inputs, self._graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), _FILE_ID)
        return bytes(builder.Output())

    def _buffer(self, data: bytes) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1

    def _code(self, name: str) -> int:
        if name not in self._codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = _VERSIONS.get(name, 1)
            self._model.operatorCodes.append(code)
            self._codes[name] = len(self._codes)
        return self._codes[name]

"""Float `.tflite` files → FloatGraph, without torch.

``reader`` holds the part of the graph read so far. ``operators`` has one function per operator. Weights may be float16,
or integers with their scales, which are dequantized. What computes shapes is left out: the file has the shape of every
tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.flatbuffer import Damage
from twoscale._frontends.tflite.opening import DAMAGE, one_line, parsed, read_bytes
from twoscale._frontends.tflite_float.operators import OPERATORS
from twoscale._frontends.tflite_float.reader import Reader
from twoscale._ir.float_graph import FloatGraph
from twoscale.errors import CaptureError, NetworkFileError, UnsupportedOperatorError

__all__ = ["OPERATORS", "constants", "graph_of", "is_float", "opened", "read"]


def read(source: str | Path, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Read a float classifier.

    Args:
        source: the file.
        example_nchw: images as the network takes them, (N, C, H, W) although the file has (N, H, W, C). For several
            inputs a tuple of arrays.
        name: of the graph; the file's by default.

    Raises:
        NetworkFileError: it is missing, damaged or not a float network.
        CaptureError: it is no classifier of single images, or takes images of another shape.
        UnsupportedOperatorError: an operator has no integer form; names the operator.
    """
    path = Path(source)
    return graph_of(path, opened(path), example_nchw, name=name)


def is_float(path: Path) -> bool:
    """Whether a file is a TensorFlow Lite file of a float network. Its operators need not be readable."""
    try:
        return parsed(path, read_bytes(path)).is_float
    except NetworkFileError:
        return False


def opened(path: Path) -> bytes:
    """Return what is in a file.

    Raises:
        NetworkFileError: it is missing, damaged or not a float network.
    """
    data = read_bytes(path)
    if not parsed(path, data).is_float:
        raise NetworkFileError(f"{path} is quantized already; load it with twoscale.load")
    return data


def constants(path: Path, data: bytes) -> list[NDArray[Any]]:
    """Return the constants in the bytes of a file, as they are stored.

    Args:
        path: of the file, for messages.
        data: from ``opened``.

    Raises:
        NetworkFileError: one is damaged.
    """
    model = parsed(path, data)
    try:
        return [model.array(tensor) for tensor in model.tensors if tensor.is_constant]
    except Damage as error:
        raise NetworkFileError(f"{path} is no TensorFlow Lite file that can be read: {error}") from error


def graph_of(path: Path, data: bytes, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Turn the bytes of a file into a graph.

    Args:
        path: of the file, for messages.
        data: from ``opened``.
        example_nchw: as for ``read``.
        name: as for ``read``.

    Raises:
        NetworkFileError: it is damaged.
        CaptureError: it is no classifier of single images, or takes images of another shape.
        UnsupportedOperatorError: an operator has no integer form; names the operator.
    """
    examples = example_nchw if isinstance(example_nchw, tuple) else (example_nchw,)
    model = parsed(path, data)
    reader = Reader(path, model, [tuple(np.shape(example)[1:]) for example in examples], name or path.stem)
    for operator in model.operators:
        reader.operator = operator
        try:
            _read_operator(reader)
        except DAMAGE as error:
            reader.refuse(f"it cannot be read ({one_line(error)})")
    return reader.graph()


def _read_operator(reader: Reader) -> None:
    operator = reader.operator
    if not any(index in reader.tensors for index in operator.inputs):
        if operator.name == "DEQUANTIZE":
            reader.constants[reader.result.index] = reader.real(reader.tensor(0))
            return
        if operator.name == "DENSIFY":
            raise reader.at.unsupported("a file with sparse weights", "convert the model without them")
    if reader.only_shapes(operator):
        return
    if operator.name not in OPERATORS:
        raise UnsupportedOperatorError(
            f"{operator.name} at {reader.path}: operator {operator.number} has no integer form here; it reads "
            f"{', '.join(sorted(OPERATORS))}"
        )
    if not any(index in reader.tensors for index in operator.inputs):
        raise CaptureError(
            f"{operator.name} at {reader.path}: operator {operator.number} does not depend on the images; "
            "convert the model with constants folded"
        )
    OPERATORS[operator.name](reader)

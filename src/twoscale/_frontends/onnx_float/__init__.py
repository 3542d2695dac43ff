"""Float ONNX files → FloatGraph, without torch.

``reader`` holds the part of the graph read so far. ``operators`` has one function per operator. Nodes that do not
depend on the images are folded with ONNX's reference evaluator. The batch size is set to a number that the file does
not use otherwise, so that shape arithmetic is folded too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from twoscale._frontends import onnx_model
from twoscale._frontends.onnx_float.operators import OPERATORS
from twoscale._frontends.onnx_float.reader import Reader
from twoscale._ir.float_graph import FloatGraph
from twoscale.errors import CaptureError, NetworkFileError, TwoscaleError, UnsupportedOperatorError

__all__ = ["OPERATORS", "graph_of", "is_float", "opened", "read"]


def read(source: str | Path, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Read a float classifier.

    Args:
        source: the file.
        example_nchw: images as the network takes them; their shape fills in sizes that the file leaves open. For
            several inputs a tuple of arrays.
        name: of the graph; the file's by default.

    Raises:
        NetworkFileError: it is missing, damaged, ambiguous or not a float network.
        CaptureError: it is no classifier of single images.
        UnsupportedOperatorError: an operator has no integer form; names the node.
    """
    path = Path(source)
    return graph_of(path, opened(path), example_nchw, name=name)


def is_float(path: Path) -> bool:
    """Whether a file is an ONNX file without quantized operators. It need not be readable otherwise."""
    try:
        model = onnx_model.read_model(path)
    except NetworkFileError:
        return False
    ours = any(entry.key == "twoscale.format" for entry in model.metadata_props)
    return not ours and not onnx_model.is_quantized(model)


def opened(path: Path) -> onnx.ModelProto:
    """Return the model in a file, checked.

    Raises:
        NetworkFileError: it is missing, damaged, ambiguous or not a float network.
    """
    model = onnx_model.read_model(path)
    quantized = onnx_model.is_quantized(model)
    if not quantized:
        onnx_model.refuse_unknown_operators(path, model)
    onnx_model.check(path, model)
    if quantized:
        raise NetworkFileError(f"{path} is quantized already; load it with twoscale.load")
    onnx_model.validate(path, model)
    return model


def graph_of(path: Path, model: onnx.ModelProto, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Turn a model into a graph.

    Args:
        path: of the file, for messages.
        model: from ``opened``.
        example_nchw: as for ``read``.
        name: as for ``read``.

    Raises:
        CaptureError: it is no classifier of single images.
        UnsupportedOperatorError: an operator has no integer form; names the node.
    """
    examples = example_nchw if isinstance(example_nchw, tuple) else (example_nchw,)
    reader = Reader(path, model, [tuple(np.shape(example)[1:]) for example in examples], name or path.stem)
    for node in model.graph.node:
        try:
            if reader.is_constant(node):
                reader.fold(node)
                continue
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
                raise UnsupportedOperatorError(
                    f"{reader.at(node).operator} at {reader.at(node).source} has no integer form here; it reads "
                    f"{', '.join(sorted(OPERATORS))}"
                )
            result = OPERATORS[node.op_type](reader, node)
            if result is not None:
                reader.tensors[node.output[0]] = result
        except TwoscaleError:
            raise
        except Exception as error:  # a faulty node can pass the checker and fail in any way
            raise CaptureError(
                f"{reader.at(node).operator} at {reader.at(node).source} cannot be read "
                f"({type(error).__name__}: {onnx_model.one_line(error)})"
            ) from error
    return reader.graph()

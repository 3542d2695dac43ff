"""Float ONNX files → FloatGraph, without torch.

``reader`` holds the part of the graph read so far. ``operators`` has one function per operator. Nodes that do not
depend on the images are folded with ONNX's reference evaluator. The batch size is set to a number that the file does
not use otherwise, so that shape arithmetic is folded too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from twoscale._frontends import onnx_model
from twoscale._frontends.onnx_float.operators import OPERATORS
from twoscale._frontends.onnx_float.reader import Reader
from twoscale._ir.float_graph import FloatGraph
from twoscale.errors import CaptureError, NetworkFileError, TwoscaleError, UnsupportedOperatorError

__all__ = ["OPERATORS", "read"]


def read(source: str | Path, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Read a float classifier.

    Args:
        source: the file.
        example_nchw: images as the network takes them; their shape fills in sizes that the file leaves open.
        name: of the graph; the file's by default.

    Raises:
        NetworkFileError: it is missing, damaged, ambiguous or not a float network.
        CaptureError: it is no classifier of single images.
        UnsupportedOperatorError: an operator has no integer form; names the node.
    """
    path = Path(source)
    model = onnx_model.read_model(path)
    onnx_model.check(path, model)
    if any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in model.graph.node):
        raise NetworkFileError(f"{path} is quantized already; load it with twoscale.load")
    onnx_model.validate(path, model)
    reader = Reader(path, model, tuple(np.shape(example_nchw)[1:]), name or path.stem)
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

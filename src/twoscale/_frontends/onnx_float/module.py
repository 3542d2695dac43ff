"""A float ONNX file as a module of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import numpy_helper

from twoscale._frontends.file_module import FileModule
from twoscale._frontends.onnx_float import graph_of, opened
from twoscale._ir.float_graph import FloatGraph

__all__ = ["OnnxModule"]


class OnnxModule(FileModule):
    """A trained network in a float ONNX file.

    Args:
        path: the file. It is read once.

    Raises:
        NetworkFileError: it is missing, damaged, ambiguous or not a float network.
    """

    weights_form = "onnx"

    def __init__(self, path: Path) -> None:
        model = opened(path)
        constants = [*model.graph.initializer]
        constants += [
            attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")
        ]
        initialized = {constant.name for constant in model.graph.initializer}
        inputs = sum(value.name not in initialized for value in model.graph.input)
        super().__init__(path, map(numpy_helper.to_array, constants), inputs)
        self._model = model

    def graph(self, example_nchw: Any, name: str | None = None) -> FloatGraph:
        """Return the graph for images of the example's shape; errors as of ``onnx_float.graph_of``."""
        return graph_of(self.path, self._model, example_nchw, name=name)

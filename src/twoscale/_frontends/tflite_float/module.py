"""A float `.tflite` file as a module of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twoscale._frontends.file_module import FileModule
from twoscale._frontends.tflite.opening import parsed
from twoscale._frontends.tflite_float import constants, graph_of, opened
from twoscale._ir.float_graph import FloatGraph

__all__ = ["TfliteModule"]


class TfliteModule(FileModule):
    """A trained network in a float `.tflite` file.

    Args:
        path: the file. It is read once.

    Raises:
        NetworkFileError: it is missing, damaged or not a float network.
    """

    weights_form = "tflite"

    def __init__(self, path: Path) -> None:
        data = opened(path)
        super().__init__(path, constants(path, data), len(parsed(path, data).inputs))
        self._data = data

    def graph(self, example_nchw: Any, name: str | None = None) -> FloatGraph:
        """Return the graph for images of the example's shape; errors as of ``tflite_float.graph_of``."""
        return graph_of(self.path, self._data, example_nchw, name=name)

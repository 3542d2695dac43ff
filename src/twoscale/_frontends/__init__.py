"""From users' models and files to a FloatGraph or an IntegerNetwork.

Each front-end reads one kind of thing. To add one, write its package and enter it below.
Front-ends for float networks append their nodes with ``twoscale._ir.builder``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twoscale.errors import CaptureError

if TYPE_CHECKING:
    import onnx

    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["as_module", "float_graph", "input_count", "integer_network"]


def _is_of_torch(source: Any) -> bool:
    """Whether an object is a model of torch. If torch is not imported, it is not."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module | torch.export.ExportedProgram)


def _is_onnx_file(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix == ".onnx"


def _is_tflite_file(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix == ".tflite"


def _is_an_open_file(source: Any) -> bool:
    """Whether an object is a float network in a file as a module. If that class is not imported, it is not."""
    module = sys.modules.get("twoscale._frontends.file_module")
    return module is not None and isinstance(source, module.FileModule)


_FLOAT: dict[str, Callable[[Any], bool]] = {
    "twoscale._frontends.file_module:graph": _is_an_open_file,
    "twoscale._frontends.onnx_float:read": _is_onnx_file,
    "twoscale._frontends.tflite_float:read": _is_tflite_file,
    "twoscale._frontends.torch_export.capture:capture": _is_of_torch,
}
"""Functions that read float networks, each with a test whether it takes a source."""


def float_graph(source: Any, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Read a float network.

    Args:
        source: an nn.Module, an ExportedProgram, or the path of a float .onnx or .tflite file.
        example_nchw: a batch of one image or more, an array or a tensor; for several inputs a tuple of them.
        name: of the graph; by default the model's own.

    Raises:
        CaptureError: no front-end takes it, or the network is no classifier of single images.
        UnsupportedOperatorError: an operator has no integer form; the message names it and the user's line.
    """
    for reader, takes in _FLOAT.items():
        if takes(source):
            module, _, function = reader.partition(":")
            graph: FloatGraph = getattr(importlib.import_module(module), function)(source, example_nchw, name=name)
            return graph
    raise CaptureError(f"expected a torch.nn.Module, got {type(source).__name__}; pass the model itself")


def input_count(source: Any) -> int:
    """Return how many inputs a float network takes: tensors that every call must pass."""
    if _is_an_open_file(source):
        return int(source.input_count)
    if _is_of_torch(source):
        from twoscale._frontends.torch_export.capture import input_count as of_torch

        return of_torch(source)
    return 1


def as_module(source: Any) -> Any:
    """Return the path of a float .onnx or .tflite file as an nn.Module, and anything else unchanged.

    Raises:
        NetworkFileError: it is missing, damaged, ambiguous or not a float network.
    """
    if _is_onnx_file(source):
        from twoscale._frontends.onnx_float.module import OnnxModule

        return OnnxModule(Path(source))
    if _is_tflite_file(source):
        from twoscale._frontends.tflite_float.module import TfliteModule

        return TfliteModule(Path(source))
    return source


def integer_network(path: Path, model: onnx.ModelProto) -> IntegerNetwork:
    """Read an integer network that another tool wrote.

    Args:
        path: of the file, for messages.
        model: what is in the file.

    Raises:
        NetworkFileError: it is not an integer network, or does not fit; names the node, its operator and the reason.
    """
    from twoscale._frontends import onnx_integer

    return onnx_integer.read(path, model)

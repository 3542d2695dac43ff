"""The part of a float graph read so far: tensors by name, constants, and access to a node's inputs and attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from twoscale._frontends.onnx_constants import fold, shape_of
from twoscale._ir.builder import FloatGraphBuilder, Place
from twoscale._ir.float_graph import FloatGraph
from twoscale._ir.memory_estimate import refuse_beyond_memory
from twoscale.errors import CaptureError, NetworkFileError

__all__ = ["Operator", "Reader"]

_PRIMES = (7919, 7927, 7933, 7937, 7949, 7951, 7963, 7993)


class Reader:
    """Turns the nodes of a model into nodes of a FloatGraph.

    Attributes:
        tensors: activations: name in the file to name in our graph.
        constants: tensors that do not depend on the images.
        batch: the number that stands for the batch size.
    """

    def __init__(self, path: Path, model: onnx.ModelProto, shapes: Sequence[tuple[int, ...]], name: str) -> None:
        self.path, self._model, self.nodes = path, model, list(model.graph.node)
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._read = {name for node in self.nodes for name in node.input} | {value.name for value in model.graph.output}
        graph = model.graph
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.constants: dict[str, NDArray[Any]] = {
            t.name: np.array(numpy_helper.to_array(t)) for t in graph.initializer
        }
        self.tensors: dict[str, str] = {}
        self.builder = FloatGraphBuilder(name)
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != len(shapes) or not inputs or not graph.output:
            raise NetworkFileError(
                f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; expected an output, and one array "
                f"for each input, got {len(shapes)}"
            )
        for value, shape in zip(inputs, shapes, strict=True):
            kind = value.type.tensor_type
            given = tuple(dimension.dim_value for dimension in kind.shape.dim)[1:]
            fits = len(given) == len(shape) and all(a in (0, b) for a, b in zip(given, shape, strict=True))
            if kind.elem_type != TensorProto.FLOAT:
                found = TensorProto.DataType.Name(kind.elem_type).lower()
                raise CaptureError(f"{path}: its input {value.name} is {found}; expected float32")
            if not fits or min(shape, default=0) < 1:
                raise CaptureError(f"{path} takes images of shape {given}, got {shape} (0: any size)")
        used = {int(v) for c in self.constants.values() if c.dtype == np.int64 and c.size < 65_536 for v in c.flat}
        self.batch = next((prime for prime in _PRIMES if prime not in used), 0)
        if not self.batch:
            raise CaptureError(f"{path} uses every number that could stand for the batch size")
        fixed = {value.type.tensor_type.shape.dim[0].dim_value for value in inputs}
        if len(fixed) > 1:
            raise CaptureError(f"{path} takes inputs of different batch sizes; expected one batch size for all")
        (batch,) = fixed
        self.fixed_batch = batch if batch > 0 else None
        for value, shape in zip(inputs, shapes, strict=True):
            own = "input" if len(inputs) == 1 else f"input_{value.name}".strip("/").replace("/", ".")
            self.tensors[value.name] = self.builder.input(shape, own)
        self.outputs = [value.name for value in graph.output]

    def graph(self) -> FloatGraph:
        """Return the graph of the outputs."""
        for output in self.outputs:
            if output not in self.tensors:
                raise CaptureError(f"{self.path}: the output {output} does not depend on the images")
        graph = self.builder.graph(*(self.tensors[output] for output in self.outputs))
        refuse_beyond_memory(str(self.path), graph, NetworkFileError)
        return graph

    def at(self, node: onnx.NodeProto) -> Place:
        """Return where the nodes for a node of the file are appended."""
        name = (node.name or next(iter(node.output), "") or node.op_type).strip("/").replace("/", ".")
        return self.builder.place(name, node.op_type, f"{self.path}: node {node.name or next(iter(node.output), '')}")

    def made_by(self, name: str, operator: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor, if it is of this operator of ONNX and depends on the images."""
        node = self._makers.get(name)
        fits = node is not None and node.op_type == operator and node.domain in ("", "ai.onnx")
        return node if fits and name in self.tensors else None

    def reads_more_than_the_first(self, node: onnx.NodeProto) -> bool:
        """Whether something reads another output of a node than its first."""
        return not self._read.isdisjoint(name for name in node.output[1:] if name)

    # Constants.

    def is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether a node does not depend on the images. The shape of an activation is constant too."""
        return node.op_type in ("Shape", "Size") or not any(name in self.tensors for name in node.input)

    def fold(self, node: onnx.NodeProto) -> None:
        """Compute a node that depends on no image."""
        if node.op_type in ("Shape", "Size") and node.input[0] in self.tensors:
            if node.op_type == "Size":
                raise self.at(node).wrong("depends on the batch size; expected every image to be computed alone")
            shape = (self.batch, *self.builder[self.tensors[node.input[0]]].shape)
            self.constants[node.output[0]] = shape_of(node, shape)
            return
        feeds = {name: self.constants[name] for name in node.input if name}
        try:
            self.constants.update(fold(node, feeds, self._model.opset_import))
        except ValueError as error:
            raise self.at(node).wrong(str(error)) from error

    # Inputs and attributes.

    def input(self, node: onnx.NodeProto, index: int = 0) -> str:
        """Return the name of an input that must be an activation."""
        name = node.input[index]
        if name not in self.tensors:
            raise self.at(node).unsupported(f"input {index} that is a constant", "exchange the operands")
        return self.tensors[name]

    def is_activation(self, node: onnx.NodeProto, index: int) -> bool:
        """Whether an input depends on the images."""
        return index < len(node.input) and node.input[index] in self.tensors

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        """Return an input that must be constant; None if it is left out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self.constants:
            raise self.at(node).unsupported(f"input {index} that depends on the images", "make it a constant")
        value = self.constants[node.input[index]]
        if value.dtype.kind == "f":
            if not np.isfinite(value).all():
                raise self.at(node).wrong(f"reads {node.input[index]}, which holds NaN or infinity")
            value = value.astype(np.float32)
        return value

    def bound(self, node: onnx.NodeProto, index: int, attribute: str, default: float) -> float:
        """Return a number that is an input, or else an attribute, and may be infinite."""
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            return float(self.attribute(node, attribute, default))
        if name not in self.constants:
            raise self.at(node).unsupported(f"input {index} that depends on the images", "make it a constant")
        value = self.constants[name]
        if value.size != 1:
            raise self.at(node).unsupported(f"bounds of shape {value.shape}", "use one number")
        if math.isnan(number := float(value.reshape(()))):
            raise self.at(node).wrong(f"reads {name}, which is NaN")
        return number

    def weights(self, node: onnx.NodeProto, index: int) -> NDArray[np.float32]:
        """Return an input of weights."""
        value = self.constant(node, index)
        if value is None:
            raise self.at(node).wrong(f"has no input {index}")
        return np.asarray(value, np.float32)

    def weights_of_int(self, node: onnx.NodeProto, index: int) -> NDArray[np.int64]:
        """Return an input of integers."""
        value = self.constant(node, index)
        if value is None or value.dtype.kind != "i":
            raise self.at(node).wrong(f"has no integers at input {index}")
        return value.astype(np.int64)

    def integers(self, node: onnx.NodeProto, index: int, attribute: str, default: list[int] | None) -> list[int] | None:
        """Return integers that are an attribute in older operator sets and an input in newer ones."""
        value = self.constant(node, index)
        if value is None:
            found = self.attribute(node, attribute, default)
            return None if found is None else [int(v) for v in found]
        return [int(v) for v in value.reshape(-1)]

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        """Return an attribute."""
        found = next((a for a in node.attribute if a.name == name), None)
        value = default if found is None else helper.get_attribute_value(found)
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and name not in ("min", "max"))):
            raise self.at(node).wrong(f"has {name} = {value}; expected a finite number")
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def shape(self, node: onnx.NodeProto, index: int = 0) -> tuple[int, ...]:
        """Return the shape of an activation without the batch."""
        return self.builder[self.input(node, index)].shape

    def axis(self, node: onnx.NodeProto, axis: int, rank: int) -> int:
        """Return a dimension without the batch; ``rank`` counts the batch."""
        if not -rank <= axis < rank:
            raise self.at(node).wrong(f"has dimension {axis} of a tensor of {rank}")
        if axis % rank == 0:
            raise self.at(node).wrong("works along the batch; expected images to stay apart")
        return axis % rank - 1


Operator = Callable[[Reader, onnx.NodeProto], str | None]
"""Appends the nodes of an operator and returns the name of its result; None where it named several itself."""

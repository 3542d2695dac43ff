"""The part of a float graph read so far, and access to an operator's inputs as tensors and weights.

A tensor (batch, H, W, C) of the file is (C, H, W) in the graph; others keep their order, without the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.file_reader import FileReader, layer_axis, layer_shape, mixes
from twoscale._frontends.tflite.model import Model, Operator, Tensor
from twoscale._ir.builder import FloatGraphBuilder, Place
from twoscale._ir.float_graph import FloatGraph
from twoscale._ir.memory_estimate import refuse_beyond_memory
from twoscale._text import printable
from twoscale.errors import CaptureError, NetworkFileError

__all__ = ["Reader"]

_LONGEST_NAME = 60


class Reader(FileReader):
    """Turns the operators of a file into nodes of a FloatGraph.

    Args:
        path: of the file, for messages.
        model: what is in it.
        shapes: of the images of each input, (C, H, W).
        name: of the graph.

    Attributes:
        tensors: activations: index in the file to name in the graph.
        batch: the batch size of the file.
    """

    def __init__(self, path: Path, model: Model, shapes: Sequence[tuple[int, ...]], name: str) -> None:
        super().__init__(path, model)
        self.tensors: dict[int, str] = {}
        self.constants: dict[int, NDArray[np.float32]] = {}
        """Weights that an operator dequantizes."""
        self.builder = FloatGraphBuilder(name)
        if len(model.inputs) != len(shapes) or min(model.inputs) < 0 or not model.outputs or min(model.outputs) < 0:
            self.refuse(
                f"it has {len(model.inputs)} inputs and {len(model.outputs)} outputs; expected an output, and an array "
                f"per input, got {len(shapes)}"
            )
        images = [model.tensors[index] for index in model.inputs]
        self.batch = images[0].shape[0] if images[0].shape else 0
        for image, shape in zip(images, shapes, strict=True):
            if image.dtype != "float32" or len(image.shape) < 2 or image.shape[0] != self.batch:
                self.refuse(f"its input {image.name} is {image.dtype} {image.shape}; expected float32, the batch first")
            if layer_shape(image.shape) != shape:
                raise CaptureError(f"{path} takes images of shape {layer_shape(image.shape)}, got {shape}")
            own = "input" if len(images) == 1 else f"input_{_short(image.name)}"
            self.tensors[image.index] = self.builder.input(shape, own)

    def graph(self) -> FloatGraph:
        """Return the graph of the outputs."""
        self.operator = Operator(-1, "", (), (), None)
        for index in self.model.outputs:
            if index not in self.tensors:
                self.refuse(f"the output {self.model.tensors[index].name} is not computed from the images")
        graph = self.builder.graph(*(self.tensors[index] for index in dict.fromkeys(self.model.outputs)))
        refuse_beyond_memory(str(self.path), graph, NetworkFileError)
        return graph

    @property
    def at(self) -> Place:
        """Where the operator's nodes are appended."""
        name = self.model.tensors[self.operator.outputs[0]].name if self.operator.outputs else self.operator.name
        source = f"{self.path}: operator {self.operator.number}"
        return self.builder.place(_short(name) or self.operator.name, self.operator.name, source)

    # ------------------------------------------------------------ inputs

    def input(self, index: int = 0) -> str:
        """Return the name of an input that must be an activation."""
        tensor = self.tensor(index)
        if tensor.index not in self.tensors:
            raise self.at.unsupported(f"input {index} that is a constant", "exchange the operands")
        return self.tensors[tensor.index]

    def depends_on_images(self, index: int) -> bool:
        """Whether a tensor was computed from the images."""
        return index in self.tensors

    def is_activation(self, index: int) -> bool:
        """Whether an input depends on the images."""
        return self.has(index) and self.operator.inputs[index] in self.tensors

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the shape of an activation in the graph."""
        return self.builder[self.input(index)].shape

    def rank(self, index: int = 0) -> int:
        """Return the number of dimensions of an input in the file, with the batch."""
        return len(self.tensor(index).shape)

    def image(self, index: int = 0) -> str:
        """Return the name of an input that must be (C, H, W)."""
        if len(self.shape(index)) != 3:
            raise self.at.unsupported(f"an input of {self.rank(index)} dimensions", "use images (batch, H, W, C)")
        return self.input(index)

    def weights(self, index: int) -> NDArray[np.float32]:
        """Return a constant input as real numbers, in the file's order."""
        tensor = self.tensor(index)
        if tensor.index in self.constants:
            return self.constants[tensor.index]
        if not tensor.is_constant:
            raise self.at.unsupported(f"input {index} that depends on the images", "make it a constant")
        return self.real(tensor)

    def real(self, tensor: Tensor) -> NDArray[np.float32]:
        """Return the real numbers of a constant: as they are, from float16, or from integers and their scales."""
        stored = self.model.array(tensor)
        if tensor.dtype in ("int8", "uint8"):
            along = [1] * stored.ndim
            if len(tensor.scales) > 1:
                if not 0 <= tensor.axis < stored.ndim or stored.shape[tensor.axis] != len(tensor.scales):
                    self.refuse(f"{tensor.name} {stored.shape} has {len(tensor.scales)} scales along {tensor.axis}")
                along[tensor.axis] = -1
            if not len(tensor.scales):
                self.refuse(f"{tensor.name} is {tensor.dtype} without a scale; expected real numbers")
            zero_points, scales = tensor.zero_points.reshape(along), tensor.scales.reshape(along)
            return (stored.astype(np.int64) - zero_points).astype(np.float32) * scales
        if stored.dtype.kind != "f":
            self.refuse(f"{tensor.name} is {tensor.dtype}; expected real numbers")
        if not np.isfinite(stored).all():
            self.refuse(f"{tensor.name} holds NaN or infinity")
        return np.asarray(stored, np.float32)

    def aligned(self, index: int, rank: int) -> NDArray[np.float32]:
        """Return a constant that broadcasts to a tensor of ``rank`` as it does in the graph, with the batch."""
        values = self.weights(index)
        if values.ndim > rank or (values.ndim == rank and values.shape[0] != 1):
            raise self.at.unsupported(f"a constant of shape {values.shape}", "use the same for all images of a batch")
        values = values.reshape((1,) * (rank - values.ndim) + values.shape)
        return values.transpose(0, 3, 1, 2) if rank == 4 else values

    def broadcast(self, index: int, rank: int) -> str:
        """Return an activation with the number of dimensions of a result of ``rank``, with the batch."""
        name, shape = self.input(index), self.shape(index)
        missing = rank - 1 - len(shape)
        if not missing:
            return name
        if missing < 0 or self.batch != 1:  # dimensions are added in front, where the batch is
            raise self.at.wrong(f"combines tensors of {1 + len(shape)} and {rank} dimensions; expected the same number")
        return self.to_graph(self.at.reshape(self.to_file(name), (*(1,) * missing, *shape)))

    # ------------------------------------------------------------ order of dimensions

    def to_file(self, name: str) -> str:
        """Return a tensor of the graph with its dimensions in the file's order."""
        shape = self.at.shape(name)
        if len(shape) != 3:
            return name
        return self.at.permute(name, (1, 2, 0)) if mixes(shape) else self.at.reshape(name, (*shape[1:], shape[0]))

    def to_graph(self, name: str) -> str:
        """Return a tensor in the file's order with its dimensions in the graph's order."""
        shape = self.at.shape(name)
        if len(shape) != 3:
            return name
        moved = (shape[2], *shape[:2])
        return self.at.permute(name, (2, 0, 1)) if mixes(moved) else self.at.reshape(name, moved)

    def reshaped(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a tensor of the graph with its values in the file's order in another shape of the graph."""
        before = self.at.shape(name)
        if before == shape:
            return name
        if len(before) == 3 and mixes(before):
            name = self.to_file(name)
        if len(shape) == 3 and mixes(shape):
            return self.to_graph(self.at.reshape(name, (shape[1], shape[2], shape[0])))
        return self.at.reshape(name, shape)

    def axis(self, axis: int, rank: int) -> int:
        """Return the graph's dimension for one of the file, both with the batch in ``rank``."""
        if not -rank <= axis < rank:
            raise self.at.wrong(f"has dimension {axis} of a tensor of {rank}")
        if axis % rank == 0:
            raise self.at.wrong("works along the batch; expected images to stay apart")
        return layer_axis(axis % rank - 1, rank - 1)

    # ------------------------------------------------------------ results

    @property
    def expected(self) -> tuple[int, ...]:
        """The graph's shape of the operator's only output."""
        return self.expected_of(self.result)

    def expected_of(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the graph's shape of an output."""
        if len(tensor.shape) < 2 or tensor.shape[0] != self.batch:
            raise self.at.wrong(f"gives {tensor.shape}; expected the batch of {self.batch} first")
        return layer_shape(tensor.shape)

    def give(self, name: str, tensor: Tensor | None = None) -> None:
        """Make a tensor of the graph an output of the operator, by default its only one."""
        tensor = self.result if tensor is None else tensor
        if tensor.index in self.tensors or tensor.is_constant:
            self.refuse(f"the tensor {tensor.name} is made twice")
        if self.at.shape(name) != self.expected_of(tensor):
            self.refuse(f"it gives {self.at.shape(name)}, and the file says {self.expected_of(tensor)}")
        self.tensors[tensor.index] = name


def _short(name: str) -> str:
    """Return a name for a node; converters join those of merged layers with semicolons."""
    return printable(name.split(";")[0].strip("/").replace("/", "."), _LONGEST_NAME)

"""The context passed to translations: names, shapes and weights of the exported program, and a builder for nodes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from twoscale._ir.builder import FloatGraphBuilder, Place
from twoscale._ir.float_graph import Padding
from twoscale.errors import CaptureError

__all__ = ["Emitter", "Translation", "pair", "remedy", "symmetric"]

Translation = Callable[["Emitter", fx.Node, dict[str, Any]], str | None]
"""Appends the nodes for one operator, given its arguments by the names of ATen's schema, and returns the result's name.

It returns None if the result is not a single activation; the translation has then entered the results itself.
"""


class Emitter:
    """The exported program as far as it has been translated.

    Attributes:
        builder: takes the nodes.
        tensors: activations: exported node to our node's name.
        constants: tensors that do not depend on the images. One made from the batch size has a batch of one.
        paths: of weights in the model: "layer1.0.conv1.weight".
        batch: the size of the batch dimension: a symbol, or a number that is no other size.
        dtype: of the images.
        left_out: function and line of a softmax at the end, if there is one.
    """

    def __init__(self, name: str) -> None:
        self.builder = FloatGraphBuilder(name)
        self.tensors: dict[fx.Node, str] = {}
        self.constants: dict[fx.Node, torch.Tensor] = {}
        self.paths: dict[Any, str] = {}
        self.batch: Any = None
        self.dtype = torch.float32
        self.left_out: tuple[str, str] | None = None

    def source(self, node: fx.Node) -> str:
        """Return the user's line that made this node, as "file:line: code"; else the module that did."""
        lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
        frames = [index for index, line in enumerate(lines) if line.startswith("File ")]
        # The innermost frame outside torch: the user cannot change nn.Conv2d.forward.
        own = [index for index in frames if f"{os.sep}torch{os.sep}" not in lines[index]]
        if not own:  # torch's modules call each other: nn.Sequential
            path, kind = self._module(node)
            return f"module {path} ({kind.rpartition('.')[2]})" if path else "an unknown line"
        file, number, *_ = lines[own[-1]].removeprefix("File ").split(", ")
        code = lines[own[-1] + 1] if own[-1] + 1 < len(lines) else ""
        return f"{file.strip(chr(34))}:{number.removeprefix('line ')}: {code}"

    @staticmethod
    def _module(node: fx.Node) -> tuple[str, str]:
        """Return the path of the innermost module that made this node, and its class."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        return str(path).removeprefix("L['self'].").removeprefix("L['self']"), str(getattr(kind, "__name__", kind))

    def at(self, node: fx.Node) -> Place:
        """Return where the nodes for an exported node are appended.

        They are named in the user's terms: after the module, or after the function and the module that calls it.
        """
        path, kind = self._module(node)
        if not (kind.startswith("torch.nn.modules") and "container" not in kind):
            # A function called by a user's module. A part of a split is named after the split.
            target = node.target if hasattr(node.target, "_opname") else node.all_input_nodes[0].target
            function = str(getattr(target, "_opname", node.name)).strip("_")
            path = f"{path}.{function}" if path else function
        return self.builder.place(path, str(node.target), self.source(node))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of the node's result without the batch.

        A dimension that holds the batch together with others, k·N as after ``flatten(0, 1)``, is one of size k: images
        vary slowest in it, so it is the same values in the same order.
        """
        position, parts = self.batch_of(node)
        sizes = self._sizes(node)
        merged = (parts,) if parts > 1 else ()
        try:
            return tuple(int(n) for n in (*sizes[:position], *merged, *sizes[position + 1 :]))
        except GuardOnDataDependentSymNode:
            raise CaptureError(
                f"{node.target} at {self.source(node)} makes a tensor whose shape depends on values; expected a fixed "
                "shape, e.g. a list of indices instead of a mask"
            ) from None

    @staticmethod
    def _sizes(node: fx.Node) -> tuple[Any, ...]:
        value = node.meta["val"]
        value = value[0] if isinstance(value, (tuple, list)) else value
        return tuple(value.shape)

    def batch_of(self, node: fx.Node) -> tuple[int, int]:
        """Return which dimension of an activation holds the batch, and how many entries of it belong to each image.

        Raises:
            CaptureError: none does, or several do.
        """
        found = [(i, parts) for i, size in enumerate(self._sizes(node)) if (parts := self._parts(size)) is not None]
        if len(found) != 1:
            raise self.mixed(node)
        return found[0]

    def _parts(self, size: Any) -> int | None:
        """Return k where a size is k·N; None where it does not depend on the batch size."""
        if self.is_batch(size):
            return 1
        if isinstance(size, int):  # exported with a number that is nothing else's size
            whole = isinstance(self.batch, int) and size % self.batch == 0 and size > 0
            return size // self.batch if whole else None
        quotient = size.node.expr / self.batch.node.expr
        return int(quotient) if quotient.is_Integer else None

    def is_plain(self, node: fx.Node) -> bool:
        """Tell whether the first dimension of an activation is the batch, as everywhere in a classifier of images."""
        return self.batch_of(node) == (0, 1)

    def axis(self, argument: fx.Node, dim: Any) -> int:
        """Return the dimension of our tensor that is dimension ``dim`` of an activation; -1 for the batch."""
        sizes = self._sizes(argument)
        dim = int(dim) % len(sizes)
        position, parts = self.batch_of(argument)
        return -1 if dim == position else dim - (parts == 1 and dim > position)

    def entries_before_batch(self, node: fx.Node) -> int:
        """Return the product of the sizes before the batch: how many times the images are repeated in order."""
        return math.prod(int(size) for size in self._sizes(node)[: self.batch_of(node)[0]])

    def mixed(self, node: fx.Node) -> CaptureError:
        """Return the error about an activation whose batch is where it cannot be followed."""
        sizes = self._sizes(node)
        if any(self.is_batch(size) for size in sizes[1:]):
            return self.at(node).wrong("moves the batch; expected it to stay the first dimension")
        shown = ", ".join(str(size).replace(str(self.batch), "N") for size in sizes)
        return CaptureError(
            f"{node.target} at {self.source(node)} mixes the images of a batch (result ({shown})); "
            "expected the first dimension to stay the batch"
            + (", e.g. flatten(1)" if "flatten" in str(node.target) else "")
        )

    def is_batch(self, size: Any = None) -> bool:
        """Tell whether a size is that of the batch."""
        return bool(str(size) == str(self.batch))

    def input(self, argument: Any) -> str:
        """Return the name of an argument that must be an activation."""
        if isinstance(argument, fx.Node) and argument in self.tensors:
            return self.tensors[argument]
        raise CaptureError(f"expected an activation, got a constant or a number: {argument}")

    def is_activation(self, argument: Any) -> bool:
        """Tell whether an argument depends on the images."""
        return isinstance(argument, fx.Node) and argument in self.tensors

    def array(self, argument: Any) -> NDArray[np.float32] | None:
        """Return a constant argument as a float32 array; None stays None."""
        if argument is None:
            return None
        tensor = torch.as_tensor(self.constants[argument] if isinstance(argument, fx.Node) else argument)
        array = tensor.detach().cpu().to(torch.float32).numpy()
        read_once = isinstance(argument, fx.Node) and argument.op == "placeholder" and len(argument.users) == 1
        if not read_once:  # else the constant is a copy that nothing can change any more
            array = array.copy()
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            name = self.paths.get(argument, argument.name) if isinstance(argument, fx.Node) else "a constant"
            raise CaptureError(
                f"{name} has {count} values that are NaN or infinite; retrain, or load a checkpoint that is whole"
            )
        return np.asarray(array, dtype=np.float32)

    def input_shape(self, argument: fx.Node) -> tuple[int, ...]:
        """Return the shape of an activation argument without the batch."""
        return self.builder[self.tensors[argument]].shape


def pair(value: Any) -> tuple[int, int]:
    """Return (height, width) of an argument that may be one number for both."""
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0], values[-1])


def symmetric(padding: tuple[int, int]) -> Padding:
    """Return the padding of the same width on both sides."""
    return (padding[0], padding[1], padding[0], padding[1])


_REMEDIES = {
    "log_softmax": "a softmax may only be the last operation, over the classes",
    "argmax": "return the logits",
    "conv_transpose3d": "use ConvTranspose2d",
    "conv3d": "use Conv2d",
    "fused_moving_avg_obs_fake_quant": "pass the float model, before torch's own tools prepared it",
    "fake_quantize_per_tensor_affine": "pass the float model, before torch's own tools prepared it",
    "fake_quantize_per_channel_affine": "pass the float model, before torch's own tools prepared it",
    "wrap_with_autocast": "take autocast out of the forward pass",
    "quantize_per_tensor": "pass the float model, before torch's own tools prepared it",
    "quantize_per_channel": "pass the float model, before torch's own tools prepared it",
    "dequantize_per_tensor": "pass the float model, before torch's own tools prepared it",
    "dequantize_per_channel": "pass the float model, before torch's own tools prepared it",
    "aminmax": "pass the float model, before torch's own tools prepared it",
    "flatten": "write flatten(1), which keeps the batch",
    "copy": "build the tensor with torch.cat",
    "fill": "build the tensor with torch.cat, or multiply by a mask of zeros and ones",
    "einsum": "write it as a Linear, a Conv2d or a product",
    "lstm": "use convolutions",
    "gru": "use convolutions",
    "cond": "decide by shapes or options, not by values",
}


def remedy(operator: str) -> str:
    """Return what to do about an operator that has no integer form."""
    return _REMEDIES.get(
        operator,
        "replace it by supported operators (twoscale._frontends.torch_export.capture.supported_operators() lists them) "
        "or move it out of the model",
    )

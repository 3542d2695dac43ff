"""What translations are given: names, shapes and weights of the exported program, and the nodes to append to."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from twoscale._ir.float_graph import ChannelAffine, Concat, Conv2d, Linear, Node, Padding, Permute, Reshape, Slice
from twoscale.errors import CaptureError, UnsupportedOperatorError

__all__ = ["Emitter", "Translation", "pair", "remedy", "symmetric", "unsupported"]

Translation = Callable[["Emitter", fx.Node, dict[str, Any]], None]
"""Adds the nodes for one operator, given its arguments by the names of ATen's schema."""


class Emitter:
    """The graph as far as it has been made.

    Attributes:
        nodes: in the order in which they were made.
        tensors: activations: exported node to our node's name.
        constants: what does not depend on the images; one made from the batch size has a batch of one.
        paths: of weights in the model: "layer1.0.conv1.weight".
        batch: the size of the batch dimension: a symbol, or a number that is nothing else's.
        dtype: of the images.
        left_out: function and line of a softmax at the end.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
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
        # The innermost frame outside torch: inside nn.Conv2d.forward nobody finds the line to change.
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

    def new_name(self, node: fx.Node) -> str:
        """Return a name in the user's terms: the module's path, or the function's name under it."""
        path, kind = self._module(node)
        if not (kind.startswith("torch.nn.modules") and "container" not in kind):
            # A function called in the forward of a user's module; a part of a split is named after the split.
            target = node.target if hasattr(node.target, "_opname") else node.all_input_nodes[0].target
            function = str(getattr(target, "_opname", node.name)).strip("_")
            path = f"{path}.{function}" if path else function
        name, count = path, 1
        while name in self.taken:
            count += 1
            name = f"{path}_{count}"
        self.taken.add(name)
        return name

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of the node's result without the batch."""
        value = node.meta["val"]
        value = value[0] if isinstance(value, (tuple, list)) else value
        sizes = tuple(value.shape)
        if not sizes or not self.is_batch(sizes[0]):
            shown = ", ".join(str(size).replace(str(self.batch), "N") for size in sizes)
            raise CaptureError(
                f"{node.target} at {self.source(node)} mixes the images of a batch (result ({shown})); "
                "expected the first dimension to stay the batch"
            )
        return tuple(int(n) for n in sizes[1:])

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
        array = tensor.detach().cpu().to(torch.float32).numpy().copy()
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            name = self.paths.get(argument, argument.name) if isinstance(argument, fx.Node) else "a constant"
            raise CaptureError(
                f"{name} has {count} values that are NaN or infinite; retrain, or load a checkpoint that is whole"
            )
        return np.asarray(array, dtype=np.float32)

    def input_shape(self, argument: fx.Node) -> tuple[int, ...]:
        """Return the shape of an activation argument without the batch."""
        return self.made(self.tensors[argument]).shape

    def add(self, node: fx.Node, made: Node) -> None:
        """Append a node and let the exported node's name stand for it."""
        self.nodes.append(made)
        self.tensors[node] = made.name

    def same(self, node: fx.Node, argument: Any) -> None:
        """Let a node stand for its argument: it changes nothing in eval mode."""
        self.tensors[node] = self.input(argument)

    def derive(self, node: fx.Node, kind: type[Node], shape: tuple[int, ...], *inputs: str, **fields: Any) -> str:
        """Append one of several nodes that stand for ``node``, the last for its result; return its name."""
        made = kind(name=self.new_name(node), inputs=inputs, shape=shape, source=self.source(node), **fields)
        self.add(node, made)
        return made.name

    def reshape(self, node: fx.Node, name: str, shape: tuple[int, ...]) -> str:
        """Append a Reshape of the tensor ``name``, unless it has that shape; reshapes do not pile up."""
        source = self.made(name)
        while isinstance(source, Reshape) and source.shape != shape:
            source = self.made(source.inputs[0])
        if source.shape == shape:
            self.tensors[node] = source.name
            return source.name
        return self.derive(node, Reshape, shape, source.name)

    def permute(self, node: fx.Node, name: str, axes: tuple[int, ...]) -> str:
        """Append a Permute of the tensor ``name``, unless it changes nothing; permutes do not pile up."""
        source = self.made(name)
        if isinstance(source, Permute):
            axes = tuple(source.axes[axis] for axis in axes)
            source = self.made(source.inputs[0])
        if axes == tuple(range(len(axes))):
            self.tensors[node] = source.name
            return source.name
        shape = tuple(source.shape[axis] for axis in axes)
        return self.derive(node, Permute, shape, source.name, axes=axes)

    def broadcast(self, node: fx.Node, name: str, shape: tuple[int, ...]) -> str:
        """Append concatenations of copies, until the tensor ``name`` has this shape."""
        size = self.made(name).shape
        size = (1,) * (len(shape) - len(size)) + size
        if size != shape:
            name = self.reshape(node, name, size)
        for axis, count in enumerate(shape):
            if size[axis] != count:
                size = (*size[:axis], count, *size[axis + 1 :])
                name = self.derive(node, Concat, size, *[name] * count, axis=axis)
        return name

    def affine(self, node: fx.Node, name: str, scale: Any, shift: Any = 0.0) -> str:
        """Append scale · x + shift, each a number or one value an index of the first dimension; return its name."""
        shape = self.made(name).shape
        image = shape if len(shape) in (1, 3) else (shape[0], math.prod(shape[1:]), 1)
        scale_c, shift_c = (np.broadcast_to(value, shape[:1]).astype(np.float32) for value in (scale, shift))
        name = self.reshape(node, name, image)
        name = self.derive(node, ChannelAffine, image, name, scale_c=scale_c, shift_c=shift_c)
        return self.reshape(node, name, shape)

    def linear(self, node: fx.Node, x: fx.Node, weight_oi: NDArray[np.float32], bias_o: NDArray[np.float32]) -> None:
        """Append a linear layer; over the last of several dimensions it is a 1x1 convolution."""
        *rest, _ = shape = self.input_shape(x)
        out = len(weight_oi)
        if not rest:
            self.add(node, Linear(**self.common(node, x), weight_oi=weight_oi, bias_o=bias_o))
            return
        last = len(rest)
        name = self.permute(node, self.input(x), (last, *range(last)))
        image = (1,) * (2 - last) + tuple(rest) if last < 3 else (rest[0], math.prod(rest[1:]))
        name = self.reshape(node, name, (shape[-1], *image))
        name = self.derive(node, Conv2d, (out, *image), name, weight_oihw=weight_oi[:, :, None, None], bias_o=bias_o)
        name = self.reshape(node, name, (out, *rest))
        self.permute(node, name, (*range(1, last + 1), 0))

    def rearrange(self, node: fx.Node, split: tuple[int, ...], axes: tuple[int, ...]) -> None:
        """Append reshape to ``split``, permute by ``axes`` and reshape to the node's shape."""
        name = self.reshape(node, self.input(node.args[0]), split)
        name = self.derive(node, Permute, tuple(split[axis] for axis in axes), name, axes=axes)
        self.reshape(node, name, self.shape(node))

    def gather(self, node: fx.Node, name: str, axis: int, indices: list[int]) -> str:
        """Append slices and a concatenation: the entries ``indices`` along ``axis`` of the tensor ``name``."""
        shape = self.made(name).shape

        def resized(size: int) -> tuple[int, ...]:
            return (*shape[:axis], size, *shape[axis + 1 :])

        parts: list[str] = []
        position = 0
        while position < len(indices):
            start, count = indices[position], 1
            while position + count < len(indices) and indices[position + count] == start + count:
                count += 1
            position += count
            whole = count == shape[axis]
            parts.append(
                name
                if whole
                else self.derive(node, Slice, resized(count), name, axis=axis, start=start, stop=start + count, step=1)
            )
        return parts[0] if len(parts) == 1 else self.derive(node, Concat, resized(len(indices)), *parts, axis=axis)

    def made(self, name: str) -> Node:
        """Return the node that makes a tensor."""
        return next(node for node in self.nodes if node.name == name)

    def common(self, node: fx.Node, *inputs: Any) -> dict[str, Any]:
        """Return the fields that every node has."""
        return {
            "name": self.new_name(node),
            "inputs": tuple(self.input(argument) for argument in inputs),
            "shape": self.shape(node),
            "source": self.source(node),
        }


def pair(value: Any) -> tuple[int, int]:
    """Return (height, width) of an argument that may be one number for both."""
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0], values[-1])


def symmetric(padding: tuple[int, int]) -> Padding:
    """Return the padding of the same width on both sides."""
    return (padding[0], padding[1], padding[0], padding[1])


def unsupported(e: Emitter, node: fx.Node, what: str, remedy: str) -> UnsupportedOperatorError:
    """Return the error about an operator whose options have no integer form."""
    return UnsupportedOperatorError(f"{node.target} at {e.source(node)}: {what} has no integer form here; {remedy}")


_MINIMUM = "use -torch.maximum(-x, -y), over dimensions -(-x).amax(dims), with a number x.clamp(max=number)"
_REMEDIES = {
    "minimum": _MINIMUM,
    "fmin": _MINIMUM,
    "min": _MINIMUM,
    "amin": _MINIMUM,
    "fmax": "use torch.maximum",
    "layer_norm": "use BatchNorm: its statistics are fixed after training",
    "group_norm": "use BatchNorm: its statistics are fixed after training",
    "instance_norm": "use BatchNorm: its statistics are fixed after training",
    "softmax": "a softmax may only be the last operation, over the classes; for a gate use a sigmoid",
    "log_softmax": "a softmax may only be the last operation, over the classes",
    "argmax": "return the logits",
    "conv_transpose2d": "use nearest-neighbour upsampling and a Conv2d",
    "upsample_bilinear2d": "use mode='nearest'",
    "upsample_bicubic2d": "use mode='nearest'",
    "conv3d": "use Conv2d",
    "reciprocal": "divide by constants only, or use a function that is supported (torch.sigmoid for 1 / (1 + exp(-x)))",
    "fused_moving_avg_obs_fake_quant": "pass the float model, before torch's own tools prepared it",
    "fake_quantize_per_tensor_affine": "pass the float model, before torch's own tools prepared it",
    "fake_quantize_per_channel_affine": "pass the float model, before torch's own tools prepared it",
    "wrap_with_autocast": "take autocast out of the forward pass",
    "copy": "build the tensor with torch.cat",
    "fill": "build the tensor with torch.cat, or multiply by a mask of zeros and ones",
    "einsum": "write it as a Linear, a Conv2d or a product",
    "scaled_dot_product_attention": "attention has no integer form here; use convolutions",
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

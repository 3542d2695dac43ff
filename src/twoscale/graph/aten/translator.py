"""The walk over an exported program, which calls the translation of every operator, and what translations use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from twoscale.errors import CaptureError, UnsupportedOperatorError
from twoscale.graph.nodes import Concat, Conv2d, FloatGraph, Input, Linear, Node, Padding, Permute, Reshape, Slice

__all__ = ["Translation", "Translator", "ViewChanged", "pair", "remedy", "symmetric", "unsupported"]

Translation = Callable[["Translator", fx.Node, dict[str, Any]], None]
"""Adds the nodes for one operator, given its arguments by the names of ATen's schema."""

# Operators that return the very tensor they get (in eval mode), though their schema does not say so.
_RETURN_THEIR_INPUT = ("getitem", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")

# Operators that only compute shapes, or check them: their results are read from the exported metadata.
_SHAPE_ONLY = ("sym_size", "_assert", "sym_constrain", "_check")

# Operators that make a tensor of a given shape.
_MAKE_TENSORS = ("zeros", "ones", "full")


def _storages(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return, for every node, the node that made the memory which it uses."""
    storages: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        storages[node] = node
        if node.op == "call_function" and isinstance(first, fx.Node):
            schema = getattr(node.target, "_schema", None)
            name = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))
            shares = schema is not None and any(result.alias_info is not None for result in schema.returns)
            if shares or name in _RETURN_THEIR_INPUT:
                storages[node] = storages[first]
    return storages


class ViewChanged(Exception):
    """A tensor is changed in place while another view of it is known under another name."""


class Translator:
    """Walks an exported program once and collects the nodes."""

    def __init__(
        self, exported: torch.export.ExportedProgram, name: str, translations: Mapping[str, Translation]
    ) -> None:
        self.name = name
        self.translations = translations
        self.left_out: tuple[str, str] | None = None  # function and line of a softmax at the end
        self.exported = exported
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
        self.tensors: dict[fx.Node, str] = {}  # activations: exported node → our node's name
        self.constants: dict[fx.Node, torch.Tensor] = {}
        self.paths: dict[Any, str] = {}  # of weights in the model: "layer1.0.conv1.weight"
        exported.graph.eliminate_dead_code()  # the second results of pools, heads that are used in training only
        self.storages = _storages(exported.graph)
        self.batch: Any = None  # the size of the batch dimension: a symbol, or a number that is nothing else's
        self.dtype = torch.float32  # of the images

    def graph(self) -> FloatGraph:
        """Walk the program and return its graph."""
        signature = self.exported.graph_signature
        state = {**self.exported.state_dict, **self.exported.constants}
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in targets:
                    self.paths[node] = targets[node.name]
                    self.constants[node] = state[targets[node.name]].detach().clone()  # programs may change buffers
                else:
                    self._input(node)
            elif node.op == "get_attr":
                value = getattr(self.exported.graph_module, str(node.target))
                if isinstance(value, torch.Tensor):  # else a part of the program that is called under conditions
                    self.constants[node] = value.detach().clone()
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                output = self._output(node)
                return FloatGraph(name=self.name, nodes=self._needed_for(output), output=output)
        raise CaptureError(f"{self.name} returns nothing; expected logits of shape (N, classes)")

    def _needed_for(self, output: str) -> tuple[Node, ...]:
        needed = {output, "input"}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return tuple(node for node in self.nodes if node.name in needed)

    def _input(self, node: fx.Node) -> None:
        value = node.meta["val"]
        self.batch, self.dtype = value.shape[0], value.dtype
        self.nodes.append(Input(name="input", inputs=(), shape=tuple(int(n) for n in value.shape[1:])))
        self.taken.add("input")
        self.tensors[node] = "input"

    def _output(self, node: fx.Node) -> str:
        (results,) = node.args
        assert isinstance(results, (tuple, list))
        # Without in-place operators, tensors that the model changes are results too: the last are the user's.
        results = results[len(results) - len(self.exported.graph_signature.user_outputs) :]
        if len(results) != 1:
            raise CaptureError(
                f"{self.name} returns several values; expected one tensor of logits (N, classes): wrap the model in a "
                "module that returns the logits alone"
            )
        result = results[0]
        if not isinstance(result, fx.Node) or result not in self.tensors:
            raise CaptureError(f"{self.name} returns something that does not depend on the images")
        name = self.tensors[result]
        shape = next(n.shape for n in self.nodes if n.name == name)
        if len(shape) != 1:
            raise CaptureError(
                f"{self.name} returns a tensor of shape (N{''.join(f', {size}' for size in shape)}); expected logits "
                "(N, classes): end with flatten(1)"
            )
        return name

    def _call(self, node: fx.Node) -> None:
        if node in self.tensors:  # a part of a split, made with it
            return
        target = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))
        if target == "getitem":  # the first of several results is the tensor itself
            source, index = node.args[0], node.args[1]
            if isinstance(source, fx.Node) and source in self.tensors and index == 0:
                self.tensors[node] = self.tensors[source]
                return
        if any(mark in target for mark in _SHAPE_ONLY):
            return
        inputs = [argument for argument in node.all_input_nodes if argument in self.tensors]
        if not inputs:
            if self._is_tensor(node) or (node.all_input_nodes and set(node.all_input_nodes) <= self.constants.keys()):
                self._fold_constant(node)
            return
        translation = self.translations.get(target.rstrip("_"))
        if translation is None:
            raise UnsupportedOperatorError(
                f"operator {node.target} at {self.source(node)} has no integer form here; " + remedy(target.rstrip("_"))
            )
        try:
            translation(self, node, self._arguments(node))
        except (CaptureError, ViewChanged):
            raise
        except Exception as error:  # in whatever way an operator is called that nobody thought of
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnsupportedOperatorError(
                f"{node.target} at {self.source(node)} is called in a way that is not known here ({reason}); "
                "write it in another way"
            ) from error
        if target.endswith("_") and node in self.tensors:
            self._changed_in_place(node.args[0], self.tensors[node])

    def _changed_in_place(self, node: Any, new: str) -> None:
        """Let everything that shares the memory of ``node`` stand for its new value."""
        if node in self.constants:  # what was made from a shape, e.g. zeros to add to
            if any(other is not node and self.storages[other] is self.storages[node] for other in self.constants):
                raise ViewChanged
            del self.constants[node]
            self.tensors[node] = new
        sharing = [other for other in self.tensors if self.storages[other] is self.storages[node]]
        if len({self.tensors[other] for other in sharing} - {new}) > 1:
            raise ViewChanged
        for other in sharing:
            self.tensors[other] = new

    @staticmethod
    def _is_tensor(node: fx.Node) -> bool:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            value = value[0] if value else None
        return isinstance(value, torch.Tensor)

    def _fold_constant(self, node: fx.Node) -> None:
        """Compute what depends on weights only (a weight that is normalized, masked or transposed)."""

        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            raise CaptureError(
                f"{node.target} at {self.source(node)} is random; expected the same logits for the same images"
            )

        def value(argument: Any) -> Any:
            # A tensor made from the batch size is the same for every image: one stands for all.
            return 1 if self._is_batch(argument.meta.get("val")) else self.constants[argument]

        try:
            arguments: Any = fx.map_arg(node.args, value)
            if str(getattr(node.target, "_opname", "")) in _MAKE_TENSORS and self._is_batch(*arguments[0][:1]):
                arguments = ([1, *arguments[0][1:]], *arguments[1:])
            with torch.no_grad():
                self.constants[node] = node.target(*arguments, **fx.map_arg(node.kwargs, value))  # type: ignore[operator]
        except KeyError:
            raise CaptureError(
                f"{node.target} at {self.source(node)} makes a tensor from the batch size; "
                "expected every image to be computed alone"
            ) from None

    @staticmethod
    def _arguments(node: fx.Node) -> dict[str, Any]:
        """Name every argument as in the operator's schema, defaults included."""
        values: dict[str, Any] = {}
        for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if position < len(node.args):
                values[argument.name] = node.args[position]
            elif argument.name in node.kwargs:
                values[argument.name] = node.kwargs[argument.name]
            else:
                values[argument.name] = argument.default_value
        return values

    # What translations use.

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
        if not sizes or not self._is_batch(sizes[0]):
            shown = ", ".join(str(size).replace(str(self.batch), "N") for size in sizes)
            raise CaptureError(
                f"{node.target} at {self.source(node)} mixes the images of a batch (result ({shown})); "
                "expected the first dimension to stay the batch"
            )
        return tuple(int(n) for n in sizes[1:])

    def _is_batch(self, size: Any = None) -> bool:
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


def unsupported(t: Translator, node: fx.Node, what: str, remedy: str) -> UnsupportedOperatorError:
    """Return the error about an operator whose options have no integer form."""
    return UnsupportedOperatorError(f"{node.target} at {t.source(node)}: {what} has no integer form here; {remedy}")


_REMEDIES = {
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
    "cond": "decide by shapes or options, not by values",
}


def remedy(operator: str) -> str:
    """Return what to do about an operator that has no integer form."""
    return _REMEDIES.get(
        operator,
        "replace it by supported operators (twoscale.graph.capture.supported_operators() lists them) "
        "or move it out of the model",
    )

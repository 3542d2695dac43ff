"""nn.Module → FloatGraph, through torch.export in eval mode with a dynamic batch dimension.

Every ATen operator that a FloatGraph can hold has one handler here, found by the operator's name. In-place
forms (relu_, add_) share the handler of the plain one: after them the name of the changed tensor stands for
the result, which is what the user's program sees.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.utils import _pytree as pytree

from twoscale.errors import CaptureError, UnsupportedOperatorError
from twoscale.graph.evaluate import GraphModule
from twoscale.graph.nodes import (
    Add,
    AveragePool2d,
    ChannelAffine,
    Clamp,
    Concat,
    Conv2d,
    Elementwise,
    FloatGraph,
    Input,
    Linear,
    MaxPool2d,
    Mul,
    Node,
    Pad,
    Padding,
    Permute,
    Reshape,
    Slice,
    WindowAverage2d,
    Windows,
)

__all__ = ["capture", "supported_operators"]

Handler = Callable[["_Capture", fx.Node, dict[str, Any]], None]
_HANDLERS: dict[str, Handler] = {}

# Operators that return the very tensor they get (in eval mode), though their schema does not say so.
_RETURN_THEIR_INPUT = ("getitem", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")

# Operators that only compute shapes, or check them: their results are read from the exported metadata.
_SHAPE_ONLY = ("sym_size", "_assert", "sym_constrain", "_check")


def supported_operators() -> tuple[str, ...]:
    """Names of the ATen operators that can be captured."""
    return tuple(sorted(_HANDLERS))


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name] = handler
        return handler

    return register


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back: the user's model is left as it was."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training:
            module.training = was_training


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch.export's warnings, logs and graph dumps away: what matters of them is in the error we raise.

    What the model itself writes to stderr comes out at the end, unless the capture fails.
    """
    handlers = {
        handler
        for name, logger in logging.root.manager.loggerDict.items()
        if name.split(".")[0] == "torch" and isinstance(logger, logging.Logger)
        for handler in logger.handlers
    }

    def reject(record: logging.LogRecord) -> bool:
        return False

    written = io.StringIO()
    for handler in handlers:
        handler.addFilter(reject)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(written):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(reject)
    sys.stderr.write(written.getvalue())


def capture(model: nn.Module, example_nchw: torch.Tensor, *, name: str | None = None) -> FloatGraph:
    """Capture an image classifier.

    Args:
        model: maps (N, C, H, W) float images to (N, classes) logits; its mode and weights are left alone.
        example_nchw: a batch of one image or more; only its shape, type and device matter.
        name: of the graph; the class's name by default.

    Raises:
        CaptureError: torch.export cannot follow the model, or it is no classifier of single images.
        UnsupportedOperatorError: an operator has no integer form; names it and the user's line.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got {type(model).__name__}; pass the model itself")
    if example_nchw.ndim != 4 or example_nchw.shape[0] < 1:
        raise CaptureError(
            f"expected a batch of images of shape (N, C, H, W), got {tuple(example_nchw.shape)}; "
            "add the missing dimensions, e.g. images[None]"
        )
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else example_nchw.device
    # Two images: torch.export takes a dimension of size 1 for a constant.
    example = example_nchw[:1].to(device).float().expand(2, -1, -1, -1).contiguous()
    with _in_eval_mode(model), torch.no_grad(), _quietly():
        try:
            exported = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        except Exception as error:  # torch.export raises many unrelated types
            raise CaptureError(_export_failure(model, error)) from error
        try:
            graph = _Capture(exported, name or type(model).__name__).graph()
        except _ViewChanged:
            exported = exported.run_decompositions({})  # the same program without in-place operators; takes longer
            graph = _Capture(exported, name or type(model).__name__).graph()
        _check_captured(graph, model, example)
    return graph


def _export_failure(model: nn.Module, error: Exception) -> str:
    """Say in one line what torch.export could not follow, and where."""
    reason = str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
    if reason.startswith("Constraints violated"):
        reason = "it works only for some batch sizes, expected any; write the batch size as x.shape[0] or -1"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and f.filename != __file__]
    where = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    return (
        f"torch.export cannot capture {type(model).__name__}{where}: {reason}; the forward pass must be a fixed "
        "sequence of tensor operations for any batch size (no branches on values, no Python state)"
    )


def _check_captured(graph: FloatGraph, model: nn.Module, example: torch.Tensor) -> None:
    """Run both on random images: a capture that computes anything else than the model must never get further.

    Raises:
        CaptureError: they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(tuple(example.shape), generator=generator)
    (expected,) = pytree.tree_leaves(model(images.to(example.device)))  # of a tuple or dict, if the model likes
    if not torch.isfinite(expected).all():
        return  # too large for float32; calibration names the layer
    error = (GraphModule(graph, dtype=torch.float64)(images) - expected.cpu().double()).abs().max()
    tolerance = 1e-2 * float(expected.abs().max())  # between rounding, TF32 on accelerators too, and being wrong
    if not error <= tolerance + 1e-6:
        raise CaptureError(
            f"the captured graph of {graph.name} does not compute what the model does (logits differ by {error:.2g}); "
            "look for randomness, for state, and for tensors changed in place while other views of them are in use"
        )


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


class _ViewChanged(Exception):
    """A tensor is changed in place while another view of it is known under another name."""


class _Capture:
    """Walks an exported program once and collects the nodes."""

    def __init__(self, exported: torch.export.ExportedProgram, name: str) -> None:
        self.name = name
        self.exported = exported
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
        self.tensors: dict[fx.Node, str] = {}  # activations: exported node → our node's name
        self.constants: dict[fx.Node, torch.Tensor] = {}
        self.paths: dict[Any, str] = {}  # of weights in the model: "layer1.0.conv1.weight"
        exported.graph.eliminate_dead_code()  # the second results of pools, heads that are used in training only
        self.storages = _storages(exported.graph)
        self.batch: Any = None  # the symbol of the batch dimension

    def graph(self) -> FloatGraph:
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
                    self.constants[node] = state[targets[node.name]].detach()
                else:
                    self._input(node)
            elif node.op == "get_attr":
                self.constants[node] = getattr(self.exported.graph_module, str(node.target)).detach()
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
        self.batch = value.shape[0]
        if isinstance(self.batch, int):
            raise CaptureError(
                f"{self.name} works only for a batch of {self.batch}; write the batch size as x.shape[0] or -1"
            )
        self.nodes.append(Input(name="input", inputs=(), shape=tuple(int(n) for n in value.shape[1:])))
        self.taken.add("input")
        self.tensors[node] = "input"

    def _output(self, node: fx.Node) -> str:
        (results,) = node.args
        assert isinstance(results, (tuple, list))
        # Without in-place operators, tensors that the model changes are results too: the last are the user's.
        results = results[len(results) - len(self.exported.graph_signature.user_outputs) :]
        if len(results) != 1:
            raise CaptureError(f"{self.name} returns several values; expected one tensor of logits (N, classes)")
        result = results[0]
        if not isinstance(result, fx.Node) or result not in self.tensors:
            raise CaptureError(f"{self.name} returns something that does not depend on the images")
        name = self.tensors[result]
        shape = next(n.shape for n in self.nodes if n.name == name)
        if len(shape) != 1:
            raise CaptureError(
                f"{self.name} returns a tensor of shape (N, {', '.join(map(str, shape))}); expected logits (N, classes)"
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
        if any(mark in target for mark in _SHAPE_ONLY) or not self._is_tensor(node):
            return
        inputs = [argument for argument in node.all_input_nodes if argument in self.tensors]
        if not inputs:
            self._fold_constant(node)
            return
        handler = _HANDLERS.get(target.rstrip("_"))
        if handler is None:
            raise UnsupportedOperatorError(
                f"operator {node.target} at {self.source(node) or 'an unknown line'} has no integer form here; "
                "replace it by supported operators (twoscale.graph.capture.supported_operators() lists them) "
                "or move it out of the model"
            )
        handler(self, node, self._arguments(node))
        if target.endswith("_") and node in self.tensors:
            self._changed_in_place(inputs[0], self.tensors[node])

    def _changed_in_place(self, node: fx.Node, new: str) -> None:
        """Let everything that shares the memory of ``node`` stand for its new value."""
        sharing = [other for other in self.tensors if self.storages[other] is self.storages[node]]
        if len({self.tensors[other] for other in sharing} - {new}) > 1:
            raise _ViewChanged
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

        if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            raise CaptureError(
                f"{node.target} at {self.source(node)} is random; expected the same logits for the same images"
            )

        def value(argument: Any) -> Any:
            return self.constants[argument] if isinstance(argument, fx.Node) else argument

        try:
            with torch.no_grad():
                self.constants[node] = node.target(  # type: ignore[operator]
                    *fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value)
                )
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

    # What handlers use.

    def source(self, node: fx.Node) -> str:
        """Return the user's line that made this node, as "file:line: code"."""
        lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
        frames = [index for index, line in enumerate(lines) if line.startswith("File ")]
        # The innermost frame outside torch: inside nn.Conv2d.forward nobody finds the line to change.
        own = [index for index in frames if f"{os.sep}torch{os.sep}" not in lines[index]] or frames
        if not own:
            return ""
        file, number, *_ = lines[own[-1]].removeprefix("File ").split(", ")
        code = lines[own[-1] + 1] if own[-1] + 1 < len(lines) else ""
        return f"{file.strip(chr(34))}:{number.removeprefix('line ')}: {code}"

    def new_name(self, node: fx.Node) -> str:
        """Return a name in the user's terms: the module's path, or the function's name under it."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        path = str(path).removeprefix("L['self'].").removeprefix("L['self']")
        kind = str(getattr(kind, "__name__", kind))
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
            raise CaptureError(
                f"{node.target} at {self.source(node)} mixes the images of a batch (result {sizes}); "
                "expected the first dimension to stay the batch"
            )
        return tuple(int(n) for n in sizes[1:])

    def _is_batch(self, size: Any) -> bool:
        return not isinstance(size, int) and bool(str(size) == str(self.batch))

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
        tensor = self.constants[argument] if isinstance(argument, fx.Node) else torch.as_tensor(argument)
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


def _pair(value: Any) -> tuple[int, int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0], values[-1])


def _symmetric(padding: tuple[int, int]) -> Padding:
    return (padding[0], padding[1], padding[0], padding[1])


def _unsupported(c: _Capture, node: fx.Node, what: str, remedy: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(f"{node.target} at {c.source(node)}: {what} has no integer form here; {remedy}")


@_handles("conv2d", "convolution")
def _conv2d(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    weight = c.array(a["weight"])
    if weight is None or c.is_activation(a["weight"]) or weight.ndim != 4 or a.get("transposed"):
        raise _unsupported(c, node, "a transposed or one-dimensional convolution", "use Conv2d")
    bias = c.array(a["bias"])
    stride, dilation = _pair(a["stride"]), _pair(a["dilation"])
    if a["padding"] == "valid":
        padding = (0, 0, 0, 0)
    elif a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        padding = _symmetric(_pair(a["padding"]))
    c.add(
        node,
        Conv2d(
            **c.common(node, a["input"]),
            weight_oihw=weight,
            bias_o=np.zeros(weight.shape[0], np.float32) if bias is None else bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=int(a["groups"]),
        ),
    )


@_handles("conv1d")
def _conv1d(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    """A convolution of one row."""
    weight, bias = c.array(a["weight"]), c.array(a["bias"])
    if weight is None or c.is_activation(a["weight"]):
        raise _unsupported(c, node, "a convolution with computed weights", "use Conv1d")
    (channels, length), (out, out_length) = c.input_shape(a["input"]), c.shape(node)
    stride, dilation, kernel = int(a["stride"][0]), int(a["dilation"][0]), weight.shape[2]
    before = after = 0
    if a["padding"] == "same":
        before, after = dilation * (kernel - 1) // 2, -(-dilation * (kernel - 1) // 2)
    elif a["padding"] != "valid":
        before = after = int(a["padding"][0])
    name = c.reshape(node, c.input(a["input"]), (channels, 1, length))
    name = c.derive(
        node,
        Conv2d,
        (out, 1, out_length),
        name,
        weight_oihw=weight[:, :, None],
        bias_o=np.zeros(out, np.float32) if bias is None else bias,
        stride=(1, stride),
        padding=(0, before, 0, after),
        dilation=(1, dilation),
        groups=int(a["groups"]),
    )
    c.reshape(node, name, (out, out_length))


@_handles("linear")
def _linear(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    weight, bias = c.array(a["weight"]), c.array(a["bias"])
    assert weight is not None
    if len(c.input_shape(a["input"])) != 1:
        raise _unsupported(c, node, "a linear layer on more than one dimension", "flatten first, or use a 1x1 Conv2d")
    c.add(
        node,
        Linear(
            **c.common(node, a["input"]),
            weight_oi=weight,
            bias_o=np.zeros(weight.shape[0], np.float32) if bias is None else bias,
        ),
    )


@_handles("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    mean, variance = c.array(a["running_mean"]), c.array(a["running_var"])
    if mean is None or variance is None:
        raise _unsupported(c, node, "a batch norm without running statistics", "set track_running_stats=True")
    if a.get("training"):
        raise _unsupported(c, node, "a batch norm on the statistics of the batch", "pass training=self.training")
    gamma, beta = c.array(a["weight"]), c.array(a["bias"])
    # float64: folding must not add error of its own.
    scale = 1.0 / np.sqrt(variance.astype(np.float64) + float(a["eps"]))
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    c.add(
        node,
        ChannelAffine(
            **c.common(node, a["input"]),
            scale_c=scale.astype(np.float32),
            shift_c=shift.astype(np.float32),
        ),
    )


@_handles("relu")
def _relu(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    c.add(node, Clamp(**c.common(node, a["self"]), bounds=(0.0, math.inf)))


@_handles("relu6")
def _relu6(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    c.add(node, Clamp(**c.common(node, a["self"]), bounds=(0.0, 6.0)))


@_handles("hardtanh", "clamp", "clamp_min", "clamp_max")
def _clamp(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    lo = a.get("min_val", a.get("min"))
    hi = a.get("max_val", a.get("max"))
    if isinstance(lo, fx.Node) or isinstance(hi, fx.Node):
        raise _unsupported(c, node, "a clamp with tensor bounds", "use numbers")
    bounds = (-math.inf if lo is None else float(lo), math.inf if hi is None else float(hi))
    c.add(node, Clamp(**c.common(node, a["self"]), bounds=bounds))


def _affine(c: _Capture, node: fx.Node, x: fx.Node, scale: Any, shift: Any) -> None:
    """Add scale · x + shift, each a number or one value a channel."""
    channels = c.input_shape(x)[0]
    c.add(
        node,
        ChannelAffine(
            **c.common(node, x),
            scale_c=np.broadcast_to(scale, (channels,)).astype(np.float32),
            shift_c=np.broadcast_to(shift, (channels,)).astype(np.float32),
        ),
    )


def _per_channel(c: _Capture, node: fx.Node, x: fx.Node, constant: Any) -> NDArray[np.float64]:
    """Return a constant operand as (1,) or (channels,) values; float64, so that folding adds no error."""
    value = c.array(constant)
    assert value is not None
    shape = c.input_shape(x)
    full = (1,) * (1 + len(shape) - value.ndim) + value.shape
    if len(full) != 1 + len(shape) or any(n != 1 for i, n in enumerate(full) if i != 1) or full[1] not in (1, shape[0]):
        raise _unsupported(c, node, f"a constant of shape {value.shape}", "use one value, or one a channel")
    return value.reshape(-1).astype(np.float64)


def _sum(c: _Capture, node: fx.Node, left: Any, right: Any, left_factor: float, right_factor: float) -> None:
    """Add left_factor · left + right_factor · right, where at least one is an activation."""
    if not c.is_activation(right):
        _affine(c, node, left, left_factor, right_factor * _per_channel(c, node, left, right))
    elif not c.is_activation(left):
        _affine(c, node, right, right_factor, left_factor * _per_channel(c, node, right, left))
    elif c.input_shape(left) != c.input_shape(right):
        raise _unsupported(c, node, "a sum of tensors of different shapes", "make the shapes equal")
    else:
        terms = _scaled(c, node, left, left_factor), _scaled(c, node, right, right_factor)
        c.derive(node, Add, c.shape(node), *terms)


def _scaled(c: _Capture, node: fx.Node, x: fx.Node, factor: float) -> str:
    """Return the name of factor · x."""
    name, shape = c.input(x), c.input_shape(x)
    if factor == 1:
        return name
    scale = np.full(shape[0], factor, np.float32)
    return c.derive(node, ChannelAffine, shape, name, scale_c=scale, shift_c=np.zeros_like(scale))


@_handles("add")
def _add(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    _sum(c, node, a["self"], a["other"], 1, a.get("alpha", 1))


@_handles("sub")
def _sub(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    _sum(c, node, a["self"], a["other"], 1, -a.get("alpha", 1))


@_handles("rsub")
def _rsub(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    _sum(c, node, a["other"], a["self"], 1, -a.get("alpha", 1))


@_handles("neg", "negative")
def _neg(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    _affine(c, node, a["self"], -1.0, 0.0)


@_handles("mul", "multiply")
def _mul(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    left, right = a["self"], a["other"]
    if not c.is_activation(left):
        left, right = right, left
    if c.is_activation(right):
        c.add(node, Mul(**c.common(node, left, right)))
    else:
        _affine(c, node, left, _per_channel(c, node, left, right), 0.0)


@_handles("div", "divide", "true_divide")
def _div(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    if c.is_activation(a["other"]) or a.get("rounding_mode"):
        raise _unsupported(c, node, "a quotient of activations", "divide by a constant")
    divisor = _per_channel(c, node, a["self"], a["other"])
    if not divisor.all():
        raise CaptureError(f"{node.target} at {c.source(node)} divides by zero")
    _affine(c, node, a["self"], 1.0 / divisor, 0.0)


@_handles("pow")
def _pow(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    if a.get("exponent") != 2 or not c.is_activation(a["self"]):
        raise _unsupported(c, node, "a power other than the square", "multiply instead")
    c.add(node, Mul(**c.common(node, a["self"], a["self"])))


@_handles("square")
def _square(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    c.add(node, Mul(**c.common(node, a["self"], a["self"])))


@_handles("expand", "expand_as")
def _expand(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    """Products broadcast by themselves; nothing else may read an expanded tensor."""
    readers = {str(getattr(user.target, "_opname", user.target)).rstrip("_") for user in node.users}
    if c.shape(node) != c.input_shape(a["self"]) and (
        not readers <= {"mul", "multiply"} or len(c.shape(node)) != len(c.input_shape(a["self"]))
    ):
        raise _unsupported(c, node, "an expanded tensor", "only products may broadcast; concatenate copies")
    c.same(node, a["self"])


@_handles("stack")
def _stack(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    axis, shape = _axis(c, node, a["dim"]), c.shape(node)
    part = (*shape[:axis], 1, *shape[axis + 1 :])
    c.derive(node, Concat, shape, *[c.reshape(node, c.input(x), part) for x in a["tensors"]], axis=axis)


@_handles("cat", "concat")
def _cat(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    tensors = a["tensors"]
    axis = _axis(c, node, a["dim"])
    c.add(node, Concat(**c.common(node, *tensors), axis=axis))


def _axis(c: _Capture, node: fx.Node, dim: Any) -> int:
    rank = len(node.meta["val"].shape)
    axis = int(dim) % rank
    if axis == 0:
        raise CaptureError(f"{node.target} at {c.source(node)} works along the batch; expected images to stay apart")
    return axis - 1


@_handles("max_pool2d", "max_pool2d_with_indices")
def _max_pool2d(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    kernel = _pair(a["kernel_size"])
    stride = _pair(a["stride"]) if a["stride"] else kernel
    padding = _symmetric(_pair(a["padding"]))
    fields = c.common(node, a["self"])
    if a["ceil_mode"]:
        padding = _ceil_padding(
            c.input_shape(a["self"]), fields["shape"], kernel, stride, padding, _pair(a["dilation"])
        )
    c.add(
        node,
        MaxPool2d(**fields, kernel=kernel, stride=stride, padding=padding, dilation=_pair(a["dilation"])),
    )


def _ceil_padding(
    shape: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int] = (1, 1),
) -> Padding:
    """Return the padding that gives ceil mode's output size without it."""
    more = [
        max(
            0,
            (out[i + 1] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - shape[i + 1] - 2 * padding[i],
        )
        for i in (0, 1)
    ]
    return (padding[0], padding[1], padding[0] + more[0], padding[1] + more[1])


@_handles("avg_pool2d")
def _avg_pool2d(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    kernel = _pair(a["kernel_size"])
    stride = _pair(a["stride"]) if a["stride"] else kernel
    padding = _pair(a["padding"])
    shape, size = c.shape(node), c.input_shape(a["self"])[1:]
    name, override = c.input(a["self"]), a["divisor_override"]
    counts_padding = bool(a["count_include_pad"] or override)
    rows, columns = (
        _pool_windows(size[i], shape[i + 1], kernel[i], stride[i], padding[i], counts_padding and not override)
        if not override
        else tuple(
            (start, stop, kernel[i])
            for start, stop, _ in _pool_windows(size[i], shape[i + 1], kernel[i], stride[i], padding[i], False)
        )
        for i in (0, 1)
    )
    if all(window[2] == kernel[0] for window in rows) and all(window[2] == kernel[1] for window in columns):
        partial = _ceil_padding((0, *size), shape, kernel, stride, _symmetric(padding))
        name = c.derive(node, AveragePool2d, shape, name, kernel=kernel, stride=stride, padding=partial)
    else:
        name = c.derive(node, WindowAverage2d, shape, name, rows=rows, columns=columns)
    if override and int(override) != kernel[0] * kernel[1]:
        scale = np.full(shape[0], kernel[0] * kernel[1] / int(override), np.float32)
        c.derive(node, ChannelAffine, shape, name, scale_c=scale, shift_c=np.zeros_like(scale))


def _pool_windows(size: int, out: int, kernel: int, stride: int, padding: int, counts_padding: bool) -> Windows:
    """Return the windows of an average pool along one dimension, and what torch divides by."""
    windows = []
    for position in range(out):
        start = position * stride - padding
        stop = min(start + kernel, size + padding)  # what ceil mode adds beyond the padding never counts
        count = stop - start
        start, stop = max(start, 0), min(stop, size)
        windows.append((start, stop, count if counts_padding else stop - start))
    return tuple(windows)


@_handles("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool2d(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    (_, *size), (_, *out) = c.input_shape(a["self"]), c.shape(node)
    if size[0] % out[0] or size[1] % out[1]:
        rows, columns = (
            tuple((i * n // m, -(-(i + 1) * n // m), -(-(i + 1) * n // m) - i * n // m) for i in range(m))
            for n, m in zip(size, out, strict=True)
        )
        c.add(node, WindowAverage2d(**c.common(node, a["self"]), rows=rows, columns=columns))
        return
    kernel = (size[0] // out[0], size[1] // out[1])
    c.add(node, AveragePool2d(**c.common(node, a["self"]), kernel=kernel, stride=kernel))


@_handles("adaptive_max_pool2d")
def _adaptive_max_pool2d(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    kernel = _adaptive_kernel(c, node, a["self"])
    c.add(node, MaxPool2d(**c.common(node, a["self"]), kernel=kernel, stride=kernel))


def _adaptive_kernel(c: _Capture, node: fx.Node, argument: fx.Node) -> tuple[int, int]:
    (_, h, w), (_, out_h, out_w) = c.input_shape(argument), c.shape(node)
    if h % out_h or w % out_w:
        raise _unsupported(
            c, node, f"adaptive pooling of {h}x{w} to {out_h}x{out_w}", "choose sizes that divide evenly"
        )
    return (h // out_h, w // out_w)


@_handles("mean")
def _mean(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    shape = c.input_shape(a["self"])
    dims = sorted(int(d) % (1 + len(shape)) for d in (a.get("dim") or ()))
    spatial = {3: ([2], [3], [2, 3]), 2: ([2],)}.get(len(shape), ())
    if dims not in spatial:
        raise _unsupported(c, node, f"a mean over dimensions {a.get('dim')}", "take the mean over height and width")
    image = (*shape, 1)[:3]
    kernel = (image[1] if 2 in dims else 1, image[2] if 3 in dims else 1)
    name = c.reshape(node, c.input(a["self"]), image)
    pooled = (image[0], image[1] // kernel[0], image[2] // kernel[1])
    c.reshape(node, c.derive(node, AveragePool2d, pooled, name, kernel=kernel, stride=kernel), c.shape(node))


@_handles("view", "_unsafe_view", "reshape", "flatten", "unsqueeze", "squeeze", "unflatten")
def _reshape(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    c.reshape(node, c.input(a["self"]), c.shape(node))


@_handles("channel_shuffle")
def _channel_shuffle(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    channels, *rest = c.shape(node)
    groups = int(a["groups"])
    axes = (1, 0, *range(2, 2 + len(rest)))
    c.rearrange(node, (groups, channels // groups, *rest), axes)


@_handles("pixel_shuffle")
def _pixel_shuffle(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    (_, height, width), factor = c.input_shape(a["self"]), int(a["upscale_factor"])
    c.rearrange(node, (c.shape(node)[0], factor, factor, height, width), (0, 3, 1, 4, 2))


@_handles("pixel_unshuffle")
def _pixel_unshuffle(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    channels, height, width = c.input_shape(a["self"])
    factor = int(a["downscale_factor"])
    c.rearrange(node, (channels, height // factor, factor, width // factor, factor), (0, 2, 4, 1, 3))


@_handles("upsample_nearest2d", "_upsample_nearest_exact2d")
def _upsample_nearest(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    """Every pixel several times: concatenated with itself along new dimensions."""
    argument = a["input"] if "input" in a else a["self"]
    (channels, height, width), out = c.input_shape(argument), c.shape(node)
    if out[1] % height or out[2] % width:
        raise _unsupported(c, node, f"enlarging {height}x{width} to {out[1]}x{out[2]}", "enlarge by whole factors")
    shape = [channels, height, 1, width, 1]
    name = c.reshape(node, c.input(argument), tuple(shape))
    for axis, factor in ((2, out[1] // height), (4, out[2] // width)):
        if factor > 1:
            shape[axis] = factor
            name = c.derive(node, Concat, tuple(shape), *[name] * factor, axis=axis)
    c.reshape(node, name, out)


@_handles("permute", "transpose")
def _permute(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    rank = 1 + len(c.input_shape(a["self"]))
    if "dims" in a:
        order = [int(d) % rank for d in a["dims"]]
    else:
        order = list(range(rank))
        i, j = int(a["dim0"]) % rank, int(a["dim1"]) % rank
        order[i], order[j] = order[j], order[i]
    if order[0] != 0:
        raise CaptureError(
            f"{node.target} at {c.source(node)} moves the batch; expected it to stay the first dimension"
        )
    c.add(node, Permute(**c.common(node, a["self"]), axes=tuple(d - 1 for d in order[1:])))


@_handles("slice")
def _slice(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    shape = c.input_shape(a["self"])
    dim = int(a["dim"]) % (1 + len(shape))
    if c.shape(node) == shape and int(a["step"]) == 1:
        c.same(node, a["self"])
        return
    axis = _axis(c, node, dim)
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(shape[axis])
    c.add(node, Slice(**c.common(node, a["self"]), axis=axis, start=start, stop=stop, step=step))


@_handles("select")
def _select(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    shape = c.input_shape(a["self"])
    dim = int(a["dim"]) % (1 + len(shape))
    if dim == 0:
        raise CaptureError(f"{node.target} at {c.source(node)} takes one image; expected images to stay apart")
    _take(c, node, a["self"], dim - 1, int(a["index"]) % shape[dim - 1])


def _take(c: _Capture, node: fx.Node, argument: fx.Node, axis: int, index: int) -> None:
    """One index along ``axis``, which is dropped."""
    shape = list(c.input_shape(argument))
    shape[axis] = 1
    name = c.input(argument)
    name = c.derive(node, Slice, tuple(shape), name, axis=axis, start=index, stop=index + 1, step=1)
    c.reshape(node, name, tuple(shape[:axis] + shape[axis + 1 :]))


@_handles("unbind")
def _unbind(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    dim = int(a["dim"]) % (1 + len(c.input_shape(a["self"])))
    if dim == 0:
        raise CaptureError(f"{node.target} at {c.source(node)} takes images apart; expected them to stay a batch")
    for user in list(node.users):
        _take(c, user, a["self"], dim - 1, int(user.args[1]))  # type: ignore[arg-type]


@_handles("narrow")
def _narrow(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    _slice(c, node, {**a, "start": a["start"], "end": int(a["start"]) + int(a["length"]), "step": 1})


@_handles("chunk", "split", "split_with_sizes")
def _split(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    """Each part that is read is a slice of the whole."""
    parts = node.meta["val"]
    rank = 1 + len(c.input_shape(a["self"]))
    dim = int(a["dim"]) % rank
    if dim == 0:
        raise CaptureError(f"{node.target} at {c.source(node)} splits the batch; expected images to stay apart")
    starts = np.cumsum([0, *(int(part.shape[dim]) for part in parts)])
    for user in list(node.users):
        index = int(user.args[1])  # type: ignore[arg-type]
        made = Slice(
            **c.common(user, a["self"]),
            axis=dim - 1,
            start=int(starts[index]),
            stop=int(starts[index + 1]),
            step=1,
        )
        c.add(user, made)


@_handles("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def _pad(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    argument = a["self"] if "self" in a else a["input"]
    rank = len(c.input_shape(argument))
    padding = a["pad"] if "pad" in a else a["padding"]
    flat = [int(n) for n in padding]
    widths = [(0, 0)] * rank
    for i in range(len(flat) // 2):  # torch lists the last dimension first
        if i >= rank and (flat[2 * i] or flat[2 * i + 1]):
            raise CaptureError(f"{node.target} at {c.source(node)} pads the batch; expected images to stay apart")
        widths[rank - 1 - i] = (flat[2 * i], flat[2 * i + 1])
    target = str(node.target)
    mode = "reflect" if "reflection" in target else "replicate" if "replication" in target else a.get("mode")
    if mode in ("reflect", "replicate"):
        _pad_with_values(c, node, argument, widths, reflects=mode == "reflect")
        return
    value = float(a.get("value") or 0.0)
    lowest = value == -math.inf or value <= -3e38
    if (mode or "constant") != "constant" or (
        value != 0.0 and not (lowest and widths[0] == (0, 0) and _read_by_max_pools(node))
    ):
        raise _unsupported(c, node, f"padding with {value if value else mode}", "pad with zeros")
    if any(n < 0 for pair in widths for n in pair):
        raise _unsupported(c, node, "negative padding", "slice instead")
    fields = c.common(node, argument)
    c.add(node, Pad(**fields, widths=tuple(widths), value=-math.inf if lowest else 0.0))


def _read_by_max_pools(node: fx.Node) -> bool:
    readers = {str(getattr(user.target, "_opname", user.target)) for user in node.users}
    return len(node.users) == 1 and readers <= {"max_pool2d", "max_pool2d_with_indices"}


def _pad_with_values(
    c: _Capture, node: fx.Node, argument: fx.Node, widths: list[tuple[int, int]], *, reflects: bool
) -> None:
    """Reflection and replication: rows and columns that are there already, taken once more."""
    name = c.input(argument)
    for axis, ((before, after), size) in enumerate(zip(widths, c.input_shape(argument), strict=True)):
        if before or after:
            positions = np.arange(-before, size + after)
            inside = np.abs(positions) if reflects else np.maximum(positions, 0)
            last = size - 1
            inside = np.where(positions > last, 2 * last - positions if reflects else last, inside)
            name = c.gather(node, name, axis, [int(i) for i in inside])
    c.tensors[node] = name


@_handles(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout",
    "contiguous", "clone", "detach", "alias", "lift_fresh_copy",
)  # fmt: skip
def _identity(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    if a.get("train"):
        raise _unsupported(c, node, "a dropout that is on in eval mode", "pass training=self.training")
    c.same(node, a["self"] if "self" in a else a["input"])


@_handles("_to_copy", "to", "type_as")
def _to(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    value = node.meta["val"]
    if value.dtype != torch.float32:
        raise _unsupported(c, node, f"a conversion to {value.dtype}", "keep the model in float32")
    c.same(node, a["self"])


def _function(name: str, *names: str) -> Handler:
    def handler(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
        parameters = tuple(float(a[parameter]) for parameter in names)
        c.add(node, Elementwise(**c.common(node, a["self"]), function=name, parameters=parameters))

    return handler


for _name in (
    "abs", "exp", "hardsigmoid", "hardswish", "log_sigmoid", "mish", "selu", "sigmoid", "silu", "tanh",
):  # fmt: skip
    _HANDLERS[_name] = _function(_name)
_HANDLERS["leaky_relu"] = _function("leaky_relu", "negative_slope")
_HANDLERS["elu"] = _function("elu", "alpha")
_HANDLERS["celu"] = _function("celu", "alpha")
_HANDLERS["softplus"] = _function("softplus", "beta", "threshold")


@_handles("prelu")
def _prelu(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    """Return max(x, 0) + slope · min(x, 0); one slope is a leaky ReLU."""
    slopes = c.array(a["weight"])
    assert slopes is not None
    if slopes.size == 1:
        c.add(node, Elementwise(**c.common(node, a["self"]), function="leaky_relu", parameters=(float(slopes[0]),)))
        return
    name, shape = c.input(a["self"]), c.shape(node)
    positive = c.derive(node, Clamp, shape, name, bounds=(0.0, math.inf))
    negative = c.derive(node, Clamp, shape, name, bounds=(-math.inf, 0.0))
    scaled = c.derive(node, ChannelAffine, shape, negative, scale_c=slopes, shift_c=np.zeros_like(slopes))
    c.derive(node, Add, shape, positive, scaled)


@_handles("gelu")
def _gelu(c: _Capture, node: fx.Node, a: dict[str, Any]) -> None:
    function = "gelu_tanh" if a.get("approximate") == "tanh" else "gelu"
    c.add(node, Elementwise(**c.common(node, a["self"]), function=function))

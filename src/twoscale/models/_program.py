"""Programs of torch.export, as modules that the front-end captures like any other.

Only operators with a translation are called, and the sizes of all results are computed before any memory is taken.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from twoscale._frontends.torch_export.capture import supported_operators
from twoscale._text import printable
from twoscale.errors import CheckpointError
from twoscale.models._archive import reason
from twoscale.models._exported import Argument, Node, Program, type_of

__all__ = ["module_of"]

_CONSTANTS = ("zeros", "ones", "full", "arange", "linspace", "scalar_tensor")
"""Operators that make constants, which the front-end folds."""
_SHAPES = ("sym_size", "_assert_tensor_metadata")
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge", "getitem")
}
"""Functions of sizes."""
_EVALUATION = ("training", "train")
"""Arguments that are false in evaluation mode."""
_LARGEST = 1 << 26
"""Most values of one result for one image."""
_MOST = 1 << 32
"""Most values of all results for one image."""
_MOST_NODES = 20_000
_SPECIAL = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
"""Floats that JSON has not."""
_PATH = re.compile(r"[A-Za-z0-9_]{1,200}(\.[A-Za-z0-9_]{1,200}){0,30}")
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
"""By their numbers in these files."""


def module_of(program: Program, origin: str) -> nn.Module:
    """Return the module that computes a program, in evaluation mode, with the model's names of layers and weights.

    Args:
        program: from a file.
        origin: the file, for messages.

    Raises:
        CheckpointError: an operator is none of those that are read, the results take too much memory, or the program
        takes batches of one size only.
    """
    try:
        module = _built(program, origin)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile description can be wrong in any way
        raise CheckpointError(f"{origin} describes a program that cannot be built ({reason(error)})") from error
    _check_sizes(module, program, origin)
    return module.eval()


def _built(program: Program, origin: str) -> nn.Module:
    if len(program.graph.nodes) > _MOST_NODES:
        raise CheckpointError(f"{origin} has {len(program.graph.nodes)} operators; expected at most {_MOST_NODES}")
    root = nn.Module()
    for name, value in program.parameters.items():
        _register(root, name, nn.Parameter(value, requires_grad=value.is_floating_point()), origin)
    for name, value in program.buffers.items():
        _register(root, name, value, origin)
    for name, value in program.constants.items():
        _register(root, name, value, origin, persistent=False)
    graph = fx.Graph()
    values: dict[str, Any] = {program.input: graph.placeholder("x")}
    for name, own in program.tensors.items():
        values[name] = graph.get_attr(own)
    for node in program.graph.nodes:
        _append(graph, node, values, origin)
    results = tuple(values[name] for name in program.outputs)
    graph.output(results[0] if len(results) == 1 else results)
    for node in reversed(graph.nodes):  # counts of batches, which change nothing in evaluation mode
        first = node.args[0] if node.args else None
        if node.op == "call_function" and not node.users and isinstance(first, fx.Node) and first.op == "get_attr":
            graph.erase_node(node)
    module = fx.GraphModule(root, graph, _class_name(program))
    there = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    for name, value in (*root.named_parameters(), *root.named_buffers()):
        # GraphModule leaves out weights that nothing uses, and would save constants.
        if name in program.constants or name not in there:
            _register(module, name, value, origin, persistent=name not in program.constants)
    return module


def _register(root: nn.Module, name: str, value: torch.Tensor, origin: str, *, persistent: bool = True) -> None:
    """Enter a tensor under its path, such as layer1.0.conv1.weight."""
    if not _PATH.fullmatch(name):
        raise CheckpointError(f"{origin} has a tensor named {name!a}; expected a path such as conv1.weight")
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value, persistent=persistent)


def _append(graph: fx.Graph, node: Node, values: dict[str, Any], origin: str) -> None:
    """Append a call, and enter its results under their names."""
    function = _function(node.target, origin)
    positional, named = [], {}
    # A batch norm that has no statistics always uses those of its input.
    fixed = any(given.name == "running_mean" and "as_none" in given.arg for given in node.inputs)
    for given in node.inputs:
        value = False if given.name in _EVALUATION and not fixed else _argument(given.arg, values)
        if given.kind == 2:
            named[given.name] = value
        else:
            positional.append(value)
    call = graph.call_function(function, tuple(positional), named)
    call.meta.update(_metadata(node))
    [*outputs] = node.outputs
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        outputs = [{"as_tensor": entry} for entry in outputs[0]["as_tensors"]]
    elif len(outputs) == 1:
        values[_result(outputs[0])] = call
        return
    for index, output in enumerate(outputs):
        if "as_none" not in output:
            part = graph.call_function(operator.getitem, (call, index))
            part.meta.update(call.meta)
            values[_result(output)] = part


def _function(target: str, origin: str) -> Callable[..., Any]:
    """Return an operator. No name of the file is looked up elsewhere."""
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    match = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
    known = {*supported_operators(), *_CONSTANTS, *_SHAPES}
    if match is None or not {match[1], match[1].removesuffix("_")} & known:
        raise CheckpointError(f"{origin} calls {printable(target, 100)}, which has no integer form here")
    found = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    if not isinstance(found, torch._ops.OpOverload):
        raise CheckpointError(f"{origin} calls {target}, which torch {torch.__version__} does not have")
    return found


def _result(output: Argument) -> str:
    [(kind, value)] = output.items()
    return str(value["as_name"] if kind in ("as_sym_int", "as_sym_bool", "as_sym_float") else value["name"])


def _argument(argument: Argument, values: dict[str, Any]) -> Any:
    """Return the value of an argument."""
    [(kind, value)] = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return values[value["name"]]
        case "as_tensors":
            return [values[entry["name"]] for entry in value]
        case "as_optional_tensors":
            return [_argument(entry, values) for entry in value]
        case "as_optional_tensor":
            return _argument(value, values)
        case "as_int" | "as_bool" | "as_string" | "as_ints" | "as_bools" | "as_strings":
            return _plain(value)
        case "as_float":
            return _float(value)
        case "as_floats":
            return [_float(entry) for entry in value]
        case "as_sym_int" | "as_sym_bool" | "as_sym_float":
            return _symbol(value, values)
        case "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
            return [_symbol(entry, values) for entry in value]
        case "as_scalar_type":
            return type_of(value)
        case "as_memory_format":
            return _MEMORY_FORMATS[value]
        case "as_layout":
            return torch.strided
        case "as_device":
            return torch.device("cpu")
    raise ValueError(f"an argument of the kind {kind!a}")


def _plain(value: Any) -> Any:
    """Return a number, a word or a list of them; nothing else could come from such a file."""
    if not isinstance(value, int | str) and not (
        isinstance(value, list) and all(isinstance(entry, int | str) for entry in value)
    ):
        raise ValueError("an argument is no number")
    return value


def _float(value: Any) -> float:
    return _SPECIAL[value] if isinstance(value, str) else float(value)


def _symbol(value: dict[str, Any], values: dict[str, Any]) -> Any:
    """Return the node of a size, or the size itself."""
    return values[value["as_name"]] if "as_name" in value else _plain(next(iter(value.values())))


def _metadata(node: Node) -> dict[str, Any]:
    """Return the user's lines and the modules that made a node, by which the front-end names layers."""
    found: dict[str, Any] = {}
    if trace := node.metadata.get("stack_trace"):
        found["stack_trace"] = "\n".join(printable(line, 300) for line in trace.split("\n")[:40])
    stack = {}
    for entry in node.metadata.get("nn_module_stack", "").split(";"):
        key, _, rest = entry.partition(",")
        path, _, kind = rest.rpartition(",")
        if path == "" or _PATH.fullmatch(path):
            stack[printable(key, 200)] = (path, printable(kind, 200))
    if stack:
        found["nn_module_stack"] = stack
    return found


def _class_name(program: Program) -> str:
    """Return the name of the model's class."""
    for node in program.graph.nodes:
        name = node.metadata.get("nn_module_stack", "").split(";")[0].rpartition(".")[2]
        if re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII):
            return name
    return "Exported"


class _Sizes(fx.Interpreter):
    """Computes the shapes of all results, and refuses those that would take the machine's memory."""

    values = 0

    def run_node(self, n: fx.Node) -> Any:
        """Compute the shape of one result."""
        result = super().run_node(n)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and n.op == "call_function":
                self.values += tensor.numel()
                if tensor.numel() > _LARGEST * _IMAGES or self.values > _MOST * _IMAGES:
                    raise CheckpointError(
                        f"{n.target} makes a tensor of shape {tuple(tensor.shape)}, which is too large"
                    )
        return result


_IMAGES = 3
"""Batch size of that check: no program is exported with it by chance."""


def _check_sizes(module: nn.Module, program: Program, origin: str) -> None:
    if len(program.shape) < 2 or not program.dtype.is_floating_point:
        raise CheckpointError(
            f"{origin} takes inputs of shape {program.shape} ({program.dtype}); expected float images"
        )
    assert isinstance(module, fx.GraphModule)
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True  # the error below has what matters
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            images = torch.empty((_IMAGES, *program.shape[1:]), dtype=program.dtype)
            sizes = _Sizes(module)
            sizes.extra_traceback = False
            logits = sizes.run(images)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    except Exception as error:  # of any operator
        raise CheckpointError(
            f"{origin} does not take batches of {_IMAGES} images ({reason(error)}); export the model with "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) and a batch of 2"
        ) from error
    finally:
        log.disabled = disabled
    if isinstance(logits, torch.Tensor) and (not logits.ndim or logits.shape[0] != _IMAGES):
        raise CheckpointError(
            f"{origin} gives a tensor of shape {tuple(logits.shape)} for {_IMAGES} images; expected logits (N, classes)"
        )

"""nn.Module → FloatGraph, through torch.export in eval mode.

Every ATen operator that a FloatGraph can hold has one translation (in the package ``aten``), found by the operator's
name. In-place forms (relu_, add_) share the translation of the plain form. After them, the name of the changed tensor
means the result, as in the user's program.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from twoscale._frontends.torch_export.aten.table import PLAIN_ONLY, TRANSLATIONS
from twoscale._frontends.torch_export.aten.translator import Translator, UnknownOperator, ViewChanged
from twoscale._ir.float_graph import FloatGraph
from twoscale._ir.float_module import GraphModule
from twoscale.errors import CaptureError, TwoscaleError

__all__ = ["capture", "input_count", "supported_operators"]


def supported_operators() -> tuple[str, ...]:
    """Names of the ATen operators that can be captured."""
    return tuple(sorted(TRANSLATIONS))


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode. Afterwards restore modes and buffers, so that the user's model is unchanged."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, _ in training:  # not model.eval(), which the user may have overridden
        module.training = False
    try:
        yield
    finally:
        for module, was_training in training:
            module.training = was_training
        for module, name, buffer, value in buffers:  # some models count their calls
            if module._buffers[name] is not buffer or not torch.equal(buffer, value):
                buffer.copy_(value)
                module._buffers[name] = buffer


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress torch.export's warnings, logs and graph dumps. The error that we raise has what matters of them.

    Output of the model itself to stderr is printed at the end, unless the capture fails.
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


def capture(
    model: nn.Module | torch.export.ExportedProgram, example_nchw: Any, *, name: str | None = None
) -> FloatGraph:
    """Capture an image classifier.

    Args:
        model: maps float images (N, C, H, W), signals (N, C, L) or features (N, F) to (N, classes) logits; its mode
            and weights are left alone. An exported program with a dynamic batch is taken as it is. A softmax at the end
            is left out, with a warning.
        example_nchw: a batch of one image or more, a tensor or an array, as the model takes them; for several inputs a
            tuple of them. The captured graph is compared with the model on up to four of them.
        name: of the graph; the class's name by default.

    Raises:
        CaptureError: torch.export cannot follow the model, or it is no classifier of single images.
        UnsupportedOperatorError: an operator has no integer form; the message names it and the user's line.
    """
    given = [torch.as_tensor(x) for x in (example_nchw if isinstance(example_nchw, tuple) else (example_nchw,))]
    if isinstance(model, torch.export.ExportedProgram):
        return _of_program(model, given, name or "exported")
    for array in given:
        if array.ndim < 2 or array.shape[0] < 1:
            raise CaptureError(
                f"expected a batch of inputs, (N, C, H, W) or (N, ...) as the model takes them, got "
                f"{tuple(array.shape)}; add the missing dimensions, e.g. images[None]"
            )
    model = _unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("the model is TorchScript, which cannot be captured; pass the module that it was made from")
    _check_modules(model)
    parameter = next((value for value in model.parameters() if value.is_floating_point()), None)
    device = parameter.device if parameter is not None else given[0].device
    dtype = parameter.dtype if parameter is not None else torch.float32
    # Two images: torch.export takes a dimension of size 1 for a constant.
    example = tuple(x[:1].to(device).to(dtype).expand(2, *x.shape[1:]).contiguous() for x in given)
    _check_signature(model, example)
    name = name or type(model).__name__
    images = [x.to(device).to(dtype) for x in given]

    def captured(exported: torch.export.ExportedProgram) -> tuple[FloatGraph, tuple[str, str] | None]:
        graph, left_out = _translated(exported, name)
        _check_captured(graph, model, images, left_out[0] if left_out else None)
        return graph, left_out

    with _in_eval_mode(model), torch.no_grad(), _quietly():
        try:
            graph, left_out = captured(_exported_fixed(model, example))
        except Exception as fixed:  # a dynamic batch size tells why, and some models can only be captured with one
            try:
                exported = _exported(model, example)
            except _SomeBatches:
                if isinstance(fixed, TwoscaleError):
                    raise fixed from None
                raise
            graph, left_out = captured(exported)
    _warn_of(left_out, name)
    return graph


def input_count(model: nn.Module | torch.export.ExportedProgram) -> int:
    """Return how many tensors a model takes: the parameters of ``forward`` that have no default, at least one."""
    if isinstance(model, torch.export.ExportedProgram):
        return max(1, len(model.graph_signature.user_inputs))
    try:
        parameters = inspect.signature(_unwrapped(model).forward).parameters.values()
    except (TypeError, ValueError):  # TorchScript, or a callable without a signature
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters))


def _of_program(program: torch.export.ExportedProgram, given: list[torch.Tensor], name: str) -> FloatGraph:
    """Translate a program that the user exported."""
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != len(given) or not all(isinstance(value, torch.Tensor) for value in inputs):
        expected = "images alone" if len(given) == 1 else f"{len(given)} tensors"
        raise CaptureError(f"the exported program takes {len(inputs)} inputs, expected {expected}")
    for value, example in zip(inputs, given, strict=True):
        batch, *size = value.shape
        if isinstance(batch, int):
            raise CaptureError(
                f"the exported program takes batches of {batch} only, expected any; export it with "
                "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) and a batch of 2"
            )
        if tuple(size) != tuple(example.shape[1:]):
            raise CaptureError(
                f"the exported program takes images of shape {tuple(size)}, got {tuple(example.shape[1:])}"
            )
    with torch.no_grad(), _quietly():
        graph, left_out = _translated(program, name)
        images = [example.to(value.dtype) for value, example in zip(inputs, given, strict=True)]
        _check_captured(graph, program.module(), images, left_out[0] if left_out else None)
    _warn_of(left_out, name)
    return graph


def _translated(exported: torch.export.ExportedProgram, name: str) -> tuple[FloatGraph, tuple[str, str] | None]:
    """Return the graph of a program, and the softmax that was left out.

    Operators without a translation are decomposed into torch's core operators before they are refused.
    """

    def translate(program: torch.export.ExportedProgram) -> tuple[FloatGraph, tuple[str, str] | None]:
        walk = Translator(program, name, TRANSLATIONS, PLAIN_ONLY)
        return walk.graph(), walk.left_out

    try:
        return translate(exported)
    except ViewChanged:
        exported = exported.run_decompositions({})  # the same program without in-place operators; this takes longer
    except UnknownOperator as error:
        refusal = error
    try:
        return translate(exported)
    except UnknownOperator as error:
        refusal = error
    decompositions: Any = torch.export.default_decompositions()
    table = {
        operator: rule
        for operator, rule in decompositions.items()
        if str(getattr(operator, "_opname", "")).rstrip("_") not in TRANSLATIONS
    }
    try:
        return translate(exported.run_decompositions(table))
    except Exception:  # name the operator that the user wrote
        raise refusal from None


def _warn_of(left_out: tuple[str, str] | None, name: str) -> None:
    if left_out is not None:
        function, where = left_out
        warnings.warn(
            f"the {function} at {where} is left out of {name}: integer networks give logits, whose largest is the same",
            stacklevel=3,
        )


def _check_modules(model: nn.Module) -> None:
    """Refuse a model of a type that cannot be exported."""
    for path, module in model.named_modules():
        kind = type(module).__module__
        if kind.startswith(("torch.ao.quantization", "torch.ao.nn.quantized", "torchao.quantization")):
            raise CaptureError(
                f"module {path or 'the model'} ({type(module).__name__}) is of torch's own quantization; pass the "
                "float model, before torch's own tools prepared it"
            )
    for path, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CaptureError(
                f"{path} has no shape yet: it is of a lazy module that never ran; call the model once on a batch"
            )


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's model inside torch.compile and wrappers for training."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _check_signature(model: nn.Module, example: tuple[torch.Tensor, ...]) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*example)
    except TypeError as error:
        expected = "images alone" if len(example) == 1 else f"{len(example)} tensors"
        raise CaptureError(
            f"{type(model).__name__}.forward takes {signature}, expected {expected}; wrap the model in a module "
            "that fills in the rest"
        ) from error


def _exported(model: nn.Module, example: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """Export with a dynamic batch size."""
    batch: Any = torch.export.Dim.DYNAMIC if len(example) == 1 else torch.export.Dim("batch")  # one of all inputs
    shapes = tuple({0: batch} for _ in example)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in inspect.signature(model.forward).parameters.values()):
        shapes = (shapes,)  # type: ignore[assignment]
    try:
        return torch.export.export(model, example, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many unrelated types
        refusal = _SomeBatches if str(error).startswith("Constraints violated") else CaptureError
        raise refusal(_export_failure(model, example, error)) from error


class _SomeBatches(CaptureError):
    """The model works only for some batch sizes, as far as torch.export can tell."""


def _exported_fixed(model: nn.Module, example: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """Export with one batch size, which takes half the time and suits models that compute with it as a number."""
    return torch.export.export(model, tuple(x[:1].expand(_BATCH, *x.shape[1:]) for x in example))


_BATCH = 7919
"""A batch size that models do not use for anything else. No batch of this size is computed."""


def _export_failure(model: nn.Module, example: tuple[torch.Tensor, ...], error: Exception) -> str:
    """Say in one line what torch.export could not follow, and where."""
    reason = str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
    if reason.startswith("Constraints violated"):
        reason = "it works only for some batch sizes, expected any; write the batch size as x.shape[0] or -1"
    elif re.search(r"\d\*s\d", reason):  # a size that is a multiple of the batch size, which torch calls s0, s77, ...
        reason = f"it mixes the images of a batch ({reason}); keep the first dimension, e.g. torch.flatten(x, 1)"
    elif "data-dependent" in reason:
        reason = "it depends on values that are not known before it runs (data-dependent)"
    hint = ""
    if example[0].ndim == 3:
        size = ", ".join(map(str, example[0].shape[1:]))
        hint = f"; it was given inputs (N, {size}): if those are images, pass batches, not single images"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and f.filename != __file__]
    where = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    return (
        f"torch.export cannot capture {type(model).__name__}{where}: {reason}; the forward pass must be a fixed "
        "sequence of tensor operations for any batch size (no branches on values, no Python state)" + hint
    )


_LARGE = 1 << 16
"""Values of an image beyond which the captured graph is compared on two images instead of four: convolutions take
seconds."""


def _check_captured(graph: FloatGraph, model: nn.Module, given: list[torch.Tensor], left_out: str | None) -> None:
    """Run the model and the graph on the user's images. A capture that computes something else must never be used.

    Both run as they are first. If rounding may be the difference between them, they run in float64, which needs two
    more copies of the weights, twice as large.

    Raises:
        CaptureError: they differ by more than rounding.
    """
    images = [x[: 4 if sum(y[:1].numel() for y in given) <= _LARGE else 2] for x in given]
    if len(images[0]) < 2 or not all(x.std() > 0 for x in images):  # an example that proves nothing
        generator = torch.Generator().manual_seed(0)
        images = [torch.randn((2, *x.shape[1:]), generator=generator).to(x) for x in images]
    batch = torch.cat([x.flatten(1) for x in images], 1) if len(images) > 1 else images[0]
    expected = pytree.tree_leaves(model(*images))  # a tuple or a dict of a model with several outputs
    if not _differences(graph, expected, batch.cpu().float(), left_out, _EXACT):
        return
    share = _EXACT
    exact = _in_float64(model, images)
    if exact is None:
        share = 1e-2 if torch.finfo(batch.dtype).bits >= 32 else 0.1  # rounding, also of TF32 and 16-bit models
    differences = _differences(graph, expected if exact is None else exact, batch.cpu().double(), left_out, share)
    if differences and exact is not None:
        rounding = _sensitivity(graph, model, images, exact)
        differences = {name: error for name, error in differences.items() if not error <= rounding[name]}
    for name, error in differences.items():
        what = "logits differ" if len(graph.outputs) == 1 else f"output {name} differs"
        raise CaptureError(
            f"the captured graph of {graph.name} does not compute what the model does ({what} by {error:.2g}); "
            "look for randomness, for state, and for tensors changed in place while other views of them are in use"
        )


_EXACT = 1e-3
"""Largest difference of an output, as a share of its largest value, where rounding is no excuse."""


def _differences(
    graph: FloatGraph, expected: list[torch.Tensor], images: torch.Tensor, left_out: str | None, share: float
) -> dict[str, float]:
    """Return the largest error of each output of the graph that differs from ``expected`` by more than ``share``.

    Nothing differs if the model's values are too large for its type: calibration will name the layer.
    """
    if not all(torch.isfinite(values).all() for values in expected):
        return {}
    computed = GraphModule(graph, dtype=images.dtype).run(images)
    found = {}
    for name, values in zip(graph.outputs, expected, strict=True):
        output = computed[name]
        if left_out is not None:
            output = output.log_softmax(1) if left_out == "log_softmax" else output.softmax(1)
        error = float((output.double() - values.cpu().double()).abs().max())
        if not error <= share * float(values.abs().max()) + 1e-6:
            found[name] = error
    return found


def _sensitivity(
    graph: FloatGraph, model: nn.Module, images: list[torch.Tensor], exact: list[torch.Tensor]
) -> dict[str, float]:
    """Return the error of each output that rounding the weights to float32 explains.

    The model's own outputs tell it, from images changed in their last bits. Some networks, above all those with random
    weights, amplify such changes a million times. An output that they change by more than a tenth explains nothing.
    """
    generator = torch.Generator().manual_seed(0)
    noise = [1 + 2.0**-23 * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in images]
    changed = _in_float64(model, [x.double() * factor for x, factor in zip(images, noise, strict=True)])
    if changed is None:
        return dict.fromkeys(graph.outputs, 0.0)
    found = {}
    for name, before, after in zip(graph.outputs, exact, changed, strict=True):
        change = float((after - before).abs().max())
        found[name] = 4 * change if change <= 0.1 * float(before.abs().max()) else 0.0
    return found


def _in_float64(model: nn.Module, images: list[torch.Tensor]) -> list[torch.Tensor] | None:
    """Return the model's outputs in float64; None if it cannot compute in float64."""
    if images[0].device.type == "mps":
        return None
    try:
        outputs = pytree.tree_leaves(copy.deepcopy(model).double()(*(x.double() for x in images)))
    except Exception:  # a model can raise anything
        return None
    alike = all(isinstance(output, torch.Tensor) and output.dtype == torch.float64 for output in outputs)
    return outputs if alike else None

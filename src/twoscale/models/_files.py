"""Model files: trained weights with metadata, and weights of any origin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from twoscale._environment import VERSION
from twoscale._extras import requires_extras
from twoscale.data import Preprocessing
from twoscale.errors import CheckpointError, ConfigurationError, UnknownNameError
from twoscale.models._references import is_reference, same
from twoscale.models._registry import class_options, create, names

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["MODEL_FILE", "ModelInfo", "load", "load_checkpoint", "program", "read_info", "save_model"]

_KEY = "twoscale.model"

MODEL_FILE = "model.safetensors"
"""Name of the weights in the folder of a run, or of a model as Hugging Face's libraries save it."""


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of a model file.

    Raises:
        CheckpointError: no classes, or not one positive, finite deviation and one finite mean per channel.
    """

    model: str
    """Name in the registry, the reference to a model of the user's own (FILE.py:NAME), or the class of a module."""
    data: str
    """Name of the data set that it was trained on."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels / 255; normalization is part of the model's input."""
    std: tuple[float, ...]
    """Per channel, of pixels / 255."""
    seed: int
    epochs: int
    test_accuracy: float | None
    """Accuracy on the whole test set, 0..1."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of :func:`twoscale.models.create`."""
    preprocessing: Preprocessing | None = None
    """From picture files to pixels, if it was trained on a folder of pictures."""
    version: str = VERSION
    """Version of twoscale that wrote it."""

    def __post_init__(self) -> None:
        if not self.classes or not self.mean or len(self.mean) != len(self.std):
            raise CheckpointError(
                f"{len(self.classes)} classes, {len(self.mean)} means and {len(self.std)} deviations; expected at "
                "least one class, and a mean and a deviation per channel"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(value > 0 for value in self.std):
            raise CheckpointError(
                f"mean {self.mean} and deviation {self.std}; expected finite numbers, positive deviations"
            )


@requires_extras("twoscale.models.save_model")
def save_model(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write the model's parameters and buffers, with ``info`` as metadata, completely or not at all.

    Raises:
        TwoscaleError: the folder cannot be written, or the disk is full.
    """
    from twoscale.models._tensorfile import write_tensors

    write_tensors(path, model.state_dict(), {_KEY: msgspec.json.encode(info).decode()})


@requires_extras("twoscale.models.load_checkpoint")
def load_checkpoint(path: Path | str) -> tuple[nn.Module, ModelInfo]:
    """Load a model file that :func:`save_model` wrote, and create the model that it names.

    Returns:
        The model, on the CPU and in evaluation mode, and the file's metadata.

    Raises:
        CheckpointError: missing, damaged, of another origin, or it does not fit the model.
    """
    from twoscale.models._tensorfile import fit, read_tensors

    path = _weights(path)
    content = read_tensors(path)
    if content.program is not None:
        raise CheckpointError(f"{path} is a program of torch.export, without classes and data; use models.load")
    if any(key.startswith("twoscale.training") for key in content.metadata):
        raise CheckpointError(
            f"{path} is a checkpoint of a training run; once the run has finished, its weights are in "
            "model.safetensors beside it"
        )
    if _KEY not in content.metadata:
        raise CheckpointError(f"{path} does not say which model it is; name it (--model), one of: {', '.join(names())}")
    info = _decoded(path, content.metadata[_KEY])
    if is_reference(info.model):
        raise CheckpointError(
            f"{path} holds the weights of {info.model}, whose code runs only if you name it (--model {info.model})"
        )
    if info.model not in names():
        raise CheckpointError(
            f"{path} holds the model '{info.model}', which is not one of {', '.join(names())}; "
            "make it yourself and load its state dict"
        )
    model = _created(path, info, content.tensors)
    fit(model, content.tensors, str(path))
    return model.eval(), info


def _weights(path: Path | str) -> Path:
    """Return the file of weights: ``path``, or that in the folder ``path``."""
    path = Path(path)
    return path / MODEL_FILE if (path / MODEL_FILE).is_file() else path


def _decoded(path: Path, text: str) -> ModelInfo:
    try:
        return msgspec.json.decode(text, type=ModelInfo)
    except (CheckpointError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} describes its model in a form that is not known here: {error}") from error


def _created(path: Path, info: ModelInfo, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the model that a file names, with new weights.

    Its options come from the file and could request a model of any size. So it is first created without memory and
    compared with the file's tensors.
    """
    import torch

    from twoscale.models._tensorfile import check_fits

    if "seed" in info.options:
        raise CheckpointError(f"{path} gives its model the option seed, which is not the model's")
    try:
        with torch.device("meta"):
            outline = create(info.model, **info.options)
    except (ConfigurationError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} has options that '{info.model}' does not take: {reason}") from error
    check_fits(outline, tensors, str(path))
    return create(info.model, **info.options)


@requires_extras("twoscale.models.read_info")
def read_info(path: Path | str) -> ModelInfo | None:
    """Return the metadata of a model file; None for weights of another origin.

    Raises:
        CheckpointError: missing or damaged.
    """
    from twoscale.models._tensorfile import read_tensors

    path = _weights(path)
    text = read_tensors(path).metadata.get(_KEY)
    return None if text is None else _decoded(path, text)


def program(path: Path | str) -> nn.Module | None:
    """Return the model of a program of ``torch.export.save`` or of a float ``.onnx`` or ``.tflite`` file, in
    evaluation mode.

    The file is never unpickled, and none of its expressions are evaluated. None if it is of another kind.

    Raises:
        CheckpointError: missing, damaged, or it has an operator without an integer form.
        NetworkFileError: an ``.onnx`` or ``.tflite`` file that is missing, damaged, or no float network.
    """
    from twoscale._frontends import as_module
    from twoscale.models._program import module_of
    from twoscale.models._tensorfile import read_tensors

    path = _weights(path)
    if path.suffix in (".onnx", ".tflite"):
        module: nn.Module = as_module(path)
        return module
    found = read_tensors(path).program
    return None if found is None else module_of(found, str(path))


@requires_extras("twoscale.models.load")
def load(name: str | None, path: Path | str, *, part: str | None = None, **options: Any) -> nn.Module:
    """Load weights from a file of any origin into the model ``name``.

    The file may keep the weights under any key ("state_dict", "ema", "MODEL_STATE"), beside other things, and with a
    prefix before their names ("module.", "model."). The tensors with the model's names and shapes are used. Nothing in
    the file is executed.

    Args:
        name: as for :func:`twoscale.models.create`; None: the file names it (:func:`load_checkpoint`), or is a program.
        path: a safetensors file, one of ``torch.save`` that holds a state dict, a program of ``torch.export.save``, a
            float ``.onnx`` or ``.tflite`` file (``name`` is None for these), or a folder with a model.safetensors, as
            Hugging Face's libraries write.
        part: which weights of a file that holds several that fit: the keys that lead to them, joined by dots.
        options: the model's own, as for :func:`twoscale.models.create`. Default: those in the metadata of a file that
            :func:`save_model` wrote for this model; of a model of the user's own, the number of classes.

    Returns:
        The model, on the CPU and in evaluation mode.

    Raises:
        UnknownNameError: there is no such model.
        CheckpointError: missing, damaged, or it does not fit the model, or several sets of weights fit; the message
        names the tensors or the parts.
    """
    from twoscale.models._tensorfile import choose, fit, read_tensors

    if name is None:
        return program(path) or load_checkpoint(path)[0]
    own = is_reference(name)
    if not own and name not in names():
        raise UnknownNameError("model", name, names())
    path = _weights(path)
    content = read_tensors(path)
    text = content.metadata.get(_KEY)
    hint = ""
    if text is not None:
        info = _decoded(path, text)
        if own and is_reference(info.model) and same(info.model, name):
            options = {**class_options(name, len(info.classes)), **options}
            # A stranger's file must not choose what the user's code is called with.
            others = ",".join(f"{key}={value}" for key, value in info.options.items() if options.get(key) != value)
            hint = f"; it was trained with {others} (--model-args {others})" if others else ""
        elif info.model == name:
            if not options:
                model = _created(path, info, content.tensors)
                fit(model, content.tensors, str(path))
                return model.eval()
            options = {**info.options, **options}
    model = create(name, **options)
    try:
        fit(model, choose(model, content, str(path), part), str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hint}") from error
    return model.eval()

"""Model files: trained weights with what they are, and weights of any origin."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from twoscale._environment import VERSION
from twoscale._extras import requires_extras
from twoscale.errors import CheckpointError, UnknownNameError
from twoscale.models._registry import create, names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelInfo", "load", "load_checkpoint", "read_info", "save_model"]

_KEY = "twoscale.model"


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says about itself."""

    model: str
    """Name in the registry, or the class of a model that is not in it."""
    data: str
    """Data set it was trained on."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels / 255; normalization is part of the model's input."""
    std: tuple[float, ...]
    """Per channel, of pixels / 255."""
    seed: int
    epochs: int
    test_accuracy: float | None
    """Fraction right of the whole test set, 0..1."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of :func:`twoscale.models.create`."""
    version: str = VERSION
    """Of twoscale, when it was written."""


@requires_extras("twoscale.models.save_model")
def save_model(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write the model's parameters and buffers, with ``info`` as metadata, all of it or nothing.

    Raises:
        TwoscaleError: the folder cannot be written, or the disk is full.
    """
    from twoscale.models._tensorfile import write_tensors

    write_tensors(path, model.state_dict(), {_KEY: msgspec.json.encode(info).decode()})


@requires_extras("twoscale.models.load_checkpoint")
def load_checkpoint(path: Path | str) -> tuple[nn.Module, ModelInfo]:
    """Load a model file that :func:`save_model` wrote; it says which model it is.

    Returns:
        The model, on the CPU and in evaluation mode, and what the file says about it.

    Raises:
        CheckpointError: missing, damaged, of another origin, or it does not fit the model.
    """
    from twoscale.models._tensorfile import fit, read_tensors

    path = Path(path)
    content = read_tensors(path)
    if any(key.startswith("twoscale.training") for key in content.metadata):
        raise CheckpointError(f"{path} is what a run goes on from; its weights are beside it once it has finished")
    if _KEY not in content.metadata:
        raise CheckpointError(f"{path} does not say which model it is; name it (--model), one of: {', '.join(names())}")
    info = _decoded(path, content.metadata[_KEY])
    if info.model not in names():
        raise CheckpointError(
            f"{path} holds the model '{info.model}', which is not one of {', '.join(names())}; "
            "make it yourself and load its state dict"
        )
    model = create(info.model, **info.options)
    fit(model, content.tensors, str(path))
    return model.eval(), info


def _decoded(path: Path, text: str) -> ModelInfo:
    try:
        return msgspec.json.decode(text, type=ModelInfo)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{path} describes its model in a form that is not known here: {error}") from error


@requires_extras("twoscale.models.read_info")
def read_info(path: Path | str) -> ModelInfo | None:
    """Return what a model file says about itself; None for weights of another origin.

    Raises:
        CheckpointError: missing or damaged.
    """
    from twoscale.models._tensorfile import read_tensors

    path = Path(path)
    text = read_tensors(path).metadata.get(_KEY)
    return None if text is None else _decoded(path, text)


@requires_extras("twoscale.models.load")
def load(name: str | None, path: Path | str, **options: Any) -> nn.Module:
    """Load weights from a file of any origin into the model ``name``.

    Args:
        name: one of :func:`twoscale.models.names`; None: the file says it (:func:`load_checkpoint`).
        path: a safetensors file, or one of ``torch.save`` that holds a state dict. Common wrappers around it
            ("state_dict", "model") and prefixes of its names ("module.") are taken off. Nothing in it is executed.
        options: the model's own, as for :func:`twoscale.models.create`. Default: what a file that :func:`save_model`
            wrote says of this model.

    Returns:
        The model, on the CPU and in evaluation mode.

    Raises:
        UnknownNameError: there is no such model.
        CheckpointError: missing, damaged, or it does not fit the model; names the tensors.
    """
    if name is None:
        return load_checkpoint(path)[0]
    from twoscale.models._tensorfile import fit, read_tensors

    if name not in names():
        raise UnknownNameError("model", name, names())
    path = Path(path)
    content = read_tensors(path)
    text = content.metadata.get(_KEY)
    if text is not None and (info := _decoded(path, text)).model == name:
        options = {**info.options, **options}
    model = create(name, **options)
    fit(model, content.tensors, str(path))
    return model.eval()

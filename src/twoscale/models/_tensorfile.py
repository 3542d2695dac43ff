"""Files of named tensors, written with a digest and read with every way they can be bad told apart."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from twoscale._files import write_bytes
from twoscale.errors import CheckpointError

__all__ = ["TensorFile", "copy_into", "fit", "read_tensors", "write_tensors"]

_DIGEST = "twoscale.sha256"
# What training scripts put around a state dict, and in front of its names.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_SHOWN = 5
"""Tensors that a message names of each fault."""


class TensorFile:
    """What was read from a file.

    Attributes:
        tensors: name to tensor, on the CPU.
        metadata: text by key; empty for files of torch.save.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        self.tensors = tensors
        self.metadata = metadata


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file, all of it or nothing, with a digest that reading checks.

    Raises:
        TwoscaleError: the folder cannot be written, or the disk is full.
    """
    # Clones, since safetensors refuses tensors that share memory (tied weights).
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(own, {**metadata, _DIGEST: _digest(own)}))


def read_tensors(path: Path) -> TensorFile:
    """Read a safetensors file, or one of ``torch.save`` that holds tensors only; the content says which.

    Raises:
        CheckpointError: missing, truncated, altered since it was written, or neither kind of file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {path}: {error.strerror or error}; expected a .safetensors, .pt or .pth file"
        ) from error
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return TensorFile(_state_dict(_load_torch(path), path), {})
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
    except safetensors.SafetensorError as error:
        if head[8:] == b"{":
            message = f"{path} is truncated or damaged ({error}); restore it from a copy, or train again"
        else:
            message = f"{path} is neither a safetensors nor a torch file; expected a .safetensors, .pt or .pth file"
        raise CheckpointError(message) from error
    expected = metadata.pop(_DIGEST, None)
    if expected is not None and expected != _digest(tensors):
        raise CheckpointError(
            f"{path} is damaged: its tensors changed since it was written; restore it from a copy, or train again"
        )
    return TensorFile(_state_dict(tensors, path), metadata)


def fit(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy ``tensors`` into the model's parameters and buffers, as :func:`copy_into` does.

    BatchNorm's count of batches, which files of parameters leave out and nothing is computed from, may be missing.
    """
    own = {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and (name in tensors or not name.endswith(".num_batches_tracked"))
    }
    copy_into(own, tensors, origin, type(model).__name__)


def copy_into(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], origin: str, owner: str) -> None:
    """Copy ``tensors`` into those of the same names.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or has NaN or infinity in it; names
            the tensors. Nothing was changed then.
    """
    faults = [f"missing {_some(missing)}"] if (missing := sorted(own.keys() - tensors.keys())) else []
    faults += [f"unexpected {_some(extra)}"] if (extra := sorted(tensors.keys() - own.keys())) else []
    shapes = [
        f"{name} is {list(tensors[name].shape)}, expected {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    faults += [_some(shapes)] if shapes else []
    if faults:
        raise CheckpointError(f"{origin} does not fit {owner}: {'; '.join(faults)}")
    for name, value in own.items():
        # In its own type: a float64 value may be too large for float32.
        bad = int((~torch.isfinite(tensors[name].to(value.dtype))).sum())
        if bad:
            raise CheckpointError(
                f"{origin} has NaN or infinity in {name} ({bad} of {value.numel()} values); "
                "that training diverged, use an earlier checkpoint"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects besides tensors, which could run code and are never loaded; "
            "save model.state_dict() instead of the model"
        ) from error
    # The zip reader raises RuntimeError for what is truncated, the old format EOFError and others.
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged ({reason})") from error


def _state_dict(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict inside common wrappers, without common prefixes of its names."""
    while isinstance(loaded, dict):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    tensors = (
        {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
        if isinstance(loaded, dict)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{path} holds no named tensors; expected a model's state dict")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _some(faults: list[str]) -> str:
    """Return the first of a long list, and how many there are besides."""
    shown = faults if len(faults) <= _SHOWN + 1 else [*faults[:_SHOWN], f"and {len(faults) - _SHOWN} more"]
    return ", ".join(shown)

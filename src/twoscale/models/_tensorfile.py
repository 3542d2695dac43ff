"""Files of named tensors. They are written with a digest. Reading them never executes code, hangs or exhausts the
memory."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors.torch import save

from twoscale._files import sorted_safetensors, write_bytes
from twoscale.errors import CheckpointError
from twoscale.models._archive import ZIP_START, opened_archive, reason
from twoscale.models._exported import Program, read_program

__all__ = [
    "TensorFile",
    "TensorGroup",
    "check_fits",
    "choose",
    "copy_into",
    "fit",
    "read_tensors",
    "write_tensors",
]

_DIGEST = "twoscale.sha256"
# Keys under which training scripts keep the weights, for the message about a file in which nothing fits.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_SHOWN = 5
"""Largest number of tensors that a message names for each fault."""
_DEPTH = 16
"""Largest depth of nested dictionaries."""
_OTHER_FILES = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUM": "a NumPy array",
}
"""First bytes of files that are mistaken for weights, and what the files are."""


@dataclass(frozen=True)
class TensorGroup:
    """The tensors of one dictionary of a file."""

    name: str
    """The keys that lead to it, joined by dots; empty for the file's own dictionary."""
    tensors: dict[str, torch.Tensor]
    """Dense tensors of real numbers, on the CPU."""
    others: dict[str, str] = field(default_factory=dict)
    """From name to kind, for all other tensors."""


@dataclass(frozen=True)
class TensorFile:
    """The content of a file."""

    groups: tuple[TensorGroup, ...]
    """At least one has a tensor."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of a safetensors file; empty for files of torch.save."""
    program: Program | None = None
    """Of a file of torch.export.save, whose state dict the tensors are."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the file's own dictionary; all of a safetensors file."""
        return self.groups[0].tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file, completely or not at all, with a digest that reading checks.

    Equal tensors and metadata give equal files.

    Raises:
        TwoscaleError: the folder cannot be written, or the disk is full.
    """
    # Clones, since safetensors refuses tensors that share memory (tied weights).
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, sorted_safetensors(save(own, {**metadata, _DIGEST: _digest(own)})))


def read_tensors(path: Path) -> TensorFile:
    """Read a safetensors file, or one of ``torch.save`` with only tensors, or a program. The content decides which.

    Raises:
        CheckpointError: missing, truncated, altered since it was written, or neither kind of file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
            # The length of a safetensors header may look like the beginning of a pickle. Its ninth byte is always {.
            if head.startswith((ZIP_START, b"\x80")) and head[8:] != b"{":
                if (program := read_program(file, path)) is not None:
                    return TensorFile(tuple(_groups(program.state)), program=program)
                groups = tuple(_groups(_load_torch(file, path)))
                if not any(group.tensors or group.others for group in groups):
                    raise CheckpointError(f"{path} holds no named tensors; expected a model's state dict")
                return TensorFile(groups)
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {path}: {error.strerror or error}; expected a .safetensors, .pt or .pth file"
        ) from error
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
    except Exception as error:  # SafetensorError, and errors about unknown types of tensors
        if head[8:] == b"{":
            message = f"{path} is truncated or damaged ({reason(error)}); restore it from a copy, or train again"
        else:
            kind = next((kind for start, kind in _OTHER_FILES.items() if head.startswith(start)), None)
            kind = "a TensorFlow Lite file" if head[4:8] == b"TFL3" else kind
            found = f"is {kind}, " if kind else "is "
            message = f"{path} {found}neither a safetensors nor a torch file; expected a .safetensors, .pt or .pth file"
        raise CheckpointError(message) from error
    expected = metadata.pop(_DIGEST, None)
    if expected is not None and expected != _digest(tensors):
        raise CheckpointError(
            f"{path} is damaged: its tensors changed since it was written; restore it from a copy, or train again"
        )
    [group] = _groups(tensors)
    if not group.tensors and not group.others:
        raise CheckpointError(f"{path} holds no named tensors; expected a model's state dict")
    return TensorFile((group,), metadata)


def choose(model: torch.nn.Module, file: TensorFile, origin: str, part: str | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that are the model's, under the model's own names.

    A file may have them under any key, beside other tensors (an optimizer's state, an average of the weights), and with
    a prefix (``module.``, ``model.``), beside tensors without it. A set of tensors fits if it has all names and shapes
    of the model.

    Args:
        model: only the names and shapes of its tensors are used.
        file: the content of the file.
        origin: the file's name, for messages.
        part: the set to use if several fit: keys and prefix, joined by dots.

    Returns:
        From name to tensor. If none fits, the closest set, which :func:`fit` refuses with the reasons.

    Raises:
        CheckpointError: several sets with different values fit, or none is called ``part``; the message names them.
    """
    own = {name: value.shape for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    required = {name for name in own if not name.endswith(".num_batches_tracked")}
    fitting: dict[str, dict[str, torch.Tensor]] = {}
    for group in file.groups:
        for prefix in _prefixes(group, required):
            found = _without_prefix(group.tensors, prefix)
            complete = required <= found.keys() <= own.keys()
            if complete and all(value.shape == own[name] for name, value in found.items()):
                fitting[".".join(filter(None, (group.name, prefix.rstrip("."))))] = found
    if part is not None:
        if part not in fitting:
            named = ", ".join(f"'{name}'" for name in fitting) or "none"
            raise CheckpointError(
                f"{origin} has no part '{part}' that fits {type(model).__name__}; those that fit: {named}"
            )
        return fitting[part]
    if not fitting:
        return _nearest(file, required, origin)
    first, *others = fitting.values()
    if any(not _equal(first, other) for other in others):
        named = ", ".join(f"'{name}'" for name in fitting)
        raise CheckpointError(
            f"{origin} holds several sets of weights that fit {type(model).__name__}: {named}; "
            f"name the one to take after the file, as in {origin}#{next(name for name in fitting if name)}"
        )
    return first


def _prefixes(group: TensorGroup, required: set[str]) -> list[str]:
    """Return the prefixes of the group's names before those of the model. They are found with the model's least common
    name."""
    if not required:
        return [""]
    probe = max(sorted(required), key=len)
    return sorted({name.removesuffix(probe) for name in group.tensors if f".{name}".endswith(f".{probe}")})


def _without_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _nearest(file: TensorFile, required: set[str], origin: str) -> dict[str, torch.Tensor]:
    """Return the tensors with the most names of the model; of several, those under the most usual key."""
    best: tuple[int, int, dict[str, torch.Tensor]] = (-1, 0, {})
    for group in file.groups:
        odd = {name: f"{name} is {kind}" for name, kind in group.others.items()}
        if odd:
            raise CheckpointError(
                f"{origin}: {_some(list(odd.values()))}; expected dense tensors of real numbers on the CPU, from a "
                "float model, before torch's own tools quantized it"
            )
        starts = {""} | {
            name[: -len(end)] for name in group.tensors for end in required if f".{name}".endswith(f".{end}")
        }
        for prefix in sorted(starts):
            found = _without_prefix(group.tensors, prefix)
            usual = -min((_WRAPPERS.index(key) for key in group.name.split(".") if key in _WRAPPERS), default=9)
            score = (len(found.keys() & required), usual)
            if found and score > best[:2]:
                best = (*score, found)
    return best[2]


def _equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fit(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy ``tensors`` into the model's parameters and buffers, as :func:`copy_into` does.

    BatchNorm's count of batches may be missing. Files of parameters leave it out, and nothing is computed from it.
    """
    copy_into(_wanted(model, tensors), tensors, origin, type(model).__name__)


def check_fits(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Check names and shapes like :func:`fit`, for a model that need not have values.

    Raises:
        CheckpointError: a tensor is missing, superfluous, or of another shape; the message names the tensors.
    """
    _check_shapes(_wanted(model, tensors), tensors, origin, type(model).__name__)


def _wanted(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and (name in tensors or not name.endswith(".num_batches_tracked"))
    }


def copy_into(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], origin: str, owner: str) -> None:
    """Copy ``tensors`` into those of the same names.

    Raises:
        CheckpointError: a tensor is missing, superfluous, of another shape, or has NaN or infinity; the message names
        the tensors. Nothing is changed in that case.
    """
    _check_shapes(own, tensors, origin, owner)
    for name, value in own.items():
        # In its own type, because a float64 value may be too large for float32.
        bad = int((~torch.isfinite(tensors[name].to(value.dtype))).sum())
        if bad:
            raise CheckpointError(
                f"{origin} has NaN or infinity in {name} ({bad} of {value.numel()} values); "
                "that training diverged, use an earlier checkpoint"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _check_shapes(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], origin: str, owner: str
) -> None:
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


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_torch(file: BinaryIO, path: Path) -> Any:
    """Return the content of a file of ``torch.save``.

    Raises:
        CheckpointError: it is damaged, no file of torch.save, or holds Python objects.
    """
    file.seek(0)
    if file.read(4) == ZIP_START:
        with opened_archive(file, path, _refuse_others(path)):
            pass
    file.seek(0)
    try:
        # An open file, because torch.load treats a path that ends in .safetensors differently.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects besides tensors, which could run code and are never loaded; "
            "save model.state_dict() instead of the model"
        ) from error
    except Exception as error:  # a damaged file can raise almost anything, including MemoryError
        raise CheckpointError(f"{path} is truncated or damaged ({reason(error)})") from error


def _refuse_others(path: Path) -> Callable[[list[str]], None]:
    """Return a check of an archive's members that refuses other files of torch."""

    def check(names: list[str]) -> None:
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise CheckpointError(
                f"{path} is a TorchScript file; load it with torch.jit.load and save its state_dict() instead"
            )

    return check


def _groups(loaded: Any) -> Iterator[TensorGroup]:
    """Yield the tensors of a dictionary and of every dictionary in it, each once."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), loaded)]
    seen: set[int] = set()
    while pending:
        keys, value = pending.pop(0)
        if not isinstance(value, dict) or id(value) in seen:  # a dictionary may contain itself
            continue
        seen.add(id(value))
        tensors: dict[str, torch.Tensor] = {}
        others: dict[str, str] = {}
        for key, entry in value.items():
            if isinstance(entry, torch.Tensor):
                kind = _kind(entry)
                (others if kind else tensors)[str(key)] = kind or entry  # type: ignore[assignment]
            elif isinstance(entry, dict) and len(keys) < _DEPTH:
                pending.append(((*keys, str(key)), entry))
        if tensors or others or not keys:
            yield TensorGroup(".".join(keys), tensors, others)


def _kind(tensor: torch.Tensor) -> str | None:
    """Return the kind of a tensor that is not dense real numbers on the CPU."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_quantized:
        return "a quantized tensor"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    if tensor.device.type != "cpu":
        return f"a tensor without values ({tensor.device.type})"
    if tensor.is_complex() or tensor.dtype not in _REAL:
        return f"of type {str(tensor.dtype).removeprefix('torch.')}"
    return None


_REAL = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
})  # fmt: skip


def _some(faults: list[str]) -> str:
    """Return the first items of a long list, and the number of the others."""
    shown = faults if len(faults) <= _SHOWN + 1 else [*faults[:_SHOWN], f"and {len(faults) - _SHOWN} more"]
    return ", ".join(shown)

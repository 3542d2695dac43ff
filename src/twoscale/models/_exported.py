"""Files of torch.export.save (.pt2), read without unpickling: the operators are JSON, the weights raw bytes.

torch.export.load evaluates expressions and unpickles values that such a file holds, so it can run a stranger's code.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch

from twoscale.errors import CheckpointError
from twoscale.models._archive import ZIP_START, opened_archive, reason

__all__ = ["Argument", "Graph", "Node", "Program", "read_program", "type_of"]

_SCHEMA = 8
"""Major version of the JSON, of torch 2.9 to 2.13."""
_LARGEST_GRAPH = 64 << 20
"""Largest description of a program, in bytes. That of ResNet-152 takes 1 MiB."""
_TYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""Types by their numbers in these files."""
_STRIDED = 7
"""The number of the layout of dense tensors."""

Argument = dict[str, Any]
"""An argument or a result: one key, its kind, such as ``as_tensor``, with its value."""


class Named(msgspec.Struct):
    """An argument and its name in the operator's schema."""

    name: str
    arg: Argument
    kind: int | None = None
    """2 if it is given by its name."""


class Node(msgspec.Struct):
    """A call of an operator."""

    target: str
    inputs: list[Named]
    outputs: list[Argument]
    metadata: dict[str, str]


class _Size(msgspec.Struct):
    """A number, or an expression, which is never evaluated, with its value in the example."""

    as_int: int | None = None
    as_expr: Argument | None = None


class _Meta(msgspec.Struct):
    dtype: int
    sizes: list[_Size]
    strides: list[_Size]
    storage_offset: _Size
    layout: int


class Graph(msgspec.Struct):
    """The operators, in order."""

    inputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[str, _Meta]


class _Signature(msgspec.Struct):
    input_specs: list[dict[str, Any]]
    output_specs: list[dict[str, Any]]


class _GraphModule(msgspec.Struct):
    graph: Graph
    signature: _Signature


class _Schema(msgspec.Struct):
    major: int


class _Model(msgspec.Struct):
    graph_module: _GraphModule
    schema_version: _Schema
    torch_version: str = "unknown"


class _Payload(msgspec.Struct):
    path_name: str
    use_pickle: bool
    tensor_meta: _Meta | None


class _Payloads(msgspec.Struct):
    config: dict[str, _Payload]


@dataclass(frozen=True)
class Program:
    """What a file holds."""

    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    """Tensors that are not in the model's state dict."""
    tensors: dict[str, str]
    """From the name of a tensor in the graph to its name in the model."""
    graph: Graph
    input: str
    """Name of the images in the graph."""
    shape: tuple[int, ...]
    """Of the images in the example that it was exported with, the batch first."""
    dtype: torch.dtype
    """Of the images."""
    outputs: tuple[str, ...]
    """Names of the results in the graph."""

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The model's state dict."""
        return {**self.parameters, **self.buffers}


def read_program(file: BinaryIO, path: Path) -> Program | None:
    """Read a program; None if the file is of another kind.

    Args:
        file: the file's content.
        path: of the file, for messages.

    Raises:
        CheckpointError: damaged, of an older or a newer torch, or it holds Python objects.
    """
    file.seek(0)
    if file.read(4) != ZIP_START:
        return None
    try:
        names = zipfile.ZipFile(file).namelist()
    except Exception:  # whoever reads the file next names the damage
        return None
    if not any(name.endswith(_OLD) or "/models/" in name for name in names):
        return None
    with opened_archive(file, path, lambda names: None) as archive:
        if any(name.endswith(_OLD) for name in names):
            raise CheckpointError(f"{path} {_AGAIN}")
        try:
            return _program(archive, path)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} describes its program in a form that is not known here ({reason(error)})"
            ) from error


_OLD = "serialized_exported_program.json"
_AGAIN = "is a program of torch.export before torch 2.9; load it with torch.export.load and save it with a later torch"


def _program(archive: zipfile.ZipFile, path: Path) -> Program:
    models = [name for name in archive.namelist() if "/models/" in name and name.endswith(".json")]
    if len(models) != 1:
        raise CheckpointError(f"{path} holds {len(models)} programs; expected one")
    root, _, name = models[0].removesuffix(".json").partition("/models/")
    if archive.read(f"{root}/byteorder").strip() != b"little":
        raise CheckpointError(f"{path} was written on a machine with the highest byte first; expected little endian")
    if archive.getinfo(models[0]).file_size > _LARGEST_GRAPH:
        raise CheckpointError(f"{path} describes its program in more than {_LARGEST_GRAPH >> 20} MiB")
    version = msgspec.json.decode(archive.read(models[0]), type=dict[str, msgspec.Raw])["schema_version"]
    if (major := msgspec.json.decode(version, type=_Schema).major) != _SCHEMA:
        raise CheckpointError(
            f"{path} has version {major} of the form of torch.export; expected {_SCHEMA}, of torch 2.9 to 2.13"
        )
    module = msgspec.json.decode(archive.read(models[0]), type=_Model).graph_module
    weights = _tensors(archive, path, f"{root}/data/weights", f"{name}_weights_config.json")
    constants = _tensors(archive, path, f"{root}/data/constants", f"{name}_constants_config.json")
    tensors: dict[str, str] = {}
    parameters: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}
    others: dict[str, torch.Tensor] = {}
    kept = {"parameter": parameters, "buffer": buffers, "tensor_constant": others}
    images = []
    for entry in module.signature.input_specs:
        [(kind, spec)] = entry.items()
        if kind == "user_input":
            images.append(str(spec["arg"]["as_tensor"]["name"]))
            continue
        if kind not in kept:
            raise CheckpointError(f"{path} has an input of the kind {kind!a}; expected images alone")
        own = str(spec[f"{kind}_name"])
        tensors[str(spec["arg"]["name"])] = own
        lasting = kind != "tensor_constant" and spec.get("persistent", True)
        value = weights[own] if lasting else constants[own]
        kept[kind if lasting else "tensor_constant"][own] = value
    if len(images) != 1:
        raise CheckpointError(f"{path} takes {len(images)} inputs; expected images alone")
    results = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in module.signature.output_specs
               if "user_output" in spec]  # fmt: skip
    meta = module.graph.tensor_values[images[0]]
    return Program(
        parameters=parameters,
        buffers=buffers,
        constants=others,
        tensors=tensors,
        graph=module.graph,
        input=images[0],
        shape=tuple(_number(size) for size in meta.sizes),
        dtype=type_of(meta.dtype),
        outputs=tuple(map(str, results)),
    )


def _tensors(archive: zipfile.ZipFile, path: Path, folder: str, config: str) -> dict[str, torch.Tensor]:
    """Read the tensors in a folder of an archive."""
    if f"{folder}/{config}" not in archive.namelist():
        raise CheckpointError(f"{path} {_AGAIN}")
    payloads = msgspec.json.decode(archive.read(f"{folder}/{config}"), type=_Payloads).config
    storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}
    tensors = {}
    for name, payload in payloads.items():
        meta = payload.tensor_meta
        if payload.use_pickle or meta is None:
            raise CheckpointError(
                f"{path} holds a Python object, {ascii(name)[1:-1]}, which could run code and is never loaded; export "
                "a model of plain tensors"
            )
        key = payload.path_name, type_of(meta.dtype)
        if key not in storages:
            content = bytearray(archive.read(f"{folder}/{payload.path_name}"))
            storages[key] = torch.frombuffer(content, dtype=key[1]) if content else torch.empty(0, dtype=key[1])
        tensors[name] = _strided(storages[key], meta)
    return tensors


def _strided(storage: torch.Tensor, meta: _Meta) -> torch.Tensor:
    """Return a tensor in a storage.

    Raises:
        ValueError: it is not dense, or reaches beyond the storage.
    """
    sizes, strides = ([_number(value) for value in values] for values in (meta.sizes, meta.strides))
    offset, count = _number(meta.storage_offset), math.prod(sizes)
    end = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    if meta.layout != _STRIDED or count > storage.numel() or (count and end > storage.numel()):
        raise ValueError("a tensor is larger than its values, or not dense")
    if not count:
        return torch.empty(sizes, dtype=storage.dtype)
    return storage.as_strided(sizes, strides, offset).clone(memory_format=torch.contiguous_format)


def _number(size: _Size) -> int:
    """Return a size; of an expression, its value in the example."""
    number = size.as_int
    if size.as_expr is not None:
        number = size.as_expr["hint"]["as_int"]
    if type(number) is not int or not 0 <= number < 2**40:
        raise ValueError(f"a size is {number}")
    return number


def type_of(number: int) -> torch.dtype:
    """Return the type with this number in such files.

    Raises:
        ValueError: there is none, or none of real numbers.
    """
    if number not in _TYPES:
        raise ValueError(f"a tensor has type {number}, expected real numbers")
    return _TYPES[number]

"""Mutations of files for ``benchmarks.fuzz``: of bytes, and of the structure behind checksums and lengths.

Blind changes of bytes end at the first check, which a checksum, a length or a fingerprint fails. So most mutations take
a file apart, change one thing, and put it together again with everything that vouches for it.
"""

from __future__ import annotations

import copy
import dataclasses
import gzip
import io
import json
import pickle
import pickletools
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = [
    "NUMBERS",
    "mutate_archive",
    "mutate_bytes",
    "mutate_member",
    "mutate_network",
    "mutate_onnx",
    "mutate_pickle",
    "mutate_safetensors_header",
    "mutate_state",
    "mutate_text_bytes",
    "mutate_torch_zip",
    "mutate_weights",
]

NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65_536, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e30, 3e38, float("inf"), float("-inf"), float("nan"), 0.5)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, overwrite, cut, repeat or swap parts."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        at, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64))
        how = rng.randrange(6)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + length] = rng.randbytes(length)
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = data[at : at + length]
        elif how == 4:
            del data[at:]
        else:
            data[at : at + length] = rng.choice((b"\x00", b"\xff", b"\x80")) * length
    return bytes(data)


def mutate_text(text: str, rng: random.Random) -> str:
    """Put another value in the place of a number or a bracket of JSON."""
    values = ["1e400", "-1", "null", "[]", "{}", '"x"', "[" * 3000, "NaN", "9" * 400, "0.5", r'"\ud800"', "true"]
    places = [i for i, c in enumerate(text) if c in '0123456789[]{}"']
    if not places:
        return rng.choice(values)
    at = rng.choice(places)
    return text[:at] + rng.choice(values) + text[at + rng.randrange(3) :]


def mutate_text_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change JSON as text, as a tree, or its bytes."""
    how = rng.random()
    if how < 0.4:
        return mutate_text(content.decode(), rng).encode()
    if how < 0.8:
        return json.dumps(mutate_tree(json.loads(content), rng)).encode()
    return mutate_bytes(content, rng)


def mutate_tree(value: Any, rng: random.Random) -> Any:
    """Exchange, drop or repeat one part of nested lists and dictionaries."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key: Any = rng.choice(keys)
        changed: Any = copy.copy(value)
        how = rng.random()
        if how < 0.1:
            del changed[key]
        elif how < 0.2:
            changed[key] = value[rng.choice(keys)]
        else:
            changed[key] = mutate_tree(value[key], rng)
        return changed
    return rng.choice([None, True, -1, 0, 2**63, 1e308, "", "x" * 100, "\x1b[31m", [], {}, [value], {"a": value}, 0.5])


# ONNX.


def mutate_onnx(content: bytes, rng: random.Random) -> bytes:
    """Change a node, an attribute, a constant, a type or the metadata of a model, which stays a protobuf."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not graph.node:
            break
        node = rng.choice(graph.node)
        how = rng.randrange(14)
        if how == 0 and node.attribute:
            attribute = rng.choice(node.attribute)
            if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
            else:
                attribute.i = rng.choice(NUMBERS)
        elif how == 1 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                [name for other in graph.node for name in other.input] + [""]
            )
        elif how == 2 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            tensor.raw_data = mutate_bytes(tensor.raw_data, rng)[: len(tensor.raw_data)].ljust(len(tensor.raw_data))
        elif how == 3 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
            else:
                tensor.dims.append(rng.choice((1, 2, 2**40)))
        elif how == 4 and graph.initializer:
            rng.choice(graph.initializer).data_type = rng.choice((0, 1, 2, 3, 6, 7, 10, 11, 16, 20, 99))
        elif how == 5:
            node.op_type = rng.choice([other.op_type for other in graph.node] + ["Relu", "Shape", "Loop"])
        elif how == 6:
            shape = graph.input[0].type.tensor_type.shape.dim
            if shape:
                shape[rng.randrange(len(shape))].dim_value = rng.choice((0, 1, 3, 8, 2**16, 2**20, 2**40))
        elif how == 7 and model.metadata_props:
            entry = rng.choice(model.metadata_props)
            entry.value = mutate_text(entry.value, rng)
        elif how == 8:
            graph.node.append(node) if rng.random() < 0.5 else graph.node.remove(node)
        elif how == 9:
            rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 10, 13, 18, 25, 99))
        elif how in (10, 11) and graph.initializer:
            _mutate_constant(rng.choice(graph.initializer), rng)
        elif how == 12 and node.attribute:
            attribute = rng.choice(node.attribute)
            if attribute.ints:  # small changes, which are more often valid
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((0, 1, 2, 3, 4, 5))
            elif attribute.HasField("f"):
                attribute.f = rng.choice(_FLOATS)
            else:
                attribute.i = rng.choice((0, 1, 2, 3))
        elif how == 13:
            other = rng.choice(graph.node)
            if other.output and node.input:
                node.input[rng.randrange(len(node.input))] = other.output[0]
    return bytes(model.SerializeToString())


def _mutate_constant(tensor: onnx.TensorProto, rng: random.Random) -> None:
    """Put another value of its type into a constant, whose shape stays."""
    try:
        values = np.array(numpy_helper.to_array(tensor))
    except Exception:  # an earlier change made it unreadable
        return
    if not values.size or values.dtype.kind not in "fiub":
        return
    at = rng.randrange(values.size)
    if values.dtype.kind == "f":
        value = rng.choice((*_FLOATS, float(values.flat[at]) * 2, 1 / 3, 2.0**-7))
    else:
        value = rng.choice([v for v in (*NUMBERS, int(values.flat[at]) ^ 1) if _fits(v, values.dtype)])
    with np.errstate(all="ignore"):
        values.flat[at] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _fits(value: int, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max)


def mutate_network(content: bytes, rng: random.Random) -> bytes:
    """Change fields of an own network and write it with the fingerprint and the graph that belong to it."""
    from twoscale._formats import integer
    from twoscale._formats.onnx import reading
    from twoscale._ir.integer_network import IntegerNetwork

    model = onnx.load_model_from_string(content)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    network = reading._network(properties, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer})
    layers = list(network.layers)
    with mock.patch("twoscale._ir.checks.check"):  # what the file holds is for the reader to refuse
        try:
            for _ in range(rng.choice((1, 1, 2))):
                how, at = rng.random(), rng.randrange(len(layers))
                if how < 0.1:
                    layers.pop(at)
                elif how < 0.2:
                    layers.insert(at, layers[rng.randrange(len(layers))])
                else:
                    layers[at] = _changed_layer(layers[at], rng)
            forged = IntegerNetwork(network.name, tuple(layers), network.outputs, network.scheme, network.metadata)
            return integer.to_bytes(forged)
        except Exception:  # it cannot even be written
            return mutate_onnx(content, rng)


def _changed_layer(layer: Any, rng: random.Random) -> Any:
    names = [field.name for field in dataclasses.fields(layer)]
    name = rng.choice([*names, "output", "output"])
    return dataclasses.replace(layer, **{name: _changed(getattr(layer, name), rng)})


def _changed(value: Any, rng: random.Random) -> Any:
    """Return another value of a layer's field."""
    from twoscale._ir.layers import Multiplier

    if isinstance(value, np.ndarray):
        changed = value.copy()
        how = rng.randrange(4)
        if how == 0 and changed.size:
            limits = np.iinfo(changed.dtype)
            changed.flat[rng.randrange(changed.size)] = rng.choice((limits.min, limits.max, 0, 1))
        elif how == 1:
            changed = changed[:-1] if changed.ndim else changed
        elif how == 2:
            changed = changed.reshape(1, *changed.shape)
        else:
            changed[:] = np.iinfo(changed.dtype).max
        return changed
    if isinstance(value, Multiplier):
        how = rng.randrange(3)
        if how == 0:
            return Multiplier(value.values, rng.choice((None, 14, 16, 24, -1)))
        factor = np.float32(rng.choice((0.0, -1.0, 1e30, 2.0**-16, 2.0**8, float("nan"), 0.3)))
        return Multiplier((value.values * factor).astype(np.float32) if how == 1 else value.values[:0], value.shift)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        name = rng.choice(names)
        return dataclasses.replace(value, **{name: _changed(getattr(value, name), rng)})
    if isinstance(value, bool) or value is None:
        return rng.choice((None, 0, 1))
    if isinstance(value, int):
        return rng.choice((*NUMBERS, value + 1, value - 1, value + 1))
    if isinstance(value, float):
        return rng.choice((*_FLOATS, value * 2))
    if isinstance(value, str):
        return rng.choice(("", "input", "uint8", "int8", "int32", "x" * 500, "\x1b[2J", "a/b"))
    if isinstance(value, tuple) and value:
        parts = list(value)
        at = rng.randrange(len(parts))
        parts[at] = _changed(parts[at], rng)
        return tuple(parts)
    return value


# Weights.


def mutate_safetensors_header(content: bytes, rng: random.Random) -> bytes:
    """Change a tensor's type, shape or offsets, or the metadata, in a header whose length is right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    how = rng.randrange(8)
    if how == 0:
        entry["dtype"] = rng.choice(("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X"))
    elif how == 1:
        entry["shape"] = rng.choice(([], [0], [2**40], [2**62, 4], [-1], entry["shape"][::-1], [*entry["shape"], 1]))
    elif how == 2:
        entry["data_offsets"][rng.randrange(2)] = rng.choice((*(abs(n) for n in NUMBERS), len(content)))
    elif how == 3:
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    elif how == 4:
        header[rng.choice(("a", "", "x" * 5000, "\x1b[31m", f"{name}.x"))] = header.pop(name)
    elif how == 5:
        header["__metadata__"] = mutate_tree(header.get("__metadata__", {}), rng)
    elif how == 6:
        metadata = header.setdefault("__metadata__", {})
        key = rng.choice([*metadata, "twoscale.model"])
        metadata[key] = mutate_text(metadata.get(key, "{}"), rng)
    else:
        del header[name]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def mutate_weights(content: bytes, rng: random.Random) -> bytes:
    """Change tensors or the description of a model file, and write it with its digest."""
    from safetensors.torch import load, save

    from twoscale.models import _tensorfile

    length = int.from_bytes(content[:8], "little")
    metadata = dict(json.loads(content[8 : 8 + length])["__metadata__"])
    tensors: dict[str, Any] = load(content)
    if rng.random() < 0.6:
        try:
            tensors = _changed_tensors(tensors, rng)
        except Exception:  # a change that torch does not make
            tensors.pop(rng.choice(list(tensors)))
    else:
        metadata["twoscale.model"] = json.dumps(mutate_tree(json.loads(metadata["twoscale.model"]), rng))
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    metadata[_tensorfile._DIGEST] = _tensorfile._digest(tensors)
    return bytes(save(tensors, metadata))


def _changed_tensors(tensors: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    import torch

    changed = dict(tensors)
    name = rng.choice(list(changed))
    tensor = changed[name]
    how = rng.randrange(9)
    if how == 0:
        del changed[name]
    elif how == 1:
        changed[rng.choice(("extra", "module." + name, "", "x" * 3000, "\u202e"))] = tensor
    elif how == 2:
        kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
        changed[name] = tensor.to(rng.choice(kinds))
    elif how == 3:
        changed[name] = tensor.reshape(-1)
    elif how == 4:
        changed[name] = tensor[None]
    elif how == 5:
        changed[name] = torch.full_like(tensor, rng.choice((float("nan"), float("inf"), 3e38, 1e-45)))
    elif how == 6:
        other = rng.choice(list(changed))
        changed[name], changed[other] = changed[other], tensor
    elif how == 7:
        changed[name] = tensor[:0]
    else:
        changed = {f"module.{key}": value for key, value in changed.items()}
    return changed


def mutate_state(content: bytes, rng: random.Random) -> bytes:
    """Save another dictionary with torch.save: tensors of other kinds, other objects, nested and recursive ones."""
    import torch

    state: dict[Any, Any] = dict(torch.load(io.BytesIO(content), weights_only=True))
    name = rng.choice(list(state))
    tensor = state[name]
    how = rng.randrange(12)
    try:
        if how == 0:
            state = _changed_tensors(state, rng)
        elif how == 1:
            state[name] = tensor.to_sparse()
        elif how == 2:
            state[name] = torch.empty(tensor.shape, device="meta")
        elif how == 3:
            state[name] = torch.zeros(1).expand(rng.choice((10, 2**30, 2**40)))
        elif how == 4:
            state["itself"] = state
        elif how == 5:
            for _ in range(rng.choice((1, 20, 900))):
                state = {rng.choice(("state_dict", "model", "x")): state}
        elif how == 6:
            state[rng.choice((1, None, (1, 2), b"x", 2.5))] = rng.choice((None, [tensor] * 3, "text", 10**400, {1: 2}))
        elif how == 7:
            state = {"a": state, "b": {key: value + 1 for key, value in state.items()}}
        elif how == 8:
            state[name] = torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)
        elif how == 9:
            state[name] = torch.nn.Parameter(tensor) if rng.random() < 0.5 else torch.nested.nested_tensor([tensor])
        elif how == 10:
            state[name] = tensor.as_strided((2, 2), (rng.choice((0, 1, 2)), 1)) if tensor.numel() > 4 else tensor
        else:
            state = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "net": state}
    except Exception:  # a change that torch does not make
        state.pop(name, None)
    file = io.BytesIO()
    limit = rng.random() < 0.1
    try:
        torch.save(state, file, _use_new_zipfile_serialization=not limit)
    except Exception:  # what torch does not save
        return mutate_bytes(content, rng)
    return file.getvalue()


def mutate_torch_zip(content: bytes, rng: random.Random) -> bytes:
    """Change a member of torch.save's archive, most often an opcode of its pickle, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    name = next(name for name in members if name.endswith("/data.pkl"))
    how = rng.randrange(10)
    if how < 6:
        members[name] = mutate_pickle(members[name], rng)
    else:
        other = rng.choice(list(members))
        if how == 6:
            del members[other]
        elif how == 7:
            members[other] = members[other][: rng.randrange(len(members[other]) + 1)]
        elif how == 8:
            members[other] = mutate_bytes(members[other], rng)
        else:
            members[rng.choice(("../x", "archive/code/x", "x" * 300, "archive/version", other + "x"))] = b"3\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return file.getvalue()


# Pickles and archives.


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, swap or exchange opcodes, or their arguments."""
    positions = [at for _, _, at in pickletools.genops(content) if at is not None]
    codes = [content[a:b] for a, b in zip(positions, [*positions[1:], len(content)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if len(codes) < 2:
            break
        at, other = rng.randrange(len(codes)), rng.randrange(len(codes))
        how = rng.randrange(6)
        if how == 0:
            del codes[at]
        elif how == 1:
            codes.insert(at, codes[other])
        elif how == 2:
            codes[at], codes[other] = codes[other], codes[at]
        elif how == 3:
            codes[at] = rng.choice(_CODES)
        elif how == 4 and len(codes[at]) > 1:
            codes[at] = codes[at][:1] + mutate_bytes(codes[at][1:], rng)
        else:
            numbers = [i for i, code in enumerate(codes) if code[:1] in b"KMJ"]
            if numbers:
                codes[rng.choice(numbers)] = pickle.dumps(rng.choice(NUMBERS), 2)[2:-1]
    return b"".join(codes)


_CODES = (
    b"N", b"}", b"]", b")", b"(", b"0", b"1", b"2", b"s", b"u", b"a", b"e", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b",
    b"\x81", b"Q", b".", b"\x88", b"h\x00", b"q\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ccollections\nOrderedDict\n", b"J\xff\xff\xff\xff", b"K\x05",
    b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40", b"X\xff\xff\xff\x7f", b"\x8e\x00\x00\x00\x00\x00\x00\x00\x10",
)  # fmt: skip


def mutate_member(content: bytes, rng: random.Random) -> bytes:
    """Change opcodes of a pickle, or its bytes."""
    return mutate_pickle(content, rng) if rng.random() < 0.8 else mutate_bytes(content, rng)


def mutate_archive(content: bytes, rng: random.Random) -> bytes:
    """Change members of a .tar.gz: their contents, names, kinds and sizes."""
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        for info in tar:
            file = tar.extractfile(info)
            members.append((info, b"" if file is None else file.read()))
    at = rng.randrange(len(members))
    info, data = members[at]
    how = rng.randrange(8)
    if how < 3:
        data = mutate_member(data, rng) if info.name.split("/")[-1].count(".") == 0 else mutate_bytes(data, rng)
    elif how == 3:
        info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
        info.linkname = rng.choice(("/etc/passwd", info.name, "..", "test_batch"))
    elif how == 4:
        names = ("../../x", "/test_batch", "x" * 300, "cifar-10-batches-py/test_batch", "test_batch.bin")
        info.name = rng.choice(names)
    elif how == 5:
        data = b""
    elif how == 6:
        members.append((info, data))
    else:
        data = bytes(rng.choice((10**6, 3 * 10**7)))
    members[at] = (info, data)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for entry, content_of in members:
            entry.size = len(content_of) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(content_of))
    raw = file.getvalue()
    if rng.random() < 0.15:
        raw = mutate_bytes(raw, rng)
    return gzip.compress(raw, 1)


Mutate = Callable[[bytes, random.Random], bytes]
Load = Callable[[Path], str]

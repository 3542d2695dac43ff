"""ONNX files from anywhere, checked before anything is read from them.

``parse`` turns bytes into a model. ``check`` refuses what no reader here supports, although some runtimes do: duplicate
names, sparse and external constants, functions, subgraphs, operator sets of unknown versions. ``validate`` runs ONNX's
own checker and shape inference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import TensorProto

from twoscale.errors import NetworkFileError

__all__ = [
    "check",
    "check_constants",
    "is_quantized",
    "one_line",
    "parse",
    "read_model",
    "refuse_unknown_operators",
    "validate",
]

_LARGEST = (1 << 31) - 1  # bytes of a protobuf message
_OPSETS = {"": (7, onnx.defs.onnx_opset_version()), "ai.onnx": (7, onnx.defs.onnx_opset_version())}
_MICROSOFT = {"com.microsoft": (1, 1)}
_TYPES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.UINT8: 1,
    TensorProto.INT8: 1,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.BOOL: 1,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.UINT16: 2,
    TensorProto.INT16: 2,
    TensorProto.INT4: 1,
    TensorProto.UINT4: 1,
}
"""Bytes per value of the supported types of constants, or per pair of values of 4 bits."""
_HALF_BYTES = (TensorProto.INT4, TensorProto.UINT4)
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
}
"""The field of a type's values where they are not raw bytes. The other types' values are in int32_data."""


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file.

    Raises:
        NetworkFileError: it is missing, truncated, or no ONNX file.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise NetworkFileError(f"{path} is larger than 2 GiB, which no ONNX file can be")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise NetworkFileError(f"there is no file {path}; expected a network saved as ONNX") from error
    except OSError as error:
        raise NetworkFileError(f"cannot read {path}: {error.strerror or error}") from error
    return parse(path, content)


def parse(path: Path, content: bytes) -> onnx.ModelProto:
    """Return the model in the bytes of a file.

    Raises:
        NetworkFileError: they are not an ONNX file; the message says what they are, if that is known.
    """
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError) as error:
        other = _other_format(path, content)
        raise NetworkFileError(
            f"{path} ({len(content):,} bytes) is {other}; expected a network saved as ONNX"
            if other
            else f"{path} ({len(content):,} bytes) is not an ONNX file, or was cut off; "
            "expected a network saved as ONNX"
        ) from error
    if not model.graph.node or not model.opset_import:
        other = _other_format(path, content)
        raise NetworkFileError(
            f"{path} ({len(content):,} bytes) is {other}; expected a network saved as ONNX"
            if other
            else f"{path} ({len(content):,} bytes) holds no ONNX graph; expected a network saved as ONNX"
        )
    if not _is_text(model):
        raise NetworkFileError(
            f"{path} ({len(content):,} bytes) is damaged: a name in it is not UTF-8; expected a network saved as ONNX"
        )
    return model


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether an operator of a model quantizes or is quantized."""
    return any(node.op_type.startswith("Q") or "Quantize" in node.op_type for node in model.graph.node)


def _is_text(message: Message) -> bool:
    """Whether every string in a message is one; protobuf gives bytes in the place of what is not UTF-8."""
    for kind, value in message.ListFields():
        if kind.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        for item in (value,) if isinstance(value, str | bytes | Message) else value:
            if isinstance(item, bytes) or (isinstance(item, Message) and not _is_text(item)):
                return False
    return True


def _other_format(path: Path, content: bytes) -> str | None:
    if content[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if content[:8] == b"\x89HDF\r\n\x1a\n":
        return "an HDF5 file, such as Keras saves"
    if content[:4] == b"PK\x03\x04":
        return "a zip archive, such as torch.save writes"
    return None


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the first informative line of an error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check(path: Path, model: onnx.ModelProto) -> None:
    """Check the structure of a model of another tool.

    Raises:
        NetworkFileError: something in it is ambiguous, unknown or wrong; the message names it.
    """
    refuse = _refusal(path)
    graph = model.graph
    check_constants(path, model)
    _check_operator_sets(path, model)
    made = [name for node in graph.node for name in node.output if name]
    for what, names in (
        ("initializer", [tensor.name for tensor in graph.initializer]),
        ("input", [value.name for value in graph.input]),
        ("output", [value.name for value in graph.output]),
        ("tensor", made + [tensor.name for tensor in graph.initializer]),
        ("tensor", made + [value.name for value in graph.input]),
    ):
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            refuse(f"two things are the {what} {twice!r}")
    for node in graph.node:
        name = node.name or next(iter(node.output), "without a name")
        twice = next(
            (a for a, count in Counter(attribute.name for attribute in node.attribute).items() if count > 1), ""
        )
        if twice:
            refuse(f"node {name} ({node.op_type}) has the attribute {twice} twice")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                refuse(f"node {name} ({node.op_type}): attribute {attribute.name} holds a graph or a sparse tensor")
            if attribute.HasField("t"):
                _check_tensor(path, attribute.t)


def check_constants(path: Path, model: onnx.ModelProto) -> None:
    """Check that every constant is complete, dense and in the file itself, and that the model defines no functions.

    Raises:
        NetworkFileError: names the constant.
    """
    if model.functions:
        _refusal(path)("it defines functions of its own")
    if model.graph.sparse_initializer:
        _refusal(path)(f"its constant {model.graph.sparse_initializer[0].values.name} is sparse")
    for tensor in model.graph.initializer:
        _check_tensor(path, tensor)


def refuse_unknown_operators(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a float network with an operator of another tool, such as RequantShift of NEMO and Deeploy.

    Raises:
        NetworkFileError: there is one; names it.
    """
    for node in model.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain != "com.microsoft" and not onnx.defs.has(node.op_type, domain):
            raise NetworkFileError(
                f"{path} has the operator {node.op_type} at {node.name or ', '.join(node.output)}, which is "
                "neither ONNX's nor ONNX Runtime's; quantize the weights of the float network (.safetensors, .pt or "
                ".pth) with twoscale quantize, or the whole model in operator form (QuantFormat.QOperator)"
            )


def validate(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Check a model against ONNX's definitions, and return it with inferred shapes.

    Raises:
        NetworkFileError: ONNX does not accept it.
    """
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # C++ errors of several types
        raise NetworkFileError(f"{path} is not valid ONNX: {one_line(error)}") from error
    return inferred


def _refusal(path: Path) -> Callable[[str], NoReturn]:
    def refuse(reason: str) -> NoReturn:
        raise NetworkFileError(f"{path}: {reason}; export the model again in plain ONNX")

    return refuse


def _check_operator_sets(path: Path, model: onnx.ModelProto) -> None:
    versions: dict[str, int] = {}
    known = _OPSETS | _MICROSOFT
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise NetworkFileError(f"{path} imports two versions of the operator set {domain or 'ai.onnx'!r}")
    used = {"" if node.domain == "ai.onnx" else node.domain for node in model.graph.node}
    for domain in sorted(used):
        if domain not in known:
            node = next(node for node in model.graph.node if node.domain == domain)
            raise NetworkFileError(
                f"{path}: node {node.name or node.output[0]} ({node.op_type}) is of the operator set {domain!r}; "
                "expected standard ONNX operators, or com.microsoft's"
            )
        lowest, highest = known[domain]
        if domain not in versions or not lowest <= versions[domain] <= highest:
            raise NetworkFileError(
                f"{path} uses version {versions.get(domain, 'none')} of the operator set {domain or 'ai.onnx'}; "
                f"expected {lowest} to {highest}"
            )


def _check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    """Check a constant before anything allocates memory for it."""
    name = tensor.name or "without a name"
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise NetworkFileError(f"{path}: the constant {name} is in another file; save the model as one file")
    if tensor.data_type not in _TYPES:
        raise NetworkFileError(f"{path}: the constant {name} has the type {tensor.data_type}, which is not read here")
    if tensor.HasField("segment") or any(size < 0 for size in tensor.dims):
        raise NetworkFileError(f"{path}: the constant {name} has a shape that makes no sense")
    values = math.prod(tensor.dims)
    if tensor.data_type in _HALF_BYTES:
        values = -(-values // 2)
    size = _TYPES[tensor.data_type]
    if tensor.HasField("raw_data"):
        given = len(tensor.raw_data) // size if len(tensor.raw_data) % size == 0 else -1
    else:
        given = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
    if given != values:
        raise NetworkFileError(f"{path}: the constant {name} has {given} values, expected {values}")

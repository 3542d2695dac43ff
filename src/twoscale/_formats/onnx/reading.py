"""ONNX file → IntegerNetwork.

What a layer is (operator, shapes, real scales, window sizes) is in the metadata, its arrays are the initializers
that the graph computes with. Whether the two still belong together is then checked in full: the network that was
read must have the fingerprint that was saved, and must write the very graph that is in the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import numpy_helper

from twoscale._formats.onnx.graph_builder import FORMAT
from twoscale._formats.onnx.writing import FORM, to_model
from twoscale._frontends import integer_network
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import NetworkFileError, QuantizationError

__all__ = ["load", "read_model"]

_LAYERS = {kind.__name__: kind for kind in n.LAYERS}


def load(path: Path) -> IntegerNetwork:
    """Read a network; see twoscale._formats.load."""
    model = read_model(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if "twoscale.format" not in properties:
        return integer_network(path, model)
    _check_format(path, properties["twoscale.format"])
    if properties.get("twoscale.form") != FORM:
        raise NetworkFileError(
            f"{path} holds the network in '{properties.get('twoscale.form')}' form, which is written for other "
            "runtimes and not read back; load the file that was saved without a form"
        )
    try:
        network = _network(properties, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer})
    except QuantizationError as error:
        raise NetworkFileError(f"{path} holds a network that cannot be right: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise NetworkFileError(
            f"{path} is damaged: its metadata does not describe a network ({type(error).__name__}: {error}); "
            "save it again"
        ) from error
    _check_unaltered(path, network, properties.get("twoscale.fingerprint", ""), model.graph)
    return network


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file.

    Raises:
        NetworkFileError: it is missing, truncated, or no ONNX file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise NetworkFileError(f"there is no file {path}; expected a network saved as ONNX") from error
    except OSError as error:
        raise NetworkFileError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise NetworkFileError(
            f"{path} ({len(content):,} bytes) is not an ONNX file, or was cut off; expected a network saved as ONNX"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise NetworkFileError(f"{path} ({len(content):,} bytes) holds no ONNX graph; expected a network saved as ONNX")
    return model


def _check_format(path: Path, text: str) -> None:
    if text == str(FORMAT):
        return
    if text.isdecimal() and int(text) > FORMAT:
        raise NetworkFileError(
            f"{path} has format {text}, this twoscale reads format {FORMAT}: it was saved by a newer version; "
            "upgrade twoscale, or save it again with this one"
        )
    raise NetworkFileError(f"{path} has format '{text}', this twoscale reads format {FORMAT}; save it again")


def _network(properties: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> IntegerNetwork:
    return IntegerNetwork(
        name=properties["twoscale.name"],
        layers=tuple(_layer(plain, arrays) for plain in json.loads(properties["twoscale.layers"])),
        output=properties["twoscale.output"],
        scheme=properties["twoscale.scheme"],
        metadata=json.loads(properties["twoscale.metadata"]),
    )


def _layer(plain: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> n.Layer:
    """Turn one layer's description, and the initializers named after it, back into the layer."""
    kind = _LAYERS[plain.pop("op")]
    name = plain["name"]
    values: dict[str, Any] = {key: _value(value, f"{name}/{key}", arrays) for key, value in plain.items()}
    values["output"] = n.TensorSpec(**{**plain["output"], "shape": tuple(plain["output"]["shape"])})
    for field in dataclasses.fields(kind):
        if field.name in ("weight", "bias_o", "table"):
            values[field.name] = arrays[f"{name}/{field.name.removesuffix('_o')}"]
    if issubclass(kind, n.Accumulating) and values["weight"].dtype == np.uint8:
        values["weight"] = (values["weight"].astype(np.int16) - 128).astype(np.int8)
    if kind is n.Linear:
        values["weight"] = np.ascontiguousarray(values["weight"].T)
    if issubclass(kind, n.Accumulating):
        values["bias_o"] = values["bias_o"].reshape(-1)
    if kind is n.Table:
        values["table"] = values["table"].astype(np.int16)
    return kind(**values)


def _value(value: Any, name: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return a field: lists become tuples, and {"shift": …} the multipliers in the initializer ``name``."""
    if isinstance(value, list):
        return tuple(_value(item, f"{name}.{i}", arrays) for i, item in enumerate(value))
    if isinstance(value, dict) and value.keys() == {"shift"}:
        return n.Multiplier(arrays[name].reshape(-1), value["shift"])
    return value


def _check_unaltered(path: Path, network: IntegerNetwork, fingerprint: str, graph: onnx.GraphProto) -> None:
    if network.fingerprint != fingerprint:
        raise NetworkFileError(
            f"{path} was altered after it was saved: its network has the fingerprint {network.fingerprint[:12]}…, "
            f"the file says {fingerprint[:12]}…; save it again"
        )
    difference = _first_difference(to_model(network).graph, graph)
    if difference:
        raise NetworkFileError(
            f"{path} was altered after it was saved: {difference} is not what its network writes; save it again"
        )


def _first_difference(expected: onnx.GraphProto, found: onnx.GraphProto) -> str | None:
    """Name the first thing that differs in what the two graphs compute, if any."""
    for what in ("input", "output", "node", "initializer"):
        ours = {item.name: item for item in getattr(expected, what)}
        theirs = {item.name: item for item in getattr(found, what)}
        for name in ours | theirs:
            if name not in ours or name not in theirs or ours[name] != theirs[name]:
                return f"{what} {name}"
    return None

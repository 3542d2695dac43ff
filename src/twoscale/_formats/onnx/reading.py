"""ONNX file → IntegerNetwork.

The metadata describes each layer (operator, shapes, real scales, window sizes); its arrays are the graph's
initializers. ``load`` checks that they belong together: the network read must have the saved fingerprint, and writing
it again must give exactly the graph in the file.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from twoscale._formats.onnx.graph_builder import FORMAT, has_half_bytes
from twoscale._formats.onnx.writing import FORM, to_model
from twoscale._frontends import integer_network, onnx_model
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.memory_estimate import refuse_beyond_memory
from twoscale.errors import NetworkFileError, QuantizationError

__all__ = ["load"]

_LAYERS = {kind.__name__: kind for kind in n.LAYERS}
_HALF_BYTES = {"int4": 0, "uint4": 8}
"""Zero points of weights of 4 bits."""


def load(path: Path) -> IntegerNetwork:
    """Read a network; see twoscale._formats.load."""
    model = onnx_model.read_model(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    network = _own(path, model, properties) if "twoscale.format" in properties else integer_network(path, model)
    refuse_beyond_memory(str(path), network.layers, NetworkFileError)
    return network


def _own(path: Path, model: onnx.ModelProto, properties: Mapping[str, str]) -> IntegerNetwork:
    """Read what ``save`` wrote."""
    _check_format(path, properties["twoscale.format"])
    if properties.get("twoscale.form") != FORM:
        raise NetworkFileError(
            f"{path} holds the network in '{properties.get('twoscale.form')}' form, which is written for other "
            "runtimes and not read back; load the file that was saved without a form"
        )
    onnx_model.check_constants(path, model)
    try:
        network = _network(properties, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer})
    except QuantizationError as error:
        raise NetworkFileError(f"{path} holds a network that cannot be right: {error}") from error
    except (
        msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise NetworkFileError(
            f"{path} is damaged: its metadata does not describe a network "
            f"({type(error).__name__}: {onnx_model.one_line(error)}); save it again"
        ) from error
    _check_unaltered(path, network, properties.get("twoscale.fingerprint", ""), model.graph)
    return network


def _check_format(path: Path, text: str) -> None:
    if text in {str(number) for number in range(1, FORMAT + 1)}:
        return
    if text.isdecimal() and int(text) > FORMAT:
        raise NetworkFileError(
            f"{path} has format {text}, this twoscale reads formats 1 to {FORMAT}: it was saved by a newer version; "
            "upgrade twoscale, or save it again with this one"
        )
    raise NetworkFileError(f"{path} has format '{text}', this twoscale reads formats 1 to {FORMAT}; save it again")


class _Shift(msgspec.Struct, forbid_unknown_fields=True):
    """The metadata of a multiplier. Its values are an initializer."""

    shift: int | None


_Multipliers = _Shift | None | tuple[_Shift | None, ...]


def _network(properties: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> IntegerNetwork:
    layers = msgspec.json.decode(properties["twoscale.layers"], type=list[dict[str, Any]])
    return IntegerNetwork(
        name=properties["twoscale.name"],
        layers=tuple(_layer(plain, arrays) for plain in layers),
        outputs=_outputs(properties),
        scheme=properties["twoscale.scheme"],
        metadata=msgspec.json.decode(properties["twoscale.metadata"], type=dict[str, Any]),
    )


def _outputs(properties: Mapping[str, str]) -> tuple[str, ...]:
    if "twoscale.output" in properties:
        return (properties["twoscale.output"],)
    return msgspec.json.decode(properties["twoscale.outputs"], type=tuple[str, ...])


@functools.cache
def _hints(kind: type[n.Layer]) -> dict[str, Any]:
    """Return the types of a layer's fields. Evaluating them again for every layer took a third of the load time."""
    return typing.get_type_hints(kind)


def _layer(plain: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> n.Layer:
    """Make a layer from its description and the initializers named after it."""
    kind = _LAYERS[plain.pop("op")]
    name = msgspec.convert(plain["name"], str)
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in ("weight", "bias_o", "table", "gain", "bias"):
            values[field.name] = arrays[f"{name}/{field.name.removesuffix('_o')}"]
        elif "Multiplier" in str(hints[field.name]):
            given = msgspec.convert(plain.pop(field.name), _Multipliers)
            values[field.name] = _multipliers(given, f"{name}/{field.name}", arrays)
        else:
            values[field.name] = msgspec.convert(plain.pop(field.name), hints[field.name])
    if plain:
        raise ValueError(f"layer {name} has a field {next(iter(plain))}")
    if issubclass(kind, n.Accumulating) and values["weight"].dtype.name in _HALF_BYTES:
        zero = _HALF_BYTES[values["weight"].dtype.name]
        values["weight"] = values["weight"].astype(np.int8) - np.int8(zero)
    elif issubclass(kind, n.Accumulating) and values["weight"].dtype == np.uint8:
        values["weight"] = (values["weight"].astype(np.int16) - 128).astype(np.int8)
    if kind is n.Linear:
        values["weight"] = np.ascontiguousarray(values["weight"].T)
    if issubclass(kind, n.Accumulating):
        values["bias_o"] = values["bias_o"].reshape(-1)
    if kind is n.Table:
        values["table"] = values["table"].astype(np.int16)
    return kind(**values)


def _multipliers(value: _Multipliers, name: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the multipliers with values in the initializers ``name``, ``name``.0 and so on."""
    if isinstance(value, tuple):
        return tuple(_multipliers(item, f"{name}.{i}", arrays) for i, item in enumerate(value))
    return None if value is None else n.Multiplier(arrays[name].reshape(-1), value.shift)


def _check_unaltered(path: Path, network: IntegerNetwork, fingerprint: str, graph: onnx.GraphProto) -> None:
    if network.fingerprint != fingerprint:
        raise NetworkFileError(
            f"{path} was altered after it was saved: its network has the fingerprint {network.fingerprint[:12]}…, "
            f"the file says {fingerprint[:12]}…; save it again"
        )
    int4 = any(has_half_bytes(tensor) for tensor in graph.initializer)
    difference = _first_difference(to_model(network, int4=int4).graph, graph)
    if difference:
        raise NetworkFileError(
            f"{path} was altered after it was saved: {difference} is not what its network writes; save it again"
        )


def _first_difference(expected: onnx.GraphProto, found: onnx.GraphProto) -> str | None:
    """Return the first difference between the computations of two graphs, if any."""
    for what in ("input", "output", "node", "initializer"):
        ours = {item.name: item for item in getattr(expected, what)}
        theirs = {item.name: item for item in getattr(found, what)}
        if len(getattr(found, what)) != len(theirs):
            return f"one of two {what}s of one name"
        for name in ours | theirs:
            if name not in ours or name not in theirs or ours[name] != theirs[name]:
                return f"{what} {name}"
    return None

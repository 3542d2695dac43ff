"""An integer network as memory files for hardware: one number per line, as Verilog's $readmemh reads them.

Each array has a file: weights, biases, multipliers, tables, and the integers of every layer for a few images (golden
vectors). ``index.json`` has the width and shape of each, and what else a layer needs. Numbers are in two's complement,
with as many hexadecimal digits as their width needs, in C order: the last dimension of the shape varies fastest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.names import Identifiers
from twoscale._codegen.c.common.selftest import default_images, layer_values
from twoscale._environment import VERSION
from twoscale._files import record_to_json, write_files
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

__all__ = ["HexFiles", "export_hex"]


@dataclass(frozen=True)
class Memory:
    """One array in a file."""

    file: str
    width: int
    """Bits of a number."""
    signed: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class HexLayer:
    """One layer."""

    name: str
    op: str
    inputs: tuple[str, ...]
    """Names of the layers that it reads."""
    scale: float
    zero_point: int
    lo: int
    """Least integer of the output. An output of accumulators is not clamped."""
    hi: int
    accumulator_bits: int | None
    """Bits, with the sign, that hold every partial sum, equation (13); None without weights."""
    arrays: dict[str, Memory]
    """The layer's constants, by the name of its field."""
    options: dict[str, Any]
    """Its other fields, such as stride and padding (top, left, bottom, right), and the shift of each multiplier."""
    golden: Memory
    """The output for the images, (N, ...)."""


@dataclass(frozen=True)
class HexIndex:
    """Contents of ``index.json``."""

    name: str
    version: str
    """Of twoscale."""
    fingerprint: str
    images: int
    layers: tuple[HexLayer, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class HexFiles:
    """The result of an export."""

    folder: str
    files: tuple[str, ...]
    """Names in the folder."""


def export_hex(network: IntegerNetwork, folder: str | Path, inputs: Sequence[NDArray[Any]] | None = None) -> HexFiles:
    """Write a network's constants and golden vectors as memory files, all of them or none.

    Args:
        network: on the grid, or of TensorFlow Lite's arithmetic.
        folder: where to write; missing folders are created.
        inputs: quantized images (N, ...) of each input; by default four generated ones.

    Raises:
        ConfigurationError: a multiplier is a free float; names the layer.
    """
    if not network.exact:
        raise ConfigurationError(
            f"{network.name} has free float multipliers, which memory files cannot hold; move them onto the grid with "
            "network.requantize() or twoscale requantize"
        )
    values = layer_values(network, default_images(network) if inputs is None else inputs)
    texts: dict[str, str] = {}
    identifiers = Identifiers()
    layers = tuple(_layer(network, layer, values[layer.name], identifiers.of(layer.name), texts) for layer in network)
    count = len(values[network.inputs[0].name])
    index = HexIndex(network.name, VERSION, network.fingerprint, count, layers, network.outputs)
    write_files(Path(folder), {**texts, "index.json": record_to_json(index)})
    return HexFiles(str(folder), (*texts, "index.json"))


def _layer(
    network: IntegerNetwork, layer: n.Layer, golden: NDArray[Any], identifier: str, texts: dict[str, str]
) -> HexLayer:
    def memory(what: str, values: NDArray[Any], width: int) -> Memory:
        file = f"{identifier}_{what}.hex"
        texts[file] = _lines(values, width)
        return Memory(file, width, bool(np.issubdtype(values.dtype, np.signedinteger)), values.shape)

    arrays: dict[str, Memory] = {}
    options: dict[str, Any] = {}

    def add(what: str, value: Any) -> None:
        if isinstance(value, n.FixedPoint):
            arrays[f"{what}_mantissa"] = memory(f"{what}_mantissa", value.mantissas, 32)
            arrays[f"{what}_exponent"] = memory(f"{what}_exponent", value.exponents, 8)
        elif isinstance(value, n.WindowQuotient):
            options[what] = "mean of the window"
        elif isinstance(value, n.Multiplier):
            arrays[what] = memory(what, value.integers.astype(np.int32), 32)
            options[f"{what}_shift"] = value.shift
        elif isinstance(value, tuple) and any(isinstance(item, n.Multiplier) for item in value):
            for number, item in enumerate(value):
                add(f"{what}{number}", item)
        elif isinstance(value, np.ndarray):
            name = what.removesuffix("_o")
            arrays[name] = memory(name, value, _width(value) if name == "weight" else 8 * value.itemsize)
        elif value is not None:
            options[what] = value

    for field in dataclasses.fields(layer):
        if field.name not in ("name", "inputs", "output"):
            add(field.name, getattr(layer, field.name))
    bits = None
    if isinstance(layer, n.Accumulating):
        bits = 1 + int(layer.partial_bound(network.spec(layer.inputs[0])).max(initial=0)).bit_length()
    spec = layer.output
    return HexLayer(
        name=layer.name,
        op=layer.op,
        inputs=layer.inputs,
        scale=float(spec.scale),
        zero_point=int(spec.zero_point),
        lo=int(spec.lo),
        hi=int(spec.hi),
        accumulator_bits=bits,
        arrays=arrays,
        options=options,
        golden=memory("output", golden, 8 * golden.itemsize),
    )


def _width(weight: NDArray[np.int8]) -> int:
    """Return the fewest bits, 2 to 8, that hold all weights."""
    lowest, highest = int(weight.min(initial=0)), int(weight.max(initial=0))
    return next(bits for bits in range(2, 9) if -(2 ** (bits - 1)) <= lowest and highest < 2 ** (bits - 1))


def _lines(values: NDArray[Any], width: int) -> str:
    """Return numbers in C order, one per line."""
    digits, mask = -(-width // 4), (1 << width) - 1
    return "".join(f"{value & mask:0{digits}x}\n" for value in values.ravel().tolist())

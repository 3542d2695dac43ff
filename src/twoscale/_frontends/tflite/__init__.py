"""Integer `.tflite` files → IntegerNetwork, with TensorFlow Lite's own arithmetic: equations (18) to (24).

Networks compute what TensorFlow Lite for Microcontrollers does, and LiteRT's reference kernels, integer by integer.
Activations are int8 with weights of one scale per channel, or uint8 with one scale per tensor, as in files before 2020.
Images are (1, H, W, C). Operators that do not fit are refused, with their number in the file and the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoscale._frontends.tflite.functions import REAL_FUNCTIONS, real_function
from twoscale._frontends.tflite.model import Model, Tensor
from twoscale._frontends.tflite.opening import DAMAGE, one_line, parsed
from twoscale._frontends.tflite.operators import OPERATORS
from twoscale._frontends.tflite.reader import Reader, Value
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import NetworkFileError, QuantizationError

__all__ = ["FORM", "SUFFIX", "Read", "read"]

SUFFIX = ".tflite"

FORM = "tflite"
"""In the metadata, as the form of the file that a network was read from."""

_RANGES: tuple[tuple[float, float, float, float], ...] = (
    (0.0, 255.0, 0.0, 1 / 255),
    (0.0, 1.0, 0.0, 1.0),
    (-1.0, 1.0, 0.5, 0.5),
)
"""The range of the input, and the mean and deviation of pixels / 255 that it means."""


@dataclass(frozen=True)
class Read:
    """A network, and where its layers are in the file."""

    network: IntegerNetwork
    tensors: Mapping[str, int]
    """For each layer that holds a whole tensor of the file, the tensor's index. (H, W, C) there is (C, H, W) here."""
    in_litert: Mapping[str, n.Layer]
    """Layers that LiteRT's reference kernels compute in another way, as they do. FULLY_CONNECTED is not among them."""


def read(path: Path, data: bytes) -> Read:
    """Read a network.

    Args:
        path: of the file, for messages.
        data: what is in it.

    Raises:
        NetworkFileError: it is damaged, or an operator does not fit; names the operator and the reason.
    """
    model = parsed(path, data)
    if model.is_float:
        raise NetworkFileError(f"{path} is a float network; twoscale.quantize makes an integer network of it")
    if model.has_int16:
        raise NetworkFileError(
            f"{path} has int16 activations; expected int8 or uint8: convert the model with int8 activations, or give "
            "the float model to twoscale.quantize"
        )
    reader = Reader(path, model)
    _read_input(reader, model)
    for operator in model.operators:
        reader.operator = operator
        try:
            _read_operator(reader)
        except DAMAGE as error:
            reader.refuse(f"it cannot be read ({one_line(error)})")
    outputs = reader.outputs()
    if not reader.layers or not isinstance(reader.layers[0], n.QuantizeInput):
        reader.refuse("it quantizes no image")
    try:
        network = IntegerNetwork(
            name=path.stem,
            layers=tuple(reader.layers),
            outputs=outputs,
            scheme="foreign",
            metadata={
                "file": path.name,
                "producer": model.description[:100],
                "form": FORM,
                **_normalization(reader.layers[0].output),
            },
            source=path.absolute(),
        )
    except QuantizationError as error:
        raise NetworkFileError(f"{path} does not make an integer network: {error}") from error
    return Read(network, reader.tensors, reader.in_litert)


def _read_operator(reader: Reader) -> None:
    operator, tensors = reader.operator, reader.model.tensors
    results = [tensors[index] for index in operator.outputs if index >= 0]
    if reader.only_shapes(operator):
        return
    if operator.name in REAL_FUNCTIONS and all(tensor.dtype == "float32" for tensor in results):
        real_function(reader)
        return
    if operator.name not in OPERATORS:
        reader.refuse(f"it is not read; expected one of {', '.join(sorted(OPERATORS))}")
    OPERATORS[operator.name](reader)


def _read_input(reader: Reader, model: Model) -> None:
    if len(model.inputs) != 1 or model.inputs[0] < 0:
        reader.refuse(f"it has {len(model.inputs)} inputs; expected one, the images")
    image: Tensor = model.tensors[model.inputs[0]]
    if image.dtype == "float32":
        reader.entry = image.index
        return
    spec = reader.spec(image)
    reader.set(image, Value(reader.append(lambda name: n.QuantizeInput(name=name, inputs=(), output=spec), image)))


def _normalization(spec: n.TensorSpec) -> dict[str, Any]:
    """Return the normalization that the range of the input means: pixels, pixels / 255, or [−1, 1]; else nothing."""
    lowest, highest = ((q - spec.zero_point) * spec.scale for q in (spec.lo, spec.hi))
    for first, last, mean, std in _RANGES:
        near = 0.02 * (last - first)
        if abs(lowest - first) < near and abs(highest - last) < near and len(spec.shape) == 3:
            return {"mean": [mean] * spec.shape[0], "std": [std] * spec.shape[0]}
    return {}

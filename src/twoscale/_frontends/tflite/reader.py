"""The part of a `.tflite` graph read so far: the layers, and where each tensor's integers are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.file_reader import FileReader, layer_shape
from twoscale._frontends.tflite.model import Model, Operator, Tensor
from twoscale._ir import fixed_point
from twoscale._ir import layers as n
from twoscale._text import printable

__all__ = ["Apart", "Reader", "Value"]

_LONGEST_NAME = 60


@dataclass(frozen=True)
class Value:
    """A tensor of the file that depends on the images."""

    layer: n.Layer
    """Its integers. (H, W, C) in the file is (C, H, W) here."""
    flattened: n.Layer | None = None
    """The layer (C, H, W) of which this is the flattened vector, if the file has its values in the order H, W, C."""
    real: NDArray[np.float32] | None = None
    """The real number that each of the 256 integers stands for, if a function was applied after DEQUANTIZE."""
    offset: int | None = None
    """What is added to the integers in int32, if they are indices of a table."""

    @property
    def spec(self) -> n.TensorSpec:
        """The layer's output."""
        return self.layer.output


@dataclass(frozen=True)
class Apart:
    """A tensor between SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND."""

    layer: n.Layer
    """The images before."""
    block: tuple[int, int]
    """The dilation of a convolution in between."""
    padding: n.Padding
    """What SPACE_TO_BATCH_ND added."""
    append: Callable[[n.Padding, Tensor], n.Layer] | None = None
    """Appends the dilated convolution, once it is there, with a padding; it computes the tensor."""


class Reader(FileReader):
    """Turns operators into layers, one after another.

    Args:
        path: of the file, for messages.
        model: what is in it.
    """

    def __init__(self, path: Path, model: Model) -> None:
        super().__init__(path, model)
        self.layers: list[n.Layer] = []
        self.tensors: dict[str, int] = {}
        """For each layer that holds a whole tensor of the file, the tensor's index."""
        self._values: dict[int, Value] = {}
        self._names: set[str] = set()
        self._times: dict[str, int] = {}
        self.in_litert: dict[str, n.Layer] = {}
        """Layers that LiteRT's reference kernels compute in another way, as they do."""
        self.apart: dict[int, Apart] = {}
        self.entry = -1
        """The float32 input, until it is quantized."""

    # ------------------------------------------------------------ access

    def depends_on_images(self, index: int) -> bool:
        """Whether a tensor was computed from the images."""
        return index in self._values or index in self.apart

    def flattened(self, index: int, dtypes: Sequence[str] = ("int8", "uint8")) -> Value:
        """Return an input of one of the types; a flattened vector may be in the order C, H, W."""
        tensor = self.tensor(index)
        if tensor.dtype not in dtypes:
            self.refuse(f"its input {index} is {tensor.dtype}; expected {' or '.join(dtypes)}")
        if tensor.index not in self._values:
            kind = "a constant" if tensor.is_constant else "made by no earlier operator"
            self.refuse(f"its input {index} is {kind}; expected integers that depend on the image")
        return self._values[tensor.index]

    def value(self, index: int) -> n.Layer:
        """Return the layer with an input's integers, in the file's order."""
        return self.in_order(self.flattened(index))

    def in_order(self, value: Value) -> n.Layer:
        """Return a layer with the integers in the file's order."""
        if value.flattened is None:
            return value.layer
        moved = self.permuted(value.flattened, (1, 2, 0))
        return self.reshaped(moved, value.spec.shape)

    # ------------------------------------------------------------ quantization

    def spec(self, tensor: Tensor | None = None) -> n.TensorSpec:
        """Return the quantization of a tensor, by default of the operator's output."""
        tensor = self.result if tensor is None else tensor
        if tensor.dtype not in ("int8", "uint8"):
            self.refuse(f"the tensor {tensor.name} is {tensor.dtype}; expected int8 or uint8")
        if len(tensor.scales) != 1:
            self.refuse(f"the tensor {tensor.name} has {len(tensor.scales)} scales; expected one")
        if len(tensor.shape) < 2 or len(tensor.shape) > 7 or tensor.shape[0] != 1:
            self.refuse(f"the tensor {tensor.name} has the shape {tensor.shape}; expected the batch 1 first")
        limits = np.iinfo(tensor.dtype)
        zero_point = int(tensor.zero_points[0])
        if not limits.min <= zero_point <= limits.max:
            self.refuse(f"the tensor {tensor.name} has the zero point {zero_point}, beyond {tensor.dtype}")
        return n.TensorSpec(
            layer_shape(tensor.shape), tensor.dtype, float(tensor.scales[0]), zero_point, int(limits.min),
            int(limits.max),
        )  # fmt: skip

    def activated(self, field: int) -> n.TensorSpec:
        """Return the quantization of the output, with the bounds of the fused activation in a field of the options."""
        return self.bounded(self.spec(), self.options.number(field, "b"))

    def bounded(self, spec: n.TensorSpec, activation: int) -> n.TensorSpec:
        """Return a quantization with the bounds of a fused activation: CalculateActivationRangeQuantized."""
        bounds = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
        if activation not in bounds:
            self.refuse(f"its fused activation has the number {activation}; expected none, RELU, RELU_N1_TO_1 or RELU6")
        lo, hi = bounds[activation]
        return dataclasses.replace(
            spec,
            lo=spec.lo if lo is None else max(spec.lo, self.quantized(lo, spec)),
            hi=spec.hi if hi is None else min(spec.hi, self.quantized(hi, spec)),
        )

    def quantized(self, real: float, spec: n.TensorSpec) -> int:
        """Return a real number's integer: a float32 quotient, rounded away from zero."""
        steps = float(np.float32(real) / np.float32(spec.scale))
        if abs(steps) > 1 << 20:
            return (1 << 20) if real > 0 else -(1 << 20)
        return spec.zero_point + math.floor(abs(steps) + 0.5) * (1 if real > 0 else -1)

    def multiplier(self, real: Sequence[float] | NDArray[np.float64]) -> n.FixedPoint:
        """Return factors in fixed point.

        Raises:
            NetworkFileError: one is 0, or beyond 2**30.
        """
        pairs = [fixed_point.quantize_multiplier(float(value)) for value in real]
        if any(mantissa == 0 or exponent > 30 for mantissa, exponent in pairs):
            self.refuse("a quotient of its scales is below 2**-32 or beyond 2**30")
        mantissas, exponents = zip(*pairs, strict=True)
        if len(set(pairs)) == 1:
            mantissas, exponents = mantissas[:1], exponents[:1]
        return n.FixedPoint.of(mantissas, exponents)

    # ------------------------------------------------------------ layers

    def name(self, wanted: str) -> str:
        """Return a new layer's name; converters join those of merged layers with semicolons."""
        base = printable(wanted.split(";")[0], _LONGEST_NAME) or "tensor"
        count = self._times.get(base, 0) + 1
        name = base if count == 1 else f"{base}/{count}"
        while name in self._names:
            count += 1
            name = f"{base}/{count}"
        self._times[base] = count
        self._names.add(name)
        return name

    def append(self, make: Callable[[str], n.Layer], tensor: Tensor | None = None) -> n.Layer:
        """Append a layer and return it.

        Args:
            make: makes the layer of its name.
            tensor: what the layer computes, if it is a whole tensor of the file.
        """
        if tensor is not None:
            wanted = tensor.name
        else:
            wanted = self.result.name if self.operator.outputs else self.layers[-1].name
        name = self.name(wanted)
        layer = make(name)
        self.layers.append(layer)
        if tensor is not None:
            self.tensors[name] = tensor.index
        return layer

    def give(self, layer: n.Layer, flattened: n.Layer | None = None) -> None:
        """Make a layer the operator's output."""
        self.set(self.result, Value(layer, flattened))

    def whole(self, layer: n.Layer) -> n.Layer:
        """Note that the last layer computes the operator's output, and return it."""
        if self.layers[-1] is layer:
            self.tensors[layer.name] = self.result.index
        return layer

    def set(self, tensor: Tensor, value: Value) -> None:
        """Remember where a tensor's integers are."""
        if tensor.index in self._values or tensor.is_constant:
            self.refuse(f"the tensor {tensor.name} is made twice")
        self._values[tensor.index] = value

    def compute(self, make: Callable[[str], n.Layer]) -> None:
        """Append a layer that computes the operator's output."""
        self.give(self.append(make, self.result))

    def reshaped(self, layer: n.Layer, shape: Sequence[int], tensor: Tensor | None = None) -> n.Layer:
        """Append a reshape, unless the shape is the same."""
        if layer.output.shape == tuple(shape):
            return layer
        spec = dataclasses.replace(layer.output, shape=tuple(shape))
        return self.append(lambda name: n.Reshape(name=name, inputs=(layer.name,), output=spec), tensor)

    def permuted(self, layer: n.Layer, axes: Sequence[int], tensor: Tensor | None = None) -> n.Layer:
        """Append a permutation."""
        shape = layer.output.shape
        spec = dataclasses.replace(layer.output, shape=tuple(shape[axis] for axis in axes))
        return self.append(
            lambda name: n.Permute(name=name, inputs=(layer.name,), output=spec, axes=tuple(axes)), tensor
        )

    def table(self, layer: n.Layer, spec: n.TensorSpec, function: Callable[[int], int], whole: bool = True) -> n.Layer:
        """Append a table.

        Args:
            layer: the operand.
            spec: of the result.
            function: from the operand's integer minus its zero point to the result's before the clamp.
            whole: whether the result is the operator's output.
        """
        lowest, zero_point = int(np.iinfo(layer.output.dtype).min), layer.output.zero_point
        return self.entries(layer, spec, np.array([function(q + lowest - zero_point) for q in range(256)]), whole)

    def entries(self, layer: n.Layer, spec: n.TensorSpec, found: NDArray[Any], whole: bool = True) -> n.Layer:
        """Append a table of 256 integers, which are clamped; other arguments as of ``table``."""
        table = np.clip(found, spec.lo, spec.hi).astype(np.int16)
        output = dataclasses.replace(spec, shape=layer.output.shape)
        return self.append(
            lambda name: n.Table(name=name, inputs=(layer.name,), output=output, table=table),
            self.result if whole and output == spec else None,
        )

    def padded(self, layer: n.Layer, widths: Sequence[tuple[int, int]]) -> n.Layer:
        """Append a padding with zeros, (before, after) each dimension."""
        shape = tuple(size + sum(pair) for size, pair in zip(layer.output.shape, widths, strict=True))
        spec = dataclasses.replace(layer.output, shape=shape)
        return self.append(lambda name: n.Pad(name=name, inputs=(layer.name,), output=spec, widths=tuple(widths)))

    def part(
        self, layer: n.Layer, axis: int, start: int, stop: int, step: int = 1, tensor: Tensor | None = None
    ) -> n.Layer:
        """Append a part along one dimension, unless it is everything."""
        shape = list(layer.output.shape)
        if (start, stop, step) == (0, shape[axis], 1):
            return layer
        shape[axis] = len(range(start, stop, step))
        spec = dataclasses.replace(layer.output, shape=tuple(shape))
        return self.append(
            lambda name: n.Slice(
                name=name, inputs=(layer.name,), output=spec, axis=axis, start=start, stop=stop, step=step
            ),
            tensor,
        )

    def concatenated(self, layers: Sequence[n.Layer], axis: int) -> n.Layer:
        """Append a concatenation of layers with the same quantization."""
        shape = list(layers[0].output.shape)
        shape[axis] = sum(layer.output.shape[axis] for layer in layers)
        spec, names = dataclasses.replace(layers[0].output, shape=tuple(shape)), tuple(x.name for x in layers)
        return self.append(
            lambda name: n.Concat(name=name, inputs=names, output=spec, axis=axis, multipliers=(None,) * len(names))
        )

    def repeated(self, layer: n.Layer, axis: int, count: int) -> n.Layer:
        """Append copies along one dimension."""
        return self.concatenated([layer] * count, axis)

    def require_same(self, layer: n.Layer, tensor: Tensor | None = None) -> None:
        """Check that a tensor has a layer's scale and zero point."""
        spec, x = self.spec(tensor), layer.output
        if (spec.dtype, spec.scale, spec.zero_point) != (x.dtype, x.scale, x.zero_point):
            self.refuse(
                f"its output has scale {spec.scale:g} and zero point {spec.zero_point}, its input {x.scale:g} and "
                f"{x.zero_point}; expected the same"
            )

    def outputs(self) -> tuple[str, ...]:
        """Return the names of the layers that compute the file's outputs."""
        self.operator = Operator(-1, "", (), (), None)
        found = []
        for index in self.model.outputs:
            if index not in self._values:
                self.refuse(f"no operator computes the output {index}")
            value = self._values[index]
            if value.real is not None:
                self.refuse(f"the output {index} is a function of real numbers; expected integers, or DEQUANTIZE")
            found.append(self.in_order(value).name)
        if not found:
            self.refuse("it has no outputs")
        return tuple(dict.fromkeys(found))

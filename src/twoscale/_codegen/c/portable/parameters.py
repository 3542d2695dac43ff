"""Calls of the portable kernels, and their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from twoscale._codegen.c.common.calls import Call, Constant, Inline, Kernel, Name, Operand, Params
from twoscale._codegen.c.portable import kernels as k
from twoscale._codegen.c.portable.kernels import Library, Macro

__all__ = [
    "IMAGE",
    "PORTABLE",
    "Add",
    "AddFixed",
    "AddFixedParams",
    "AddNarrow",
    "AddParams",
    "AveragePool2d",
    "AveragePool2dParams",
    "AveragePool2dRow",
    "Clamp",
    "Conv2d",
    "Conv2dParams",
    "Conv2dRow",
    "Conv2dTiles",
    "Conv2dTilesRow",
    "Convolution",
    "ConvolutionParams",
    "CopyParams",
    "CopyRuns",
    "FromInt8",
    "Linear",
    "LinearParams",
    "LookUp",
    "MaxPool2d",
    "MaxPool2dParams",
    "MaxPool2dRow",
    "Memcpy",
    "Memset",
    "Multiply",
    "MultiplyParams",
    "OfOne",
    "OfTwo",
    "Requantization",
    "RescaleParams",
    "RescaleRuns",
    "RowCall",
    "TileSizes",
    "WindowParams",
    "tile_definitions",
    "tile_sizes",
]

IMAGE = Name("image")

P = TypeVar("P", bound=Params)


class RowCall(Call):
    """A kernel that computes one row of its layer.

    Its inputs are the rows in memory, and its last argument is the row's number."""


@dataclass(frozen=True)
class OfOne(Call, Generic[P]):
    """A kernel with parameters and one operand."""

    parameters: P
    x: Operand
    y: Operand


@dataclass(frozen=True)
class OfTwo(Call, Generic[P]):
    """A kernel with parameters and two operands."""

    parameters: P
    a: Operand
    b: Operand
    y: Operand


@dataclass(frozen=True)
class Convolution(Call, Generic[P]):
    """A kernel of convolutions; with a residual it adds another tensor to the output."""

    parameters: P
    x: Operand
    residual: Operand | None
    y: Operand


@dataclass(frozen=True)
class Requantization(Params):
    """How accumulators become the bytes of a tensor: ``requantization`` in C."""

    struct: ClassVar = "requantization"
    multiplier: Constant | Inline | Name | None = None
    per_channel: int | None = None
    shift: int | None = None
    is_narrow: int | None = None
    exponent: Constant | None = None
    zero: int | None = None
    lo: int | None = None
    hi: int | None = None


@dataclass(frozen=True)
class ConvolutionParams(Params):
    """Sizes of a convolution, and the steps of its windows."""

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int


@dataclass(frozen=True)
class Conv2dParams(ConvolutionParams):
    """Parameters of a convolution."""

    struct: ClassVar = "conv2d_params"
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    groups: int
    in_zero: int
    weight_bits: int | None
    """4 or 2 if weights are packed; None if each has a byte."""
    weight: Constant
    bias: Constant
    residual_zero: int | None
    residual_multiplier: int | None
    to: Requantization

    @property
    def edge_bytes(self) -> int:
        """Bytes of two neighbouring windows, as the tile kernels copy them at an edge."""
        return self.kernel_h * (self.kernel_w + self.stride_w) * self.in_c


def _of_single_products(call: Conv2d | Conv2dRow) -> tuple[Kernel, ...]:
    return (call.kernel, *([k.DOT_PACKED] if call.parameters.weight_bits else []))


def _of_tiles(call: Conv2dTiles | Conv2dTilesRow) -> tuple[Kernel, ...]:
    tiles = {None: k.CONV2D_TILE, 4: k.CONV2D_TILE_4, 2: k.CONV2D_TILE_2}
    return (call.kernel, tiles[call.parameters.weight_bits])


class Conv2d(Convolution[Conv2dParams]):
    """A convolution, with or without a residual."""

    kernel: ClassVar = k.CONV2D
    kernels = property(_of_single_products)


class Conv2dTiles(Convolution[Conv2dParams]):
    """A convolution in tiles of two pixels and two channels, with or without a residual."""

    kernel: ClassVar = k.CONV2D_TILES
    kernels = property(_of_tiles)


@dataclass(frozen=True)
class LinearParams(Params):
    """Parameters of a fully connected layer."""

    struct: ClassVar = "linear_params"
    in_count: int
    out_count: int
    in_zero: int
    weight: Constant
    bias: Constant
    to: Requantization


class Linear(OfOne[LinearParams]):
    """A fully connected layer."""

    kernel: ClassVar = k.LINEAR


@dataclass(frozen=True)
class AddParams(Params):
    """Parameters of a sum."""

    struct: ClassVar = "add_params"
    count: int
    a_zero: int
    a_multiplier: int
    b_zero: int
    b_multiplier: int
    to: Requantization


class Add(OfTwo[AddParams]):
    """The sum of two tensors."""

    kernel: ClassVar = k.ADD


class AddNarrow(Add):
    """The sum of two tensors whose products with multipliers fit 32 bits."""

    kernel: ClassVar = k.ADD_NARROW


@dataclass(frozen=True)
class AddFixedParams(Params):
    """Parameters of a sum in TensorFlow Lite's arithmetic."""

    struct: ClassVar = "add_fixed_params"
    count: int
    a_zero: int
    a_mantissa: int
    a_exponent: int
    b_zero: int
    b_mantissa: int
    b_exponent: int
    mantissa: int
    exponent: int
    zero: int
    lo: int
    hi: int


class AddFixed(OfTwo[AddFixedParams]):
    """The sum of two tensors in TensorFlow Lite's arithmetic."""

    kernel: ClassVar = k.ADD_FIXED


@dataclass(frozen=True)
class MultiplyParams(Params):
    """Parameters of a product."""

    struct: ClassVar = "multiply_params"
    size: tuple[int, ...]
    a_step: tuple[int, ...]
    b_step: tuple[int, ...]
    a_zero: int
    b_zero: int
    to: Requantization


class Multiply(OfTwo[MultiplyParams]):
    """The product of two tensors."""

    kernel: ClassVar = k.MULTIPLY


@dataclass(frozen=True)
class WindowParams(Params):
    """Sizes and positions of the windows of a pool."""

    in_h: int
    in_w: int
    channels: int
    out_h: int
    out_w: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int


@dataclass(frozen=True)
class AveragePool2dParams(WindowParams):
    """Parameters of means over windows."""

    struct: ClassVar = "average_pool2d_params"
    in_zero: int
    divides: int | None
    to: Requantization


class AveragePool2d(OfOne[AveragePool2dParams]):
    """Means over windows."""

    kernel: ClassVar = k.AVERAGE_POOL2D


@dataclass(frozen=True)
class MaxPool2dParams(WindowParams):
    """Parameters of maxima over windows."""

    struct: ClassVar = "max_pool2d_params"
    dilation_h: int
    dilation_w: int


class MaxPool2d(OfOne[MaxPool2dParams]):
    """Maxima over windows."""

    kernel: ClassVar = k.MAX_POOL2D


class Conv2dRow(RowCall, Convolution[Conv2dParams]):
    """One row of a convolution."""

    kernel: ClassVar = k.CONV2D_ROW
    kernels = property(_of_single_products)


class Conv2dTilesRow(RowCall, Convolution[Conv2dParams]):
    """One row of a convolution in tiles."""

    kernel: ClassVar = k.CONV2D_TILES_ROW
    kernels = property(_of_tiles)


class AveragePool2dRow(RowCall, OfOne[AveragePool2dParams]):
    """One row of means over windows."""

    kernel: ClassVar = k.AVERAGE_POOL2D_ROW


class MaxPool2dRow(RowCall, OfOne[MaxPool2dParams]):
    """One row of maxima over windows."""

    kernel: ClassVar = k.MAX_POOL2D_ROW


@dataclass(frozen=True)
class CopyParams(Params):
    """Parameters of a copy in up to six nested loops."""

    struct: ClassVar = "copy_params"
    rank: int
    size: tuple[int, ...]
    from_step: tuple[int, ...]
    to_step: tuple[int, ...]
    run: int


class CopyRuns(OfOne[CopyParams]):
    """Copies runs of bytes in nested loops."""

    kernel: ClassVar = k.COPY


@dataclass(frozen=True)
class Memcpy(Call):
    """Copies one run of bytes."""

    kernel: ClassVar = Kernel("memcpy")
    y: Operand
    x: Operand
    count: int


@dataclass(frozen=True)
class Memset(Call):
    """Fills bytes with one value."""

    kernel: ClassVar = Kernel("memset")
    y: Operand
    value: int
    count: int


@dataclass(frozen=True)
class RescaleParams(Params):
    """Parameters of an operand of a concatenation with its own scale."""

    struct: ClassVar = "rescale_params"
    outer: int
    run: int
    y_step: int
    in_zero: int
    to: Requantization


class RescaleRuns(OfOne[RescaleParams]):
    """Converts an operand of a concatenation with its own scale."""

    kernel: ClassVar = k.RESCALE


@dataclass(frozen=True)
class Clamp(Call):
    """Clamps bytes to two bounds."""

    kernel: ClassVar = k.CLAMP
    x: Operand
    y: Operand
    count: int
    lo: int
    hi: int


@dataclass(frozen=True)
class LookUp(Call):
    """Any function of one byte."""

    kernel: ClassVar = k.LOOK_UP
    x: Operand
    y: Operand
    count: int
    table: Constant


@dataclass(frozen=True)
class FromInt8(Call):
    """Converts the caller's int8 image to the bytes that kernels use."""

    kernel: ClassVar = k.FROM_INT8
    image: Name
    y: Operand
    count: int


@dataclass(frozen=True)
class TileSizes:
    """Stack space of the tile kernels for one row of the output."""

    rows: int
    """The largest number of rows of a window."""
    edge_bytes: int
    """The largest number of bytes of two windows at an edge."""


def tile_definitions(calls: Sequence[Call]) -> list[Macro]:
    """Return the macros of the tile kernels; none if no call computes in tiles."""
    sizes = tile_sizes(calls)
    if sizes is None:
        return []
    return [
        Macro("TILE_ROWS", sizes.rows, "the largest number of rows of a window that is computed in tiles"),
        Macro("TILE_BYTES", sizes.edge_bytes, "stack space for two windows at the edge of an image"),
    ]


def tile_sizes(calls: Iterable[Call]) -> TileSizes | None:
    """Return the stack space of the tile kernels; None if no call computes in tiles."""
    params = [call.parameters for call in calls if isinstance(call, Conv2dTiles | Conv2dTilesRow)]
    if not params:
        return None
    return TileSizes(max(p.kernel_h for p in params), max(p.edge_bytes for p in params))


PORTABLE = Library(k.KERNELS, tile_definitions)

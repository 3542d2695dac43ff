"""Calls of the vector kernels and their parameters, for a block of images."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import ClassVar, Generic, TypeVar

import numpy as np

from twoscale._codegen.c.common.calls import Call, Constant, Inline, Name, Operand, Params, Whole
from twoscale._codegen.c.portable.parameters import CopyParams, WindowParams
from twoscale._codegen.c.vector.kernels import (
    ADD_FIXED_ROWS,
    ADD_ROWS,
    AVERAGE_POOL,
    CONV,
    COPY_ROWS,
    DEPTHWISE,
    FILL_BORDER,
    LINEAR,
    LOOK_UP_ROWS,
    MAX_POOL,
    MOVE,
    MULTIPLY_ROWS,
    READ_IMAGES,
    RESCALE_RUNS,
    VectorKernel,
)

__all__ = [
    "IMAGE_BYTES",
    "AddFixedRows",
    "AddFixedRowsParams",
    "AddRows",
    "AveragePool",
    "BlockCall",
    "Conv",
    "ConvInstance",
    "ConvParams",
    "CopyRows",
    "CopyRowsParams",
    "Depthwise",
    "DepthwiseInstance",
    "DepthwiseParams",
    "FillBorder",
    "FillBorderParams",
    "Instance",
    "JoinParams",
    "Linear",
    "LinearInstance",
    "LookUpRows",
    "LookUpRowsParams",
    "MaxPool",
    "MaxPoolInstance",
    "Move",
    "MultiplyRows",
    "PoolParams",
    "ReadImages",
    "ReadImagesParams",
    "RescaleRuns",
    "RescaleRunsParams",
]

COUNT = Name("count")
BLOCK = Name("b")
IMAGE_BYTES = Name("IMAGE_BYTES")


@dataclass(frozen=True)
class Instance:
    """Compile-time numbers of a kernel, in the order of its macro's arguments."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers, in order."""
        return astuple(self)


@dataclass(frozen=True)
class BlockCall(Call):
    """One call of a vector kernel."""

    kernel: ClassVar[VectorKernel]

    @property
    def instance(self) -> Instance | None:
        """The numbers that the kernel is compiled for, if it is compiled more than once."""
        return next((part for part in self._all_parts() if isinstance(part, Instance)), None)

    @property
    def function(self) -> str:
        """Name of the C function."""
        numbers = () if self.instance is None else self.instance.numbers
        return "_".join(map(str, (self.kernel.name, *numbers)))

    def _parts(self) -> list[object]:
        return [part for part in self._all_parts() if not isinstance(part, Instance)]

    def _all_parts(self) -> list[object]:
        return super()._parts()


P = TypeVar("P", bound=Params)
N = TypeVar("N", bound=Instance)


@dataclass(frozen=True)
class FromOne(BlockCall, Generic[P]):
    """One tensor from another."""

    parameters: P
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class CompiledFromOne(BlockCall, Generic[P, N]):
    """One tensor from another, by a kernel that is compiled for some numbers."""

    parameters: P
    compiled_for: N
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class FromTwo(BlockCall, Generic[P]):
    """One tensor from two others."""

    parameters: P
    a: Operand
    b: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class ReadImagesParams(Params):
    """Parameters of reading images."""

    struct: ClassVar = "read_images_params"
    sample: int
    first: int
    in_h: int
    in_w: int
    in_c: int
    row_stride: int
    scale: np.float32
    inverse: np.float32 | Whole
    tie: np.float32 | Whole
    shift: int
    lo: Whole
    hi: Whole
    zero: int


@dataclass(frozen=True)
class ReadImages(BlockCall):
    """Writes images as the first tensor. Returns whether a pixel is NaN or infinite."""

    kernel: ClassVar = READ_IMAGES
    parameters: ReadImagesParams
    block: Name = field(default=BLOCK, init=False)
    y: Operand


@dataclass(frozen=True)
class FillBorderParams(Params):
    """Positions of a tensor's rows."""

    struct: ClassVar = "fill_border_params"
    rows: int
    row_bytes: int
    row_stride: int
    first: int
    size: int
    zero: int


@dataclass(frozen=True)
class FillBorder(BlockCall):
    """Writes the zero point around rows."""

    kernel: ClassVar = FILL_BORDER
    parameters: FillBorderParams
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class CopyRowsParams(Params):
    """Parameters of a copy of rows."""

    struct: ClassVar = "copy_rows_params"
    rows: int
    row_bytes: int
    from_stride: int
    to_stride: int


class CopyRows(FromOne[CopyRowsParams]):
    """Copies rows to other distances."""

    kernel: ClassVar = COPY_ROWS


@dataclass(frozen=True)
class LookUpRowsParams(Params):
    """Parameters of any function of one byte."""

    struct: ClassVar = "look_up_rows_params"
    rows: int
    row_bytes: int
    in_row: int
    out_row: int
    table: Constant


class LookUpRows(FromOne[LookUpRowsParams]):
    """Any function of one byte."""

    kernel: ClassVar = LOOK_UP_ROWS


class Move(FromOne[CopyParams]):
    """Copies runs of bytes in nested loops. The innermost loop is the longest."""

    kernel: ClassVar = MOVE


@dataclass(frozen=True)
class RescaleRunsParams(Params):
    """Parameters of an operand of a concatenation with its own scale."""

    struct: ClassVar = "rescale_runs_params"
    outer: int
    run: int
    y_step: int
    in_zero: int
    scale: np.float32
    lo: Whole
    hi: Whole
    zero: int


class RescaleRuns(FromOne[RescaleRunsParams]):
    """Converts an operand of a concatenation with its own scale."""

    kernel: ClassVar = RESCALE_RUNS


@dataclass(frozen=True)
class ConvParams(Params):
    """Parameters of a convolution or a linear layer: windows are runs of bytes."""

    struct: ClassVar = "conv_params"
    out_h: int
    out_w: int
    out_c: int
    segments: int
    segment: Inline
    words: int
    row_step: int
    out_row: int | None
    out_pixel: int | Name
    weight: Constant
    bias: Constant
    scale: Constant | None
    lo: int | None
    hi: int | None
    zero: Whole | np.float32 | None
    mantissa: Constant | None = None
    exponent: Constant | None = None
    residual_row: int | None = None
    residual_pixel: int | None = None
    residual_scale: np.float32 | None = None
    by_channels: int | None = None
    """1 if threads that share an image compute channels each; rows otherwise."""
    order: Constant | None = None
    starts: Constant | None = None
    matrix_words: int | None = None
    matrix_pixels: int | None = None
    row_pixels: int | None = None
    run_words: int | None = None
    signed_bias: Constant | None = None


@dataclass(frozen=True)
class ConvInstance(Instance):
    """The shape of a tile, the step between windows, and the form of the results."""

    pixels: int
    rows: int
    vectors: int
    step: int
    is_short: int
    is_far: int
    bits: int
    """Of a stored weight."""
    end: int


@dataclass(frozen=True)
class Conv(BlockCall):
    """A convolution, with or without a residual."""

    kernel: ClassVar = CONV
    parameters: ConvParams
    tile: ConvInstance
    x: Operand
    residual: Operand | None
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class LinearInstance(Instance):
    """The shape of a tile, and the form of the results."""

    pixels: int
    vectors: int
    bits: int
    """Of a stored weight."""
    end: int


class Linear(CompiledFromOne[ConvParams, LinearInstance]):
    """A linear layer. The images are the pixels of one row."""

    kernel: ClassVar = LINEAR


@dataclass(frozen=True)
class DepthwiseParams(Params):
    """Parameters of a depthwise convolution."""

    struct: ClassVar = "depthwise_params"
    out_h: int
    runs: int
    run_bytes: int
    run_step: int
    row_step: int
    tap_step: int
    tap_row: int
    out_row: int
    period: int
    weight: Constant
    bias: Constant
    scale: Constant | None
    lo: int
    hi: int
    zero: Whole
    mantissa: Constant | None = None
    exponent: Constant | None = None
    signed_bias: Constant | None = None


@dataclass(frozen=True)
class DepthwiseInstance(Instance):
    """Rows of taps, and groups of four taps in a row."""

    height: int
    fours: int


class Depthwise(CompiledFromOne[DepthwiseParams, DepthwiseInstance]):
    """A depthwise convolution."""

    kernel: ClassVar = DEPTHWISE


@dataclass(frozen=True)
class PoolParams(WindowParams):
    """Parameters of a pool. Rows need not be adjacent."""

    struct: ClassVar = "pool_params"
    in_row: int
    out_row: int
    dilation_h: int | None = None
    dilation_w: int | None = None
    in_zero: int | None = None
    scale: np.float32 | None = None
    lo: Whole | None = None
    hi: Whole | None = None
    zero: int | None = None


@dataclass(frozen=True)
class MaxPoolInstance(Instance):
    """The size of windows, and whether all of them are inside the image."""

    height: int
    width: int
    inside: int


class MaxPool(CompiledFromOne[PoolParams, MaxPoolInstance]):
    """Maxima over windows."""

    kernel: ClassVar = MAX_POOL


class AveragePool(FromOne[PoolParams]):
    """Means over windows."""

    kernel: ClassVar = AVERAGE_POOL


@dataclass(frozen=True)
class JoinParams(Params):
    """Parameters of a sum or a product of two tensors."""

    struct: ClassVar = "join_params"
    rows: int
    row_bytes: int
    a_row: int
    b_row: int
    out_row: int
    a_zero: int
    b_zero: int
    gates: int | None
    a_scale: np.float32
    b_scale: np.float32 | None
    lo: Whole
    hi: Whole
    zero: int


class AddRows(FromTwo[JoinParams]):
    """The sum of two tensors."""

    kernel: ClassVar = ADD_ROWS


@dataclass(frozen=True)
class AddFixedRowsParams(Params):
    """Parameters of a sum in TensorFlow Lite's arithmetic."""

    struct: ClassVar = "add_fixed_rows_params"
    rows: int
    row_bytes: int
    a_row: int
    b_row: int
    out_row: int
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


class AddFixedRows(FromTwo[AddFixedRowsParams]):
    """The sum of two tensors in TensorFlow Lite's arithmetic."""

    kernel: ClassVar = ADD_FIXED_ROWS


class MultiplyRows(FromTwo[JoinParams]):
    """The product of two tensors."""

    kernel: ClassVar = MULTIPLY_ROWS

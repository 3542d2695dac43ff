"""The vector kernels: their C and their parameters. They compute a block of images.

The texts are in the folder kernels/vector. A kernel NAME has NAME.c, compiled once for each instruction set, and
NAME.h with its struct of parameters, unless it uses another kernel's. An instruction set has a header of its name.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from importlib import resources
from typing import ClassVar

import numpy as np

from twoscale._codegen.c.common.calls import Call, Constant, Inline, Kernel, Name, Operand, Params, Whole
from twoscale._codegen.c.portable.kernels import NEXT_PLACE, CopyParams, WindowParams

__all__ = [
    "FIXED_NUMBERS",
    "GIVE_OUTPUTS",
    "HEADER_NAMES",
    "IMAGE_BYTES",
    "KERNELS",
    "TILE_NAMES",
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
    "VectorKernel",
    "text_of",
]

HEADER_NAMES = (
    "add_i", "any_beyond", "clamp_f", "divide", "load_b", "load_f", "load_i", "load_u8", "max_b", "mul", "mul_add",
    "not_finite", "put_byte", "round_f", "set_b", "set_f", "set_i", "store_b", "store_i", "store_threes", "store_u8",
    "to_f", "v16b", "v16f", "v16i",
)  # fmt: skip
"""The functions and types that the header of every instruction set defines."""
TILE_NAMES = (
    "clamp_64", "dot", "dot_lanes", "load_taps", "load_weights", "load_word", "round_64", "round_taps", "set_64",
    "store_64", "store_few", "store_first", "store_half", "store_quarter", "summed", "taps", "v64b", "weights", "word",
)  # fmt: skip
"""Those that only instruction sets with ``tiles`` define."""

COUNT = Name("count")
BLOCK = Name("b")
IMAGE_BYTES = Name("IMAGE_BYTES")


@dataclass(frozen=True)
class VectorKernel(Kernel):
    """A C function for a block of images."""

    needs: tuple[VectorKernel, ...] = ()
    portable: tuple[Kernel, ...] = ()
    """Portable kernels that it calls, or whose struct of parameters it uses."""
    has_params: bool = True
    """Whether it has a file with a struct of parameters."""
    defines: tuple[str, ...] = ()
    """The functions and types of its file; empty if it has none."""
    narrow: tuple[str, ...] = ()
    """The functions and types of NAME_narrow.c, which replaces NAME.c where NARROW is defined; empty if there is
    none."""
    is_shared: bool = False
    """Whether threads can share it: the C function then takes a part as its last argument."""


_READ_IMAGES = VectorKernel(
    "read_images",
    defines=("quantize", "quantize_pixels", "quantize_row", "read_images"),
    is_shared=True,
)
GIVE_OUTPUTS = VectorKernel("give_outputs", has_params=False, defines=("give_outputs",))
_FILL_BORDER = VectorKernel(
    "fill_border",
    defines=("fill_border",),
    is_shared=True,
)
_COPY_ROWS = VectorKernel(
    "copy_rows",
    defines=("copy_rows",),
    is_shared=True,
)
_LOOK_UP_ROWS = VectorKernel(
    "look_up_rows",
    defines=("load_table", "look_up", "look_up_rows", "table256"),
    is_shared=True,
)
_MOVE = VectorKernel("move", portable=(NEXT_PLACE,), has_params=False, defines=("move", "move_runs"))
_RESCALE_RUNS = VectorKernel("rescale_runs", defines=("rescale_runs",))
FIXED_NUMBERS = VectorKernel("fixed_point", has_params=False, defines=("fixed_16", "fixed_8", "fixed_by"))
"""Used by networks of TensorFlow Lite's arithmetic."""
_CONV_ROWS = VectorKernel(
    "conv_rows", has_params=False, defines=("conv_part", "conv_row", "conv_rows_of", "conv_start")
)
_CONV = VectorKernel(
    "conv",
    (_CONV_ROWS,),
    defines=(
        "conv_ahead_lines",
        "conv_band",
        "conv_band_from",
        "conv_band_pixels",
        "conv_by_matrices",
        "conv_bytes",
        "conv_end",
        "conv_finish",
        "conv_images",
        "conv_matrices",
        "conv_multiply",
        "conv_next_pixels",
        "conv_pixels",
        "conv_pixels_at",
        "conv_product",
        "conv_requantize",
        "conv_rows",
        "conv_store",
        "conv_store_pixels",
        "conv_tile",
    ),
    narrow=("conv_images", "conv_next", "conv_place", "conv_results", "conv_tile", "conv_tile_rows", "conv_window"),
    is_shared=True,
)
_LINEAR = VectorKernel(
    "linear",
    (_CONV,),
    has_params=False,
    defines=("linear_images",),
    narrow=("linear_images",),
    is_shared=True,
)
_DEPTHWISE = VectorKernel(
    "depthwise",
    defines=("depthwise_column", "depthwise_images"),
    narrow=("depthwise_column", "depthwise_images", "load_taps", "taps"),
    is_shared=True,
)
_POOL = VectorKernel("pool")
_MAX_POOL = VectorKernel(
    "max_pool",
    (_POOL,),
    has_params=False,
    defines=("max_pool_images", "max_pool_row", "window_max"),
    is_shared=True,
)
_AVERAGE_POOL = VectorKernel("average_pool", (_POOL,), has_params=False, defines=("average_pool",))
_JOIN = VectorKernel("join")
_ADD_ROWS = VectorKernel(
    "add_rows",
    (_JOIN,),
    has_params=False,
    defines=("add_rows",),
    is_shared=True,
)
_ADD_FIXED_ROWS = VectorKernel(
    "add_fixed_rows",
    (FIXED_NUMBERS,),
    defines=("add_fixed_rows",),
    is_shared=True,
)
_MULTIPLY_ROWS = VectorKernel(
    "multiply_rows",
    (_JOIN,),
    has_params=False,
    defines=("multiply_rows",),
    is_shared=True,
)

KERNELS = (
    _READ_IMAGES,
    GIVE_OUTPUTS,
    _FILL_BORDER,
    _COPY_ROWS,
    _LOOK_UP_ROWS,
    _MOVE,
    _RESCALE_RUNS,
    FIXED_NUMBERS,
    _CONV_ROWS,
    _CONV,
    _LINEAR,
    _DEPTHWISE,
    _POOL,
    _MAX_POOL,
    _AVERAGE_POOL,
    _JOIN,
    _ADD_ROWS,
    _ADD_FIXED_ROWS,
    _MULTIPLY_ROWS,
)
"""In the order of the C file: each kernel comes after those that it needs."""


def text_of(file: str) -> str:
    """Return the text of a file in the folder of vector kernels."""
    return (resources.files("twoscale._codegen.c") / "kernels" / "vector" / file).read_text()


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

    kernel: ClassVar = _READ_IMAGES
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

    kernel: ClassVar = _FILL_BORDER
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


@dataclass(frozen=True)
class CopyRows(BlockCall):
    """Copies rows to other distances."""

    kernel: ClassVar = _COPY_ROWS
    parameters: CopyRowsParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class LookUpRowsParams(Params):
    """Parameters of any function of one byte."""

    struct: ClassVar = "look_up_rows_params"
    rows: int
    row_bytes: int
    in_row: int
    out_row: int
    table: Constant


@dataclass(frozen=True)
class LookUpRows(BlockCall):
    """Any function of one byte."""

    kernel: ClassVar = _LOOK_UP_ROWS
    parameters: LookUpRowsParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class Move(BlockCall):
    """Copies runs of bytes in nested loops. The innermost loop is the longest."""

    kernel: ClassVar = _MOVE
    parameters: CopyParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


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


@dataclass(frozen=True)
class RescaleRuns(BlockCall):
    """Converts an operand of a concatenation with its own scale."""

    kernel: ClassVar = _RESCALE_RUNS
    parameters: RescaleRunsParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


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
    end: int


@dataclass(frozen=True)
class Conv(BlockCall):
    """A convolution, with or without a residual."""

    kernel: ClassVar = _CONV
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
    end: int


@dataclass(frozen=True)
class Linear(BlockCall):
    """A linear layer. The images are the pixels of one row."""

    kernel: ClassVar = _LINEAR
    parameters: ConvParams
    tile: LinearInstance
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


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


@dataclass(frozen=True)
class Depthwise(BlockCall):
    """A depthwise convolution."""

    kernel: ClassVar = _DEPTHWISE
    parameters: DepthwiseParams
    taps: DepthwiseInstance
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


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


@dataclass(frozen=True)
class MaxPool(BlockCall):
    """Maxima over windows."""

    kernel: ClassVar = _MAX_POOL
    parameters: PoolParams
    window: MaxPoolInstance
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class AveragePool(BlockCall):
    """Means over windows."""

    kernel: ClassVar = _AVERAGE_POOL
    parameters: PoolParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


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


@dataclass(frozen=True)
class AddRows(BlockCall):
    """The sum of two tensors."""

    kernel: ClassVar = _ADD_ROWS
    parameters: JoinParams
    a: Operand
    b: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


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


@dataclass(frozen=True)
class AddFixedRows(BlockCall):
    """The sum of two tensors in TensorFlow Lite's arithmetic."""

    kernel: ClassVar = _ADD_FIXED_ROWS
    parameters: AddFixedRowsParams
    a: Operand
    b: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class MultiplyRows(BlockCall):
    """The product of two tensors."""

    kernel: ClassVar = _MULTIPLY_ROWS
    parameters: JoinParams
    a: Operand
    b: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)

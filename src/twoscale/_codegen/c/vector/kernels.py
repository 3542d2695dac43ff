"""The vector kernels: their C, and what each of them takes. They compute a block of images.

The texts are in the folder kernels/vector. A kernel NAME has NAME.c, compiled once for each instruction set, and
NAME.h, its struct of parameters, if it has one of its own. An instruction set has a header of its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from importlib import resources
from typing import ClassVar

import numpy as np

from twoscale._codegen.c.common.calls import Call, Constant, Inline, Kernel, Name, Operand, Params, Whole
from twoscale._codegen.c.portable.kernels import WindowParams

__all__ = [
    "GIVE_OUTPUTS",
    "HEADER_NAMES",
    "IMAGE_BYTES",
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
    "MoveParams",
    "MultiplyRows",
    "PoolParams",
    "ReadImages",
    "ReadImagesParams",
    "RescaleRuns",
    "RescaleRunsParams",
    "VectorKernel",
    "text_of",
    "with_needs",
]

HEADER_NAMES = (
    "add_i", "any_beyond", "clamp_64", "clamp_f", "divide", "dot", "dot_lanes", "load_b", "load_f", "load_i",
    "load_taps", "load_u8", "load_weights", "load_word", "max_b", "mul", "mul_add", "not_finite", "put_byte",
    "round_64", "round_f", "set_64", "set_b", "set_f", "set_i", "store_64", "store_b", "store_few", "store_half",
    "store_i", "store_quarter", "store_taps", "store_threes", "store_u8", "summed", "taps", "to_f", "v16b", "v16f",
    "v16i", "v64b", "weights", "word",
)  # fmt: skip
"""The functions and types that the header of every instruction set defines."""

COUNT = Name("count")
BLOCK = Name("b")
IMAGE_BYTES = Name("IMAGE_BYTES")


@dataclass(frozen=True)
class VectorKernel(Kernel):
    """A C function for a block of images."""

    needs: tuple[VectorKernel, ...] = ()
    has_params: bool = True
    """Whether it has a file with a struct of parameters."""
    defines: tuple[str, ...] = ()
    """The functions and types of its file; empty where there is none."""


_READ_IMAGES = VectorKernel("read_images", defines=("quantize", "quantize_pixels", "quantize_row", "read_images"))
GIVE_OUTPUTS = VectorKernel("give_outputs", has_params=False, defines=("give_outputs",))
_FILL_BORDER = VectorKernel("fill_border", defines=("fill_border",))
_COPY_ROWS = VectorKernel("copy_rows", defines=("copy_rows",))
_LOOK_UP_ROWS = VectorKernel("look_up_rows", defines=("load_table", "look_up", "look_up_rows", "table256"))
_MOVE = VectorKernel("move", defines=("move", "move_runs"))
_RESCALE_RUNS = VectorKernel("rescale_runs", defines=("rescale_runs",))
_CONV = VectorKernel(
    "conv", defines=("conv_end", "conv_images", "conv_requantize", "conv_rows", "conv_store", "conv_tile")
)
_LINEAR = VectorKernel("linear", (_CONV,), has_params=False, defines=("linear_images",))
_DEPTHWISE = VectorKernel("depthwise", defines=("depthwise_column", "depthwise_images"))
_POOL = VectorKernel("pool")
_MAX_POOL = VectorKernel("max_pool", (_POOL,), has_params=False, defines=("max_pool_images", "window_max"))
_AVERAGE_POOL = VectorKernel("average_pool", (_POOL,), has_params=False, defines=("average_pool",))
_JOIN = VectorKernel("join")
_ADD_ROWS = VectorKernel("add_rows", (_JOIN,), has_params=False, defines=("add_rows",))
_MULTIPLY_ROWS = VectorKernel("multiply_rows", (_JOIN,), has_params=False, defines=("multiply_rows",))

_KERNELS = (
    _READ_IMAGES,
    GIVE_OUTPUTS,
    _FILL_BORDER,
    _COPY_ROWS,
    _LOOK_UP_ROWS,
    _MOVE,
    _RESCALE_RUNS,
    _CONV,
    _LINEAR,
    _DEPTHWISE,
    _POOL,
    _MAX_POOL,
    _AVERAGE_POOL,
    _JOIN,
    _ADD_ROWS,
    _MULTIPLY_ROWS,
)
"""In the order in which they are written: each after those that it needs."""


def with_needs(used: Iterable[VectorKernel]) -> list[VectorKernel]:
    """Return kernels and what they need, in the order in which they are written."""
    needed: set[VectorKernel] = set()
    waiting = list(used)
    while waiting:
        kernel = waiting.pop()
        needed.add(kernel)
        waiting += kernel.needs
    return [kernel for kernel in _KERNELS if kernel in needed]


def text_of(file: str) -> str:
    """Return a file of the folder of vector kernels."""
    return (resources.files("twoscale._codegen.c") / "kernels" / "vector" / file).read_text()


@dataclass(frozen=True)
class Instance:
    """Numbers that a kernel is compiled for, in the order in which its macro takes them."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of them."""
        return astuple(self)


@dataclass(frozen=True)
class BlockCall(Call):
    """One call of a vector kernel."""

    kernel: ClassVar[VectorKernel]

    @property
    def instance(self) -> Instance | None:
        """What the kernel is compiled for, if it is compiled more than once."""
        return next((part for part in self._all_parts() if isinstance(part, Instance)), None)

    @property
    def function(self) -> str:
        """The name in C."""
        numbers = () if self.instance is None else self.instance.numbers
        return "_".join(map(str, (self.kernel.name, *numbers)))

    def _parts(self) -> list[object]:
        return [part for part in self._all_parts() if not isinstance(part, Instance)]

    def _all_parts(self) -> list[object]:
        return super()._parts()


@dataclass(frozen=True)
class ReadImagesParams(Params):
    """How images become the first tensor."""

    struct: ClassVar = "read_images_params"
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
    """Images as the first tensor; returns whether there is a NaN or an infinity."""

    kernel: ClassVar = _READ_IMAGES
    parameters: ReadImagesParams
    block: Name = field(default=BLOCK, init=False)
    y: Operand


@dataclass(frozen=True)
class FillBorderParams(Params):
    """Where the rows of a tensor lie."""

    struct: ClassVar = "fill_border_params"
    rows: int
    row_bytes: int
    row_stride: int
    first: int
    size: int
    zero: int


@dataclass(frozen=True)
class FillBorder(BlockCall):
    """The zero point around rows."""

    kernel: ClassVar = _FILL_BORDER
    parameters: FillBorderParams
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class CopyRowsParams(Params):
    """Rows that are to lie further apart."""

    struct: ClassVar = "copy_rows_params"
    rows: int
    row_bytes: int
    from_stride: int
    to_stride: int


@dataclass(frozen=True)
class CopyRows(BlockCall):
    """Rows copied to where they lie further apart."""

    kernel: ClassVar = _COPY_ROWS
    parameters: CopyRowsParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class LookUpRowsParams(Params):
    """Of any function of one byte."""

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
class MoveParams(Params):
    """Of a copy in nested loops, the longest one last."""

    struct: ClassVar = "move_params"
    rank: int
    size: tuple[int, ...]
    from_step: tuple[int, ...]
    to_step: tuple[int, ...]
    run: int


@dataclass(frozen=True)
class Move(BlockCall):
    """Runs of bytes copied in nested loops."""

    kernel: ClassVar = _MOVE
    parameters: MoveParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class RescaleRunsParams(Params):
    """Of an operand of a concatenation that has a scale of its own."""

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
    """An operand of a concatenation that has a scale of its own."""

    kernel: ClassVar = _RESCALE_RUNS
    parameters: RescaleRunsParams
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class ConvParams(Params):
    """Of a convolution or a linear layer: windows as runs of bytes."""

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
    residual_row: int | None = None
    residual_pixel: int | None = None
    residual_scale: np.float32 | None = None


@dataclass(frozen=True)
class ConvInstance(Instance):
    """A shape of tile, the step between windows, and the ends of a convolution."""

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
    """A shape of tile, and the end of a linear layer."""

    pixels: int
    vectors: int
    end: int


@dataclass(frozen=True)
class Linear(BlockCall):
    """A linear layer: images are the pixels of one row."""

    kernel: ClassVar = _LINEAR
    parameters: ConvParams
    tile: LinearInstance
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class DepthwiseParams(Params):
    """Of a convolution of each channel by itself."""

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
    scale: Constant
    lo: Whole
    hi: Whole
    zero: int


@dataclass(frozen=True)
class DepthwiseInstance(Instance):
    """Rows of taps, and fours of taps in a row."""

    height: int
    fours: int


@dataclass(frozen=True)
class Depthwise(BlockCall):
    """A convolution of each channel by itself."""

    kernel: ClassVar = _DEPTHWISE
    parameters: DepthwiseParams
    taps: DepthwiseInstance
    x: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)


@dataclass(frozen=True)
class PoolParams(WindowParams):
    """Of a pool, on rows that may be apart."""

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
    """A size of window; whether all windows are inside the image."""

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
    """Of a sum or a product of two tensors."""

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
class MultiplyRows(BlockCall):
    """The product of two tensors."""

    kernel: ClassVar = _MULTIPLY_ROWS
    parameters: JoinParams
    a: Operand
    b: Operand
    y: Operand
    count: Name = field(default=COUNT, init=False)

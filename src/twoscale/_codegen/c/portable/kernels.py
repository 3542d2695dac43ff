"""The portable kernels: their C and their parameters. They compute one image in plain C99.

The texts are in the folder kernels/portable, one file for each kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import ClassVar

from twoscale._codegen.c.common.calls import Call, Constant, Inline, Kernel, Name, Operand, Params, with_needs

__all__ = [
    "ADD_PARAMS",
    "FIXED_POINT",
    "IMAGE",
    "KERNELS",
    "MAX_POOL2D_PARAMS",
    "MULTIPLIER_OF",
    "NEXT_PLACE",
    "PORTABLE",
    "REQUANTIZE",
    "REQUANTIZE_NARROW",
    "ROWS",
    "STORE",
    "TO_INT8",
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
    "CopyParams",
    "CopyRuns",
    "FromInt8",
    "Library",
    "Linear",
    "Linear2",
    "Linear4",
    "LinearParams",
    "LookUp",
    "Macro",
    "MatMul",
    "MatMulParams",
    "MaxPool2d",
    "MaxPool2dParams",
    "MaxPool2dRow",
    "Memcpy",
    "Memset",
    "Multiply",
    "MultiplyParams",
    "Normalize",
    "NormalizeParams",
    "Requantization",
    "RescaleParams",
    "RescaleRuns",
    "RowCall",
    "Softmax",
    "SoftmaxFixed",
    "SoftmaxFixedParams",
    "SoftmaxMatMul",
    "SoftmaxMatMulParams",
    "SoftmaxParams",
    "TileSizes",
    "WindowParams",
    "chosen_parts",
    "kernel_texts",
    "tile_definitions",
    "tile_sizes",
]

IMAGE = Name("image")

REQUANTIZE = Kernel("requantize")
REQUANTIZE_NARROW = Kernel("requantize_narrow", (REQUANTIZE,))
MULTIPLIER_OF = Kernel("multiplier_of", (REQUANTIZE,))
FIXED_POINT = Kernel("fixed_point", (REQUANTIZE,))
"""Used by networks of TensorFlow Lite's arithmetic. Without it, the parts of other kernels for it are left out."""
STORE = Kernel("store", (REQUANTIZE, REQUANTIZE_NARROW, MULTIPLIER_OF), fixed_point=True)
_DOT = Kernel("dot")
_PACKED = Kernel("packed")
_DOT_PACKED = Kernel("dot_packed", (_PACKED,))
_ALONE = Kernel("alone")
ROWS = Kernel("rows")
_CONV2D_PARAMS = Kernel("conv2d_params")
_CONV2D_ROW = Kernel("conv2d_row", (STORE, _DOT, ROWS, _CONV2D_PARAMS))
_CONV2D = Kernel("conv2d", (_CONV2D_ROW,))
_CONV2D_TILE = Kernel("conv2d_tile", (_ALONE,))
_CONV2D_TILE_4 = Kernel("conv2d_tile_4", (_ALONE, _PACKED))
_CONV2D_TILE_2 = Kernel("conv2d_tile_2", (_ALONE, _PACKED))
_CONV2D_TILES_ROW = Kernel("conv2d_tiles_row", (REQUANTIZE, MULTIPLIER_OF, ROWS, _CONV2D_PARAMS), fixed_point=True)
_CONV2D_TILES = Kernel("conv2d_tiles", (_CONV2D_TILES_ROW,))
_LINEAR_PARAMS = Kernel("linear_params", (REQUANTIZE,))
_LINEAR = Kernel("linear", (STORE, _DOT, _LINEAR_PARAMS))
_LINEAR_4 = Kernel("linear_4", (STORE, _PACKED, _LINEAR_PARAMS))
_LINEAR_2 = Kernel("linear_2", (STORE, _PACKED, _LINEAR_PARAMS))
ADD_PARAMS = Kernel("add_params", (REQUANTIZE,))
_ADD = Kernel("add", (ADD_PARAMS,))
_ADD_NARROW = Kernel("add_narrow", (ADD_PARAMS, REQUANTIZE_NARROW))
_MULTIPLY = Kernel("multiply", (STORE,))
_AVERAGE_POOL2D_ROW = Kernel("average_pool2d_row", (STORE, ROWS))
_AVERAGE_POOL2D = Kernel("average_pool2d", (_AVERAGE_POOL2D_ROW,))
MAX_POOL2D_PARAMS = Kernel("max_pool2d_params")
_MAX_POOL2D_ROW = Kernel("max_pool2d_row", (ROWS, MAX_POOL2D_PARAMS))
_MAX_POOL2D = Kernel("max_pool2d", (_MAX_POOL2D_ROW,))
NEXT_PLACE = Kernel("next_place")
_COPY = Kernel("copy", (NEXT_PLACE,))
_RESCALE = Kernel("rescale", (STORE,))
_CLAMP = Kernel("clamp")
_LOOK_UP = Kernel("look_up")
_MATMUL = Kernel("matmul", (STORE,))
_ADD_FIXED = Kernel("add_fixed", (FIXED_POINT,))
_SOFTMAX_FIXED = Kernel("softmax_fixed")
_SOFTMAX = Kernel("softmax")
_RNE_RATIO = Kernel("rne_ratio")
_SOFTMAX_MATMUL = Kernel("softmax_matmul", (_RNE_RATIO,))
_NORMALIZE = Kernel("normalize", (REQUANTIZE,))
_FROM_INT8 = Kernel("from_int8")
TO_INT8 = Kernel("to_int8")

KERNELS = (
    REQUANTIZE,
    REQUANTIZE_NARROW,
    MULTIPLIER_OF,
    FIXED_POINT,
    STORE,
    _DOT,
    _PACKED,
    _DOT_PACKED,
    ROWS,
    _CONV2D_PARAMS,
    _CONV2D_ROW,
    _CONV2D,
    _ALONE,
    _CONV2D_TILE,
    _CONV2D_TILE_4,
    _CONV2D_TILE_2,
    _CONV2D_TILES_ROW,
    _CONV2D_TILES,
    _LINEAR_PARAMS,
    _LINEAR,
    _LINEAR_4,
    _LINEAR_2,
    ADD_PARAMS,
    _ADD,
    _ADD_NARROW,
    _ADD_FIXED,
    _MULTIPLY,
    _AVERAGE_POOL2D_ROW,
    _AVERAGE_POOL2D,
    MAX_POOL2D_PARAMS,
    _MAX_POOL2D_ROW,
    _MAX_POOL2D,
    NEXT_PLACE,
    _COPY,
    _RESCALE,
    _CLAMP,
    _LOOK_UP,
    _MATMUL,
    _SOFTMAX,
    _SOFTMAX_FIXED,
    _RNE_RATIO,
    _SOFTMAX_MATMUL,
    _NORMALIZE,
    _FROM_INT8,
    TO_INT8,
)
"""In the order of the C file: each kernel comes after those that it calls."""


_OPTIONAL = {
    kernel.name.upper() for kernel in (FIXED_POINT, _PACKED, _DOT_PACKED, _CONV2D_TILE, _CONV2D_TILE_4, _CONV2D_TILE_2)
}
"""Names of kernels, in capitals, without which parts of others are left out."""


def kernel_texts(used: Iterable[Kernel], *, fixed_point: bool = False, order: Sequence[Kernel] = KERNELS) -> list[str]:
    """Return the texts of the kernels of ``order`` that are among ``used``, and of those that they call.

    Args:
        used: kernels.
        fixed_point: whether the network has TensorFlow Lite's arithmetic.
        order: all kernels, each after those that it calls.
    """
    folder = resources.files("twoscale._codegen.c") / "kernels"
    needed = with_needs(used, order)
    if fixed_point and any(kernel.fixed_point for kernel in needed):
        needed = with_needs([*needed, FIXED_POINT], order)
    return [chosen_parts((folder / kernel.folder / f"{kernel.name}.c").read_text(), needed) for kernel in needed]


def chosen_parts(text: str, kernels: Iterable[Kernel]) -> str:
    """Return the text of a kernel with or without its optional parts.

    A part between the lines "#ifdef NAME" and "#endif", where NAME is that of an optional kernel in capitals, is
    for sources with that kernel, and one after "#ifndef NAME" for all others. These lines are left out themselves.

    Args:
        text: of the kernel.
        kernels: the kernels of the source.
    """
    present = {kernel.name.upper() for kernel in kernels}
    lines: list[str] = []
    wanted: bool | None = None
    for line in text.splitlines(keepends=True):
        directive, _, name = line.strip().partition(" ")
        if directive in ("#ifdef", "#ifndef") and name in _OPTIONAL:
            wanted = (name in present) == (directive == "#ifdef")
        elif wanted is not None and line.rstrip() == "#endif":
            wanted = None
        elif wanted is not False:
            lines.append(line)
    return "".join(lines)


@dataclass(frozen=True)
class TileSizes:
    """Stack space of the tile kernels for one row of the output."""

    rows: int
    """The largest number of rows of a window."""
    edge_bytes: int
    """The largest number of bytes of two windows at an edge."""


@dataclass(frozen=True)
class Library:
    """The kernels that a back end chooses from."""

    kernels: tuple[Kernel, ...]
    """In the order of the C file: each kernel comes after those that it calls."""
    definitions: Callable[[Sequence[Call]], list[Macro]]
    """Returns the macros that the kernels of a program's calls need."""


@dataclass(frozen=True)
class Macro:
    """A number that kernels need when they are compiled."""

    name: str
    value: int
    about: str

    @property
    def text(self) -> str:
        """Its definition in C."""
        return f"#define {self.name} {self.value} /* {self.about} */"


def tile_definitions(calls: Sequence[Call]) -> list[Macro]:
    """Return the macros of the tile kernels; none if no call computes in tiles."""
    sizes = tile_sizes(calls)
    if sizes is None:
        return []
    return [
        Macro("TILE_ROWS", sizes.rows, "the largest number of rows of a window that is computed in tiles"),
        Macro("TILE_BYTES", sizes.edge_bytes, "stack space for two windows at the edge of an image"),
    ]


PORTABLE = Library(KERNELS, tile_definitions)


def tile_sizes(calls: Iterable[Call]) -> TileSizes | None:
    """Return the stack space of the tile kernels; None if no call computes in tiles."""
    params = [call.parameters for call in calls if isinstance(call, Conv2dTiles | Conv2dTilesRow)]
    if not params:
        return None
    return TileSizes(max(p.kernel_h for p in params), max(p.edge_bytes for p in params))


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
class Conv2dParams(Params):
    """Parameters of a convolution."""

    struct: ClassVar = "conv2d_params"
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
    return (call.kernel, *([_DOT_PACKED] if call.parameters.weight_bits else []))


def _of_tiles(call: Conv2dTiles | Conv2dTilesRow) -> tuple[Kernel, ...]:
    return (call.kernel, {None: _CONV2D_TILE, 4: _CONV2D_TILE_4, 2: _CONV2D_TILE_2}[call.parameters.weight_bits])


@dataclass(frozen=True)
class Conv2d(Call):
    """A convolution, with or without a residual."""

    kernel: ClassVar = _CONV2D
    parameters: Conv2dParams
    x: Operand
    residual: Operand | None
    y: Operand

    kernels = property(_of_single_products)


@dataclass(frozen=True)
class Conv2dTiles(Call):
    """A convolution in tiles of two pixels and two channels, with or without a residual."""

    kernel: ClassVar = _CONV2D_TILES
    parameters: Conv2dParams
    x: Operand
    residual: Operand | None
    y: Operand

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


@dataclass(frozen=True)
class Linear(Call):
    """A fully connected layer."""

    kernel: ClassVar = _LINEAR
    parameters: LinearParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class Linear4(Linear):
    """A fully connected layer with packed weights of 4 bits."""

    kernel: ClassVar = _LINEAR_4


@dataclass(frozen=True)
class Linear2(Linear):
    """A fully connected layer with packed weights of 2 bits."""

    kernel: ClassVar = _LINEAR_2


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


@dataclass(frozen=True)
class Add(Call):
    """The sum of two tensors."""

    kernel: ClassVar = _ADD
    parameters: AddParams
    a: Operand
    b: Operand
    y: Operand


@dataclass(frozen=True)
class AddNarrow(Add):
    """The sum of two tensors whose products with multipliers fit 32 bits."""

    kernel: ClassVar = _ADD_NARROW


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


@dataclass(frozen=True)
class AddFixed(Call):
    """The sum of two tensors in TensorFlow Lite's arithmetic."""

    kernel: ClassVar = _ADD_FIXED
    parameters: AddFixedParams
    a: Operand
    b: Operand
    y: Operand


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


@dataclass(frozen=True)
class Multiply(Call):
    """The product of two tensors."""

    kernel: ClassVar = _MULTIPLY
    parameters: MultiplyParams
    a: Operand
    b: Operand
    y: Operand


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


@dataclass(frozen=True)
class AveragePool2d(Call):
    """Means over windows."""

    kernel: ClassVar = _AVERAGE_POOL2D
    parameters: AveragePool2dParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class MaxPool2dParams(WindowParams):
    """Parameters of maxima over windows."""

    struct: ClassVar = "max_pool2d_params"
    dilation_h: int
    dilation_w: int


@dataclass(frozen=True)
class MaxPool2d(Call):
    """Maxima over windows."""

    kernel: ClassVar = _MAX_POOL2D
    parameters: MaxPool2dParams
    x: Operand
    y: Operand


class RowCall(Call):
    """A kernel that computes one row of its layer.

    Its inputs are the rows in memory, and its last argument is the row's number."""


@dataclass(frozen=True)
class Conv2dRow(RowCall):
    """One row of a convolution."""

    kernel: ClassVar = _CONV2D_ROW
    parameters: Conv2dParams
    x: Operand
    residual: Operand | None
    y: Operand

    kernels = property(_of_single_products)


@dataclass(frozen=True)
class Conv2dTilesRow(RowCall):
    """One row of a convolution in tiles."""

    kernel: ClassVar = _CONV2D_TILES_ROW
    parameters: Conv2dParams
    x: Operand
    residual: Operand | None
    y: Operand

    kernels = property(_of_tiles)


@dataclass(frozen=True)
class AveragePool2dRow(RowCall):
    """One row of means over windows."""

    kernel: ClassVar = _AVERAGE_POOL2D_ROW
    parameters: AveragePool2dParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class MaxPool2dRow(RowCall):
    """One row of maxima over windows."""

    kernel: ClassVar = _MAX_POOL2D_ROW
    parameters: MaxPool2dParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class CopyParams(Params):
    """Parameters of a copy in up to six nested loops."""

    struct: ClassVar = "copy_params"
    rank: int
    size: tuple[int, ...]
    from_step: tuple[int, ...]
    to_step: tuple[int, ...]
    run: int


@dataclass(frozen=True)
class CopyRuns(Call):
    """Copies runs of bytes in nested loops."""

    kernel: ClassVar = _COPY
    parameters: CopyParams
    x: Operand
    y: Operand


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


@dataclass(frozen=True)
class RescaleRuns(Call):
    """Converts an operand of a concatenation with its own scale."""

    kernel: ClassVar = _RESCALE
    parameters: RescaleParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class Clamp(Call):
    """Clamps bytes to two bounds."""

    kernel: ClassVar = _CLAMP
    x: Operand
    y: Operand
    count: int
    lo: int
    hi: int


@dataclass(frozen=True)
class LookUp(Call):
    """Any function of one byte."""

    kernel: ClassVar = _LOOK_UP
    x: Operand
    y: Operand
    count: int
    table: Constant


@dataclass(frozen=True)
class MatMulParams(Params):
    """Parameters of products of matrices."""

    struct: ClassVar = "matmul_params"
    matrices: int
    rows: int
    inner: int
    columns: int
    a_step: tuple[int, ...]
    b_step: tuple[int, ...]
    y_step: tuple[int, ...]
    a_zero: int
    b_zero: int
    to: Requantization


@dataclass(frozen=True)
class MatMul(Call):
    """Products of matrices of activations."""

    kernel: ClassVar = _MATMUL
    parameters: MatMulParams
    a: Operand
    b: Operand
    y: Operand


@dataclass(frozen=True)
class SoftmaxParams(Params):
    """Parameters of a softmax."""

    struct: ClassVar = "softmax_params"
    outer: int
    count: int
    inner: int
    table: Constant
    shift: int
    zero: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Softmax(Call):
    """A softmax along one dimension."""

    kernel: ClassVar = _SOFTMAX
    parameters: SoftmaxParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class SoftmaxFixedParams(Params):
    """Parameters of a softmax in TensorFlow Lite's arithmetic."""

    struct: ClassVar = "softmax_fixed_params"
    outer: int
    count: int
    inner: int
    table: Constant


@dataclass(frozen=True)
class SoftmaxFixed(Call):
    """A softmax along one dimension in TensorFlow Lite's arithmetic."""

    kernel: ClassVar = _SOFTMAX_FIXED
    parameters: SoftmaxFixedParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class SoftmaxMatMulParams(Params):
    """Parameters of means weighted by a softmax."""

    struct: ClassVar = "softmax_matmul_params"
    matrices: int
    rows: int
    inner: int
    columns: int
    scores_step: tuple[int, ...]
    values_step: tuple[int, ...]
    y_step: tuple[int, ...]
    values_zero: int
    table: Constant
    multiplier: int
    zero: int
    lo: int
    hi: int


@dataclass(frozen=True)
class SoftmaxMatMul(Call):
    """Means of values, weighted by a softmax of scores."""

    kernel: ClassVar = _SOFTMAX_MATMUL
    parameters: SoftmaxMatMulParams
    scores: Operand
    values: Operand
    y: Operand


@dataclass(frozen=True)
class NormalizeParams(Params):
    """Parameters of a norm: three loops over groups, and three within a group."""

    struct: ClassVar = "normalize_params"
    groups: tuple[int, ...]
    group_step: tuple[int, ...]
    group_channel: tuple[int, ...]
    within: tuple[int, ...]
    within_step: tuple[int, ...]
    within_channel: tuple[int, ...]
    count: int
    centered: int
    epsilon: int
    shift: int
    in_zero: int
    gain: Constant
    bias: Constant
    to: Requantization


@dataclass(frozen=True)
class Normalize(Call):
    """A norm by the statistics of the image."""

    kernel: ClassVar = _NORMALIZE
    parameters: NormalizeParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class FromInt8(Call):
    """Converts the caller's int8 image to the bytes that kernels use."""

    kernel: ClassVar = _FROM_INT8
    image: Name
    y: Operand
    count: int

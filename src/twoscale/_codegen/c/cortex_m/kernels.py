"""The kernels for Cortex-M cores: their parameters. Their texts are in the folder kernels/cortex_m."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from twoscale._codegen.c.common.calls import NULL, Call, Constant, Kernel, Params
from twoscale._codegen.c.portable.kernels import (
    ADD_PARAMS,
    INLINED,
    KERNELS,
    MAX_POOL2D_PARAMS,
    MULTIPLIER_OF,
    REQUANTIZE,
    REQUANTIZE_NARROW,
    ROWS,
    STORE,
    Library,
    Macro,
)
from twoscale._codegen.c.portable.parameters import (
    Add,
    Convolution,
    ConvolutionParams,
    LookUp,
    MaxPool2d,
    MaxPool2dRow,
    OfOne,
    Requantization,
    RowCall,
    WindowParams,
    tile_definitions,
)

__all__ = [
    "DSP",
    "HELIUM",
    "AddHelium",
    "Conv2dHalves",
    "Conv2dHalvesParams",
    "Conv2dHalvesRow",
    "Conv2dHelium",
    "Conv2dHeliumParams",
    "Conv2dHeliumRow",
    "Conv2dWinograd",
    "DepthwiseHalves",
    "DepthwiseHalvesParams",
    "DepthwiseHalvesRow",
    "DepthwiseHelium",
    "DepthwiseHeliumParams",
    "DepthwiseHeliumRow",
    "LinearHalves",
    "LinearHalvesParams",
    "LinearHelium",
    "LinearHeliumParams",
    "LookUpHelium",
    "MaxPool2dBytes",
    "MaxPool2dBytesRow",
    "MaxPool2dHelium",
    "MaxPool2dHeliumRow",
]

_FOLDER = "cortex_m"
_KEPT_SUMS = 512
"""Number of sums that are kept before they are stored, if those of four outputs are not more."""
_HALVES = Kernel("halves", folder=_FOLDER)
_HALVES_WINDOW = Kernel("halves_window", (_HALVES,), folder=_FOLDER)
_REGISTERS = Kernel("registers", (INLINED,), folder=_FOLDER)
_HALVES_TILE = Kernel("halves_tile", (_HALVES_WINDOW, _REGISTERS), folder=_FOLDER)
_HALVES_ROUND = Kernel("halves_round", (_HALVES,), folder=_FOLDER)
_HALVES_STORE = Kernel(
    "halves_store", (_REGISTERS, _HALVES_ROUND, REQUANTIZE, MULTIPLIER_OF), fixed_point=True, folder=_FOLDER
)
_CONV2D_HALVES_ROW = Kernel("conv2d_halves_row", (_HALVES_TILE, _HALVES_STORE, ROWS), folder=_FOLDER)
_CONV2D_HALVES = Kernel("conv2d_halves", (_CONV2D_HALVES_ROW,), folder=_FOLDER)
_WINOGRAD = Kernel("winograd", (_HALVES, _REGISTERS), folder=_FOLDER)
_CONV2D_WINOGRAD = Kernel("conv2d_winograd", (_WINOGRAD, _HALVES_STORE), folder=_FOLDER)
_HELIUM = Kernel("helium", (_REGISTERS,), folder=_FOLDER)
_HELIUM_TILE = Kernel("helium_tile", (_HELIUM, REQUANTIZE), folder=_FOLDER)
_HELIUM_STORE = Kernel("helium_store", (_HELIUM_TILE, MULTIPLIER_OF), fixed_point=True, folder=_FOLDER)
_CONV2D_HELIUM_KEPT = Kernel("conv2d_helium_kept", (_HELIUM_STORE, ROWS), folder=_FOLDER)
_CONV2D_HELIUM_ROW = Kernel("conv2d_helium_row", (_CONV2D_HELIUM_KEPT,), folder=_FOLDER)
_CONV2D_HELIUM = Kernel("conv2d_helium", (_CONV2D_HELIUM_KEPT,), folder=_FOLDER)
_DEPTHWISE_HELIUM_ROW = Kernel("depthwise_helium_row", (_HELIUM, ROWS), folder=_FOLDER)
_DEPTHWISE_HELIUM = Kernel("depthwise_helium", (_DEPTHWISE_HELIUM_ROW,), folder=_FOLDER)
_LINEAR_HELIUM = Kernel("linear_helium", (_HELIUM, STORE), folder=_FOLDER)
_ADD_HELIUM = Kernel("add_helium", (_HELIUM, ADD_PARAMS, REQUANTIZE_NARROW), folder=_FOLDER)
_LOOK_UP_HELIUM = Kernel("look_up_helium", (_HELIUM,), folder=_FOLDER)
_MAX_POOL2D_HELIUM_ROW = Kernel("max_pool2d_helium_row", (_HELIUM, MAX_POOL2D_PARAMS, ROWS), folder=_FOLDER)
_MAX_POOL2D_HELIUM = Kernel("max_pool2d_helium", (_MAX_POOL2D_HELIUM_ROW,), folder=_FOLDER)
_DEPTHWISE_HALVES_ROW = Kernel("depthwise_halves_row", (_REGISTERS, _HALVES_ROUND, STORE, ROWS), folder=_FOLDER)
_DEPTHWISE_HALVES = Kernel("depthwise_halves", (_DEPTHWISE_HALVES_ROW,), folder=_FOLDER)
_BYTES = Kernel("bytes", (_HALVES,), folder=_FOLDER)
_MAX_POOL2D_BYTES_ROW = Kernel("max_pool2d_bytes_row", (_BYTES, MAX_POOL2D_PARAMS, ROWS), folder=_FOLDER)
_MAX_POOL2D_BYTES = Kernel("max_pool2d_bytes", (_MAX_POOL2D_BYTES_ROW,), folder=_FOLDER)
_LINEAR_HALVES = Kernel("linear_halves", (_HALVES_WINDOW, STORE), folder=_FOLDER)


@dataclass(frozen=True)
class Conv2dHalvesParams(ConvolutionParams):
    """Parameters of a convolution with the DSP extension."""

    struct: ClassVar = "conv2d_halves_params"
    dilation_h: int
    pad_top: int
    pad_left: int
    in_zero: int
    words: int
    part: int
    weight: Constant
    bias: Constant
    residual_zero: int | None
    residual_multiplier: int | None
    clamp_bits: int | None
    to: Requantization


class Conv2dHalves(Convolution[Conv2dHalvesParams]):
    """A convolution, with or without a residual."""

    kernel: ClassVar = _CONV2D_HALVES


class Conv2dWinograd(Convolution[Conv2dHalvesParams]):
    """A convolution of 3×3 with a stride of 1, in fewer products."""

    kernel: ClassVar = _CONV2D_WINOGRAD


class Conv2dHalvesRow(RowCall, Convolution[Conv2dHalvesParams]):
    """One row of a convolution."""

    kernel: ClassVar = _CONV2D_HALVES_ROW


@dataclass(frozen=True)
class Conv2dHeliumParams(ConvolutionParams):
    """Parameters of a convolution with Helium."""

    struct: ClassVar = "conv2d_helium_params"
    pad_top: int
    pad_left: int
    in_zero: int
    sixteens: int
    columns: int | None
    row_bytes: int
    weight: Constant
    channels: Constant
    residual_zero: int | None
    residual_multiplier: int | None
    in_halves: int | None
    clamp_bits: int | None
    to: Requantization


class Conv2dHelium(Convolution[Conv2dHeliumParams]):
    """A convolution, with or without a residual."""

    kernel: ClassVar = _CONV2D_HELIUM


class Conv2dHeliumRow(RowCall, Convolution[Conv2dHeliumParams]):
    """One row of a convolution."""

    kernel: ClassVar = _CONV2D_HELIUM_ROW


@dataclass(frozen=True)
class DepthwiseParams(WindowParams):
    """Sizes of a depthwise convolution, and the positions of its windows."""

    dilation_h: int
    dilation_w: int
    in_zero: int


@dataclass(frozen=True)
class DepthwiseHalvesParams(DepthwiseParams):
    """Parameters of a depthwise convolution with the DSP extension."""

    struct: ClassVar = "depthwise_halves_params"
    weight: Constant
    bias: Constant
    clamp_bits: int | None
    to: Requantization


class DepthwiseHalves(OfOne[DepthwiseHalvesParams]):
    """A depthwise convolution."""

    kernel: ClassVar = _DEPTHWISE_HALVES


class DepthwiseHalvesRow(RowCall, OfOne[DepthwiseHalvesParams]):
    """One row of a depthwise convolution."""

    kernel: ClassVar = _DEPTHWISE_HALVES_ROW


@dataclass(frozen=True)
class DepthwiseHeliumParams(DepthwiseParams):
    """Parameters of a depthwise convolution with Helium."""

    struct: ClassVar = "depthwise_helium_params"
    weight: Constant
    each: Constant
    clamp_bits: int | None
    zero: int
    lo: int
    hi: int


class DepthwiseHelium(OfOne[DepthwiseHeliumParams]):
    """A depthwise convolution."""

    kernel: ClassVar = _DEPTHWISE_HELIUM


class DepthwiseHeliumRow(RowCall, OfOne[DepthwiseHeliumParams]):
    """One row of a depthwise convolution."""

    kernel: ClassVar = _DEPTHWISE_HELIUM_ROW


@dataclass(frozen=True)
class LinearHalvesParams(Params):
    """Parameters of a fully connected layer with the DSP extension."""

    struct: ClassVar = "linear_halves_params"
    in_count: int
    out_count: int
    words: int
    part: int
    weight: Constant
    bias: Constant
    to: Requantization


class LinearHalves(OfOne[LinearHalvesParams]):
    """A fully connected layer."""

    kernel: ClassVar = _LINEAR_HALVES


@dataclass(frozen=True)
class LinearHeliumParams(Params):
    """Parameters of a fully connected layer with Helium."""

    struct: ClassVar = "linear_helium_params"
    in_count: int
    out_count: int
    sixteens: int
    weight: Constant
    bias: Constant
    to: Requantization


class LinearHelium(OfOne[LinearHeliumParams]):
    """A fully connected layer."""

    kernel: ClassVar = _LINEAR_HELIUM


class AddHelium(Add):
    """The sum of two tensors, eight bytes at a time."""

    kernel: ClassVar = _ADD_HELIUM


class LookUpHelium(LookUp):
    """Any function of one byte, 16 bytes at a time."""

    kernel: ClassVar = _LOOK_UP_HELIUM


class MaxPool2dBytes(MaxPool2d):
    """Maxima over windows, four channels at a time."""

    kernel: ClassVar = _MAX_POOL2D_BYTES


class MaxPool2dBytesRow(MaxPool2dRow):
    """One row of maxima over windows."""

    kernel: ClassVar = _MAX_POOL2D_BYTES_ROW


class MaxPool2dHelium(MaxPool2d):
    """Maxima over windows, 16 channels at a time."""

    kernel: ClassVar = _MAX_POOL2D_HELIUM


class MaxPool2dHeliumRow(MaxPool2dRow):
    """One row of maxima over windows."""

    kernel: ClassVar = _MAX_POOL2D_HELIUM_ROW


def _halves_definitions(calls: Sequence[Call]) -> list[Macro]:
    """Return the macros of the kernels with the DSP extension, which are sizes of arrays on the stack."""
    convolutions = [call.parameters for call in calls if isinstance(call, Conv2dHalves | Conv2dHalvesRow)]
    winograd = [call.parameters for call in calls if isinstance(call, Conv2dWinograd)]
    linear = [call.parameters for call in calls if isinstance(call, LinearHalves)]
    depthwise = [call.parameters for call in calls if isinstance(call, DepthwiseHalves | DepthwiseHalvesRow)]
    macros = tile_definitions(calls)
    words = [4 * p.words for p in convolutions] + [p.words for p in linear]
    if words:
        macros.append(Macro("HALVES_WORDS", max(words), "the largest number of words of four windows"))
    clamping = [p.clamp_bits for p in convolutions + winograd] + [p.clamp_bits for p in depthwise]
    if clamping:
        bits = max((bits for bits in clamping if bits is not None), default=31)
        macros.append(Macro("HALVES_BITS", bits, "to which sums may be clamped"))
    if convolutions:
        edge = max(p.kernel_h * (p.kernel_w + 3 * p.stride_w) * p.in_c for p in convolutions)
        macros.append(Macro("HALVES_ROWS", max(p.kernel_h for p in convolutions), "the same of rows of a window"))
        macros.append(Macro("HALVES_EDGE_BYTES", edge, "the same of bytes of four windows at an edge"))
    if winograd:
        in_c = max(p.in_c for p in winograd)
        macros.append(Macro("WINOGRAD_WORDS", 16 * 4 * in_c // 2, "the largest number of words of four tiles' inputs"))
        macros.append(Macro("WINOGRAD_EDGE_BYTES", 4 * 10 * in_c, "the same of bytes of four tiles at an edge"))
    if depthwise:
        taps = max(p.kernel_h * p.kernel_w for p in depthwise)
        macros.append(Macro("HALVES_TAPS", taps, "the largest number of taps of a depthwise convolution"))
        macros.append(Macro("HALVES_CHANNELS", max(p.channels for p in depthwise), "the same of its channels"))
    return macros


DSP = Library(
    (
        *KERNELS,
        _HALVES,
        _HALVES_WINDOW,
        _REGISTERS,
        _HALVES_TILE,
        _HALVES_ROUND,
        _HALVES_STORE,
        _CONV2D_HALVES_ROW,
        _CONV2D_HALVES,
        _WINOGRAD,
        _CONV2D_WINOGRAD,
        _DEPTHWISE_HALVES_ROW,
        _DEPTHWISE_HALVES,
        _BYTES,
        _MAX_POOL2D_BYTES_ROW,
        _MAX_POOL2D_BYTES,
        _LINEAR_HALVES,
    ),
    _halves_definitions,
)
"""For Cortex-M4, M7 and M33."""


def _helium_definitions(calls: Sequence[Call]) -> list[Macro]:
    """Return the macros of the kernels with Helium, which are sizes of arrays on the stack."""
    convolutions = [call.parameters for call in calls if isinstance(call, Conv2dHelium | Conv2dHeliumRow)]
    macros = _halves_definitions(calls)
    if convolutions:
        kept = max((p.kernel_h + 1) * p.row_bytes for p in convolutions)
        copied = max((p.sixteens for p in convolutions if p.columns is None), default=0)
        places = max(p.kernel_h * (1 if p.columns is None else p.in_c // 16) for p in convolutions)
        tiles = [(4 * (p.out_c + p.out_c % 2), -(-p.out_w // 4)) for p in convolutions]
        sums = max(of_tile * min(count, max(_KEPT_SUMS // of_tile, 1)) for of_tile, count in tiles)
        outputs = max(4 * (p.out_c + p.out_c % 2) * (4 if p.to.multiplier == NULL else 1) for p in convolutions)
        macros.append(Macro("HELIUM_ROWS_BYTES", max(kept, 1), "the largest number of bytes of kept rows"))
        macros.append(Macro("HELIUM_WINDOW", 16 * copied + 16, "the same of a window that is copied"))
        macros.append(Macro("HELIUM_SUMS", sums, "the number of sums that are kept until they are stored"))
        macros.append(Macro("HELIUM_PLACES", max(places, 2), "the same of places where windows begin"))
        macros.append(Macro("HELIUM_OUTPUTS", outputs, "the same of bytes of four outputs"))
    depthwise = [call.parameters for call in calls if isinstance(call, DepthwiseHelium | DepthwiseHeliumRow)]
    if depthwise:
        taps = max(p.kernel_h * p.kernel_w for p in depthwise)
        macros.append(Macro("HELIUM_TAPS", taps, "the largest number of taps of a depthwise convolution"))
        macros.append(Macro("HELIUM_OUTSIDE", max(p.channels for p in depthwise), "the same of its channels"))
    linear = [call.parameters for call in calls if isinstance(call, LinearHelium)]
    if linear:
        most = 16 * max(p.sixteens for p in linear)
        macros.append(Macro("HELIUM_INPUTS", most, "the largest number of bytes of a fully connected layer"))
    return macros


HELIUM = Library(
    (
        *DSP.kernels,
        _HELIUM,
        _HELIUM_TILE,
        _HELIUM_STORE,
        _CONV2D_HELIUM_KEPT,
        _CONV2D_HELIUM_ROW,
        _CONV2D_HELIUM,
        _DEPTHWISE_HELIUM_ROW,
        _DEPTHWISE_HELIUM,
        _LINEAR_HELIUM,
        _ADD_HELIUM,
        _LOOK_UP_HELIUM,
        _MAX_POOL2D_HELIUM_ROW,
        _MAX_POOL2D_HELIUM,
    ),
    _helium_definitions,
)
"""For Cortex-M55 and M85, which also have the DSP extension."""

"""The kernels for Cortex-M cores: their parameters. Their texts are in the folder kernels/cortex_m."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from twoscale._codegen.c.common.calls import Call, Constant, Kernel, Operand, Params
from twoscale._codegen.c.portable.kernels import (
    KERNELS,
    MAX_POOL2D_PARAMS,
    MULTIPLIER_OF,
    REQUANTIZE,
    ROWS,
    STORE,
    Library,
    Macro,
    MaxPool2dParams,
    Requantization,
    RowCall,
    tile_definitions,
)

__all__ = [
    "DSP",
    "HELIUM",
    "Conv2dHalves",
    "Conv2dHalvesParams",
    "Conv2dHalvesRow",
    "Conv2dHelium",
    "Conv2dHeliumParams",
    "Conv2dHeliumRow",
    "DepthwiseHalves",
    "DepthwiseHalvesParams",
    "DepthwiseHalvesRow",
    "LinearHalves",
    "LinearHalvesParams",
    "MaxPool2dBytes",
    "MaxPool2dBytesRow",
]

_FOLDER = "cortex_m"
_HALVES = Kernel("halves", folder=_FOLDER)
_HALVES_WINDOW = Kernel("halves_window", (_HALVES,), folder=_FOLDER)
_REGISTERS = Kernel("registers", folder=_FOLDER)
_HALVES_TILE = Kernel("halves_tile", (_HALVES_WINDOW, _REGISTERS), folder=_FOLDER)
_HALVES_ROUND = Kernel("halves_round", (_HALVES,), folder=_FOLDER)
_CONV2D_HALVES_ROW = Kernel(
    "conv2d_halves_row",
    (_HALVES_TILE, _HALVES_ROUND, REQUANTIZE, MULTIPLIER_OF, ROWS),
    fixed_point=True,
    folder=_FOLDER,
)
_CONV2D_HALVES = Kernel("conv2d_halves", (_CONV2D_HALVES_ROW,), folder=_FOLDER)
_HELIUM_TILE = Kernel("helium_tile", folder=_FOLDER)
_CONV2D_HELIUM_ROW = Kernel(
    "conv2d_helium_row", (_HELIUM_TILE, REQUANTIZE, MULTIPLIER_OF, ROWS), fixed_point=True, folder=_FOLDER
)
_CONV2D_HELIUM = Kernel("conv2d_helium", (_CONV2D_HELIUM_ROW,), folder=_FOLDER)
_DEPTHWISE_HALVES_ROW = Kernel("depthwise_halves_row", (_REGISTERS, _HALVES_ROUND, STORE, ROWS), folder=_FOLDER)
_DEPTHWISE_HALVES = Kernel("depthwise_halves", (_DEPTHWISE_HALVES_ROW,), folder=_FOLDER)
_BYTES = Kernel("bytes", (_HALVES,), folder=_FOLDER)
_MAX_POOL2D_BYTES_ROW = Kernel("max_pool2d_bytes_row", (_BYTES, MAX_POOL2D_PARAMS, ROWS), folder=_FOLDER)
_MAX_POOL2D_BYTES = Kernel("max_pool2d_bytes", (_MAX_POOL2D_BYTES_ROW,), folder=_FOLDER)
_LINEAR_HALVES = Kernel("linear_halves", (_HALVES_WINDOW, STORE), folder=_FOLDER)


@dataclass(frozen=True)
class Conv2dHalvesParams(Params):
    """Parameters of a convolution with the DSP extension."""

    struct: ClassVar = "conv2d_halves_params"
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


@dataclass(frozen=True)
class Conv2dHalves(Call):
    """A convolution, with or without a residual."""

    kernel: ClassVar = _CONV2D_HALVES
    parameters: Conv2dHalvesParams
    x: Operand
    residual: Operand | None
    y: Operand


@dataclass(frozen=True)
class Conv2dHalvesRow(RowCall):
    """One row of a convolution."""

    kernel: ClassVar = _CONV2D_HALVES_ROW
    parameters: Conv2dHalvesParams
    x: Operand
    residual: Operand | None
    y: Operand


@dataclass(frozen=True)
class Conv2dHeliumParams(Params):
    """Parameters of a convolution with Helium."""

    struct: ClassVar = "conv2d_helium_params"
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
    pad_top: int
    pad_left: int
    in_zero: int
    sixteens: int
    weight: Constant
    bias: Constant
    residual_zero: int | None
    residual_multiplier: int | None
    clamp_bits: int | None
    to: Requantization


@dataclass(frozen=True)
class Conv2dHelium(Call):
    """A convolution, with or without a residual."""

    kernel: ClassVar = _CONV2D_HELIUM
    parameters: Conv2dHeliumParams
    x: Operand
    residual: Operand | None
    y: Operand


@dataclass(frozen=True)
class Conv2dHeliumRow(RowCall):
    """One row of a convolution."""

    kernel: ClassVar = _CONV2D_HELIUM_ROW
    parameters: Conv2dHeliumParams
    x: Operand
    residual: Operand | None
    y: Operand


@dataclass(frozen=True)
class DepthwiseHalvesParams(Params):
    """Parameters of a depthwise convolution with the DSP extension."""

    struct: ClassVar = "depthwise_halves_params"
    in_h: int
    in_w: int
    channels: int
    out_h: int
    out_w: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    in_zero: int
    weight: Constant
    bias: Constant
    clamp_bits: int | None
    to: Requantization


@dataclass(frozen=True)
class DepthwiseHalves(Call):
    """A depthwise convolution."""

    kernel: ClassVar = _DEPTHWISE_HALVES
    parameters: DepthwiseHalvesParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class DepthwiseHalvesRow(RowCall):
    """One row of a depthwise convolution."""

    kernel: ClassVar = _DEPTHWISE_HALVES_ROW
    parameters: DepthwiseHalvesParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class MaxPool2dBytes(Call):
    """Maxima over windows, four channels at a time."""

    kernel: ClassVar = _MAX_POOL2D_BYTES
    parameters: MaxPool2dParams
    x: Operand
    y: Operand


@dataclass(frozen=True)
class MaxPool2dBytesRow(RowCall):
    """One row of maxima over windows."""

    kernel: ClassVar = _MAX_POOL2D_BYTES_ROW
    parameters: MaxPool2dParams
    x: Operand
    y: Operand


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


@dataclass(frozen=True)
class LinearHalves(Call):
    """A fully connected layer."""

    kernel: ClassVar = _LINEAR_HALVES
    parameters: LinearHalvesParams
    x: Operand
    y: Operand


def _halves_definitions(calls: Sequence[Call]) -> list[Macro]:
    """Return the macros of the kernels with the DSP extension, which are sizes of arrays on the stack."""
    convolutions = [call.parameters for call in calls if isinstance(call, Conv2dHalves | Conv2dHalvesRow)]
    linear = [call.parameters for call in calls if isinstance(call, LinearHalves)]
    depthwise = [call.parameters for call in calls if isinstance(call, DepthwiseHalves | DepthwiseHalvesRow)]
    macros = tile_definitions(calls)
    words = [4 * p.words for p in convolutions] + [p.words for p in linear]
    if words:
        macros.append(Macro("HALVES_WORDS", max(words), "the largest number of words of four windows"))
    clamping = [p.clamp_bits for p in convolutions] + [p.clamp_bits for p in depthwise]
    if clamping:
        bits = max((bits for bits in clamping if bits is not None), default=31)
        macros.append(Macro("HALVES_BITS", bits, "to which sums may be clamped"))
    if convolutions:
        edge = max(p.kernel_h * (p.kernel_w + 3 * p.stride_w) * p.in_c for p in convolutions)
        macros.append(Macro("HALVES_ROWS", max(p.kernel_h for p in convolutions), "the same of rows of a window"))
        macros.append(Macro("HALVES_EDGE_BYTES", edge, "the same of bytes of four windows at an edge"))
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
        _CONV2D_HALVES_ROW,
        _CONV2D_HALVES,
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
        edge = max(p.kernel_h * (p.kernel_w + 2 * p.stride_w) * p.in_c for p in convolutions)
        rows, channels = max(p.kernel_h for p in convolutions), max(p.out_c for p in convolutions)
        macros.append(Macro("HELIUM_ROWS", rows, "the largest number of rows of a window"))
        macros.append(Macro("HELIUM_BYTES", 48 * max(p.sixteens for p in convolutions), "the same of three windows"))
        macros.append(Macro("HELIUM_EDGE_BYTES", edge, "the same of three windows at an edge"))
        macros.append(Macro("HELIUM_CHANNELS", channels + channels % 2, "the same of channels"))
    return macros


HELIUM = Library((*DSP.kernels, _HELIUM_TILE, _CONV2D_HELIUM_ROW, _CONV2D_HELIUM), _helium_definitions)
"""For Cortex-M55 and M85, which also have the DSP extension."""

"""Convolutions and linear layers for the vector kernels: windows as runs of bytes, weights in the order of reading.

A window is a few runs of bytes. An undilated row of taps is one run, since pixels are adjacent in memory. If a run is
not a whole number of four-byte words, the missing weights are zero. The weights of two successive words of a run are
stored in one if they fit 4 bits each, of four words if they fit 2. Bytes are multiplied without subtracting the zero
point. Instead, the bias is replaced by bias − zero point · Σ weights, modulo 2^32 like all int32 sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.calls import Constant, Inline, Name, Whole
from twoscale._codegen.c.common.packing import few_bits, pack_words
from twoscale._codegen.c.vector.block_calls import ConvParams
from twoscale._codegen.c.vector.matrices import Matrices, choose_matrices
from twoscale._codegen.c.vector.tiles import LANES, Tile, choose_tile, tile_cycles
from twoscale._ir import layers as n
from twoscale._ir.layers import TensorSpec

__all__ = [
    "ConvEnd",
    "ConvResidual",
    "Packed",
    "PackedDepthwise",
    "Windows",
    "best_merge",
    "conv_params",
    "conv_windows",
    "linear_windows",
    "matrices_for",
    "pack",
    "pack_depthwise",
    "requantizes_exactly",
]

Weights = NDArray[np.int8]
Scale = NDArray[Any]
"""float32 factors, or mantissas and exponents of TensorFlow Lite's in int64."""
_SHORT = 9
"""Words of a run."""
_FAR_BYTES = 128 * 1024
"""Layers with more bytes of weights are evicted from a core's caches by other layers' weights and the images."""


def requantizes_exactly(
    layer: n.Conv2d | n.Linear, x: TensorSpec, residual: TensorSpec | None = None, shift: int = 0
) -> bool:
    """Whether the kernels' float32 arithmetic gives the integers of (3), or of (7b) with a residual.

    The kernels add the zero point z before rounding, as (5) and (7c) allow. They convert before they clamp, so numbers
    have to stay within int32. With a residual they compute r = q_s · m_s + c and then acc · m + r, where c = z · 2^14 −
    z_s · m_s. All of q_s · m_s, c and their sum are below 2^24 here, hence exact; the rest is (7c) with B ≤ 3 · 2^22.

    Args:
        layer: the layer.
        x: its input.
        residual: the tensor that is added, if any.
        shift: added to an integer of the residual to give the stored byte, which the kernels multiply.
    """
    if layer.multiplier is None or isinstance(layer.multiplier, n.FixedPoint):
        return True  # the latter in integers
    if (layer.partial_bound(x) * layer.multiplier.values.astype(np.float64)).max() >= 2.0**30:
        return False
    if not isinstance(layer, n.Conv2d) or layer.residual_multiplier is None or residual is None:
        return True
    multiplier = int(layer.residual_multiplier.integers.max())
    reach = max(residual.hi - residual.zero_point, residual.zero_point - residual.lo, residual.zero_point + shift)
    return reach * multiplier <= 3 << 22 and (residual.hi + shift) * multiplier <= 1 << 24


_ARRANGEMENTS = ([0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 2, 1])
"""Of the four bytes of a word. The kernels know the same."""
_PAIR = 128
"""Largest sum of two weights of one sign whose products with uint8 numbers do not saturate in 16 bits."""


@dataclass(frozen=True, eq=False)
class Windows:
    """A layer as dot products of runs of bytes with weights, for one group of channels.

    Several pixels may be merged into one with several times the channels (``merged``), which fills vectors better.
    """

    out_h: int
    out_w: int
    segments: tuple[int, ...]
    """Start of each run of a window, in bytes after the first."""
    row_step: int
    pixel_step: int
    """Bytes between the windows of neighbouring rows and pixels."""
    weight: Weights
    """(O, segments, bytes of a run)."""
    bias: NDArray[np.int64]
    scale: Scale | None
    zero: int
    """Zero point of the input as stored."""
    merged: int = 1

    @cached_property
    def bits(self) -> int:
        """Of a stored weight: 8, 4 or 2."""
        return few_bits(self.weight)

    @property
    def words(self) -> int:
        """Words of four bytes in a run, those whose weights are stored together counted once."""
        return -(-int(self.weight.shape[2]) // (32 // self.bits))

    @property
    def all_words(self) -> int:
        """Words of a window."""
        return len(self.segments) * self.words * 8 // self.bits

    @property
    def starts(self) -> NDArray[np.int32]:
        """Start of each word of a window, or of those stored together, in bytes after the first."""
        steps = 32 // self.bits * np.arange(self.words)
        return (np.array(self.segments)[:, None] + steps).ravel().astype(np.int32)

    @property
    def is_short(self) -> bool:
        """Whether runs are so short that each word becomes a run, which saves a loop."""
        return 1 < self.words <= _SHORT

    @property
    def vectors(self) -> int:
        """Vectors of 16 channels."""
        return -(-len(self.weight) // LANES)


@dataclass(frozen=True)
class ConvEnd:
    """How accumulators become bytes; the defaults mean that they stay int32."""

    scale: Constant | None = None
    lo: int | None = None
    hi: int | None = None
    zero: Whole | None = None
    mantissa: Constant | None = None
    exponent: Constant | None = None


@dataclass(frozen=True)
class ConvResidual:
    """How a residual is added."""

    row: int
    pixel: int
    """Bytes between rows and pixels."""
    scale: np.float32
    zero: np.float32
    """The output's zero point minus the residual's zero point times its scale."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Some of a layer's channels, which share one tile, in the kernel's reading order."""

    first: int
    """The first channel."""
    channels: int
    tile: Tile
    bits: int
    """Of a stored weight."""
    weight: NDArray[np.int8]
    """[blocks][segments][words][channels of a block][4], of fewer bits packed."""
    sums: NDArray[np.int64]
    """Of the weights of each channel."""
    bias: NDArray[np.int32]
    scale: Scale | None

    @property
    def is_far(self) -> bool:
        """Whether the weights must be prefetched because they do not stay in the cache."""
        return self.weight.nbytes >= _FAR_BYTES

    @property
    def signed_bias(self) -> NDArray[np.int32]:
        """The bias for activations less 128."""
        return signed_bias(self.bias, self.sums)

    def order(self) -> NDArray[np.uint16] | None:
        """Return the words sorted by arrangement; None if there are too many, or if sums of few bits never saturate.

        Neighbours in an arrangement are multiplied with uint8 numbers and added in 16 bits. That saturates only if the
        weights of one sign have a sum beyond 128, since 128 · 255 < 2^15. Returns [vectors][4 numbers of words, words].
        """
        blocks, segments, words, lanes, _ = self.weight.shape
        vectors = lanes // LANES
        if self.bits < 8 or segments * words > np.iinfo(np.uint16).max:
            return None
        each = self.weight.reshape(blocks, segments * words, vectors, LANES, 4).swapaxes(1, 2).astype(np.int16)
        each = each.reshape(blocks * vectors, segments * words, LANES, 4)
        arrangement = np.full(each.shape[:2], len(_ARRANGEMENTS))
        for index in reversed(range(len(_ARRANGEMENTS))):
            pairs = each[..., _ARRANGEMENTS[index]].reshape(*each.shape[:3], 2, 2)
            most, least = np.maximum(pairs, 0).sum(-1), np.minimum(pairs, 0).sum(-1)
            arrangement[((most <= _PAIR) & (least >= -_PAIR)).all((2, 3))] = index
        counts = [(arrangement == index).sum(1) for index in range(len(_ARRANGEMENTS) + 1)]
        return np.hstack([np.stack(counts, 1), arrangement.argsort(1, kind="stable")]).astype(np.uint16)


def signed_bias(bias: NDArray[np.int32], sums: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the bias, modulo 2^32, of channels whose weights have these sums, for activations less 128."""
    return (bias + 128 * sums).astype(np.uint32).view(np.int32)


def conv_windows(layer: n.Conv2d, in_shape: tuple[int, ...], zero: int, row_stride: int, group: int = 0) -> Windows:
    """Return one group of a convolution whose input's rows are ``row_stride`` bytes apart."""
    channels = in_shape[0]
    out_c, out_h, out_w = layer.output.shape
    kernel_h, kernel_w = layer.weight.shape[2:]
    per_group = out_c // layer.groups
    mine = slice(group * per_group, (group + 1) * per_group)
    weight = layer.weight[mine].transpose(0, 2, 3, 1)  # O, H, W, I
    rows = [ky * layer.dilation[0] * row_stride for ky in range(kernel_h)]
    if layer.groups == 1 and layer.dilation[1] == 1:
        segments = tuple(rows)
        weight = weight.reshape(per_group, kernel_h, -1)
    else:
        segments = tuple(row + kx * layer.dilation[1] * channels for row in rows for kx in range(kernel_w))
        weight = weight.reshape(per_group, kernel_h * kernel_w, -1)
    return Windows(
        out_h,
        out_w,
        segments,
        layer.stride[0] * row_stride,
        layer.stride[1] * channels,
        weight,
        layer.bias_o[mine].astype(np.int64),
        _scale(layer, mine),
        zero,
    )


def linear_windows(layer: n.Linear, order: NDArray[np.int64], zero: int, rows: int, row_stride: int) -> Windows:
    """Return a linear layer on a tensor of ``rows`` rows, whose elements lie in ``order``."""
    weight = layer.weight[:, order].reshape(len(layer.weight), rows, -1)
    segments = tuple(row * row_stride for row in range(rows))
    bias = layer.bias_o.astype(np.int64)
    return Windows(1, 1, segments, 0, 0, weight, bias, _scale(layer, slice(None)), zero)


def _scale(layer: n.Accumulating, mine: slice) -> Scale | None:
    """Return some channels' factors: float32, or mantissa · 2**8 + exponent in int64 for TensorFlow Lite's."""
    if layer.multiplier is None:
        return None
    if isinstance(layer.multiplier, n.FixedPoint):
        packed = (layer.multiplier.mantissas.astype(np.int64) << 8) + layer.multiplier.exponents
        return np.broadcast_to(packed, layer.bias_o.shape)[mine]
    return np.broadcast_to(layer.multiplier.values, layer.bias_o.shape)[mine]


def merge_pixels(windows: Windows, count: int) -> Windows:
    """Merge ``count`` pixels of a row into one with ``count`` times the channels, if windows are runs of whole
    rows."""
    out_c, segments, run = windows.weight.shape
    step = windows.pixel_step
    weight = np.zeros((count, out_c, segments, run + (count - 1) * step), np.int8)
    for i in range(count):
        weight[i, :, :, i * step : i * step + run] = windows.weight
    scale = windows.scale
    return Windows(
        windows.out_h,
        windows.out_w // count,
        windows.segments,
        windows.row_step,
        count * step,
        weight.reshape(count * out_c, segments, -1),
        np.tile(windows.bias, count),
        None if scale is None else np.tile(scale, count),
        windows.zero,
        count,
    )


def best_merge(windows: Windows) -> Windows:
    """Merge pixels if that takes fewer cycles."""
    candidates = [windows]
    for count in range(2, 9):
        if windows.out_w % count == 0 and windows.pixel_step * (count - 1) < 4 * windows.weight.shape[2]:
            candidates.append(merge_pixels(windows, count))
    return min(candidates, key=cycles)


def cycles(windows: Windows) -> float:
    """Return the cycles of one image in the model of tiles."""
    return _cycles(windows, _split(windows))


def _cycles(windows: Windows, parts: list[tuple[int, int]]) -> float:
    return sum(choose_tile(windows.out_h, windows.out_w, count, windows.all_words)[1] for _, count in parts)


def _split(windows: Windows) -> list[tuple[int, int]]:
    """Split vectors of channels into one or two parts of whole tiles: (first, count)."""
    vectors = windows.vectors
    whole = vectors // 4 * 4
    candidates = [[(0, vectors)]]
    if 0 < whole < vectors:
        candidates.append([(0, whole), (whole, vectors - whole)])
    return min(candidates, key=lambda parts: _cycles(windows, parts))


def pack(windows: Windows, tile: Tile | None = None) -> list[Packed]:
    """Return a layer's channels in the kernels' reading order."""
    out_c, segments, run = windows.weight.shape
    words, bits = windows.words, windows.bits
    padded = np.zeros((windows.vectors * LANES, segments, words * 32 // bits), np.int8)
    padded[:out_c, :, :run] = windows.weight
    sums = padded.sum((1, 2), np.int64)
    bias = np.zeros(windows.vectors * LANES, np.int64)
    bias[:out_c] = windows.bias - windows.zero * sums[:out_c]
    stored = pack_words(padded.reshape(*padded.shape[:2], -1, 4), bits)
    bias32 = bias.astype(np.uint32).view(np.int32)  # modulo 2^32
    scale = None
    if windows.scale is not None:
        scale = np.zeros(windows.vectors * LANES, windows.scale.dtype)
        scale[:out_c] = windows.scale
    parts = []
    for first, count in _split(windows):
        chosen = tile or choose_tile(windows.out_h, windows.out_w, count, windows.all_words)[0]
        if count % chosen.vectors:
            chosen = Tile(chosen.pixels, chosen.rows, math.gcd(count, chosen.vectors))
        mine = slice(first * LANES, (first + count) * LANES)
        blocks = stored[mine].reshape(count // chosen.vectors, chosen.vectors * LANES, segments, words, 4)
        parts.append(
            Packed(
                first * LANES,
                min(out_c - first * LANES, count * LANES),
                chosen,
                bits,
                np.ascontiguousarray(blocks.transpose(0, 2, 3, 1, 4)),
                sums[mine],
                bias32[mine],
                None if scale is None else scale[mine],
            )
        )
    return parts


def matrices_for(windows: Windows, packed: Packed) -> Matrices | None:
    """Return the matrices for some of a layer's channels; None if they would take more cycles than vectors."""
    segments, vectors = len(windows.segments), len(packed.bias) // LANES
    matrices = choose_matrices(
        windows.out_h,
        windows.out_w,
        vectors,
        segments=segments,
        words=windows.words,
        row_step=windows.row_step,
        pixel_step=windows.pixel_step,
        parts=8 // windows.bits,
    )
    cycles = tile_cycles(packed.tile, windows.out_h, windows.out_w, vectors, windows.all_words)
    return matrices if matrices.cycles < cycles else None


def conv_params(
    windows: Windows,
    packed: Packed,
    *,
    out_row: int | None,
    out_pixel: int | Name,
    weight: Constant,
    bias: Constant,
    end: ConvEnd,
    residual: ConvResidual | None = None,
    signed_bias: Constant | None = None,
) -> ConvParams:
    """Return the parameters of the kernel for some of a layer's channels."""
    words = windows.words
    segments = windows.starts.tolist() if windows.is_short else windows.segments
    return ConvParams(
        out_h=windows.out_h,
        out_w=windows.out_w,
        out_c=packed.channels,
        segments=len(segments),
        segment=Inline(tuple(segments)),
        words=1 if windows.is_short else words,
        row_step=windows.row_step,
        out_row=out_row,
        out_pixel=out_pixel,
        weight=weight,
        bias=bias,
        scale=end.scale,
        lo=end.lo,
        hi=end.hi,
        zero=end.zero if residual is None else residual.zero,
        mantissa=end.mantissa,
        exponent=end.exponent,
        residual_row=None if residual is None else residual.row,
        residual_pixel=None if residual is None else residual.pixel,
        residual_scale=None if residual is None else residual.scale,
        run_words=words,
        signed_bias=signed_bias,
    )


@dataclass(frozen=True, eq=False)
class PackedDepthwise:
    """The numbers of a depthwise convolution for blocks of 64 neighbouring bytes, for one period of the channels."""

    weight: NDArray[np.int8]
    """[blocks][rows of taps][fours of taps][4 vectors][16][4]."""
    bias: NDArray[np.int32]
    """[blocks][64], in the order of the vectors."""
    scale: Scale

    @property
    def signed_bias(self) -> NDArray[np.int32]:
        """The bias for activations less 128."""
        return signed_bias(self.bias, self.weight.sum((1, 2, 5), np.int64).reshape(self.bias.shape))


def pack_depthwise(layer: n.Conv2d, zero: int) -> PackedDepthwise:
    """Return a depthwise convolution in its kernel's reading order.

    Vector k of a block has bytes 16i + 4k .. 16i + 4k + 3 of it, for i from 0 to 3, the order in which unpacking leaves
    them.
    """
    channels, _, kernel_h, kernel_w = layer.weight.shape
    period = math.lcm(channels, 64) // 64 if layer.stride[1] == 1 else -(-channels // 64)
    order = np.arange(64).reshape(4, 4, 4).transpose(1, 0, 2).ravel()
    channel = (np.arange(period)[:, None] * 64 + order) % channels  # nothing is stored beyond the last channel
    fours = -(-kernel_w // 4)
    taps = np.zeros((channels, kernel_h, fours * 4), np.int8)
    taps[:, :, :kernel_w] = layer.weight[:, 0]
    weight = taps[channel].reshape(period, 4, 16, kernel_h, fours, 4).transpose(0, 3, 4, 1, 2, 5)
    bias = layer.bias_o.astype(np.int64) - zero * taps.astype(np.int64).sum((1, 2))
    scale = _scale(layer, slice(None))
    assert scale is not None
    return PackedDepthwise(np.ascontiguousarray(weight), bias.astype(np.uint32).view(np.int32)[channel], scale[channel])

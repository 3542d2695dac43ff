"""Layer → calls of kernels with the DSP extension. Equation numbers are those of docs/arithmetic.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.calls import Call, Operand
from twoscale._codegen.c.cortex_m import kernels as k
from twoscale._codegen.c.portable.calls import PortableCalls, bounds, folded_biases, operands, residual, window_sizes
from twoscale._codegen.c.portable.parameters import ConvolutionParams
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, REQUANTIZE_SHIFT
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["FasterWithDsp", "as_one_row", "in_winograd", "sums_clamp", "winograd_weights"]

_Params = TypeVar("_Params", bound=ConvolutionParams)

_LARGEST_WINDOWS = 9216
"""Most bytes of the stack for the widened bytes of four windows."""
_STEP = 8
"""Words that the kernels take at once; windows have a multiple of it."""
_LARGEST_EDGE = 4608
"""Most bytes of the stack for four windows at an edge."""

_FEWEST_CHANNELS = 4
"""With fewer outputs the transform of the input costs more than the products that it saves."""


@dataclass(frozen=True)
class _Halves:
    """Weights as words of two halves."""

    words: NDArray[np.int32]
    """(pairs of channels, words of a window)."""
    biases: NDArray[np.int32]
    """Of the channels, without the zero point's share, and 0 to make their number even."""
    part: int
    """Largest number of words whose products can be added before the sums of the two channels are separated."""


def _halves_of(weight: NDArray[np.int8], biases: NDArray[np.int64]) -> _Halves | None:
    """Return weights (channels, runs, bytes of a run) for pairs of channels; None if they do not fit.

    A half holds 256 times the second channel's weight plus the first's.

    Args:
        weight: the weights.
        biases: of the channels, without the zero point's share.
    """
    channels, runs, run = weight.shape
    end = run & ~3
    order = [i + j for i in range(0, end, 4) for j in (0, 2, 1, 3)]
    order += {0: [], 1: [end, run], 2: [end, end + 1], 3: [end, end + 1, end + 2, run]}[run - end]
    wide = np.zeros((channels + channels % 2, runs, run + 1), np.int64)
    wide[:channels, :, :run] = weight
    even = np.zeros(len(wide), np.int64)
    even[:channels] = biases
    used = wide[:, :, order].reshape(len(wide), runs * len(order))
    halves = np.pad(used, ((0, 0), (0, -used.shape[1] % (2 * _STEP))))
    count = halves.shape[1] // 2
    joint = 256 * halves[1::2] + halves[::2]
    if int((np.abs(even) + 255 * np.abs(halves).sum(1)).max()) >= 2**31:
        return None
    if joint.min() < -(2**15) or joint.max() >= 2**15:  # the second is −128 and the first negative
        return None
    words = (joint[:, 1::2] * 65536 + (joint[:, ::2] & 0xFFFF)).astype(np.int32)
    parts = 1
    while int(np.abs(even[1::2]).max()) < 2**22:
        part = -(-count // (_STEP * parts)) * _STEP
        if all(
            _second_sums_fit(halves[1::2, 2 * at : 2 * (at + part)], even[1::2] * (at == 0))
            for at in range(0, count, part)
        ):
            return _Halves(words, even.astype(np.int32), part)
        parts += 1
    return None


def _second_sums_fit(weight: NDArray[np.int64], biases: NDArray[np.int64]) -> bool:
    """Whether sums of 255 times weights (channels, taps), or of fewer, and biases have at most 24 bits."""
    highest = biases + 255 * weight.clip(min=0).sum(1)
    lowest = biases + 255 * weight.clip(max=0).sum(1)
    return int(highest.max()) < 2**23 and int(lowest.min()) >= -(2**23)


def _clamp_bits(network: IntegerNetwork) -> int:
    """Return the number of bits to which sums of most convolutions' outputs may be clamped."""
    convolutions = [layer for layer in network if isinstance(layer, n.Conv2d)]
    return max(
        range(8, 31),
        key=lambda bits: sum(math.prod(x.output.shape) for x in convolutions if sums_clamp(network, x, bits)),
    )


_TWO_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])


def winograd_weights(weight: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return 2G·g·(2G)ᵀ of weights g (channels, inputs, 3, 3) as words of two halves.

    Args:
        weight: of a multiple of four inputs.

    Returns:
        (pairs of channels, 16 positions, inputs / 2, 2 channels). The first half of a word is of the lower input. Of
        four inputs the words have the first and the third, then the second and the fourth. Halves are from −1152 to
        1152, and 0 for a channel that makes the number of channels even.
    """
    channels, inputs, *_ = weight.shape
    wide = np.zeros((channels + channels % 2, inputs, 4, 4), np.int64)
    wide[:channels] = _TWO_G @ weight.astype(np.int64) @ _TWO_G.T
    halves = wide.reshape(-1, 2, inputs // 4, 2, 2, 16)  # pair, channel, four inputs, half, word, position
    words = (halves[:, :, :, 1] * 65536 + (halves[:, :, :, 0] & 0xFFFF)).transpose(0, 4, 2, 3, 1)
    made: NDArray[np.int32] = words.reshape(len(words), 16, inputs // 2, 2).astype(np.int32)
    return made


def sums_clamp(network: IntegerNetwork, layer: n.Conv2d, bits: int) -> bool:
    """Whether sums may be clamped to ``bits``: products then fit 32 bits, and sums beyond give lo or hi in any case."""
    multiplier, residual = layer.multiplier, layer.residual_multiplier
    if multiplier is None or multiplier.shift not in (ADD_SHIFT, REQUANTIZE_SHIFT):
        return False
    added = 0 if residual is None else 255 * int(residual.integers[0])
    limit, beyond = 2 ** (bits - 1), 257 << multiplier.shift
    bound = int(layer.partial_bound(network.spec(layer.inputs[0])).max(initial=0))
    fits: bool = limit * int(multiplier.integers.max()) + added + beyond < 2**31
    return fits and (bound < limit or (limit - 1) * int(multiplier.integers.min()) - added >= beyond)


def in_winograd(layer: n.Conv2d, zero: int) -> bool:
    """Whether Winograd's F(2×2, 3×3) computes a convolution exactly, and in fewer instructions than products of halves.

    Four times each sum of bytes (zero point not subtracted) must fit 32 bits. It pays if at least half of the sums that
    are computed, for groups of 2×8 pixels, are inside the output.

    Args:
        layer: the convolution.
        zero: zero point of its input's bytes.
    """
    out_c, in_c, *kernel = layer.weight.shape
    _, out_h, out_w = layer.output.shape
    if (*kernel, *layer.stride, *layer.dilation, layer.groups) != (3, 3, 1, 1, 1, 1, 1):
        return False
    if in_c % (2 * _STEP) or 128 * in_c > _LARGEST_WINDOWS or out_c < _FEWEST_CHANNELS:
        return False
    sums = np.abs(folded_biases(layer, zero)) + 255 * np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3))
    return 4 * int(sums.max()) < 2**31 and out_h * out_w >= 8 * -(-out_h // 2) * -(-out_w // 8)


def as_one_row(params: _Params) -> _Params:
    """Return a convolution of single pixels as one of a single row, which has more whole tiles."""
    window = (params.kernel_h, params.kernel_w, params.stride_h, params.stride_w)
    if window != (1, 1, 1, 1) or (params.in_h, params.in_w) != (params.out_h, params.out_w):
        return params
    pixels = params.in_h * params.in_w
    return replace(params, in_h=1, in_w=pixels, out_h=1, out_w=pixels)


class FasterWithDsp:
    """Computes convolutions and linear layers with products of 16-bit halves.

    Args:
        network: the network whose layers these are.
        winograd: whether convolutions of whole tensors may store transformed weights, which have 3.56 times the bytes.
    """

    def __init__(self, network: IntegerNetwork, *, winograd: bool = False) -> None:
        self.network = network
        self.winograd = winograd
        self.clamp_bits = _clamp_bits(network)

    def whole(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute a layer's whole output; None if the portable kernels compute it."""
        match layer:
            case n.Conv2d() if layer.groups > 1:
                depthwise = self._depthwise(calls, layer)
                return None if depthwise is None else (k.DepthwiseHalves(*depthwise),)
            case n.Conv2d() if self.winograd and in_winograd(layer, calls.arrangement.inputs(layer)[0].zero):
                return (self._in_winograd(calls, layer),)
            case n.Conv2d():
                made = self._convolution(calls, layer)
                return None if made is None else (k.Conv2dHalves(as_one_row(made[0]), *made[1:]),)
            case n.MaxPool2d():
                return (k.MaxPool2dBytes(*calls.max_pool(layer)),)
            case n.Linear():
                return self._linear(calls, layer)
        return None

    def row(self, calls: PortableCalls, layer: n.Layer) -> tuple[Call, ...] | None:
        """Return the calls that compute one row of a layer; None if the portable kernels compute it."""
        match layer:
            case n.Conv2d() if layer.groups > 1:
                depthwise = self._depthwise(calls, layer)
                return None if depthwise is None else (k.DepthwiseHalvesRow(*depthwise),)
            case n.Conv2d():
                made = self._convolution(calls, layer)
                return None if made is None else (k.Conv2dHalvesRow(*made),)
            case n.MaxPool2d():
                return (k.MaxPool2dBytesRow(*calls.max_pool(layer)),)
        return None

    def _convolution(
        self, calls: PortableCalls, layer: n.Conv2d
    ) -> tuple[k.Conv2dHalvesParams, Operand, Operand | None, Operand] | None:
        """Return the arguments of a convolution, or None if the kernel cannot compute it.

        Taps of a row must be adjacent in memory, sums of bytes (zero point not subtracted) must fit 32 bits, and four
        windows must fit the stack.
        """
        x, *_ = calls.arrangement.inputs(layer)
        out_c, in_c, kernel_h, kernel_w = layer.weight.shape
        edge = kernel_h * (kernel_w + 3 * layer.stride[1]) * in_c
        if layer.groups != 1 or (layer.dilation[1] != 1 and kernel_w != 1) or edge > _LARGEST_EDGE:
            return None
        rows = layer.weight.transpose(0, 2, 3, 1).reshape(out_c, kernel_h, kernel_w * in_c)
        halves = _halves_of(rows, folded_biases(layer, x.zero))
        if halves is None or 16 * halves.words.shape[1] > _LARGEST_WINDOWS:
            return None
        return self._params(calls, layer, halves.words, halves.biases, halves.part), *operands(layer)

    def _in_winograd(self, calls: PortableCalls, layer: n.Conv2d) -> k.Conv2dWinograd:
        """Return the call of a convolution with transformed weights."""
        x, *_ = calls.arrangement.inputs(layer)
        words = winograd_weights(layer.weight)
        biases = np.zeros(2 * len(words), np.int32)
        biases[: len(layer.weight)] = 4 * folded_biases(layer, x.zero)
        return k.Conv2dWinograd(self._params(calls, layer, words, biases, words.shape[2]), *operands(layer))

    def _params(
        self, calls: PortableCalls, layer: n.Conv2d, words: NDArray[np.int32], biases: NDArray[np.int32], part: int
    ) -> k.Conv2dHalvesParams:
        """Return the parameters of a convolution.

        Args:
            calls: of the network.
            layer: the convolution.
            words: its weights, (pairs of channels, words of a window) or those of ``winograd_weights``.
            biases: of an even number of channels.
            part: largest number of words to take at once.
        """
        x, *others = calls.arrangement.inputs(layer)
        bound, added = bounds(layer, x)
        return k.Conv2dHalvesParams(
            **window_sizes(layer, x),
            in_c=layer.weight.shape[1],
            out_c=len(layer.weight),
            dilation_h=layer.dilation[0],
            words=words.shape[1] if words.ndim == 2 else words.shape[2],
            part=part,
            weight=calls.constants.add("weight", "int32_t", words, words.shape),
            bias=calls.constants.add("bias", "int32_t", biases, biases.shape),
            **residual(layer, others),
            clamp_bits=self.clamp_bits if sums_clamp(self.network, layer, self.clamp_bits) else None,
            to=calls.requantization(layer, layer.multiplier, bound, added),
        )

    def _depthwise(
        self, calls: PortableCalls, layer: n.Conv2d
    ) -> tuple[k.DepthwiseHalvesParams, Operand, Operand] | None:
        """Return the arguments of a depthwise convolution, or None if the kernel cannot compute it."""
        (x, *others) = calls.arrangement.inputs(layer)
        channels, in_c, kernel_h, kernel_w = layer.weight.shape
        taps = kernel_h * kernel_w
        biases = folded_biases(layer, x.zero)
        sums = np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3))
        if in_c != 1 or channels != layer.groups or others or int((np.abs(biases) + 255 * sums).max()) >= 2**31:
            return None
        if channels > _LARGEST_EDGE or 8 * taps > _LARGEST_EDGE:
            return None
        padded = np.zeros((-(-channels // 4) * 4, taps), np.int64)
        padded[:channels] = layer.weight.reshape(channels, taps)
        fours = padded.reshape(-1, 4, taps)
        words = (fours[:, 2:] * 65536 + (fours[:, :2] & 0xFFFF)).transpose(0, 2, 1).astype(np.int32)
        even = np.zeros(len(padded), np.int32)
        even[:channels] = biases
        bound, _ = bounds(layer, x)
        params = k.DepthwiseHalvesParams(
            **window_sizes(layer, x),
            channels=channels,
            dilation_h=layer.dilation[0],
            dilation_w=layer.dilation[1],
            weight=calls.constants.add("weight", "int32_t", words, words.shape),
            bias=calls.constants.add("bias", "int32_t", even, even.shape),
            clamp_bits=self.clamp_bits if sums_clamp(self.network, layer, self.clamp_bits) else None,
            to=calls.requantization(layer, layer.multiplier, bound),
        )
        return params, Operand(x.name), Operand(layer.name)

    def _linear(self, calls: PortableCalls, layer: n.Linear) -> tuple[Call, ...] | None:
        """Return the call of a fully connected layer, or None if the kernel cannot compute it."""
        (x,) = calls.arrangement.inputs(layer)
        halves = _halves_of(layer.weight[:, None, x.order], folded_biases(layer, x.zero))
        if halves is None or 4 * halves.words.shape[1] > _LARGEST_WINDOWS:
            return None
        params = k.LinearHalvesParams(
            in_count=layer.weight.shape[1],
            out_count=layer.weight.shape[0],
            words=halves.words.shape[1],
            part=halves.part,
            weight=calls.constants.add("weight", "int32_t", halves.words, halves.words.shape),
            bias=calls.constants.add("bias", "int32_t", halves.biases, halves.biases.shape),
            to=calls.requantization(layer, layer.multiplier),
        )
        return (k.LinearHalves(params, Operand(x.name), Operand(layer.name)),)

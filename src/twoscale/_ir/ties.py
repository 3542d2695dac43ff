"""Which layers can meet a tie of their rounding, equations (3b) and (7e) of docs/arithmetic.md.

The contract rounds ties to even. Other runtimes round them up or away from zero. A layer whose rounding never meets a
tie that its clamp does not decide has the same output under each of these rules.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, REQUANTIZE_SHIFT

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["find_tie", "ties"]

Int64 = NDArray[np.int64]

_FREE = "a multiplier is a free float, not a whole number on the grid"


def ties(network: IntegerNetwork) -> tuple[str, ...]:
    """Return one line per layer that can meet a tie, with the first one found."""
    found = []
    for layer in network.layers:
        reason = _reason(layer, [network.spec(name) for name in layer.inputs])
        if reason:
            found.append(f"layer {layer.name}: {reason}")
    return tuple(found)


def find_tie(
    multipliers: Int64, lowest: Int64, highest: Int64, shift: int, out: n.TensorSpec, addends: Int64 | None = None
) -> tuple[int, int, int] | None:
    """Return (channel, acc, addend) with (acc · m + addend) / 2**shift a tie that the clamp does not decide, or None.

    A tie v, halfway between two integers, matters if lo − z < v < hi − z; else both neighbours give lo, or hi. With
    m = odd · 2**t, acc · m + addend ≡ 2**(shift − 1) modulo 2**shift has solutions only if 2**t divides
    2**(shift − 1) − addend. Then they are one residue class modulo 2**(shift − t).

    Args:
        multipliers: in units of 2**-shift, (C,), positive.
        lowest: the smallest accumulator of each channel, (C,).
        highest: the largest, (C,).
        shift: at least 1.
        out: the output's zero point and clamp bounds.
        addends: what is added to the products before rounding, in units of 2**-shift; by default only 0.
    """
    half, whole = 1 << (shift - 1), 1 << shift
    addends = np.zeros(1, np.int64) if addends is None else np.unique(addends)
    low = np.minimum(multipliers & -multipliers, whole)
    modulus = whole // low
    rest = (half - addends[:, None]) % whole
    residue = rest // low * _inverse(multipliers // low, modulus) % modulus
    # The products of a tie that matters.
    first = (2 * (out.lo - out.zero_point) + 1) * half - addends[:, None]
    last = (2 * (out.hi - out.zero_point) - 1) * half - addends[:, None]
    start = np.maximum(lowest, -(-first // multipliers))
    acc = start + (residue - start) % modulus
    found = (rest % low == 0) & (acc <= np.minimum(highest, last // multipliers))
    if not found.any():
        return None
    row, channel = np.argwhere(found)[0].tolist()
    return channel, int(acc[row, channel]), int(addends[row])


def _inverse(odd: Int64, modulus: Int64) -> Int64:
    """Return the inverses of odd numbers modulo powers of two up to 2**16, by Newton's iteration."""
    inverse = odd % modulus  # right to 3 bits; each step doubles them
    for _ in range(3):
        inverse = inverse * (2 - odd % modulus * inverse % modulus) % modulus
    return inverse


@functools.singledispatch
def _reason(layer: n.Layer, inputs: list[n.TensorSpec]) -> str:
    """Return why a layer's rounding can meet a tie; "" if it cannot, or does not round."""
    return "" if layer.moves_values else f"nothing is proved for {layer.op}"


@_reason.register
def _(layer: n.QuantizeInput, inputs: list[n.TensorSpec]) -> str:
    return ""  # the network's integers begin with its output


@_reason.register
def _(layer: n.Table, inputs: list[n.TensorSpec]) -> str:
    return ""


@_reason.register
def _(layer: n.Accumulating, inputs: list[n.TensorSpec]) -> str:
    if layer.multiplier is None:
        return ""
    residual = layer.residual_multiplier if isinstance(layer, n.Conv2d) else None
    addends = None
    if residual is not None:
        if residual.shift is None:
            return _FREE
        addends = _values(inputs[1]) * residual.integers[0]
    bound = layer.partial_bound(inputs[0])
    return _requantization(layer.multiplier, -bound, bound, layer.multiplier_shift, layer.output, addends)


@_reason.register
def _(layer: n.AveragePool2d, inputs: list[n.TensorSpec]) -> str:
    assert layer.multiplier is not None
    values = _values(inputs[0]) * (layer.kernel[0] * layer.kernel[1])
    return _requantization(layer.multiplier, values[:1], values[-1:], REQUANTIZE_SHIFT, layer.output)


@_reason.register
def _(layer: n.Mul, inputs: list[n.TensorSpec]) -> str:
    assert layer.multiplier is not None
    ends = np.multiply.outer(*(_values(x)[[0, -1]] for x in inputs))
    lowest, highest = ends.min(keepdims=True)[0], ends.max(keepdims=True)[0]
    return _requantization(layer.multiplier, lowest, highest, REQUANTIZE_SHIFT, layer.output)


@_reason.register
def _(layer: n.Concat, inputs: list[n.TensorSpec]) -> str:
    for x, multiplier in zip(inputs, layer.multipliers, strict=True):
        if multiplier is not None:
            values = _values(x)
            reason = _requantization(multiplier, values[:1], values[-1:], REQUANTIZE_SHIFT, layer.output)
            if reason:
                return reason
    return ""


@_reason.register
def _(layer: n.Add, inputs: list[n.TensorSpec]) -> str:
    first, second = layer.multipliers
    if second.shift is None:
        return _FREE
    values = _values(inputs[0])
    addends = _values(inputs[1]) * second.integers[0]
    return _requantization(first, values[:1], values[-1:], ADD_SHIFT, layer.output, addends)


def _values(spec: n.TensorSpec) -> Int64:
    """Return every q − z that a tensor can hold, in order."""
    return np.arange(spec.lo - spec.zero_point, spec.hi - spec.zero_point + 1)


def _requantization(
    multiplier: n.Multiplier,
    lowest: Int64,
    highest: Int64,
    shift: int,
    out: n.TensorSpec,
    addends: Int64 | None = None,
) -> str:
    if multiplier.shift is None:
        return _FREE
    found = find_tie(multiplier.integers, lowest, highest, shift, out, addends)
    if found is None:
        return ""
    channel, acc, addend = found
    integers = multiplier.integers
    product = f"{acc:,} · {integers[min(channel, len(integers) - 1)]:,}"
    where = f"channel {channel}: " if max(len(integers), len(lowest)) > 1 else ""
    plus = f" + {addend:,}" if addend else ""
    return f"{where}({product}{plus}) / 2^{shift} is halfway between two integers"

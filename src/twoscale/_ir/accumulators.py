"""Bits that accumulators need: proved from the weights, and seen on images.

An accumulator is the sum of a bias and of one product per weight. In any order of summation, each partial sum lies
between the sum of the negative terms and the sum of the positive ones. Their largest magnitude over all inputs is
equation (13); over images it is often much smaller.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.reference import ReferenceExecutor

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["AccumulatorBits", "accumulator_bits", "signed_bits"]


@dataclass(frozen=True)
class AccumulatorBits:
    """The accumulators of one layer. All bits are those of two's complement, with the sign."""

    layer: str
    products: int
    """Products in one sum."""
    proved: int
    """Bits that hold every partial sum of every input."""
    images: int
    """Images that the figures below are of."""
    lowest: int
    """The smallest accumulator."""
    highest: int
    """The largest accumulator."""
    seen: int
    """Bits that hold every accumulator."""
    seen_in_any_order: int
    """Bits that hold every partial sum, in any order of summation."""


def signed_bits(lowest: int, highest: int) -> int:
    """Return the fewest bits of a two's complement number that hold both."""
    return 1 + max((-lowest - 1).bit_length() if lowest < 0 else 0, highest.bit_length() if highest > 0 else 0)


def accumulator_bits(network: IntegerNetwork, batches: Iterable[NDArray[np.float32]]) -> tuple[AccumulatorBits, ...]:
    """Return the bits that the accumulators of every layer with weights need.

    Args:
        network: whose accumulators.
        batches: images (N, ...), normalized. Iterated once.
    """
    layers = {layer.name: layer for layer in network if isinstance(layer, n.Accumulating)}
    seen = {name: _Seen() for name in layers}
    inputs = {layer.inputs[0] for layer in layers.values()}
    reference, images = ReferenceExecutor(network), 0
    for batch in batches:
        values = reference.run(batch, inputs)
        images += len(batch)
        for name, layer in layers.items():
            seen[name].add(layer, network.spec(layer.inputs[0]), values[layer.inputs[0]])
    found = []
    for name, layer in layers.items():
        bound = int(layer.partial_bound(network.spec(layer.inputs[0])).max(initial=0))
        mine = seen[name]
        found.append(
            AccumulatorBits(
                layer=name,
                products=math.prod(layer.weight.shape[1:]),
                proved=signed_bits(-bound, bound),
                images=images,
                lowest=mine.lowest,
                highest=mine.highest,
                seen=signed_bits(mine.lowest, mine.highest),
                seen_in_any_order=signed_bits(mine.negative, mine.positive),
            )
        )
    return tuple(found)


class _Seen:
    """Extremes of one layer's sums."""

    def __init__(self) -> None:
        self.lowest = self.highest = self.negative = self.positive = 0
        self._images = 0

    def add(self, layer: n.Accumulating, spec: n.TensorSpec, x: NDArray[Any]) -> None:
        """Take a batch of the layer's inputs into account."""
        zero = spec.zero_point
        positive_x, negative_x = np.maximum(x, zero), np.minimum(x, zero)
        positive_w, negative_w = np.maximum(layer.weight, 0), np.minimum(layer.weight, 0)
        positive = _sums(layer, spec, positive_x, positive_w, np.maximum(layer.bias_o, 0))
        negative = _sums(layer, spec, positive_x, negative_w, np.minimum(layer.bias_o, 0))
        if (x < zero).any():
            none = np.zeros_like(layer.bias_o)
            positive = positive + _sums(layer, spec, negative_x, negative_w, none)
            negative = negative + _sums(layer, spec, negative_x, positive_w, none)
        accumulators = positive + negative
        lowest, highest = int(accumulators.min()), int(accumulators.max())
        self.lowest = lowest if not self._images else min(self.lowest, lowest)
        self.highest = highest if not self._images else max(self.highest, highest)
        self.negative = min(self.negative, int(negative.min()))
        self.positive = max(self.positive, int(positive.max()))
        self._images += len(x)


def _sums(
    layer: n.Accumulating, spec: n.TensorSpec, x: NDArray[Any], weight: NDArray[np.int8], bias: NDArray[np.int32]
) -> NDArray[Any]:
    """Return the accumulators of a layer with other weights and biases."""
    output = n.TensorSpec(layer.output.shape, "int32", 1.0)
    fields: dict[str, Any] = {"residual_multiplier": None} if isinstance(layer, n.Conv2d) else {}
    plain = dataclasses.replace(
        layer, inputs=layer.inputs[:1], output=output, multiplier=None, weight=weight, bias_o=bias, **fields
    )
    return plain.compute([spec], [x])

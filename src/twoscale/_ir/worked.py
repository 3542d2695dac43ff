"""One output of a layer computed by hand: its accumulator, the multiplier, and the integer that they give."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import REQUANTIZE_SHIFT
from twoscale._ir.reference import ReferenceExecutor

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["WorkedOutput", "numerators", "worked_output"]


@dataclass(frozen=True)
class WorkedOutput:
    """One accumulator on its way to one output integer."""

    index: tuple[int, ...]
    """Of the output, (channel, row, column) or (channel,)."""
    place: int
    """The same in the flattened output."""
    x_scale: float
    weight_scale: float
    multiplier: float | None
    """M = s_x · s_w / s_y; None where the accumulator is the output."""
    numerator: int | None
    """The multiplier times 65536; None off the grid, and without a multiplier."""
    bias: int
    accumulator: int
    """Sum of products, bias included."""
    output: int


def worked_output(network: IntegerNetwork, layer: n.Accumulating, image_chw: NDArray[np.float32]) -> WorkedOutput:
    """Follow one accumulator of an image to its output integer.

    Among the outputs that are at no limit it is the one in the middle, by size.

    Args:
        network: the network of the layer.
        layer: one with a single operand.
        image_chw: float32 image as the network takes it.
    """
    x, y = network.spec(layer.inputs[0]), layer.output
    q = ReferenceExecutor(network).run(image_chw[None], [layer.inputs[0], layer.name])
    outputs = q[layer.name][0].reshape(-1)
    inside = np.flatnonzero((outputs > y.lo) & (outputs < y.hi))
    inside = inside if inside.size else np.arange(outputs.size)
    place = int(inside[np.argsort(outputs[inside], kind="stable")[inside.size // 2]])
    index = tuple(int(i) for i in np.unravel_index(place, y.shape))
    open_ended = dataclasses.replace(layer, multiplier=None, output=n.TensorSpec(y.shape, "int32", 1.0))
    accumulators = open_ended.compute([x], [q[layer.inputs[0]]])
    channel, m = index[0], layer.multiplier
    known = numerators(m) if m is not None else ()

    def of_channel(values: NDArray[np.float64] | NDArray[np.float32]) -> float:
        return float(values[channel if len(values) > 1 else 0])

    return WorkedOutput(
        index=index,
        place=place,
        x_scale=x.scale,
        weight_scale=of_channel(layer.weight_scales(x)),
        multiplier=None if m is None else of_channel(m.values),
        numerator=known[channel if len(known) > 1 else 0] if known else None,
        bias=int(layer.bias_o[channel]),
        accumulator=int(accumulators[0].reshape(-1)[place]),
        output=int(outputs[place]),
    )


def numerators(multiplier: n.Multiplier) -> tuple[int, ...]:
    """Return the multipliers times 65536; empty where they are not whole numbers of 65536ths."""
    return tuple(int(value) for value in multiplier.integers) if multiplier.shift == REQUANTIZE_SHIFT else ()

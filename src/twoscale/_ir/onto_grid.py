"""Moving a network with free multipliers onto the grid, so that every executor computes the same integers.

A free multiplier becomes the nearest whole number of 2**-16ths (2**-14ths in additions), and an odd zero point the even
one beside it. Where the nearest multiplier is too far off for a channel's weights, they are scaled by what is left and
rounded again. Nothing else changes; how much the outputs do is for verify to measure.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import MULTIPLIER_LIMIT
from twoscale.errors import QuantizationError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["OntoGrid", "onto_grid"]

_ROUNDING_NOISE = 1 / 12
"""Mean square of the error of rounding, in steps."""


@dataclass(frozen=True)
class OntoGrid:
    """A network on the grid, and what was changed for it."""

    network: IntegerNetwork
    multipliers: int
    """Number of multipliers that changed, one per output channel."""
    largest_change: float
    """Of a multiplier, as a fraction of it; what scaled weights made up for is left out."""
    channels_rounded_again: int
    """Output channels whose weights were scaled and rounded."""
    zero_points: int
    """Number of tensors whose zero point moved by one."""


def onto_grid(network: IntegerNetwork) -> OntoGrid:
    """Return the network with all multipliers on the grid and even zero points; one on the grid is unchanged.

    Raises:
        QuantizationError: a multiplier is below half a step of the grid or beyond it, or an addition is too wide for
            exact float32 sums; names the layer.
    """
    if network.on_grid:
        return OntoGrid(network, 0, 0.0, 0, 0)
    mover = _Mover()
    layers = tuple(mover.layer(layer, [network.spec(name) for name in layer.inputs]) for layer in network)
    moved = dataclasses.replace(network, layers=layers, scheme="requantized", source=None)
    if moved.off_grid:
        raise QuantizationError(f"{network.name} cannot be moved onto the grid: {moved.off_grid[0]}")
    return OntoGrid(moved, mover.multipliers, mover.largest_change, mover.channels_rounded_again, mover.zero_points)


class _Mover:
    def __init__(self) -> None:
        self.multipliers = self.channels_rounded_again = self.zero_points = 0
        self.largest_change = 0.0

    def layer(self, layer: n.Layer, inputs: list[n.TensorSpec]) -> n.Layer:
        """Return a layer with multipliers on the grid and an even zero point."""
        output = _with_even_zero_point(layer.output)
        self.zero_points += output.zero_point != layer.output.zero_point
        if isinstance(layer, n.FixedPointSoftmax):
            return _softmax(layer)
        layer = _without_fixed_point(layer, inputs)
        changes: dict[str, Any] = {"output": output}
        if isinstance(layer, n.Table):
            changes["table"] = _moved_table(layer, inputs[0], output)
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if isinstance(value, n.Multiplier) and value.shift is None:
                changes[field.name] = self.multiplier(layer, value, changes, inputs)
            elif isinstance(value, tuple) and any(isinstance(part, n.Multiplier) for part in value):
                changes[field.name] = tuple(
                    self.multiplier(layer, part, changes, inputs)
                    if isinstance(part, n.Multiplier) and part.shift is None
                    else part
                    for part in value
                )
        return dataclasses.replace(layer, **changes)

    def multiplier(
        self, layer: n.Layer, free: n.Multiplier, changes: dict[str, Any], inputs: list[n.TensorSpec]
    ) -> n.Multiplier:
        """Return the nearest multiplier on the grid; ``changes`` takes weights that were rounded again for it."""
        shift = layer.multiplier_shift
        wanted = np.ldexp(free.values.astype(np.float64), shift)
        integers = np.rint(wanted).astype(np.int64)
        if isinstance(layer, n.Conv2d | n.Linear) and free is layer.multiplier:
            integers, wanted = self._with_weights(layer, wanted, integers, changes, inputs[0])
        if integers.min() < 1 or integers.max() >= MULTIPLIER_LIMIT:
            worst = free.values[integers.argmin() if integers.min() < 1 else integers.argmax()]
            raise QuantizationError(
                f"layer {layer.name}: its multiplier {worst:g} is not on the grid, which reaches from 2**-{shift} to "
                f"2**{24 - shift}; quantize the float model with twoscale.quantize"
            )
        change = np.abs(integers / wanted - 1)
        self.multipliers += int(np.count_nonzero(change))
        self.largest_change = max(self.largest_change, float(change.max()))
        return n.Multiplier.on_grid(integers, shift)

    def _with_weights(
        self,
        layer: n.Conv2d | n.Linear,
        wanted: NDArray[np.float64],
        integers: NDArray[np.int64],
        changes: dict[str, Any],
        x: n.TensorSpec,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return multipliers for scaled weights, where scaling and rounding them costs less than the nearest one.

        A multiplier that is δ off adds the noise δ²·mean(w²) per weight, rounding 1/12.
        """
        channels = len(layer.bias_o)
        rows = layer.weight.reshape(channels, -1).astype(np.float64)
        per_channel = np.broadcast_to(wanted, channels).copy()
        nearest = np.broadcast_to(integers, channels).copy()
        power = (rows**2).mean(1)
        off = np.divide(nearest, per_channel) - 1
        # A channel whose largest accumulator stays below half a step gives its zero point for every image.
        silent = layer.partial_bound(x) * np.ldexp(per_channel, -layer.multiplier_shift) < 0.5
        again = (off**2 * power > _ROUNDING_NOISE) | ((nearest < 1) & silent)
        if not again.any():
            return integers, wanted
        nearest[again] = np.maximum(1, np.ceil(per_channel[again])).astype(np.int64)
        scale = np.where(again, per_channel / nearest, 1.0)
        scale[silent & again] = 0.0
        changes["weight"] = np.rint(rows * scale[:, None]).astype(np.int8).reshape(layer.weight.shape)
        changes["bias_o"] = np.rint(layer.bias_o * scale).astype(np.int32)
        self.channels_rounded_again += int(again.sum())
        return nearest, np.where(again, nearest, per_channel)


def _softmax(layer: n.FixedPointSoftmax) -> n.Softmax:
    """Return the contract's softmax, (15), in place of TensorFlow Lite's."""
    table = np.rint(np.ldexp(layer.table.astype(np.float64), -16)).astype(np.int32)
    return n.Softmax(name=layer.name, inputs=layer.inputs, output=layer.output, axis=layer.axis, table=table)


def _without_fixed_point(layer: n.Layer, inputs: list[n.TensorSpec]) -> n.Layer:
    """Return a layer of TensorFlow Lite's arithmetic with free multipliers: the exact quotients of its scales.

    Raises:
        QuantizationError: a pool whose windows have different sizes.
    """
    y = layer.output.scale
    if isinstance(layer, n.Add) and layer.in_fixed_point:
        return dataclasses.replace(layer, multipliers=tuple(_free(x.scale / y) for x in inputs))
    if isinstance(layer, n.AveragePool2d) and isinstance(layer.multiplier, n.WindowQuotient):
        if any(layer.padding):
            raise QuantizationError(
                f"layer {layer.name}: a mean that leaves out padding has windows of different sizes, which one "
                "multiplier cannot divide; quantize the float model with twoscale.quantize"
            )
        return dataclasses.replace(layer, multiplier=_free(float(layer.multiplier.values[0])))
    return layer


def _free(value: float) -> n.Multiplier:
    return n.Multiplier(np.array([value], np.float32), None)


def _with_even_zero_point(spec: n.TensorSpec) -> n.TensorSpec:
    """Return a quantization with the zero point, and the bounds that are no type's, one further if it is odd."""
    if spec.zero_point % 2 == 0:
        return spec
    limits = np.iinfo(spec.dtype)
    by = -1 if spec.zero_point == limits.max else 1
    lo = spec.lo if spec.lo == limits.min else max(int(limits.min), spec.lo + by)
    hi = spec.hi if spec.hi == limits.max and by > 0 else min(int(limits.max), spec.hi + by)
    return dataclasses.replace(spec, zero_point=spec.zero_point + by, lo=lo, hi=hi)


def _moved_table(layer: n.Table, x: n.TensorSpec, output: n.TensorSpec) -> NDArray[np.int16]:
    """Return the table for a moved input and output."""
    by_x = _with_even_zero_point(x).zero_point - x.zero_point
    by_y = output.zero_point - layer.output.zero_point
    index = np.clip(np.arange(256) - by_x, 0, 255)
    moved: NDArray[np.int16] = np.clip(layer.table[index] + by_y, output.lo, output.hi).astype(np.int16)
    return moved

"""The scales of each layer, and one output computed by hand: an accumulator times M, rounded to an integer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import REQUANTIZE_SHIFT
from twoscale._ir.float_module import GraphModule
from twoscale._lab.records import LayerScales, WorkedOutput
from twoscale._quantization.scales import weight_scales

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["layer_scales", "worked_output"]


def layer_scales(network: IntegerNetwork) -> tuple[LayerScales, ...]:
    """Return the scales and multipliers of each layer with weights that requantizes."""
    records = []
    for layer in _requantizing(network):
        x = network.spec(layer.inputs[0])
        assert layer.multiplier is not None
        records.append(
            LayerScales(
                layer.name,
                x.scale,
                tuple(float(scale) for scale in weight_scales(layer, x)),
                layer.output.scale,
                tuple(float(value) for value in layer.multiplier.values),
                _numerators(layer.multiplier),
            )
        )
    return tuple(records)


def worked_output(graph: g.FloatGraph, network: IntegerNetwork, image_chw: NDArray[np.float32]) -> WorkedOutput | None:
    """Follow one accumulator of the first test image to its output integer, in the second layer that requantizes.

    Among the outputs that are at no limit, it is the one in the middle. None where no layer requantizes.
    """
    from twoscale._runtimes import create

    layers = _requantizing(network)
    if not layers:
        return None
    layer = layers[min(1, len(layers) - 1)]
    x, y = network.spec(layer.inputs[0]), layer.output
    q = create("reference", network).run(image_chw[None], [layer.inputs[0], layer.name])
    outputs = q[layer.name][0].reshape(-1)
    inside = np.flatnonzero((outputs > y.lo) & (outputs < y.hi))
    inside = inside if inside.size else np.arange(outputs.size)
    place = int(inside[np.argsort(outputs[inside], kind="stable")[inside.size // 2]])
    index = tuple(int(i) for i in np.unravel_index(place, y.shape))
    open_ended = dataclasses.replace(layer, multiplier=None, output=n.TensorSpec(y.shape, "int32", 1.0))
    accumulators = open_ended.compute([x], [q[layer.inputs[0]]])
    assert layer.multiplier is not None
    scales, multipliers = weight_scales(layer, x), layer.multiplier.values
    numerators = _numerators(layer.multiplier)
    channel = index[0]

    def of_channel(values: NDArray[np.generic] | tuple[int, ...]) -> float:
        return float(values[channel if len(values) > 1 else 0])

    return WorkedOutput(
        layer=layer.name,
        image=0,
        index=index,
        x_scale=x.scale,
        weight_scale=of_channel(scales),
        y_scale=y.scale,
        multiplier=of_channel(multipliers),
        numerator=int(of_channel(numerators)) if numerators else None,
        bias=int(layer.bias_o[channel]),
        accumulator=int(accumulators[0].reshape(-1)[place]),
        zero_point=y.zero_point,
        lo=y.lo,
        hi=y.hi,
        output=int(outputs[place]),
        real=_real(graph, layer.name, image_chw, place),
    )


def _requantizing(network: IntegerNetwork) -> list[n.Accumulating]:
    """Return the layers with weights whose only operand is their input, and whose accumulators are requantized."""
    return [x for x in network if isinstance(x, n.Accumulating) and x.multiplier is not None and len(x.inputs) == 1]


def _numerators(multiplier: n.Multiplier) -> tuple[int, ...]:
    return tuple(int(value) for value in multiplier.integers) if multiplier.shift == REQUANTIZE_SHIFT else ()


def _real(graph: g.FloatGraph, name: str, image_chw: NDArray[np.float32], place: int) -> float:
    found = []

    def visit(node: g.Node, value: torch.Tensor) -> None:
        if node.name == name:
            found.append(float(value.reshape(-1)[place]))

    GraphModule(graph).run(torch.from_numpy(image_chw[None]), visit)
    return found[0]

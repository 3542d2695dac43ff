"""The scales of each layer, and one output computed by hand: an accumulator times M, rounded to an integer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._ir.worked import numerators
from twoscale._ir.worked import worked_output as follow
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
                numerators(layer.multiplier),
            )
        )
    return tuple(records)


def worked_output(graph: g.FloatGraph, network: IntegerNetwork, image_chw: NDArray[np.float32]) -> WorkedOutput | None:
    """Follow one accumulator of the first test image to its output integer, in the second layer that requantizes.

    None where no layer requantizes.
    """
    layers = _requantizing(network)
    if not layers:
        return None
    layer = layers[min(1, len(layers) - 1)]
    found, y = follow(network, layer, image_chw), layer.output
    assert found.multiplier is not None
    return WorkedOutput(
        layer=layer.name,
        image=0,
        index=found.index,
        x_scale=found.x_scale,
        weight_scale=found.weight_scale,
        y_scale=y.scale,
        multiplier=found.multiplier,
        numerator=found.numerator,
        bias=found.bias,
        accumulator=found.accumulator,
        zero_point=y.zero_point,
        lo=y.lo,
        hi=y.hi,
        output=found.output,
        real=_real(graph, layer.name, image_chw, found.place),
    )


def _requantizing(network: IntegerNetwork) -> list[n.Accumulating]:
    """Return the layers with weights whose only operand is their input, and whose accumulators are requantized."""
    return [x for x in network if isinstance(x, n.Accumulating) and x.multiplier is not None and len(x.inputs) == 1]


def _real(graph: g.FloatGraph, name: str, image_chw: NDArray[np.float32], place: int) -> float:
    found = []

    def visit(node: g.Node, value: torch.Tensor) -> None:
        if node.name == name:
            found.append(float(value.reshape(-1)[place]))

    GraphModule(graph).run(torch.from_numpy(image_chw[None]), visit)
    return found[0]

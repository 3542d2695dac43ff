"""Biases that are wrong in the ways in which they are usually wrong, and the accuracy of each.

Two networks are tried. In the *half-way* network the weights are integers and nothing is requantized, so a layer's sums
count in units of the product of all weight scales up to it. The other one is the integer network itself, whose
accumulators count in units of s_x · s_w.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._lab.judge import Judge
from twoscale._lab.records import BiasIntegers, StageResult
from twoscale._quantization.scales import weight_scales
from twoscale._quantization.simulate import has_bias, with_weights
from twoscale.errors import QuantizationError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["bias_integers", "half_way_stages", "units_without_requantization", "wrong_bias_stages"]

_INT32 = 2**31 - 1
_SCALE_FREE = (g.Input, g.Conv2d, g.Linear, g.MaxPool2d, g.AveragePool2d, g.Reshape)
"""Operations through which a factor of the input passes: f(a·x) = a·f(x) for a > 0, biases aside."""


def bias_integers(graph: g.FloatGraph, network: IntegerNetwork) -> tuple[BiasIntegers, ...]:
    """Return the biases of each layer with weights, real and as integers, with their units."""
    records = []
    for layer in network:
        if isinstance(layer, n.Accumulating):
            x = network.spec(layer.inputs[0])
            node = graph[layer.name]
            assert isinstance(node, g.Conv2d | g.Linear)
            records.append(
                BiasIntegers(
                    layer.name,
                    tuple(float(scale * x.scale) for scale in weight_scales(layer, x)),
                    tuple(float(value) for value in node.bias_o),
                    tuple(int(value) for value in layer.bias_o),
                )
            )
    return tuple(records)


def units_without_requantization(graph: g.FloatGraph, network: IntegerNetwork) -> dict[str, float] | None:
    """Return, for each layer with weights, the unit of its sums in the half-way network.

    None where a factor does not pass through the network, such as one that adds tensors or clamps at 6, and where a
    layer has more than one weight scale.
    """
    units: dict[str, float] = {}
    products: dict[str, float] = {}
    layers = {layer.name: layer for layer in network}
    for node in graph:
        upper = getattr(node, "bounds", g.UNBOUNDED)[1]
        if not isinstance(node, _SCALE_FREE) or len(node.inputs) > 1 or np.isfinite(upper):
            return None
        products[node.name] = products[node.inputs[0]] if node.inputs else 1.0
        layer = layers[node.name]
        if isinstance(layer, n.Accumulating):
            scales = weight_scales(layer, network.spec(layer.inputs[0]))
            if len(set(scales)) > 1:
                return None
            products[node.name] *= float(scales[0])
            units[node.name] = products[node.name]
    return units


def half_way_stages(graph: g.FloatGraph, network: IntegerNetwork, judge: Judge) -> tuple[StageResult, ...]:
    """Measure the half-way network with its biases unscaled, without them, and with them in the units of the sums."""
    units = units_without_requantization(graph, network)
    if units is None or not has_bias(graph):
        return ()
    weights = {x.name: x.weight.astype(np.float64) for x in network if isinstance(x, n.Accumulating)}
    integers = with_weights(graph, weights)

    def measured(
        key: str, title: str, change: Callable[[str, NDArray[np.float32]], NDArray[np.float64]]
    ) -> StageResult:
        logits = judge.run(GraphModule(_with_biases(integers, change)))
        return judge.stage(network.scheme, key, f"integer weights only, {title}", logits, in_units=False)

    return (
        measured("weights-unscaled", "bias unscaled", lambda name, bias: bias.astype(np.float64)),
        measured("weights-without", "no bias", lambda name, bias: np.zeros(bias.shape)),
        measured("weights-scaled", "bias scaled", lambda name, bias: bias.astype(np.float64) / units[name]),
    )


def wrong_bias_stages(graph: g.FloatGraph, network: IntegerNetwork, judge: Judge) -> tuple[StageResult, ...]:
    """Measure the integer network with its biases unscaled, and stretched to the full range of int32."""
    if not has_bias(graph):
        return ()
    rows = []
    for key, title, change in (
        ("unscaled", "bias unscaled", _unscaled),
        ("stretched", "bias stretched to int32", _stretched),
    ):
        changed = tuple(
            dataclasses.replace(layer, bias_o=change(layer, network, graph))
            if isinstance(layer, n.Accumulating)
            else layer
            for layer in network
        )
        try:
            wrong = dataclasses.replace(network, layers=changed)
        except QuantizationError:  # a residual's sum leaves the range of its arithmetic
            continue
        rows.append(judge.stage(network.scheme, key, f"all integer, {title}", judge.run_integers(wrong)))
    return tuple(rows)


def _with_biases(
    graph: g.FloatGraph, change: Callable[[str, NDArray[np.float32]], NDArray[np.float64]]
) -> g.FloatGraph:
    changes: dict[str, g.Node] = {
        node.name: dataclasses.replace(node, bias_o=change(node.name, node.bias_o).astype(np.float32))
        for node in graph
        if isinstance(node, g.Conv2d | g.Linear)
    }
    return graph.replaced(changes)


def _unscaled(layer: n.Accumulating, network: IntegerNetwork, graph: g.FloatGraph) -> NDArray[np.int32]:
    """Return the real biases rounded to integers, not divided by s_x · s_w."""
    node = graph[layer.name]
    assert isinstance(node, g.Conv2d | g.Linear)
    rounded: NDArray[np.int32] = np.rint(node.bias_o).astype(np.int32)
    return rounded


def _stretched(layer: n.Accumulating, network: IntegerNetwork, graph: g.FloatGraph) -> NDArray[np.int32]:
    """Return the biases stretched until the largest is at the end of int32, less what the products can reach."""
    if not layer.bias_o.any():
        return layer.bias_o
    without = dataclasses.replace(layer, bias_o=np.zeros_like(layer.bias_o))
    room = _INT32 - int(without.partial_bound(network.spec(layer.inputs[0])).max())
    bias = layer.bias_o.astype(np.float64)
    stretched: NDArray[np.int32] = np.rint(bias * (room / np.abs(bias).max())).astype(np.int32)
    return stretched

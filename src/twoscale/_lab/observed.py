"""What the float network's tensors look like after pooling, and what quantized weights do to each layer's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._calibration.statistics import StatisticsAccumulator, to_summary
from twoscale._calibration.summaries import TensorSummary
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._ir.interpreter import interpret
from twoscale._lab.records import WeightNoise
from twoscale._metrics import SignalToNoise
from twoscale._quantization.simulate import weight_of, with_weights_quantized

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["pooled_summaries", "weight_noise"]


def pooled_summaries(graph: g.FloatGraph, batches: Iterable[NDArray[np.float32]]) -> tuple[TensorSummary, ...]:
    """Describe the outputs of max pooling over images, each named after the layer whose output is pooled."""
    of = {node.name: node.inputs[0] for node in graph if isinstance(node, g.MaxPool2d)}
    accumulators = {name: StatisticsAccumulator(source) for name, source in of.items()}

    def visit(node: g.Node, value: torch.Tensor) -> None:
        if node.name in accumulators:
            accumulators[node.name].update(value.numpy())

    module = GraphModule(graph)
    for images in batches if accumulators else ():
        module.run(torch.from_numpy(images), visit)
    return tuple(to_summary(one.finish(), "activation") for one in accumulators.values())


def weight_noise(
    graph: g.FloatGraph,
    network: IntegerNetwork,
    samples_nchw: NDArray[np.float32],
    nearest: IntegerNetwork | None = None,
) -> tuple[WeightNoise, ...]:
    """Compare each layer's weights and output with the float network's, one layer quantized at a time.

    Args:
        graph: the float network.
        network: whose weights are measured; biases stay in float.
        samples_nchw: images over which the outputs are compared.
        nearest: the same network with each weight rounded to the nearest integer, to compare.
    """
    own = _noise(graph, network, samples_nchw)
    plain = _noise(graph, nearest, samples_nchw) if nearest is not None else {}
    return tuple(WeightNoise(name, *values, *plain.get(name, ())) for name, values in own.items())


def _noise(
    graph: g.FloatGraph, network: IntegerNetwork, samples_nchw: NDArray[np.float32]
) -> dict[str, tuple[float | None, float | None]]:
    exact = GraphModule(graph)
    rounded = GraphModule(with_weights_quantized(graph, network))
    outputs = {node.name: SignalToNoise() for node in graph if isinstance(node, g.Conv2d | g.Linear)}

    def compute(node: g.Node, inputs: list[torch.Tensor]) -> torch.Tensor:
        value = exact.compute(node, inputs) if inputs else graph.given(images)[node.name]
        if node.name in outputs:
            outputs[node.name].update(value.numpy(), rounded.compute(rounded.graph[node.name], inputs).numpy())
        return value

    with torch.no_grad():
        for start in range(0, len(samples_nchw), 128):
            images = torch.from_numpy(samples_nchw[start : start + 128])
            interpret(graph.nodes, compute, ())
    found = {}
    for name, noise in outputs.items():
        weights = SignalToNoise()
        weights.update(weight_of(graph[name]), weight_of(rounded.graph[name]))
        found[name] = weights.db, noise.db
    return found

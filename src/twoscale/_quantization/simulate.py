"""The steps between the float and the integer network, simulated in float, to show what each step costs.

The last step, everything integer, is not simulated: it is the integer network itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._calibration.summaries import Histogram
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._metrics import SignalToNoise
from twoscale._quantization.records import RangeRecord
from twoscale._quantization.scales import weight_scales
from twoscale._quantization.scheme import Scheme

__all__ = [
    "Logits",
    "has_bias",
    "range_records",
    "weight_of",
    "with_activations_quantized",
    "with_weights",
    "with_weights_quantized",
]

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Images (N, C, H, W) to logits (N, classes)."""


def with_weights_quantized(graph: g.FloatGraph, network: IntegerNetwork) -> g.FloatGraph:
    """Return the float graph with the integer network's weights, s_w · q_w, in it; biases stay as they were."""
    weights = {}
    for layer in network:
        if isinstance(layer, n.Accumulating):
            scales = weight_scales(layer, network.spec(layer.inputs[0]))
            weights[layer.name] = layer.weight * scales.reshape((-1,) + (1,) * (layer.weight.ndim - 1))
    return with_weights(graph, weights)


def with_weights(graph: g.FloatGraph, weights: Mapping[str, NDArray[np.float64]]) -> g.FloatGraph:
    """Return the graph with other weights in the named layers; biases stay as they were."""
    changes: dict[str, g.Node] = {name: _with_weight(graph[name], weight) for name, weight in weights.items()}
    return graph.replaced(changes)


def has_bias(graph: g.FloatGraph) -> bool:
    """Tell whether any layer has a bias that is not zero."""
    return any(bool(node.bias_o.any()) for node in graph if isinstance(node, g.Conv2d | g.Linear))


def with_activations_quantized(graph: g.FloatGraph, network: IntegerNetwork) -> Logits:
    """Return a function that rounds the weights and every activation to their integers, with biases in float."""
    module = GraphModule(with_weights_quantized(graph, network))

    def quantized(node: g.Node, value: torch.Tensor) -> torch.Tensor:
        spec = network.spec(node.name)
        if spec.dtype == "int32":
            return value
        integers = torch.clamp(torch.round(value / spec.scale) + spec.zero_point, spec.lo, spec.hi)
        return (integers - spec.zero_point) * spec.scale

    return lambda images: module.run(images, replace=quantized)[graph.output]


def weight_of(node: g.Node) -> NDArray[np.float32]:
    """Return the weights of a convolution or a linear layer, output channel first."""
    if isinstance(node, g.Conv2d):
        return node.weight_oihw
    assert isinstance(node, g.Linear)
    return node.weight_oi


def _with_weight(node: g.Node, weight: NDArray[np.float64]) -> g.Node:
    if isinstance(node, g.Conv2d):
        return dataclasses.replace(node, weight_oihw=weight.astype(np.float32))
    assert isinstance(node, g.Linear)
    return dataclasses.replace(node, weight_oi=weight.astype(np.float32))


def range_records(
    graph: g.FloatGraph,
    network: IntegerNetwork,
    samples_nchw: NDArray[np.float32],
    scheme: Scheme,
) -> tuple[RangeRecord, ...]:
    """Describe how every weight and activation tensor is quantized, with the noise of that tensor alone.

    Args:
        graph: the float network, folded.
        network: made from it.
        samples_nchw: images over which the noise and the histograms of the activations are taken.
        scheme: how it was made: methods and bits for the record.
    """
    records: list[RangeRecord] = []
    for layer in network:
        if isinstance(layer, n.Accumulating):
            scales = weight_scales(layer, network.spec(layer.inputs[0]))
            weight = weight_of(graph[layer.name])
            noise = SignalToNoise()
            noise.update(weight, layer.weight * scales.reshape((-1,) + (1,) * (weight.ndim - 1)))
            limit = scheme.weight_limit_of(layer.name)
            records.append(
                RangeRecord(
                    name=layer.name,
                    kind="weight",
                    scales=tuple(float(s) for s in scales),
                    zero_point=0,
                    lo=-limit,
                    hi=limit,
                    method=scheme.weight_range,
                    seen_lo=int(layer.weight.min()),
                    seen_hi=int(layer.weight.max()),
                    sqnr_db=noise.db,
                    histogram=_integer_histogram(layer.weight, -limit, limit),
                )
            )
    records.extend(_activation_records(graph, network, samples_nchw, scheme.activation_range))
    return tuple(records)


def _activation_records(
    graph: g.FloatGraph, network: IntegerNetwork, samples_nchw: NDArray[np.float32], method: str
) -> list[RangeRecord]:
    from twoscale._calibration.profile import moves_values

    own = [node.name for node in graph if not moves_values(node) and network.spec(node.name).dtype != "int32"]
    noise = {name: SignalToNoise() for name in own}
    counts = {name: np.zeros(256, np.int64) for name in own}

    def visit(node: g.Node, value: torch.Tensor) -> None:
        if node.name in noise:
            spec = network.spec(node.name)
            real = value.numpy().astype(np.float64)
            integers = np.clip(np.rint(real / spec.scale) + spec.zero_point, spec.lo, spec.hi)
            noise[node.name].update(real, (integers - spec.zero_point) * spec.scale)
            lowest = np.iinfo(spec.dtype).min
            counts[node.name] += np.bincount((integers.astype(np.int64) - lowest).reshape(-1), minlength=256)

    module = GraphModule(graph)
    for start in range(0, len(samples_nchw), 128):
        module.run(torch.from_numpy(samples_nchw[start : start + 128]), visit)
    records = []
    for name in own:
        spec = network.spec(name)
        lowest = int(np.iinfo(spec.dtype).min)
        seen = np.flatnonzero(counts[name]) + lowest
        records.append(
            RangeRecord(
                name=name,
                kind="input" if isinstance(graph[name], g.Input) else "activation",
                scales=(spec.scale,),
                zero_point=spec.zero_point,
                lo=spec.lo,
                hi=spec.hi,
                method=method,
                seen_lo=int(seen.min()),
                seen_hi=int(seen.max()),
                sqnr_db=noise[name].db,
                histogram=Histogram(lowest - 0.5, lowest + 255.5, tuple(int(c) for c in counts[name])),
            )
        )
    return records


def _integer_histogram(values: NDArray[np.int8], lo: int, hi: int) -> Histogram:
    counts = np.bincount(values.astype(np.int64).reshape(-1) - lo, minlength=hi - lo + 1)
    return Histogram(lo - 0.5, hi + 0.5, tuple(int(c) for c in counts))

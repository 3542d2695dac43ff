"""What the range of the weights costs: the range methods compared, and every clip range of every layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._calibration import RangeMethod, choose_weight_scales
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._ir.interpreter import interpret
from twoscale._lab.judge import Judge
from twoscale._lab.records import ClipCurve, ClipPoint, RangeMethodResult
from twoscale._metrics import SignalToNoise
from twoscale._quantization.simulate import weight_of, with_weights

__all__ = ["METHODS", "clip_curves", "compare_methods"]

METHODS = ("minmax", "3-sigma", "percentile-99.9", "mse", "entropy")
_LIMIT = 127
_CLIP_RANGES = 20
_IMAGES = 1000
_MOST_LAYERS = 8
"""Accuracies take _CLIP_RANGES evaluations per layer; deeper networks get the other two numbers only."""


def compare_methods(graph: g.FloatGraph, judge: Judge) -> tuple[RangeMethodResult, ...]:
    """Round all weights to int8 with one scale per layer, each to the nearest integer, by each method."""
    results = []
    for method in METHODS:
        weights, clipped, total, noise = {}, 0, 0, SignalToNoise()
        for name, weight in _weights(graph).items():
            [scale] = choose_weight_scales(
                weight, RangeMethod.parse(method), hi=_LIMIT, per_channel=False, name=f"{name}.weight"
            )
            weights[name], outside = _rounded(weight, float(scale))
            noise.update(weight, weights[name])
            clipped, total = clipped + outside, total + weight.size
        logits = judge.run(GraphModule(with_weights(graph, weights)))
        score = judge.score(logits)
        results.append(
            RangeMethodResult(
                method, clipped / total, noise.db, score.samples, score.top1, score.agreement, score.sqnr_db
            )
        )
    return tuple(results)


def clip_curves(graph: g.FloatGraph, judge: Judge) -> tuple[ClipCurve, ...]:
    """Clip one layer's weights at 100 %, 95 %, ... of its largest magnitude, and leave the other layers in float."""
    found = _weights(graph)
    known = _Known(graph, judge.head(_IMAGES)) if len(found) <= _MOST_LAYERS else None
    curves = []
    for name, weight in found.items():
        widest = float(np.abs(weight).max()) or 1.0
        points = []
        for part in range(_CLIP_RANGES, 0, -1):
            clip = widest * part / _CLIP_RANGES
            rounded, outside = _rounded(weight, clip / _LIMIT)
            noise = SignalToNoise()
            noise.update(weight, rounded)
            top1 = None
            if known is not None:
                top1 = known.top1(with_weights(graph, {name: rounded}), name)
            points.append(ClipPoint(clip, outside / weight.size, noise.db, top1))
        curves.append(ClipCurve(name, known.samples if known else 0, tuple(points)))
    return tuple(curves)


class _Known:
    """Every value of the float network over a few test images, so that only the layers after a change are computed."""

    def __init__(self, graph: g.FloatGraph, judge: Judge) -> None:
        self.labels = judge.labels
        self.samples = len(judge.labels)
        self.values: dict[str, torch.Tensor] = {}

        def visit(node: g.Node, value: torch.Tensor) -> None:
            self.values[node.name] = value

        images = np.concatenate([images for images, _ in judge.batches])
        GraphModule(graph).run(torch.from_numpy(images), visit)

    def top1(self, graph: g.FloatGraph, changed: str) -> float:
        """Return the accuracy of a graph that is the float network up to the layer ``changed``."""
        module = GraphModule(graph)
        start = [node.name for node in graph].index(changed)
        with torch.no_grad():
            [logits] = interpret(graph.nodes[start:], module.compute, (graph.output,), self.values).values()
        return float((logits.argmax(1).numpy() == self.labels).mean())


def _weights(graph: g.FloatGraph) -> Mapping[str, NDArray[np.float32]]:
    return {node.name: weight_of(node) for node in graph if isinstance(node, g.Conv2d | g.Linear)}


def _rounded(weight: NDArray[np.float32], scale: float) -> tuple[NDArray[np.float64], int]:
    """Return the real values of the integers, and how many weights are more than half a step outside their range."""
    steps = weight.astype(np.float64) / scale
    integers = np.clip(np.rint(steps), -_LIMIT, _LIMIT)
    return integers * scale, int(np.count_nonzero(np.abs(steps) > _LIMIT + 0.5))

"""Equalization: moves factors between layers, so that the channels of a tensor have similar ranges.

ReLU, pools, additions and operators that move values commute with a positive factor per channel: f(s·x) = s·f(x). So
a layer's output channel can be divided by s and the weights that read it multiplied by s; the network computes the
same, up to float rounding. Channels share a factor if they are added to each other or hold the same values in another
place. The factors of images and logits, and around ReLU6, tables and products, are 1.

- "weights" (Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019) makes the
  largest weight that produces a channel equal to the largest weight that reads it. It helps if a layer has a single
  weight scale, most of all in depthwise convolutions.
- "activations" gives the channels of each tensor the same range over a few images, so that each channel uses all
  integers of the tensor's single scale. The weights, which have a scale per output channel, absorb the difference (the
  idea of Xiao et al., "SmoothQuant", 2023, applied to convolutions).

Branches of a concatenation that differ a lot are brought closer together by default, by one factor for each branch
(``balance_concatenations``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import float_graph as g
from twoscale.errors import UnknownNameError

__all__ = ["EQUALIZATIONS", "balance_concatenations", "equalize", "with_branch_factors"]

EQUALIZATIONS = ("none", "weights", "activations")
"""Ways to equalize."""

Float64 = NDArray[np.float64]
Ids = NDArray[np.int64]
Weighted = g.Conv2d | g.Linear

_ONE = 0
"""The channel class whose factor is 1."""

_SWEEPS = 100
_CONVERGED = 1e-4
_LARGEST = 16.0
"""Factors stay between 1/16 and 16 times their layer's mean, so that weights lose at most a few bits."""

_IMAGES = 16
"""Images that run through the graph at a time."""

_UNEQUAL = 8.0
"""How many times wider than another a branch of a concatenation is before factors are moved: 3 of its 8 bits."""

_RELU: g.Bounds = (0.0, float("inf"))


def equalize(graph: g.FloatGraph, how: str = "weights", images_nchw: NDArray[np.float32] | None = None) -> g.FloatGraph:
    """Return a graph that computes the same, with channels of more equal ranges.

    Args:
        graph: folded.
        how: "none", "weights" or "activations".
        images_nchw: for "activations": images, float32 (N, C, H, W), over which the ranges are taken.

    Raises:
        UnknownNameError: there is no such way.
        ValueError: "activations" without images.
    """
    if how not in EQUALIZATIONS:
        raise UnknownNameError("equalization", how, EQUALIZATIONS)
    if how == "none":
        return graph
    classes = _Classes(graph)
    if how == "weights":
        factors = _by_weights(graph, classes)
    else:
        if images_nchw is None or not len(images_nchw):
            raise ValueError("equalization of activations needs images")
        factors = _by_activations(graph, classes, images_nchw)
    factors[_ONE] = 1.0
    return _with_factors(graph, classes, factors)


def balance_concatenations(graph: g.FloatGraph, images_nchw: NDArray[np.float32]) -> g.FloatGraph:
    """Return a graph that computes the same, whose concatenated branches have similar ranges.

    A concatenation has one scale, so a branch whose values are a hundred times smaller than another's keeps one bit. If
    the weights that read a narrow branch are larger in turn, its values matter as much. Branch i, with the range rᵢ and
    the largest weight wᵢ that reads it, is divided by fᵢ = √(rᵢ / wᵢ), and those weights are multiplied by it: then
    range and weights are both √(rᵢ·wᵢ), in proportion to what the branch adds to the sums. Only concatenations whose
    branches are more than 8 times apart are changed, and only if that brings them closer together. Without any, the
    graph is returned unchanged.

    Args:
        graph: folded.
        images_nchw: images, float32 (N, C, H, W), over which the ranges are taken.
    """
    concats = [node for node in graph if isinstance(node, g.Concat) and node.axis == 0 and len(node.inputs) > 1]
    if not concats:
        return graph
    classes = _Classes(graph)
    factors: dict[str, float] = {}
    moved = {_ONE}
    ranges = _widest(graph, {name for node in concats for name in node.inputs}, images_nchw)
    readers = _largest_readers(graph, classes)
    for node in concats:
        names = [name for name in dict.fromkeys(node.inputs) if ranges[name] > 0]
        r = np.array([ranges[name] for name in names])
        w = np.array([readers[classes.of[name]].max(initial=0.0) for name in names])
        if len(names) < 2 or r.max() <= _UNEQUAL * r.min() or not w.all():
            continue
        balanced = np.sqrt(r * w)
        if balanced.max() / balanced.min() >= r.max() / r.min():
            continue
        for name, factor in zip(names, np.sqrt(r / w), strict=True):
            ids = set(np.unique(classes.of[name]).tolist())
            if not moved & ids:
                moved |= ids
                factors[name] = float(factor)
    return with_branch_factors(graph, factors) if factors else graph


def with_branch_factors(graph: g.FloatGraph, factors: Mapping[str, float]) -> g.FloatGraph:
    """Return a graph that computes the same, with tensors divided by positive factors.

    Args:
        graph: folded.
        factors: from the name of a concatenated tensor to its factor.

    Raises:
        KeyError: the graph has no such tensor.
    """
    classes = _Classes(graph)
    moved = np.ones(classes.count)
    for name, factor in factors.items():
        moved[np.unique(classes.of[name])] = factor
    moved[_ONE] = 1.0
    return dataclasses.replace(_with_factors(graph, classes, moved), branch_factors=dict(factors))


def _with_factors(graph: g.FloatGraph, classes: _Classes, factors: Float64) -> g.FloatGraph:
    return graph.replaced({node.name: _moved(node, classes, factors) for node in graph if isinstance(node, Weighted)})


def _widest(graph: g.FloatGraph, names: set[str], images_nchw: NDArray[np.float32]) -> dict[str, float]:
    """Return the largest magnitude of each named tensor."""
    import torch

    from twoscale._ir.float_module import GraphModule

    found = dict.fromkeys(names, 0.0)

    def visit(node: g.Node, value: torch.Tensor) -> None:
        if node.name in found:
            found[node.name] = max(found[node.name], float(value.abs().max()))

    module = GraphModule(graph)
    for start in range(0, len(images_nchw), _IMAGES):
        module.run(torch.from_numpy(np.ascontiguousarray(images_nchw[start : start + _IMAGES])), visit)
    return found


def _largest_readers(graph: g.FloatGraph, classes: _Classes) -> Float64:
    """Return the largest weight that reads the channels of each class."""
    found = np.zeros(classes.count)
    for node in graph:
        if isinstance(node, Weighted):
            weight = np.abs(_weight(node))
            columns = _columns(node, classes)
            np.maximum.at(found, columns, weight.reshape(*columns.shape, -1).max(2).astype(np.float64))
    return found


class _Classes:
    """The channels of tensors that share a factor.

    ``of[name]`` holds the class of each position along a tensor's first dimension.
    """

    def __init__(self, graph: g.FloatGraph) -> None:
        self._parents = [_ONE]
        self._raw: dict[str, Ids] = {}
        for node in graph:
            inputs = [self._raw[name] for name in node.inputs]
            ids = _IDS.get(type(node), _fixed)(self, node, inputs, graph)
            bounds = getattr(node, "bounds", g.UNBOUNDED)
            if bounds not in (g.UNBOUNDED, _RELU) or node.name in graph.outputs:
                ids = self.join(ids, np.zeros_like(ids))
            self._raw[node.name] = ids
        self.of = {name: np.array([self._find(i) for i in ids], np.int64) for name, ids in self._raw.items()}
        self.count = len(self._parents)

    def fresh(self, count: int) -> Ids:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def join(self, a: Ids, b: Ids) -> Ids:
        for i, j in zip(a, b, strict=True):
            i, j = sorted((self._find(int(i)), self._find(int(j))))
            self._parents[j] = i
        return a

    def fix(self, *several: Ids) -> None:
        for ids in several:
            self.join(ids, np.zeros_like(ids))

    def _find(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i


_Rule = Callable[[_Classes, Any, list[Ids], g.FloatGraph], Ids]


def _fixed(c: _Classes, node: g.Node, x: list[Ids], graph: g.FloatGraph) -> Ids:
    c.fix(*x)
    return np.zeros(node.shape[0], np.int64)


def _same(c: _Classes, node: g.Node, x: list[Ids], graph: g.FloatGraph) -> Ids:
    return x[0]


def _weighted(c: _Classes, node: g.Node, x: list[Ids], graph: g.FloatGraph) -> Ids:
    if isinstance(node, g.Linear) and len(node.shape) != 1:
        return _fixed(c, node, x, graph)
    out = c.fresh(node.shape[0])
    return c.join(out, x[1]) if len(x) == 2 else out


def _add(c: _Classes, node: g.Add, x: list[Ids], graph: g.FloatGraph) -> Ids:
    return c.join(x[0], x[1])


def _concat(c: _Classes, node: g.Concat, x: list[Ids], graph: g.FloatGraph) -> Ids:
    if node.axis == 0:
        return np.concatenate(x)
    for other in x[1:]:
        c.join(x[0], other)
    return x[0]


def _reshape(c: _Classes, node: g.Reshape, x: list[Ids], graph: g.FloatGraph) -> Ids:
    before = graph[node.inputs[0]].shape
    if node.shape[0] == before[0]:
        return x[0]
    if len(node.shape) == 1:
        return np.repeat(x[0], node.shape[0] // before[0])
    return _fixed(c, node, x, graph)


def _permute(c: _Classes, node: g.Permute, x: list[Ids], graph: g.FloatGraph) -> Ids:
    return x[0] if node.axes[0] == 0 else _fixed(c, node, x, graph)


def _slice(c: _Classes, node: g.Slice, x: list[Ids], graph: g.FloatGraph) -> Ids:
    return x[0][node.start : node.stop : node.step] if node.axis == 0 else x[0]


def _pad(c: _Classes, node: g.Pad, x: list[Ids], graph: g.FloatGraph) -> Ids:
    before, after = node.widths[0]
    return np.concatenate([c.fresh(before), x[0], c.fresh(after)])


_IDS: dict[type[g.Node], _Rule] = {
    g.Conv2d: _weighted,
    g.Linear: _weighted,
    g.Add: _add,
    g.Clamp: _same,
    g.MaxPool2d: _same,
    g.AveragePool2d: _same,
    g.Concat: _concat,
    g.Reshape: _reshape,
    g.Permute: _permute,
    g.Slice: _slice,
    g.Pad: _pad,
}


def _weight(node: Weighted) -> NDArray[np.float32]:
    return node.weight_oihw if isinstance(node, g.Conv2d) else node.weight_oi


def _columns(node: Weighted, classes: _Classes) -> Ids:
    """Return the class of the channel that each weight reads, (O, I) without the groups' other channels."""
    read = classes.of[node.inputs[0]]
    weight = _weight(node)
    if isinstance(node, g.Linear) and len(node.shape) != 1:
        return np.zeros(weight.shape, np.int64)
    groups = node.groups if isinstance(node, g.Conv2d) else 1
    return np.repeat(read.reshape(groups, -1), weight.shape[0] // groups, axis=0)


def _made(node: Weighted, classes: _Classes) -> Ids:
    """Return the class of each output channel."""
    if isinstance(node, g.Linear) and len(node.shape) != 1:
        return np.zeros(len(node.bias_o), np.int64)
    return classes.of[node.name]


def _moved(node: Weighted, classes: _Classes, factors: Float64) -> g.Node:
    read, made = factors[_columns(node, classes)], factors[_made(node, classes)]
    weight = _weight(node).astype(np.float64)
    scaled = weight * (read / made[:, None]).reshape(*read.shape, *[1] * (weight.ndim - 2))
    name = "weight_oihw" if isinstance(node, g.Conv2d) else "weight_oi"
    changes: dict[str, Any] = {name: scaled.astype(np.float32)}
    return dataclasses.replace(node, bias_o=(node.bias_o / made).astype(np.float32), **changes)


def _by_weights(graph: g.FloatGraph, classes: _Classes) -> Float64:
    """Find factors that make the largest weights before and after each channel equal, for all channels together."""
    layers = [
        (
            np.abs(_weight(node)).reshape(*_weight(node).shape[:2], -1).max(2).astype(np.float64),
            _columns(node, classes),
            _made(node, classes),
        )
        for node in graph
        if isinstance(node, Weighted)
    ]
    factors = np.ones(classes.count)
    for _ in range(_SWEEPS):
        making, reading = np.zeros(classes.count), np.zeros(classes.count)
        for widest, read, made in layers:
            now = widest * factors[read] / factors[made][:, None]
            np.maximum.at(making, made, now.max(1))
            np.maximum.at(reading, read, now)
        used = (making > 0) & (reading > 0)
        used[_ONE] = False
        # √(making / reading) would be right for a single channel. Its neighbours change too, so go half the way.
        step = np.where(used, making, 1.0) / np.where(used, reading, 1.0)
        factors *= step**0.25
        if np.abs(np.log(step)).max() < _CONVERGED:
            break
    return factors


def _by_activations(graph: g.FloatGraph, classes: _Classes, images_nchw: NDArray[np.float32]) -> Float64:
    """Find factors that give the channels of each tensor the same largest magnitude.

    Tensors that share factors (a residual stream) have equal weight.
    """
    import torch

    from twoscale._ir.float_module import GraphModule

    total, voices = np.zeros(classes.count), np.zeros(classes.count)

    def visit(node: g.Node, value: torch.Tensor) -> None:
        if not isinstance(node, Weighted | g.Add):
            return
        widest = value.abs().amax([0, *range(2, value.ndim)]).double().numpy()
        alive = widest > 0
        if alive.any() and (len(node.shape) == 1 or isinstance(node, g.Conv2d | g.Add)):
            relative = np.log(widest[alive])
            ids = classes.of[node.name][alive]
            np.add.at(total, ids, relative - relative.mean())
            np.add.at(voices, ids, 1.0)

    GraphModule(graph).run(torch.from_numpy(np.ascontiguousarray(images_nchw)), visit)
    factors: Float64 = np.exp(np.clip(total / np.maximum(voices, 1.0), -np.log(_LARGEST), np.log(_LARGEST)))
    return factors

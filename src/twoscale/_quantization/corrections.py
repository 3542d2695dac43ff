"""Corrections that raise the accuracy after rounding to the nearest. They do not change the network's scales.

Both visit the layers once, in order, and run the integer and the float network side by side over a few hundred
calibration images. So each layer is corrected for its actual inputs, from corrected layers.

- Error feedback rounds weights one input after the other and distributes each error over the weights not yet rounded,
which minimizes the layer's *output* error (Frantar et al., "GPTQ", 2022; it is the closed form of
  Hassibi and Stork's optimal brain surgeon for rounding).
- Bias correction adjusts each channel's bias so that its mean output is that of the float network (Nagel et al.,
  "Data-free quantization through weight equalization and bias correction", 2019; here the means are measured, after the
  ReLU). A ReLU turns noise around zero into a positive mean, which accumulates in sums of many inputs. Subtracting the
  mean before the ReLU would also reduce large activations and all logits.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from twoscale._calibration.memory import DEFAULT_MEMORY, images_within
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.interpreter import interpret
from twoscale._progress import report
from twoscale._quantization.error_feedback import FewSamples, SecondMoments, blocks_of, feed_back
from twoscale._quantization.plan import Plan
from twoscale._quantization.scales import quantize_bias, weight_scales
from twoscale._quantization.scheme import Scheme
from twoscale._runtimes.torch import TorchExecutor, exact_arithmetic

__all__ = ["correct", "correct_layer"]

Float64 = NDArray[np.float64]

_FEWEST_IMAGES = 8

_CHUNK = 32
"""Images whose patches are in memory at a time."""

_CACHED = 1 << 18
"""Values of the channels whose shifts are found together, so that they stay in the cache."""

_POSITIONS = 1 << 9
"""Positions of an image over which the mean of a channel is taken, at least. Both networks are compared at the same
positions, so the difference of the means is off by their rounding errors only, not by the values."""

_NEWTON_STEPS = 2
_LEAST_BETWEEN = 0.02
"""Least fraction of a channel's values assumed between its bounds, so that channels that are nearly always clamped
converge."""

_LEAST_COLUMNS = 1 << 13
_COLUMNS_PER_WEIGHT = 4
"""Number of columns (image positions) over which second moments are taken: at least this many, and this many per
weight."""

_FEW = 4
"""A linear layer has few samples if it has this many times as many inputs."""

_STRIP = 256
"""Rows of second moments computed together. What is below the diagonal is the mirror image of what is above it."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """A tensor over the calibration images, in both networks."""

    real: torch.Tensor
    integer: torch.Tensor


def correct(
    network: IntegerNetwork, plan: Plan, samples_nchw: NDArray[np.float32], *, memory: int = DEFAULT_MEMORY
) -> IntegerNetwork:
    """Return the network with the corrections that the plan's scheme asks for.

    Args:
        network: from ``build`` with the same plan.
        plan: from which it was built.
        samples_nchw: calibration images, float32 (N, C, H, W); the first ones whose tensors between layers fit into
            ``memory`` are used, at least 8.
        memory: bytes.
    """
    scheme = plan.scheme
    if not (scheme.error_feedback or scheme.bias_correction) or not len(samples_nchw):
        return network
    module, executor = GraphModule(plan.graph), TorchExecutor(network, exact=False)
    count = max(_FEWEST_IMAGES, images_within(plan.graph, memory, networks=2))
    images = torch.from_numpy(np.ascontiguousarray(samples_nchw[:count]))
    corrected: dict[str, n.Layer] = {}

    def compute(layer: n.Layer, inputs: list[_Pair]) -> _Pair:
        report("correcting layers", len(corrected), len(network.layers))
        node = plan.graph[layer.name]
        x_integer = [x.integer for x in inputs]
        real = module.compute(node, [x.real for x in inputs]) if inputs else images
        if isinstance(layer, n.Accumulating) and isinstance(node, g.Conv2d | g.Linear):
            found = correct_layer(layer, node, scheme, real, executor, x_integer)
            corrected[layer.name] = found.layer
            return _Pair(real, executor.requantized(found.layer, found.accumulators, x_integer))
        corrected[layer.name] = layer
        return _Pair(real, executor.compute(layer, x_integer or [images]))

    with exact_arithmetic(executor.device):
        interpret(network.layers, compute)
    return dataclasses.replace(network, layers=tuple(corrected[layer.name] for layer in network))


@dataclass(frozen=True, eq=False)
class CorrectedLayer:
    """A layer with corrections, and its accumulators over the calibration images."""

    layer: n.Accumulating
    accumulators: torch.Tensor


def correct_layer(
    layer: n.Accumulating,
    node: g.Conv2d | g.Linear,
    scheme: Scheme,
    real: torch.Tensor,
    executor: TorchExecutor,
    x_integer: list[torch.Tensor],
) -> CorrectedLayer:
    """Return a layer with the corrections that the scheme asks for.

    Args:
        layer: rounded to the nearest.
        node: the same layer before rounding.
        scheme: which corrections, and how many bits the layer has.
        real: output of ``node`` in the float network, over the calibration images.
        executor: computes ``layer``. Its network has the quantization of the layer's inputs.
        x_integer: inputs of the layer in the integer network.
    """
    specs = executor.network.spec
    shifted = executor.shifted(layer, x_integer)
    scales = weight_scales(layer, specs(layer.inputs[0]))
    if scheme.error_feedback:
        layer = _with_error_feedback(layer, node, scales, shifted, scheme.weight_limit_of(layer.name))
    accumulators = executor.accumulate(layer, shifted)
    if scheme.bias_correction:
        unit = np.broadcast_to(specs(layer.inputs[0]).scale * scales, layer.bias_o.shape)
        residual = None
        if len(layer.inputs) == 2:  # the accumulators compensate for the error of the residual too
            residual = executor.shifted(layer, x_integer, 1), specs(layer.inputs[1]).scale
        shift = _shifts_to_means(accumulators, unit, residual, real, node.bounds)
        bias = quantize_bias(layer.name, shift + layer.bias_o * unit, unit)
        change = torch.from_numpy((bias.astype(np.int64) - layer.bias_o).astype(np.float32))
        accumulators += change.reshape(-1, *[1] * (accumulators.ndim - 2))
        layer = dataclasses.replace(layer, bias_o=bias)
    return CorrectedLayer(layer, accumulators)


def _shifts_to_means(
    accumulators: torch.Tensor,
    unit: Float64,
    residual: tuple[torch.Tensor, float] | None,
    real: torch.Tensor,
    bounds: g.Bounds,
) -> Float64:
    """Return the shift of each channel with which the mean of its outputs is that of the float network, (O,).

    Args:
        accumulators: (N, O, ...).
        unit: (O,) values of one step of them.
        residual: integers (N, O, ...) that are added, and the value of one step of them.
        real: outputs of the float network, (N, O, ...), within the bounds.
        bounds: to which the sum is clamped.
    """
    shifts = np.zeros(unit.shape)
    where = _sampled(accumulators.shape[2:])
    values = accumulators[:, 0][(slice(None), *where)].numel()
    width = max(1, _CACHED // values)
    for start in range(0, len(unit), width):
        part = slice(start, start + width)

        def rows(x: torch.Tensor, part: slice = part) -> torch.Tensor:
            return x[(slice(None), part, *where)].transpose(0, 1).flatten(1)

        x = rows(accumulators).float() * torch.from_numpy(unit[part].astype(np.float32))[:, None]
        if residual is not None:
            x.add_(rows(residual[0]), alpha=residual[1])
        shifts[part] = _shift_to_means(x, _means(rows(real)), bounds).numpy()
    return shifts


def _sampled(size: torch.Size) -> tuple[slice, ...]:
    """Return which positions of an image are used: every n-th in each direction, from the middle of the first n."""
    thin = int((math.prod(size) / _POSITIONS) ** (1 / max(1, len(size))))
    steps = [max(1, min(thin, extent)) for extent in size]
    return tuple(slice(step // 2, None, step) for step in steps)


def _means(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1).double() / x.shape[1]  # torch sums in pairs, and ten times faster than in float64


def _shift_to_means(x: torch.Tensor, means: torch.Tensor, bounds: g.Bounds) -> torch.Tensor:
    """Return the shifts of the rows of x with which clamp(x, bounds) has these means.

    By Newton's method: the derivative of a mean is the fraction of values between the bounds.
    """
    if bounds == g.UNBOUNDED:
        return means - _means(x)
    shift = torch.zeros_like(means)
    moved, clamped = torch.empty_like(x), torch.empty_like(x)
    for _ in range(_NEWTON_STEPS):
        torch.add(x, shift.float()[:, None], out=moved)
        torch.clamp(moved, *bounds, out=clamped)
        change = means - _means(clamped)
        between = _means(torch.eq(moved, clamped, out=moved))
        shift += change / between.clamp(min=_LEAST_BETWEEN)
    return shift


def _with_error_feedback(
    layer: n.Accumulating, node: g.Conv2d | g.Linear, scales: Float64, shifted: torch.Tensor, limit: int
) -> n.Accumulating:
    weight = node.weight_oihw if isinstance(node, g.Conv2d) else node.weight_oi
    groups = node.groups if isinstance(node, g.Conv2d) else 1
    steps = np.broadcast_to(scales, layer.bias_o.shape).reshape(groups, -1).astype(np.float32)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    if isinstance(layer, n.Linear) and _FEW * len(shifted) <= rows.shape[2]:
        rounded = feed_back(rows, steps, FewSamples(shifted.float().numpy()), limit)
    else:
        parts = [
            feed_back(rows[..., part], steps, SecondMoments(_second_moments(layer, shifted, part)), limit)
            for part in blocks_of(rows.shape[2])
        ]
        rounded = np.concatenate(parts, 2)
    return dataclasses.replace(layer, weight=rounded.reshape(weight.shape))


def _second_moments(layer: n.Accumulating, shifted: torch.Tensor, part: slice) -> NDArray[np.float32]:
    """Return Σ x·xᵀ of those of a layer's K inputs that are in ``part``, (groups, part, part).

    A convolution uses only as many positions as needed for a good estimate, because neighbouring positions are
    similar.
    """
    width = part.stop - part.start
    if not isinstance(layer, n.Conv2d):
        total = torch.zeros(1, width, width)
        _add_products(total, shifted[:, part].float().T[None])
        return _mirrored(total).numpy()
    size = layer.weight[0].size
    positions = layer.output.shape[1] * layer.output.shape[2]
    wanted = max(_LEAST_COLUMNS, _COLUMNS_PER_WEIGHT * size) / len(shifted)
    thin = max(1, int(math.sqrt(positions / wanted)))
    stride = (layer.stride[0] * thin, layer.stride[1] * thin)
    total = torch.zeros(layer.groups, width, width)
    for index, images in enumerate(torch.split(shifted, _CHUNK)):
        # Each chunk starts at another point of the grid, so that no position is always left out.
        down, across = layer.stride[0] * (index % thin), layer.stride[1] * (index // thin % thin)
        columns = _columns(layer, images, stride, down, across)  # (N, G·K, positions)
        grouped = columns.reshape(len(images), layer.groups, size, -1)[:, :, part].permute(1, 2, 0, 3).flatten(2)
        _add_products(total, grouped)
    return _mirrored(total).numpy()


def _columns(layer: n.Conv2d, images: torch.Tensor, stride: tuple[int, int], down: int, across: int) -> torch.Tensor:
    """Return the inputs of a convolution at the positions from (down, across) on, (N, G·K, positions)."""
    top, left, bottom, right = layer.padding
    if layer.weight.shape[2:] == (1, 1) and not any(layer.padding):
        return images[:, :, down :: stride[0], across :: stride[1]].flatten(2)
    if (top, left) == (bottom, right) and not (down or across):  # without a padded copy
        return F.unfold(images, layer.weight.shape[2:], layer.dilation, (top, left), stride)
    padded = F.pad(images, (left, right, top, bottom))[:, :, down:, across:]
    return F.unfold(padded, layer.weight.shape[2:], layer.dilation, 0, stride)


def _add_products(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add x·xᵀ of x (G, K, samples) to total (G, K, K): only the strips from the diagonal on."""
    for start in range(0, x.shape[1], _STRIP):
        strip = slice(start, start + _STRIP)
        total[:, strip, start:] += x[:, strip] @ x[:, start:].mT


def _mirrored(total: torch.Tensor) -> torch.Tensor:
    """Fill in the products before the diagonal."""
    for stop in range(_STRIP, total.shape[1], _STRIP):
        strip = slice(stop - _STRIP, stop)
        total[:, stop:, strip] = total[:, strip, stop:].mT
    return total

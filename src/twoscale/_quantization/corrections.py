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
from twoscale._quantization.error_feedback import blocks_of, feed_back
from twoscale._quantization.plan import Plan
from twoscale._quantization.scales import quantize_bias, weight_scales
from twoscale._quantization.scheme import Scheme
from twoscale._runtimes.torch import TorchExecutor

__all__ = ["correct", "correct_layer"]

Float64 = NDArray[np.float64]

_FEWEST_IMAGES = 8

_CHUNK = 32
"""Images whose patches are in memory at a time."""

_NEWTON_STEPS = 4
_LEAST_BETWEEN = 0.02
"""Least fraction of a channel's values assumed between its bounds, so that channels that are nearly always clamped
converge."""

_LEAST_COLUMNS = 1 << 14
_COLUMNS_PER_WEIGHT = 16
"""Number of columns (image positions) over which second moments are taken: at least this many, and this many per
weight."""


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
    module, executor = GraphModule(plan.graph), TorchExecutor(network)
    count = max(_FEWEST_IMAGES, images_within(plan.graph, memory, networks=2))
    images = torch.from_numpy(np.ascontiguousarray(samples_nchw[:count]))
    corrected: dict[str, n.Layer] = {}

    def compute(layer: n.Layer, inputs: list[_Pair]) -> _Pair:
        node = plan.graph[layer.name]
        x_real, x_integer = [x.real for x in inputs], [x.integer for x in inputs]
        if isinstance(layer, n.Accumulating) and isinstance(node, g.Conv2d | g.Linear):
            layer = correct_layer(layer, node, scheme, module, executor, x_real, x_integer)
        corrected[layer.name] = layer
        real = module.compute(node, x_real) if inputs else images
        return _Pair(real, executor.compute(layer, x_integer or [images]))

    with torch.no_grad():
        interpret(network.layers, compute)
    return dataclasses.replace(network, layers=tuple(corrected[layer.name] for layer in network))


def correct_layer(
    layer: n.Accumulating,
    node: g.Conv2d | g.Linear,
    scheme: Scheme,
    module: GraphModule,
    executor: TorchExecutor,
    x_real: list[torch.Tensor],
    x_integer: list[torch.Tensor],
) -> n.Accumulating:
    """Return a layer with the corrections that the scheme asks for.

    Args:
        layer: rounded to the nearest.
        node: the same layer before rounding.
        scheme: which corrections, and how many bits the layer has.
        module: computes ``node``.
        executor: computes ``layer``. Its network has the quantization of the layer's inputs.
        x_real: inputs of the layer in the float network, over the calibration images.
        x_integer: inputs of the layer in the integer network.
    """
    specs = executor.network.spec
    shifted = executor.shifted(layer, x_integer)
    scales = weight_scales(layer, specs(layer.inputs[0]))
    if scheme.error_feedback:
        layer = _with_error_feedback(layer, node, scales, shifted, scheme.weight_limit_of(layer.name))
    if scheme.bias_correction:
        unit = specs(layer.inputs[0]).scale * scales
        found = executor.accumulate(layer, shifted).float()
        steps = torch.from_numpy(np.broadcast_to(unit, layer.bias_o.shape).astype(np.float32))
        found *= _along_channels(steps, found)
        if len(layer.inputs) == 2:  # the accumulators compensate for the error of the residual too
            found += executor.shifted(layer, x_integer, 1).float() * specs(layer.inputs[1]).scale
        shift = _shift_to_means(found, _channel_means(module.compute(node, x_real)), node.bounds)
        bias = quantize_bias(layer.name, shift.numpy() + layer.bias_o * unit, unit)
        layer = dataclasses.replace(layer, bias_o=bias)
    return layer


def _shift_to_means(x: torch.Tensor, means: torch.Tensor, bounds: g.Bounds) -> torch.Tensor:
    """Return the shifts of the channels of x (N, O, ...) with which clamp(x, bounds) has these means.

    By Newton's method: the derivative of a mean is the fraction of values between the bounds.
    """
    if bounds == g.UNBOUNDED:
        return means - _channel_means(x)
    shift = torch.zeros_like(means)
    for _ in range(_NEWTON_STEPS):
        moved = x + _along_channels(shift.float(), x)
        between = _channel_means((moved > bounds[0]) & (moved < bounds[1]))
        shift += (means - _channel_means(moved.clamp_(*bounds))) / between.clamp(min=_LEAST_BETWEEN)
    return shift


def _along_channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _channel_means(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of each channel of (N, O, ...), (O,) in float64."""
    return x.mean([0, *range(2, x.ndim)], dtype=torch.float64)


def _with_error_feedback(
    layer: n.Accumulating, node: g.Conv2d | g.Linear, scales: Float64, shifted: torch.Tensor, limit: int
) -> n.Accumulating:
    weight = node.weight_oihw if isinstance(node, g.Conv2d) else node.weight_oi
    groups = node.groups if isinstance(node, g.Conv2d) else 1
    steps = np.broadcast_to(scales, layer.bias_o.shape).reshape(groups, -1, 1)
    wanted = (weight.reshape(groups, weight.shape[0] // groups, -1) / steps).astype(np.float32)
    rounded = np.empty_like(wanted)
    for part in blocks_of(wanted.shape[2]):
        rounded[..., part] = feed_back(wanted[..., part], _second_moments(layer, shifted, part), limit)
    return dataclasses.replace(layer, weight=rounded.astype(np.int8).reshape(weight.shape))


def _second_moments(layer: n.Accumulating, shifted: torch.Tensor, part: slice) -> NDArray[np.float32]:
    """Return Σ x·xᵀ of those of a layer's K inputs that are in ``part``, (groups, part, part).

    A convolution uses only as many positions as needed for a good estimate, because neighbouring positions are
    similar.
    """
    if not isinstance(layer, n.Conv2d):
        x = shifted[:, part].float()
        return (x.T @ x).numpy()[None]
    size = layer.weight[0].size
    top, left, bottom, right = layer.padding
    positions = layer.output.shape[1] * layer.output.shape[2]
    wanted = max(_LEAST_COLUMNS, _COLUMNS_PER_WEIGHT * size) / len(shifted)
    thin = max(1, int(math.sqrt(positions / wanted)))
    stride = (layer.stride[0] * thin, layer.stride[1] * thin)
    width = part.stop - part.start
    total = torch.zeros(layer.groups, width, width)
    for index, images in enumerate(torch.split(shifted, _CHUNK)):
        # Each chunk starts at another point of the grid, so that no position is always left out.
        down, across = layer.stride[0] * (index % thin), layer.stride[1] * (index // thin % thin)
        padded = F.pad(images, (left, right, top, bottom))[:, :, down:, across:]
        columns = F.unfold(padded, layer.weight.shape[2:], layer.dilation, 0, stride)  # (N, G·K, positions)
        grouped = columns.reshape(len(images), layer.groups, size, -1)[:, :, part].permute(1, 2, 0, 3).flatten(2)
        total.baddbmm_(grouped, grouped.mT)
    return total.numpy()

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from twoscale._calibration.memory import DEFAULT_MEMORY, images_within
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule, channels_last
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

_CHUNK = 1 << 21
"""Values of a tensor that are computed at a time. The memory of such tensors is used again and again; larger ones would
get new pages from the operating system every time, which takes as long as computing them."""

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
"""Columns (image positions) over which second moments are taken, at least: 7 per input of the widest part."""

_FEW = 4
"""A linear layer has few samples if it has this many times as many inputs."""

_SAME_POSITIONS = 8
"""Most images whose second moments are taken at the same positions."""

_STRIP = 256
"""Rows of second moments computed together. What is below the diagonal is the mirror image of what is above it."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """A tensor over the calibration images, in both networks: float32, and the type of the integers."""

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
    images = channels_last(torch.from_numpy(np.ascontiguousarray(samples_nchw[:count])))
    given = network.given(images)
    corrected: dict[str, n.Layer] = {}

    def compute(layer: n.Layer, inputs: list[_Pair]) -> _Pair:
        report("correcting layers", len(corrected), len(network.layers))
        node = plan.graph[layer.name]
        x_integer = [x.integer for x in inputs] or [given[layer.name]]
        real = x_integer[0]
        if inputs:
            real = _in_parts(lambda x: module.compute(node, x), [x.real for x in inputs])
        if isinstance(layer, n.Accumulating) and isinstance(node, g.Conv2d | g.Linear):
            found = correct_layer(layer, node, scheme, real, executor, x_integer)
            corrected[layer.name] = found.layer
            return _Pair(real, found.integers(executor, x_integer))
        corrected[layer.name] = layer
        return _Pair(real, _in_parts(lambda x: executor.compute(layer, x), x_integer, layer.output.dtype))

    with exact_arithmetic(executor.device):
        interpret(network.layers, compute)
    return dataclasses.replace(network, layers=tuple(corrected[layer.name] for layer in network))


def _in_parts(
    compute: Callable[[list[torch.Tensor]], torch.Tensor], inputs: Sequence[torch.Tensor], dtype: str = ""
) -> torch.Tensor:
    """Return ``compute`` of the inputs (N, ...), a few images at a time.

    Args:
        compute: takes float tensors.
        inputs: float tensors, or integers that are converted.
        dtype: of the result, where that is an 8-bit type; otherwise it is the type computed.
    """
    whole: torch.Tensor | None = None
    count = len(inputs[0])
    step = _images_of(*inputs)
    start = 0
    while start < count:
        found = compute([x[start : start + step].float() for x in inputs])
        if whole is None:
            kind = {"uint8": torch.uint8, "int8": torch.int8}.get(dtype, found.dtype)
            whole = _like(found, count, kind)
        whole[start : start + step] = found
        start += step
        step = _images_of(*inputs, whole)
    assert whole is not None
    return whole


def _like(part: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Return an empty tensor for ``count`` images, in the memory format of the result of some."""
    last = part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        (count, *part.shape[1:]),
        dtype=dtype,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _images_of(*tensors: torch.Tensor) -> int:
    """Return how many images of these tensors (N, ...) are computed at a time."""
    return max(1, min(_CHUNK // max(1, math.prod(x.shape[1:])) for x in tensors))


@dataclass(frozen=True, eq=False)
class CorrectedLayer:
    """A layer with corrections, and its accumulators over the calibration images with the bias of before."""

    layer: n.Accumulating
    accumulators: torch.Tensor
    change: torch.Tensor
    """Of the bias, float32 (O, 1, ...)."""

    def integers(self, executor: TorchExecutor, x_integer: list[torch.Tensor]) -> torch.Tensor:
        """Return the output of the layer; arguments as for ``correct_layer``."""
        return _in_parts(
            lambda x: executor.requantized(self.layer, x[0] + self.change, x[1:]),
            [self.accumulators, *x_integer],
            self.layer.output.dtype,
        )


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
        x_integer: inputs of the layer in the integer network, of any type.
    """
    specs = executor.network.spec
    x = x_integer[0]
    scales = weight_scales(layer, specs(layer.inputs[0]))
    if scheme.error_feedback:
        zero_point = specs(layer.inputs[0]).zero_point
        layer = _with_error_feedback(layer, node, scales, x, zero_point, scheme.weight_limit_of(layer.name))
    accumulators = _in_parts(lambda x: executor.accumulate(layer, executor.shifted(layer, x)), [x])
    change = torch.zeros(1)
    if scheme.bias_correction:
        unit = np.broadcast_to(specs(layer.inputs[0]).scale * scales, layer.bias_o.shape)
        residual = None
        if len(layer.inputs) == 2:  # the accumulators compensate for the error of the residual too
            residual = x_integer[1], specs(layer.inputs[1])
        shift = _shifts_to_means(accumulators, unit, residual, real, node.bounds)
        bias = quantize_bias(layer.name, shift + layer.bias_o * unit, unit)
        change = torch.from_numpy((bias.astype(np.int64) - layer.bias_o).astype(np.float32))
        change = change.reshape(-1, *[1] * (accumulators.ndim - 2))
        layer = dataclasses.replace(layer, bias_o=bias)
    return CorrectedLayer(layer, accumulators, change)


def _shifts_to_means(
    accumulators: torch.Tensor,
    unit: Float64,
    residual: tuple[torch.Tensor, n.TensorSpec] | None,
    real: torch.Tensor,
    bounds: g.Bounds,
) -> Float64:
    """Return the shift of each channel with which the mean of its outputs is that of the float network, (O,).

    Args:
        accumulators: (N, O, ...).
        unit: (O,) values of one step of them.
        residual: integers (N, O, ...) that are added, and what they stand for.
        real: outputs of the float network, (N, O, ...), within the bounds.
        bounds: to which the sum is clamped.
    """
    shifts = np.zeros(unit.shape)
    where = _sampled(accumulators.shape[2:])

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x[(slice(None), slice(None), *where)].transpose(0, 1).flatten(1).float()

    means = _means(rows(real))
    sums = rows(accumulators) * torch.from_numpy(unit.astype(np.float32))[:, None]
    if residual is not None:
        integers, spec = residual
        sums.add_(rows(integers) - spec.zero_point, alpha=spec.scale)
    width = max(1, _CACHED // sums.shape[1])
    for start in range(0, len(unit), width):
        part = slice(start, start + width)
        shifts[part] = _shift_to_means(sums[part], means[part], bounds).numpy()
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
    layer: n.Accumulating, node: g.Conv2d | g.Linear, scales: Float64, x: torch.Tensor, zero_point: int, limit: int
) -> n.Accumulating:
    weight = node.weight_oihw if isinstance(node, g.Conv2d) else node.weight_oi
    groups = node.groups if isinstance(node, g.Conv2d) else 1
    steps = np.broadcast_to(scales, layer.bias_o.shape).reshape(groups, -1).astype(np.float32)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    if isinstance(layer, n.Linear) and _FEW * len(x) <= rows.shape[2]:
        rounded = feed_back(rows, steps, FewSamples((x.float() - zero_point).numpy()), limit)
    else:
        parts = blocks_of(rows.shape[2])
        moments = _second_moments(layer, x, zero_point, parts)
        rounded = np.empty(rows.shape, np.int8)
        for part in parts:  # the moments of a part are freed when it is rounded
            rounded[..., part] = feed_back(rows[..., part], steps, SecondMoments(moments.pop(0)), limit)
    return dataclasses.replace(layer, weight=rounded.reshape(weight.shape))


def _second_moments(
    layer: n.Accumulating, x: torch.Tensor, zero_point: int, parts: Sequence[slice]
) -> list[NDArray[np.float32]]:
    """Return Σ x·xᵀ of a layer's K inputs, (groups, part, part) for each part of them.

    A convolution uses only as many positions as needed for a good estimate, because neighbouring positions are
    similar.

    Args:
        layer: whose inputs they are.
        x: the integers (N, ...) that it reads.
        zero_point: of the integers.
        parts: of the inputs.
    """
    groups = layer.groups if isinstance(layer, n.Conv2d) else 1
    totals = [torch.zeros(groups, part.stop - part.start, part.stop - part.start) for part in parts]
    if not isinstance(layer, n.Conv2d):
        samples = (x.float() - zero_point).T[None]
        for part, total in zip(parts, totals, strict=True):
            _add_products(total, samples[:, part])
        return [_mirrored(total).numpy() for total in totals]
    size = layer.weight[0].size
    positions = layer.output.shape[1] * layer.output.shape[2]
    thin = max(1, int(math.sqrt(positions * len(x) / _LEAST_COLUMNS)))
    stride = (layer.stride[0] * thin, layer.stride[1] * thin)
    values = max(math.prod(x.shape[1:]), groups * size * positions // thin**2)
    for index, images in enumerate(torch.split(x, max(1, min(_SAME_POSITIONS, _CHUNK // values)))):
        # Each chunk starts at another point of the grid, so that no position is always left out.
        down, across = layer.stride[0] * (index % thin), layer.stride[1] * (index // thin % thin)
        columns = _columns(layer, images, zero_point, stride, down, across)  # (N, G·K, positions)
        grouped = columns.reshape(len(images), groups, size, -1).permute(1, 2, 0, 3).flatten(2).float() - zero_point
        for part, total in zip(parts, totals, strict=True):
            _add_products(total, grouped[:, part])
    return [_mirrored(total).numpy() for total in totals]


def _columns(
    layer: n.Conv2d, images: torch.Tensor, zero_point: int, stride: tuple[int, int], down: int, across: int
) -> torch.Tensor:
    """Return the inputs of a convolution at the positions from (down, across) on, (N, G·K, positions).

    ``F.unfold`` takes floats only, and all of the images; here only what is needed is copied.
    """
    top, left, bottom, right = layer.padding
    if any(layer.padding):
        images = F.pad(images, (left, right, top, bottom), value=zero_point)
    kernel, (apart_h, apart_w) = layer.weight.shape[2:], layer.dilation
    height = images.shape[2] - apart_h * (kernel[0] - 1)
    width = images.shape[3] - apart_w * (kernel[1] - 1)
    windows = [
        images[:, :, row + down : row + height : stride[0], column + across : column + width : stride[1]]
        for row in range(0, kernel[0] * apart_h, apart_h)
        for column in range(0, kernel[1] * apart_w, apart_w)
    ]
    return torch.stack(windows, 2).flatten(3).flatten(1, 2)


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

"""The torch executor: computes the network's integers in floating point, at full speed.

A sum of products whose bound, equation (13), is below 2**24 is exact in float32 in any order of summation. The others
are computed in float64. Requantization is exact in float32 by equation (5), sums of products where (7c) holds. On a
CUDA device convolutions are unfolded into matrix products, since cuDNN may choose a transform (Winograd, FFT) that is
not exact. Reduced precision and autocast are switched off while a network runs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import NORM_BITS, NORM_RECIPROCAL_BITS, REQUANTIZE_SHIFT
from twoscale._ir.execution import check_images, layers_to_keep
from twoscale._ir.fixed_point import LEFT_SHIFT
from twoscale._ir.float_module import scales_elements
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.interpreter import interpret
from twoscale.errors import ExecutorError

__all__ = ["TorchExecutor", "exact_arithmetic", "exact_convolutions"]

# Settings with which a user lets torch compute float32 products with fewer bits.
_MKLDNN: Any = torch.backends.mkldnn
_PRECISIONS: tuple[Any, ...] = (torch.backends.cuda.matmul, _MKLDNN.matmul, _MKLDNN.conv)


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Switch off gradients, and everything that is not exact."""
    with torch.no_grad(), exact_convolutions(device):
        yield


@contextlib.contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """Switch off everything that is not exact, whatever the user has chosen: TF32, bfloat16, autocast, NNPACK's
    Winograd."""
    before = [place.fp32_precision for place in _PRECISIONS]
    try:
        for place in _PRECISIONS:
            place.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False), torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        for place, precision in zip(_PRECISIONS, before, strict=True):
            place.fp32_precision = precision


_ROWS = 1 << 24
"""Weights of a linear layer that are converted at a time for estimates."""

_Run = Callable[["TorchExecutor", Any, list[torch.Tensor]], torch.Tensor]


class TorchExecutor:
    """Runs a network in torch; activations are float32 tensors that hold integers.

    Args:
        network: what to run.
        device: "cpu", "cuda", "cuda:1", …
        exact: use float64 for sums that float32 may round. Without it, sums of more than 24 bits are rounded; for
            estimates.

    Raises:
        ExecutorError: torch has no such device here.
    """

    name = "torch"

    def __init__(self, network: IntegerNetwork, device: str | torch.device = "cpu", *, exact: bool = True) -> None:
        self.network = network
        self.exact = exact
        self.device = _usable(device)
        self._unfolds = self.device.type != "cpu"
        # Filled when a layer is first computed. Layers compare by identity.
        self._weights: dict[n.Accumulating, tuple[torch.Tensor, torch.Tensor]] = {}
        self._tables: dict[n.Table | n.Softmax | n.SoftmaxMatMul | n.FixedPointSoftmax, torch.Tensor] = {}

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.array(array, order="C")).to(self.device)

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        # A copy, because torch warns about arrays that are not writable and refuses negative strides.
        images = self._tensor(check_images(self.network, images_nchw))
        return {
            name: value.cpu().numpy().astype(self.network.spec(name).dtype)
            for name, value in self.run_tensors(images, keep).items()
        }

    def run_tensors(self, images: torch.Tensor, keep: Collection[str] | None = None) -> dict[str, torch.Tensor]:
        """Compute a batch on the device; integers come back in float tensors (accumulators in float64)."""
        wanted = layers_to_keep(self.network, keep)
        given = self.network.given(images)
        with exact_arithmetic(self.device):
            return interpret(
                self.network.layers,
                lambda layer, inputs: _RUN[type(layer)](self, layer, inputs if layer.inputs else [given[layer.name]]),
                wanted,
            )

    def compute(self, layer: n.Layer, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Compute one layer from its inputs."""
        with exact_arithmetic(self.device):
            return _RUN[type(layer)](self, layer, inputs)

    def shifted(self, layer: n.Layer, inputs: list[torch.Tensor], index: int = 0) -> torch.Tensor:
        """Return q − z of an input."""
        zero_point = self.network.spec(layer.inputs[index]).zero_point
        return inputs[index] - zero_point if zero_point else inputs[index]

    def accumulate(self, layer: n.Accumulating, x: torch.Tensor) -> torch.Tensor:
        """Return the accumulators of equation (2) from q − z, in float32 if exact, else float64."""
        if isinstance(layer, n.Linear) and not self.exact:
            rows = max(1, _ROWS // layer.weight.shape[1])
            parts = (slice(start, start + rows) for start in range(0, len(layer.weight), rows))
            x = x.float()
            blocks = ((self._tensor(layer.weight[part]), self._tensor(layer.bias_o[part])) for part in parts)
            return torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in blocks], -1)
        if layer in self._weights:
            weight, bias = self._weights[layer]
        else:
            bound = int(layer.partial_bound(self.network.spec(layer.inputs[0])).max(initial=0))
            kind = torch.float32 if bound < 2**24 or not self.exact else torch.float64
            weight, bias = self._tensor(layer.weight).to(kind), self._tensor(layer.bias_o).to(kind)
            if not self.exact:  # for estimates, a network runs once, layer by layer
                self._weights.clear()
            self._weights[layer] = weight, bias
        x = x.to(weight.dtype)
        if isinstance(layer, n.Conv2d):
            return self._convolve(layer, x, weight, bias)
        return F.linear(x, weight, bias)

    def _convolve(self, layer: n.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if scales_elements(weight, layer.groups, layer.stride, layer.padding):
            return x * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
        top, left, bottom, right = layer.padding
        if not self._unfolds and (top, left) == (bottom, right):
            return F.conv2d(x, weight, bias, layer.stride, (top, left), layer.dilation, layer.groups)
        x = _pad(x, layer.padding, 0.0)
        if not self._unfolds:
            return F.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, layer.groups)
        out, out_h, out_w = layer.output.shape
        columns = F.unfold(x, weight.shape[2:], layer.dilation, 0, layer.stride)
        columns = columns.view(len(x), layer.groups, -1, out_h * out_w)
        grouped = weight.view(layer.groups, out // layer.groups, -1)
        return (grouped @ columns).view(len(x), out, out_h, out_w) + bias.view(1, -1, 1, 1)

    def requantize(self, acc: torch.Tensor, multiplier: n.Multiplier, spec: n.TensorSpec) -> torch.Tensor:
        """Return clamp(RNE(fl(fl(acc)·fl(m/2**16))) + z, lo, hi): equation (3), by (5); or equation (18)."""
        if isinstance(multiplier, n.FixedPoint):
            scaled = self.fixed_point(acc.long(), multiplier)
            return (scaled + spec.zero_point).clamp_(spec.lo, spec.hi).float()
        product = acc.float() * self._factors(multiplier, acc.ndim)
        return _saturate(product, spec)

    def fixed_point(self, acc: torch.Tensor, multiplier: n.FixedPoint) -> torch.Tensor:
        """Return int64 accumulators times TensorFlow Lite's factors, rounded twice, equation (18)."""
        shape = (1, -1) + (1,) * (acc.ndim - 2)
        mantissas = self._tensor(multiplier.mantissas.astype(np.int64)).reshape(shape)
        exponents = self._tensor(multiplier.exponents.astype(np.int64)).reshape(shape)
        return _rounding_shift(_high_product(acc << exponents.clamp(min=0), mantissas), (-exponents).clamp(min=0))

    def _factors(self, multiplier: n.Multiplier, ndim: int) -> torch.Tensor:
        return self._tensor(multiplier.values).reshape((1, -1) + (1,) * (ndim - 2))

    def requantized(self, layer: n.Accumulating, acc: torch.Tensor, x: list[torch.Tensor]) -> torch.Tensor:
        """Return the output of a layer with weights, from its accumulators and its inputs."""
        if not isinstance(layer, n.Conv2d) or layer.residual_multiplier is None:
            return self.finish(acc, layer)
        assert layer.multiplier is not None
        residual = self.shifted(layer, x, 1) * self._factors(layer.residual_multiplier, acc.ndim)
        # (7b): both products and their sum are exact in float32 as long as they are not clamped; see
        # docs/arithmetic.md.
        product = acc.float() * self._factors(layer.multiplier, acc.ndim)
        return _saturate(product.add_(residual), layer.output)

    def finish(self, acc: torch.Tensor, layer: n.Requantize) -> torch.Tensor:
        """Requantize accumulators, or return them unchanged if the layer has no multiplier."""
        if layer.multiplier is None:
            return acc.double()
        return self.requantize(acc, layer.multiplier, layer.output)


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises either of the two
        reason = str(error).split("\n", 1)[0][:200]
        raise ExecutorError(f"the torch executor cannot use device '{device}': {reason}; use device='cpu'") from error


def _high_product(a: torch.Tensor, b: torch.Tensor | int) -> torch.Tensor:
    """Return a · b / 2**31 rounded, ties up, of int64."""
    return (a * b + (1 << 30)) >> 31


def _rounding_shift(value: torch.Tensor, shift: torch.Tensor | int) -> torch.Tensor:
    """Return value / 2**shift rounded, ties away from zero, of int64."""
    half = (torch.ones_like(value) << shift) >> 1
    return torch.sign(value) * ((value.abs() + half) >> shift)


def _saturate(product: torch.Tensor, spec: n.TensorSpec) -> torch.Tensor:
    return product.round_().add_(spec.zero_point).clamp_(spec.lo, spec.hi)


def _pad(x: torch.Tensor, padding: n.Padding, value: float) -> torch.Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def _quantize_input(e: TorchExecutor, layer: n.QuantizeInput, x: list[torch.Tensor]) -> torch.Tensor:
    scale = torch.tensor(layer.output.scale, dtype=torch.float32, device=e.device)
    return _saturate(x[0] / scale, layer.output)


def _accumulating(e: TorchExecutor, layer: n.Accumulating, x: list[torch.Tensor]) -> torch.Tensor:
    return e.requantized(layer, e.accumulate(layer, e.shifted(layer, x)), x)


def _add(e: TorchExecutor, layer: n.Add, x: list[torch.Tensor]) -> torch.Tensor:
    if layer.in_fixed_point:
        total = sum(
            e.fixed_point(e.shifted(layer, x, i).long() << LEFT_SHIFT, multiplier)
            for i, multiplier in enumerate(layer.multipliers[:2])
            if isinstance(multiplier, n.FixedPoint)
        )
        assert isinstance(total, torch.Tensor)
        return e.requantize(total, layer.multipliers[2], layer.output)
    a, b = (e.shifted(layer, x, i) * e._factors(layer.multipliers[i], x[i].ndim) for i in range(2))
    return _saturate(a + b, layer.output)


def _mul(e: TorchExecutor, layer: n.Mul, x: list[torch.Tensor]) -> torch.Tensor:
    return e.finish(e.shifted(layer, x, 0) * e.shifted(layer, x, 1), layer)


def _average_pool(e: TorchExecutor, layer: n.AveragePool2d, x: list[torch.Tensor]) -> torch.Tensor:
    if isinstance(layer.multiplier, n.WindowQuotient):
        return _window_quotients(layer, x[0])
    # divisor_override=1 gives the sum; integers below 2**24 keep it exact in float32.
    padded = _pad(e.shifted(layer, x), layer.padding, 0.0)
    exact = layer.kernel[0] * layer.kernel[1] * 255 < 2**24
    padded = padded if exact else padded.double()
    return e.finish(F.avg_pool2d(padded, layer.kernel, layer.stride, divisor_override=1), layer)


def _window_quotients(layer: n.AveragePool2d, q: torch.Tensor) -> torch.Tensor:
    """Equation (20). Sums of integers are exact in float64."""
    values, inside = (_pad(part.double(), layer.padding, 0.0) for part in (q, torch.ones_like(q[:1, :1])))
    total, count = (
        F.avg_pool2d(part, layer.kernel, layer.stride, divisor_override=1).long() for part in (values, inside)
    )
    means = torch.sign(total) * torch.div(total.abs() + count // 2, count, rounding_mode="floor")
    return means.clamp_(layer.output.lo, layer.output.hi).float()


def _max_pool(e: TorchExecutor, layer: n.MaxPool2d, x: list[torch.Tensor]) -> torch.Tensor:
    padded = _pad(x[0], layer.padding, -math.inf)
    return F.max_pool2d(padded, layer.kernel, layer.stride, 0, layer.dilation)


def _concat(e: TorchExecutor, layer: n.Concat, x: list[torch.Tensor]) -> torch.Tensor:
    parts = [
        x[i] if multiplier is None else e.requantize(e.shifted(layer, x, i), multiplier, layer.output)
        for i, multiplier in enumerate(layer.multipliers)
    ]
    return torch.cat(parts, layer.axis + 1)


def _slice(e: TorchExecutor, layer: n.Slice, x: list[torch.Tensor]) -> torch.Tensor:
    index = [slice(None)] * x[0].ndim
    index[layer.axis + 1] = slice(layer.start, layer.stop, layer.step)
    return x[0][tuple(index)]


def _pad_layer(e: TorchExecutor, layer: n.Pad, x: list[torch.Tensor]) -> torch.Tensor:
    widths = [width for pair in reversed(layer.widths) for width in pair]
    return F.pad(x[0], widths, value=float(e.network.spec(layer.inputs[0]).zero_point))


def _table(e: TorchExecutor, layer: n.Table, x: list[torch.Tensor]) -> torch.Tensor:
    lowest = int(np.iinfo(e.network.spec(layer.inputs[0]).dtype).min)
    if layer not in e._tables:
        e._tables[layer] = e._tensor(layer.table).float()
    return e._tables[layer][x[0].long() - lowest]


def _matmul(e: TorchExecutor, layer: n.MatMul, x: list[torch.Tensor]) -> torch.Tensor:
    exact = not e.exact or layer.exact_type([e.network.spec(name) for name in layer.inputs]) is np.float32
    a, b = (e.shifted(layer, x, i).to(torch.float32 if exact else torch.float64) for i in range(2))
    return e.finish(a @ b, layer)


def _exponentials(e: TorchExecutor, layer: n.Softmax | n.SoftmaxMatMul, q: torch.Tensor, axis: int) -> torch.Tensor:
    """Return T[q_max − q] along an axis, in float64."""
    if layer not in e._tables:
        e._tables[layer] = e._tensor(layer.table).double()
    return e._tables[layer][(q.amax(axis, keepdim=True) - q).long()]


def _softmax(e: TorchExecutor, layer: n.Softmax, x: list[torch.Tensor]) -> torch.Tensor:
    entries = _exponentials(e, layer, x[0], layer.axis + 1)
    ratio = entries * 2.0**layer.shift / entries.sum(layer.axis + 1, keepdim=True)  # exact by (15)
    return _saturate(ratio, layer.output).float()


def _fixed_point_softmax(e: TorchExecutor, layer: n.FixedPointSoftmax, x: list[torch.Tensor]) -> torch.Tensor:
    """Equation (21), in int64."""
    axis = layer.axis + 1
    if layer not in e._tables:
        e._tables[layer] = e._tensor(layer.table.astype(np.int64))
    entries = e._tables[layer][(x[0].amax(axis, keepdim=True) - x[0]).long()]
    total = _rounding_shift(entries, 12).sum(axis, keepdim=True)
    headroom = 32 - torch.frexp(total.double())[1].long()
    half = (total << headroom) >> 1
    inverse = 1515870810 + _high_product(half, -1010580540)
    for _ in range(3):
        inverse = inverse + (_high_product(inverse, (1 << 29) - _high_product(half, inverse)) << 2)
    inverse = (inverse << 1).clamp(max=(1 << 31) - 1)
    probability = _rounding_shift(_high_product(inverse, entries), 35 - headroom)
    return (probability.clamp(0, 255) + layer.output.lo).float()


def _softmax_matmul(e: TorchExecutor, layer: n.SoftmaxMatMul, x: list[torch.Tensor]) -> torch.Tensor:
    assert layer.multiplier is not None
    entries = _exponentials(e, layer, x[0], 3)
    acc = entries @ e.shifted(layer, x, 1).double()
    ratio = acc * float(layer.multiplier.values[0]) / entries.sum(3, keepdim=True)  # exact by (16)
    return _saturate(ratio, layer.output).float()


def _normalize(e: TorchExecutor, layer: n.Normalize, x: list[torch.Tensor]) -> torch.Tensor:
    """Equation (17) in float64, in which every step is exact."""
    spec, axes = e.network.spec(layer.inputs[0]), [axis + 1 for axis in layer.axes]
    count, t = layer.count(spec), layer.deviation_shift(spec)
    values = e.shifted(layer, x).double()
    variance = count * (values * values).sum(axes, keepdim=True) + float(layer.epsilon)
    centered = count * values
    if layer.centered:
        total = values.sum(axes, keepdim=True)
        variance, centered = variance - total * total, centered - total
    reciprocal = (2.0**NORM_RECIPROCAL_BITS / (variance * 4.0**t).sqrt_().floor_()).floor_()
    normalized = (centered * reciprocal * 2.0 ** -(NORM_RECIPROCAL_BITS - NORM_BITS - t)).round_()
    real = normalized * e._tensor(layer.gain).double() + e._tensor(layer.bias).double() * 2.0**NORM_BITS
    return _saturate(real * 2.0 ** -(NORM_BITS + REQUANTIZE_SHIFT), layer.output).float()


_RUN: dict[type[n.Layer], _Run] = {
    n.QuantizeInput: _quantize_input,
    n.Conv2d: _accumulating,
    n.Linear: _accumulating,
    n.Add: _add,
    n.Mul: _mul,
    n.AveragePool2d: _average_pool,
    n.MaxPool2d: _max_pool,
    n.Concat: _concat,
    n.Reshape: lambda e, layer, x: x[0].reshape(len(x[0]), *layer.output.shape),
    n.Permute: lambda e, layer, x: x[0].permute(0, *(axis + 1 for axis in layer.axes)),
    n.Slice: _slice,
    n.Pad: _pad_layer,
    n.Clamp: lambda e, layer, x: x[0].clamp(layer.output.lo, layer.output.hi),
    n.Table: _table,
    n.MatMul: _matmul,
    n.Softmax: _softmax,
    n.FixedPointSoftmax: _fixed_point_softmax,
    n.SoftmaxMatMul: _softmax_matmul,
    n.Normalize: _normalize,
}

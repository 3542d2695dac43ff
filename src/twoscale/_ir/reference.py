"""The NumPy reference: equations (2)–(12) of docs/arithmetic.md on whole arrays.

It is the definition's vectorized twin (tests hold it equal to twoscale._ir.arithmetic), and what the other
executors are compared with. Sums of products run through BLAS in float64: all partial sums are integers far
below 2**53, hence exact in any order. Everything else is int64.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT
from twoscale._ir.execution import check_images, layers_to_keep
from twoscale._ir.interpreter import interpret

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["ReferenceExecutor", "quantize_input", "requantize"]

Int64 = NDArray[np.int64]
_Run = Callable[[Any, list[n.TensorSpec], list[NDArray[Any]]], NDArray[Any]]

_CHUNK_BYTES = 1 << 22  # of a convolution's patches: they stay in the cache, and memory is bounded for any batch


class ReferenceExecutor:
    """Runs a network in NumPy."""

    name = "reference"

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        wanted = layers_to_keep(self.network, keep)
        images = check_images(self.network, images_nchw)
        return interpret(
            self.network.layers,
            lambda layer, inputs: self.compute(layer, inputs if layer.inputs else [images]),
            wanted,
        )

    def compute(self, layer: n.Layer, inputs: list[NDArray[Any]]) -> NDArray[Any]:
        """Compute one layer from its inputs."""
        specs = [self.network.spec(name) for name in layer.inputs]
        result: NDArray[Any] = _RUN[type(layer)](layer, specs, inputs).astype(layer.output.dtype, copy=False)
        return result


def quantize_input(x: NDArray[np.float32], spec: n.TensorSpec) -> NDArray[Any]:
    """Return clamp(RNE(fl(x / s)) + z, lo, hi), equation (11)."""
    with np.errstate(over="ignore"):  # a quotient beyond float32 saturates, as it should
        quotient = np.rint(np.asarray(x, np.float32) / np.float32(spec.scale))
    result: NDArray[Any] = np.clip(quotient + np.float32(spec.zero_point), spec.lo, spec.hi).astype(spec.dtype)
    return result


def rne_shift(value: Int64, shift: int) -> Int64:
    """Return RNE(value / 2**shift) of int64 values below 2**62."""
    # A half is added less one, or all of it where the floor is odd: then ties go to the even neighbour.
    rounded = value >> shift
    rounded &= 1
    rounded += (1 << (shift - 1)) - 1
    rounded += value
    rounded >>= shift
    return rounded


def requantize(acc: Int64, multiplier: n.Multiplier, spec: n.TensorSpec) -> Int64:
    """Return clamp(z + RNE(acc·m / 2**shift), lo, hi), equation (3); channels are dimension 1.

    Off the grid the product is taken in float32, as runtimes with float multipliers do.
    """
    if multiplier.shift is None:
        product = acc.astype(np.float32) * _per_channel(multiplier.values, acc.ndim)
        return _saturate(np.rint(product).astype(np.int64), spec)
    return _saturate(rne_shift(acc * _per_channel(multiplier.integers, acc.ndim), multiplier.shift), spec)


def _saturate(rounded: Int64, spec: n.TensorSpec) -> Int64:
    rounded += spec.zero_point  # in place: it is always a fresh array
    return np.clip(rounded, spec.lo, spec.hi, out=rounded)


def _per_channel(values: NDArray[Any], ndim: int) -> NDArray[Any]:
    return values.reshape((1, -1) + (1,) * (ndim - 2))


def _finish(acc: Int64, layer: n.Requantize) -> Int64:
    return acc if layer.multiplier is None else requantize(acc, layer.multiplier, layer.output)


def _padded(q: NDArray[Any], spec: n.TensorSpec, padding: tuple[int, int, int, int], value: int) -> Int64:
    """Return q − z as int64 with ``value`` around height and width."""
    top, left, bottom, right = padding
    shifted = q.astype(np.int64) - spec.zero_point
    if not any(padding):
        return shifted
    return np.pad(shifted, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _windows(x: Int64, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Int64:
    """Return a view (N, C, out_h, out_w, kernel_h, kernel_w)."""
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
    result: Int64 = view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    return result


def _conv2d(layer: n.Conv2d, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> Int64:
    out, per_group, kh, kw = layer.weight.shape
    groups = layer.groups
    _, out_h, out_w = layer.output.shape
    weight = layer.weight.astype(np.float64).reshape(groups, out // groups, per_group * kh * kw)
    acc = np.empty((len(inputs[0]), *layer.output.shape), np.int64)
    chunk = max(1, _CHUNK_BYTES // (8 * out_h * out_w * per_group * groups * kh * kw))
    for start in range(0, len(acc), chunk):
        x = _padded(inputs[0][start : start + chunk], specs[0], layer.padding, 0)
        windows = _windows(x, (kh, kw), layer.stride, layer.dilation)
        # (N, C, kernel_h, kernel_w, out_h, out_w): rows are copied whole, and the product needs no transpose.
        columns = np.empty((len(x), groups * per_group, kh, kw, out_h, out_w))
        for i in range(kh):
            for j in range(kw):
                columns[:, :, i, j] = windows[..., i, j]
        product = weight @ columns.reshape(len(x), groups, per_group * kh * kw, out_h * out_w)
        acc[start : start + chunk] = product.reshape(len(x), *layer.output.shape)
    acc += _per_channel(layer.bias_o.astype(np.int64), 4)
    if layer.residual_multiplier is None:
        return _finish(acc, layer)
    return _join_residual(layer, acc, specs[1], inputs[1])


def _join_residual(layer: n.Conv2d, acc: Int64, spec: n.TensorSpec, residual: NDArray[Any]) -> Int64:
    """Equation (7b)."""
    assert layer.multiplier is not None
    assert layer.residual_multiplier is not None
    shifted = residual.astype(np.int64) - spec.zero_point
    if layer.multiplier.shift is None:
        total = acc.astype(np.float32) * _per_channel(layer.multiplier.values, 4)
        total += shifted.astype(np.float32) * layer.residual_multiplier.values
        return _saturate(np.rint(total).astype(np.int64), layer.output)
    total_int = acc * _per_channel(layer.multiplier.integers, 4) + shifted * layer.residual_multiplier.integers
    return _saturate(rne_shift(total_int, layer.multiplier.shift), layer.output)


def _linear(layer: n.Linear, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> Int64:
    shifted = inputs[0].astype(np.float64) - specs[0].zero_point
    acc = (shifted @ layer.weight.T.astype(np.float64)).astype(np.int64) + layer.bias_o.astype(np.int64)
    return _finish(acc, layer)


def _add(layer: n.Add, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> Int64:
    a, b = (q.astype(np.int64) - spec.zero_point for q, spec in zip(inputs, specs, strict=True))
    m_a, m_b = layer.multipliers
    if m_a.shift is None or m_b.shift is None:
        total = a.astype(np.float32) * m_a.values + b.astype(np.float32) * m_b.values
        return _saturate(np.rint(total).astype(np.int64), layer.output)
    return _saturate(rne_shift(a * m_a.integers + b * m_b.integers, ADD_SHIFT), layer.output)


def _mul(layer: n.Mul, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> Int64:
    a, b = (q.astype(np.int64) - spec.zero_point for q, spec in zip(inputs, specs, strict=True))
    return _finish(a * b, layer)


def _average_pool(layer: n.AveragePool2d, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> Int64:
    x = _padded(inputs[0], specs[0], layer.padding, 0)
    return _finish(_windows(x, layer.kernel, layer.stride).sum((4, 5)), layer)


def _max_pool(layer: n.MaxPool2d, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> Int64:
    x = _padded(inputs[0], specs[0], layer.padding, -(2**31))
    result: Int64 = _windows(x, layer.kernel, layer.stride, layer.dilation).max((4, 5)) + specs[0].zero_point
    return result


def _concat(layer: n.Concat, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> NDArray[Any]:
    parts: list[NDArray[Any]] = []
    for q, spec, multiplier in zip(inputs, specs, layer.multipliers, strict=True):
        if multiplier is None:
            parts.append(q)
        else:
            parts.append(requantize(q.astype(np.int64) - spec.zero_point, multiplier, layer.output))
    return np.concatenate(parts, layer.axis + 1)


def _slice(layer: n.Slice, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> NDArray[Any]:
    index = [slice(None)] * inputs[0].ndim
    index[layer.axis + 1] = slice(layer.start, layer.stop, layer.step)
    return inputs[0][tuple(index)]


def _table(layer: n.Table, specs: list[n.TensorSpec], inputs: list[NDArray[Any]]) -> NDArray[Any]:
    lowest = int(np.iinfo(specs[0].dtype).min)
    return layer.table[inputs[0].astype(np.int64) - lowest]


_RUN: dict[type[n.Layer], _Run] = {
    n.QuantizeInput: lambda layer, specs, x: quantize_input(x[0], layer.output),
    n.Conv2d: _conv2d,
    n.Linear: _linear,
    n.Add: _add,
    n.Mul: _mul,
    n.AveragePool2d: _average_pool,
    n.MaxPool2d: _max_pool,
    n.Concat: _concat,
    n.Reshape: lambda layer, specs, x: x[0].reshape(len(x[0]), *layer.output.shape),
    n.Permute: lambda layer, specs, x: x[0].transpose(0, *(axis + 1 for axis in layer.axes)),
    n.Slice: _slice,
    n.Pad: lambda layer, specs, x: np.pad(x[0], ((0, 0), *layer.widths), constant_values=specs[0].zero_point),
    n.Clamp: lambda layer, specs, x: np.clip(x[0], layer.output.lo, layer.output.hi),
    n.Table: _table,
}

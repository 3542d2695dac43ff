"""Runs an integer network by plain loops over twoscale._ir.arithmetic: the definition, one output value at a time.

Nothing here is vectorized or shared with an executor. A tensor is a NumPy array of Python integers, used only as
a container. Off the grid, products are float32's, as runtimes with float multipliers compute them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import arithmetic, fixed_point
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["ScalarExecutor"]

Tensor = NDArray[Any]
Index = tuple[int, ...]


class ScalarExecutor:
    """Runs a network one image, one layer and one value at a time."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network

    def run(self, images_nchw: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return every layer's integers, (N, ...)."""
        runs = [self.run_one(image) for image in images_nchw]
        return {
            layer.name: np.array([run[layer.name] for run in runs], layer.output.dtype).reshape(
                len(runs), *layer.output.shape
            )
            for layer in self.network
        }

    def run_one(self, image: NDArray[np.float32]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        rest = image.ravel()  # several inputs follow one another
        for layer in self.network:
            out = np.empty(layer.output.shape, object)
            if isinstance(layer, n.QuantizeInput):
                spec = layer.output
                given, rest = rest[: out.size].reshape(spec.shape), rest[out.size :]
                for index in np.ndindex(spec.shape):
                    x = float(given[index])
                    out[index] = arithmetic.quantize_input(x, spec.scale, spec.zero_point, spec.lo, spec.hi)
            else:
                specs = [self.network.spec(name) for name in layer.inputs]
                inputs = [values[name] for name in layer.inputs]
                if isinstance(layer, n.Softmax | n.Normalize | n.FixedPointSoftmax):
                    together(layer, specs[0], inputs[0], out)
                    values[layer.name] = out
                    continue
                for index in np.ndindex(layer.output.shape):
                    out[index] = value_at(layer, specs, inputs, index)
            values[layer.name] = out
        return values


def value_at(layer: n.Layer, specs: list[n.TensorSpec], x: list[Tensor], index: Index) -> int:
    """Return one value of a layer's output."""
    spec = layer.output
    match layer:
        case n.Conv2d():
            taps = list(conv_taps(layer, specs[0], x[0], index))
            acc = arithmetic.accumulate(
                [q for q, _ in taps], specs[0].zero_point, [w for _, w in taps], int(layer.bias_o[index[0]])
            )
            if layer.residual_multiplier is None:
                return finish(layer, acc, index[0])
            return joined(layer, acc, index[0], int(x[1][index]), specs[1].zero_point)
        case n.Linear():
            weights = [int(w) for w in layer.weight[index[0]]]
            acc = arithmetic.accumulate(list(x[0]), specs[0].zero_point, weights, int(layer.bias_o[index[0]]))
            return finish(layer, acc, index[0])
        case n.Add():
            return added(layer, specs, [int(q[index]) for q in x])
        case n.Mul():
            a, b = (
                int(q[tuple(i if size > 1 else 0 for i, size in zip(index, q.shape, strict=True))]) - s.zero_point
                for q, s in zip(x, specs, strict=True)
            )
            return finish(layer, a * b, 0)
        case n.MatMul():
            matrix, row, column = index
            products = zip(x[0][matrix, row], x[1][matrix, :, column], strict=True)
            return finish(layer, sum((a - specs[0].zero_point) * (b - specs[1].zero_point) for a, b in products), 0)
        case n.SoftmaxMatMul():
            matrix, row, column = index
            assert layer.multiplier is not None
            scores, weighed = list(x[0][matrix, row]), list(x[1][matrix, :, column])
            table, bounds = layer.table.tolist(), (spec.zero_point, spec.lo, spec.hi)
            if layer.multiplier.shift is None:
                entries = [table[max(scores) - q] for q in scores]
                acc = sum(t * (v - specs[1].zero_point) for t, v in zip(entries, weighed, strict=True))
                rounded = round(float(acc) * float(layer.multiplier.values[0]) / float(sum(entries)))
                return arithmetic.clamp(spec.zero_point + rounded, spec.lo, spec.hi)
            m = int(layer.multiplier.integers[0])
            return arithmetic.softmax_matmul(scores, table, weighed, specs[1].zero_point, m, *bounds)
        case n.AveragePool2d() if isinstance(layer.multiplier, n.WindowQuotient):
            seen = [q for q in window_values(layer, (1, 1), x[0], index, None) if q is not None]
            return fixed_point.mean(seen, spec.lo, spec.hi)
        case n.AveragePool2d():
            window = [q for q in window_values(layer, (1, 1), x[0], index, specs[0].zero_point) if q is not None]
            return finish(layer, sum(q - specs[0].zero_point for q in window), 0)
        case n.MaxPool2d():
            return max(q for q in window_values(layer, layer.dilation, x[0], index, None) if q is not None)
        case n.Concat():
            return concatenated(layer, specs, x, index)
        case n.Reshape():
            flat = 0
            for i, size in zip(index, spec.shape, strict=True):
                flat = flat * size + i
            return int(list(x[0].flat)[flat])
        case n.Permute():
            source = dict(zip(layer.axes, index, strict=True))
            return int(x[0][tuple(source[axis] for axis in range(len(index)))])
        case n.Slice():
            return int(x[0][tuple(layer.start + i * layer.step if k == layer.axis else i for k, i in enumerate(index))])
        case n.Pad():
            moved = tuple(i - before for i, (before, _) in zip(index, layer.widths, strict=True))
            inside = all(0 <= i < size for i, size in zip(moved, x[0].shape, strict=True))
            return int(x[0][moved]) if inside else specs[0].zero_point
        case n.Clamp():
            return arithmetic.clamp(int(x[0][index]), spec.lo, spec.hi)
        case n.Table():
            return int(layer.table[int(x[0][index]) + (128 if specs[0].dtype == "int8" else 0)])
    raise AssertionError(f"no definition of {layer.op}")


def together(layer: n.Softmax | n.Normalize | n.FixedPointSoftmax, spec: n.TensorSpec, x: Tensor, out: Tensor) -> None:
    """Compute a layer whose values depend on several others of the same tensor, one group after the other."""
    axes = layer.axes if isinstance(layer, n.Normalize) else (layer.axis,)
    groups: dict[Index, list[Index]] = {}
    for index in np.ndindex(x.shape):
        groups.setdefault(tuple(i for axis, i in enumerate(index) if axis not in axes), []).append(index)
    to = layer.output
    for members in groups.values():
        q = [int(x[index]) for index in members]
        if isinstance(layer, n.Softmax):
            made = arithmetic.softmax(q, layer.table.tolist(), layer.shift, to.zero_point, to.lo, to.hi)
        elif isinstance(layer, n.FixedPointSoftmax):
            made = fixed_point.softmax(q, layer.table.tolist(), to.lo)
        else:
            places = [
                tuple(i if size > 1 else 0 for i, size in zip(index, layer.gain.shape, strict=True))
                for index in members
            ]
            gains, biases = ([int(array[place]) for place in places] for array in (layer.gain, layer.bias))
            made = arithmetic.normalize(
                q, spec.zero_point, spec.reach, layer.epsilon, gains, biases, to.zero_point, to.lo, to.hi,
                centered=layer.centered,
            )  # fmt: skip
        for index, value in zip(members, made, strict=True):
            out[index] = value


def conv_taps(layer: n.Conv2d, spec: n.TensorSpec, x: Tensor, index: Index) -> Iterator[tuple[int, int]]:
    """Yield (q, w) of every weight of an output value; padding holds the zero point."""
    channel, row, column = index
    out, per_group, kernel_h, kernel_w = layer.weight.shape
    first = channel // (out // layer.groups) * per_group
    _, height, width = x.shape
    for i, dy, dx in product(range(per_group), range(kernel_h), range(kernel_w)):
        y = row * layer.stride[0] - layer.padding[0] + dy * layer.dilation[0]
        z = column * layer.stride[1] - layer.padding[1] + dx * layer.dilation[1]
        inside = 0 <= y < height and 0 <= z < width
        yield int(x[first + i, y, z]) if inside else spec.zero_point, int(layer.weight[channel, i, dy, dx])


def window_values(
    layer: n.AveragePool2d | n.MaxPool2d, dilation: tuple[int, int], x: Tensor, index: Index, padding: int | None
) -> Iterator[int | None]:
    channel, row, column = index
    for dy, dx in product(range(layer.kernel[0]), range(layer.kernel[1])):
        y = row * layer.stride[0] - layer.padding[0] + dy * dilation[0]
        z = column * layer.stride[1] - layer.padding[1] + dx * dilation[1]
        inside = 0 <= y < x.shape[1] and 0 <= z < x.shape[2]
        yield int(x[channel, y, z]) if inside else padding


def concatenated(layer: n.Concat, specs: list[n.TensorSpec], x: list[Tensor], index: Index) -> int:
    position = index[layer.axis]
    for q, spec, multiplier in zip(x, specs, layer.multipliers, strict=True):
        if position < q.shape[layer.axis]:
            value = int(q[(*index[: layer.axis], position, *index[layer.axis + 1 :])])
            return value if multiplier is None else requantized(layer, multiplier, value - spec.zero_point, 0)
        position -= q.shape[layer.axis]
    raise AssertionError("index beyond the concatenation")


def finish(layer: n.Requantize, acc: int, channel: int) -> int:
    return acc if layer.multiplier is None else requantized(layer, layer.multiplier, acc, channel)


def requantized(layer: n.Layer, multiplier: n.Multiplier, acc: int, channel: int) -> int:
    spec = layer.output
    if isinstance(multiplier, n.FixedPoint):
        mantissa, exponent = (int(at(values, channel)) for values in multiplier.arrays)
        return arithmetic.clamp(spec.zero_point + fixed_point.scaled(acc, mantissa, exponent), spec.lo, spec.hi)
    if multiplier.shift is None:
        rounded = round(arithmetic.float32(arithmetic.float32(acc) * float(at(multiplier.values, channel))))
        return arithmetic.clamp(spec.zero_point + rounded, spec.lo, spec.hi)
    m = int(at(multiplier.integers, channel))
    return arithmetic.requantize(acc, m, spec.zero_point, spec.lo, spec.hi)


def at(values: NDArray[Any], channel: int) -> Any:
    return values[channel if len(values) > 1 else 0]


def added(layer: n.Add, specs: list[n.TensorSpec], q: list[int]) -> int:
    spec = layer.output
    if layer.in_fixed_point:
        m, e = ([int(one.arrays[part][0]) for one in layer.multipliers] for part in (0, 1))
        first, second = (value - s.zero_point for value, s in zip(q, specs, strict=True))
        return fixed_point.add(first, second, (m[0], m[1], m[2]), (e[0], e[1], e[2]), spec.zero_point, spec.lo, spec.hi)
    a, b = layer.multipliers
    if a.shift is None:
        products = [
            arithmetic.float32((value - s.zero_point) * float(m.values[0]))
            for value, s, m in zip(q, specs, layer.multipliers, strict=True)
        ]
        rounded = round(arithmetic.float32(sum(products)))
        return arithmetic.clamp(spec.zero_point + rounded, spec.lo, spec.hi)
    m_a, m_b = int(a.integers[0]), int(b.integers[0])
    z_a, z_b = (s.zero_point for s in specs)
    return arithmetic.add(q[0], z_a, m_a, q[1], z_b, m_b, spec.zero_point, spec.lo, spec.hi)


def joined(layer: n.Conv2d, acc: int, channel: int, q_s: int, z_s: int) -> int:
    """Equation (7b)."""
    spec, multiplier, joining = layer.output, layer.multiplier, layer.residual_multiplier
    assert multiplier is not None
    assert joining is not None
    if multiplier.shift is None:
        product_ = arithmetic.float32(arithmetic.float32(acc) * float(at(multiplier.values, channel)))
        total = arithmetic.float32(product_ + arithmetic.float32((q_s - z_s) * float(joining.values[0])))
        return arithmetic.clamp(spec.zero_point + round(total), spec.lo, spec.hi)
    m, m_s = int(at(multiplier.integers, channel)), int(joining.integers[0])
    return arithmetic.requantize_with_residual(acc, m, q_s, z_s, m_s, spec.zero_point, spec.lo, spec.hi)

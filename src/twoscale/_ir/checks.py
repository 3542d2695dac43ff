"""What every executor relies on, checked once when a network is made.

``check`` refuses layers that do not fit together. ``off_grid`` lists what keeps executors from promising the same
integers; such a network runs, and verify measures its mismatches. Equation numbers are those of
docs/arithmetic.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT, sum_is_exact
from twoscale.errors import QuantizationError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["check", "multipliers", "off_grid", "sum_bounds"]

Shape = tuple[int, ...]

_LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "int32": (-(2**31), 2**31 - 1)}

_MOVING = (n.MaxPool2d, n.Reshape, n.Permute, n.Slice, n.Pad, n.Clamp)
"""Layers whose output is made of their input's integers, equation (9)."""


def check(network: IntegerNetwork) -> None:
    """Check names, shapes, types, ranges, multipliers and accumulator bounds.

    Raises:
        QuantizationError: the first thing that does not hold, with the layer's name.
    """
    seen: dict[str, n.TensorSpec] = {}
    for layer in network.layers:
        missing = next((name for name in layer.inputs if name not in seen), None)
        if missing is not None:
            raise QuantizationError(f"layer {layer.name} reads {missing}, which no earlier layer makes")
        if layer.name in seen:
            raise QuantizationError(f"two layers are named {layer.name}; names must differ")
        _check_spec(layer)
        _check_layer(layer, [seen[name] for name in layer.inputs])
        seen[layer.name] = layer.output
    if not network.layers or sum(isinstance(layer, n.QuantizeInput) for layer in network.layers) != 1:
        raise QuantizationError("expected one QuantizeInput, as the first layer")
    if network.output not in seen:
        raise QuantizationError(f"the output {network.output} is made by no layer")
    if len(seen[network.output].shape) != 1:
        raise QuantizationError(
            f"the output {network.output} has shape {seen[network.output].shape}; expected (classes,), append a Reshape"
        )


def off_grid(network: IntegerNetwork) -> tuple[str, ...]:
    """Return one line for everything for which executors do not promise the same integers."""
    reasons = []
    for layer in network.layers:
        if layer.output.zero_point % 2:
            reasons.append(f"layer {layer.name}: the zero point {layer.output.zero_point} is odd")
        if any(m.shift is None for m in multipliers(layer)):
            reasons.append(f"layer {layer.name}: a multiplier is a free float, not a whole number on the grid")
        elif (products := sum_bounds(network, layer)) is not None and not sum_is_exact(*products):
            reasons.append(
                f"layer {layer.name}: its operands reach {products[0] / 2**ADD_SHIFT:.0f} and "
                f"{products[1] / 2**ADD_SHIFT:.0f} output steps; float32 sums are exact up to 1024 both, "
                "or up to 768 one of them"
            )
    return tuple(reasons)


def multipliers(layer: n.Layer) -> tuple[n.Multiplier, ...]:
    """Return every multiplier of a layer."""
    found: list[n.Multiplier] = []
    for attribute in dataclasses.fields(layer):
        value = getattr(layer, attribute.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, n.Multiplier):
                found.append(item)
    return tuple(found)


def _reach(spec: n.TensorSpec) -> int:
    """Return the largest |q − z| of a tensor."""
    return max(spec.hi - spec.zero_point, spec.zero_point - spec.lo)


def sum_bounds(network: IntegerNetwork, layer: n.Layer) -> tuple[int, int] | None:
    """Return the largest products of an addition on the grid, in 2**-14ths; None for other layers."""
    if isinstance(layer, n.Add):
        first, second = (
            _reach(network.spec(name)) * int(m.integers.max())
            for name, m in zip(layer.inputs, layer.multipliers, strict=True)
        )
        return first, second
    if isinstance(layer, n.Conv2d) and layer.multiplier is not None and layer.residual_multiplier is not None:
        products = layer.partial_bound(network.spec(layer.inputs[0])) * layer.multiplier.integers
        joining = _reach(network.spec(layer.inputs[1])) * int(layer.residual_multiplier.integers.max())
        return int(products.max()), joining
    return None


def _check_spec(layer: n.Layer) -> None:
    spec = layer.output
    if spec.dtype not in _LIMITS:
        raise QuantizationError(f"layer {layer.name}: type {spec.dtype}; expected uint8, int8 or int32")
    lowest, highest = _LIMITS[spec.dtype]
    with np.errstate(over="ignore"):
        scale = float(np.float32(spec.scale))  # executors divide by the float32
    if not (spec.lo <= spec.zero_point <= spec.hi and math.isfinite(scale) and scale > 0):
        raise QuantizationError(
            f"layer {layer.name}: scale {spec.scale} and zero point {spec.zero_point} in "
            f"[{spec.lo}, {spec.hi}] cannot represent zero; expected a positive scale and lo ≤ zero ≤ hi"
        )
    if spec.lo < lowest or spec.hi > highest:
        raise QuantizationError(f"layer {layer.name}: [{spec.lo}, {spec.hi}] does not fit {spec.dtype}")
    if any(size < 1 for size in spec.shape):
        raise QuantizationError(f"layer {layer.name}: shape {spec.shape} has no values")


def _check_layer(layer: n.Layer, inputs: list[n.TensorSpec]) -> None:
    expected = _INPUTS.get(type(layer), 1)
    if isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None:
        expected = 2
    if isinstance(layer, n.Concat):
        expected = max(1, len(layer.multipliers))
    if len(inputs) != expected:
        raise QuantizationError(f"layer {layer.name}: {layer.op} reads {expected} tensors, got {len(inputs)}")
    if not isinstance(layer, n.Reshape) and any(spec.dtype == "int32" for spec in inputs):
        raise QuantizationError(f"layer {layer.name}: {layer.op} reads accumulators; only a Reshape may")
    if isinstance(layer, n.Accumulating):
        _check_weights(layer, inputs[0])
    try:
        shape = _SHAPE[type(layer)](layer, inputs)
    except (ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(str(spec.shape) for spec in inputs)
        raise QuantizationError(f"layer {layer.name}: {layer.op} does not fit its inputs {shapes}: {error}") from error
    if shape != layer.output.shape:
        raise QuantizationError(f"layer {layer.name}: {layer.op} makes {shape}, but says {layer.output.shape}")
    _check_values(layer, inputs)
    _check_multipliers(layer)


def _check_weights(layer: n.Accumulating, x: n.TensorSpec) -> None:
    if layer.weight.dtype != np.int8 or layer.bias_o.dtype != np.int32:
        raise QuantizationError(
            f"layer {layer.name}: weights are {layer.weight.dtype} and biases {layer.bias_o.dtype}; "
            "expected int8 and int32"
        )
    if layer.bias_o.shape != layer.weight.shape[:1] or not layer.weight.size:
        raise QuantizationError(
            f"layer {layer.name}: weights {layer.weight.shape} and biases {layer.bias_o.shape} do not fit together"
        )
    bounds = layer.partial_bound(x)
    worst = int(bounds.argmax())
    if bounds[worst] >= 2**31:
        raise QuantizationError(
            f"layer {layer.name}, channel {worst}: accumulators can reach {bounds[worst]}, beyond int32; "
            "use fewer weight bits there, or split the layer"
        )


def _check_values(layer: n.Layer, inputs: list[n.TensorSpec]) -> None:
    """What a layer passes on must have the meaning and the range that its output says: bounds rest on it."""
    out = layer.output
    copied = inputs if isinstance(layer, _MOVING) else []
    if isinstance(layer, n.Concat):
        copied = [spec for spec, m in zip(inputs, layer.multipliers, strict=True) if m is None]
    for spec in copied:
        if (spec.dtype, spec.scale, spec.zero_point) != (out.dtype, out.scale, out.zero_point):
            raise QuantizationError(
                f"layer {layer.name}: {layer.op} passes integers on, so type, scale and zero point must be its "
                f"input's ({spec.dtype}, {spec.scale:g}, {spec.zero_point}), "
                f"not ({out.dtype}, {out.scale:g}, {out.zero_point})"
            )
        if not isinstance(layer, n.Clamp) and not out.lo <= spec.lo <= spec.hi <= out.hi:
            raise QuantizationError(
                f"layer {layer.name}: the input's [{spec.lo}, {spec.hi}] is not within [{out.lo}, {out.hi}]"
            )
    if isinstance(layer, n.Table):
        table = layer.table
        if table.shape != (256,) or table.dtype != np.int16 or table.min() < out.lo or table.max() > out.hi:
            raise QuantizationError(
                f"layer {layer.name}: expected a table of 256 int16 in [{out.lo}, {out.hi}], got {table.dtype} "
                f"{table.shape}" + (f" in [{table.min()}, {table.max()}]" if table.size else "")
            )
    accumulates = isinstance(layer, n.Requantize) and layer.multiplier is None
    moves = isinstance(layer, n.Reshape)
    if (out.dtype == "int32") != accumulates and not moves:
        raise QuantizationError(
            f"layer {layer.name}: {layer.op} to {out.dtype} "
            + ("needs a multiplier" if accumulates else "cannot be; only accumulators without a multiplier are int32")
        )


def _check_multipliers(layer: n.Layer) -> None:
    found = multipliers(layer)
    joins = isinstance(layer, n.Add) or (isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None)
    shift = ADD_SHIFT if joins else REQUANTIZE_SHIFT
    if isinstance(layer, n.Conv2d) and joins and layer.multiplier is None:
        raise QuantizationError(f"layer {layer.name}: a residual joins before requantization; it needs a multiplier")
    for multiplier in found:
        values = multiplier.values
        per_channel = isinstance(layer, n.Accumulating) and multiplier is layer.multiplier
        sizes = (1, layer.output.shape[0]) if per_channel else (1,)
        if values.ndim != 1 or len(values) not in sizes or values.dtype != np.float32:
            raise QuantizationError(
                f"layer {layer.name}: multipliers are {values.dtype} of shape {values.shape}; expected float32, "
                + " or ".join(str(size) for size in sorted(set(sizes)))
            )
        if not (np.isfinite(values).all() and values.min() > 0):
            raise QuantizationError(f"layer {layer.name}: multipliers must be positive and finite")
        if multiplier.shift not in (None, shift) or len({m.shift for m in found}) > 1:
            raise QuantizationError(
                f"layer {layer.name}: multipliers count 2**-{multiplier.shift}ths; expected all in 2**-{shift}ths, "
                "or all free floats"
            )
        integers = np.ldexp(values.astype(np.float64), shift)
        if multiplier.shift is None:
            continue
        if not (integers == np.rint(integers)).all() or integers.max() >= MULTIPLIER_LIMIT:
            raise QuantizationError(
                f"layer {layer.name}: multipliers must be whole numbers of 2**-{shift}ths below 2**24"
            )


# The shape that each layer makes of its inputs; ValueError says why it cannot.


def _windows(
    layer: Any, x: n.TensorSpec, kernel: Sequence[int], channels: int, dilation: tuple[int, int] = (1, 1)
) -> Shape:
    _, *size = x.shape
    if len(size) != 2 or min(*layer.stride, *dilation, *kernel) < 1 or min(layer.padding) < 0:
        raise ValueError("expected (C, H, W), positive strides, kernels and dilations, padding of 0 or more")
    out = tuple(
        (size[i] + layer.padding[i] + layer.padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // layer.stride[i] + 1
        for i in (0, 1)
    )
    return (channels, *out)


def _conv2d(layer: n.Conv2d, inputs: list[n.TensorSpec]) -> Shape:
    out, per_group, *kernel = layer.weight.shape
    if len(kernel) != 2 or layer.groups < 1 or out % layer.groups or per_group * layer.groups != inputs[0].shape[0]:
        raise ValueError(f"weights {layer.weight.shape} in {layer.groups} groups")
    shape = _windows(layer, inputs[0], kernel, out, layer.dilation)
    if len(inputs) == 2 and inputs[1].shape != shape:
        raise ValueError(f"the residual has another shape than {shape}")
    return shape


def _linear(layer: n.Linear, inputs: list[n.TensorSpec]) -> Shape:
    if inputs[0].shape != layer.weight.shape[1:]:
        raise ValueError(f"weights {layer.weight.shape}")
    return layer.weight.shape[:1]


def _add(layer: n.Add, inputs: list[n.TensorSpec]) -> Shape:
    if inputs[0].shape != inputs[1].shape or len(layer.multipliers) != 2:
        raise ValueError("expected two tensors of one shape and two multipliers")
    return inputs[0].shape


def _mul(layer: n.Mul, inputs: list[n.TensorSpec]) -> Shape:
    if len(inputs[0].shape) != len(inputs[1].shape):
        raise ValueError("expected as many dimensions")
    return np.broadcast_shapes(inputs[0].shape, inputs[1].shape)


def _average_pool(layer: n.AveragePool2d, inputs: list[n.TensorSpec]) -> Shape:
    return _windows(layer, inputs[0], layer.kernel, inputs[0].shape[0])


def _max_pool(layer: n.MaxPool2d, inputs: list[n.TensorSpec]) -> Shape:
    shape = _windows(layer, inputs[0], layer.kernel, inputs[0].shape[0], layer.dilation)
    for axis in (0, 1):
        for position in range(shape[axis + 1]):
            start = position * layer.stride[axis] - layer.padding[axis]
            taps = (start + tap * layer.dilation[axis] for tap in range(layer.kernel[axis]))
            if not any(0 <= tap < inputs[0].shape[axis + 1] for tap in taps):
                raise ValueError("a window sees padding only")
    return shape


def _concat(layer: n.Concat, inputs: list[n.TensorSpec]) -> Shape:
    shapes = [list(spec.shape) for spec in inputs]
    total = sum(shape[layer.axis] for shape in shapes)
    for shape in shapes:
        shape[layer.axis] = total
    if layer.axis < 0 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"expected equal shapes but for dimension {layer.axis}")
    return tuple(shapes[0])


def _reshape(layer: n.Reshape, inputs: list[n.TensorSpec]) -> Shape:
    if math.prod(inputs[0].shape) != math.prod(layer.output.shape):
        raise ValueError(f"another number of values than {layer.output.shape}")
    return layer.output.shape


def _permute(layer: n.Permute, inputs: list[n.TensorSpec]) -> Shape:
    if sorted(layer.axes) != list(range(len(inputs[0].shape))):
        raise ValueError(f"axes {layer.axes}")
    return tuple(inputs[0].shape[axis] for axis in layer.axes)


def _slice(layer: n.Slice, inputs: list[n.TensorSpec]) -> Shape:
    shape = list(inputs[0].shape)
    if layer.axis < 0 or layer.start < 0 or layer.step < 1 or layer.stop > shape[layer.axis]:
        raise ValueError(f"{layer.start}:{layer.stop}:{layer.step} of dimension {layer.axis}")
    shape[layer.axis] = len(range(layer.start, layer.stop, layer.step))
    return tuple(shape)


def _pad(layer: n.Pad, inputs: list[n.TensorSpec]) -> Shape:
    if any(width < 0 for pair in layer.widths for width in pair):
        raise ValueError("widths must be 0 or more")
    return tuple(size + sum(pair) for size, pair in zip(inputs[0].shape, layer.widths, strict=True))


_INPUTS: dict[type[n.Layer], int] = {n.QuantizeInput: 0, n.Add: 2, n.Mul: 2}

_SHAPE: dict[type[n.Layer], Callable[[Any, list[n.TensorSpec]], Shape]] = {
    n.QuantizeInput: lambda layer, inputs: layer.output.shape,
    n.Conv2d: _conv2d,
    n.Linear: _linear,
    n.Add: _add,
    n.Mul: _mul,
    n.AveragePool2d: _average_pool,
    n.MaxPool2d: _max_pool,
    n.Concat: _concat,
    n.Reshape: _reshape,
    n.Permute: _permute,
    n.Slice: _slice,
    n.Pad: _pad,
    n.Clamp: lambda layer, inputs: inputs[0].shape,
    n.Table: lambda layer, inputs: inputs[0].shape,
}

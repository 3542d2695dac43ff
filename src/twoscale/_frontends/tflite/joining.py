"""Operators of two tensors or more. One operand of a sum, a difference or a product may be a constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._frontends.tflite.channels import constant_integers, times_constant
from twoscale._frontends.tflite.file_reader import layer_axis
from twoscale._frontends.tflite.functions import clamped, pair
from twoscale._frontends.tflite.reader import Reader
from twoscale._ir import fixed_point
from twoscale._ir import layers as n

__all__ = ["JOINING"]


@dataclass(frozen=True)
class Constant:
    """A quantized operand that does not depend on the images."""

    integers: NDArray[Any]
    """In the file's order."""
    spec: n.TensorSpec
    """Its type, scale and zero point; the shape is empty."""

    @property
    def shifted(self) -> NDArray[np.int64]:
        """The integers less their zero point."""
        return self.integers.astype(np.int64) - self.spec.zero_point

    @property
    def single(self) -> int | None:
        """Its only value less the zero point, if all are the same."""
        values = self.shifted
        return int(values.flat[0]) if (values == values.flat[0]).all() else None


def _constant(r: Reader, index: int) -> Constant:
    tensor = r.tensor(index)
    integers = r.constant(index)
    if tensor.dtype not in ("int8", "uint8") or len(tensor.scales) != 1 or not integers.size:
        r.refuse(f"its constant is {tensor.dtype} with {len(tensor.scales)} scales; expected int8 or uint8 with one")
    limits, zero_point = np.iinfo(tensor.dtype), int(tensor.zero_points[0])
    if not limits.min <= zero_point <= limits.max:
        r.refuse(f"its constant has the zero point {zero_point}, beyond {tensor.dtype}")
    spec = n.TensorSpec((), tensor.dtype, float(tensor.scales[0]), zero_point, int(limits.min), int(limits.max))
    return Constant(integers, spec)


def _operands(r: Reader) -> tuple[n.Layer | Constant, n.Layer | Constant]:
    if r.tensor(0).is_constant and r.tensor(1).is_constant:
        r.refuse("both operands are constants; convert the model with constants folded")
    first, second = (_constant(r, index) if r.tensor(index).is_constant else r.value(index) for index in (0, 1))
    return first, second


def _spec(operand: n.Layer | Constant) -> n.TensorSpec:
    return operand.spec if isinstance(operand, Constant) else operand.output


def _require_types(r: Reader, *specs: n.TensorSpec) -> None:
    types = [spec.dtype for spec in specs]
    if len(set(types)) > 1:
        r.refuse(f"its tensors are {', '.join(types[:-1])} and {types[-1]}; expected the same type")


# ---------------------------------------------------------------- sums


def _sum(sign: int) -> Callable[[Reader], None]:
    """Return the reader of ADD (1) or SUB (-1), equation (19)."""

    def read(r: Reader) -> None:
        if r.result.dtype == "int32":
            _shifted_index(r, sign)
            return
        a, b = _operands(r)
        spec = r.activated(0)
        _require_types(r, _spec(a), _spec(b), spec)
        s_a, s_b, s_y = _spec(a).scale, _spec(b).scale, spec.scale
        twice = 2 * max(s_a, s_b)
        factors = (s_a / twice, s_b / twice, twice / ((1 << fixed_point.LEFT_SHIFT) * s_y))
        if factors[2] >= 1:
            r.refuse("its operands' scales are beyond 2**19 times its output's")
        multipliers = tuple(r.multiplier([factor]) for factor in factors)
        first, second = (m for m in multipliers[:2])
        if isinstance(b, Constant) and not isinstance(a, Constant):
            _plus_constant(r, a, b, spec, multipliers, (1, sign))
        elif isinstance(a, Constant) and not isinstance(b, Constant):
            _plus_constant(r, b, a, spec, (second, first, multipliers[2]), (sign, 1))
        elif not isinstance(a, Constant) and not isinstance(b, Constant):
            a, b = (_broadcast(r, operand, spec.shape) for operand in (a, b))
            b = b if sign == 1 else _negated(r, b, second)
            names = (a.name, b.name)
            r.compute(lambda name: n.Add(name=name, inputs=names, output=spec, multipliers=multipliers))

    return read


def _shifted_index(r: Reader, sign: int) -> None:
    """Add a constant to the indices of a table."""
    x, constant = (1, 0) if r.tensor(0).is_constant and sign == 1 else (0, 1)
    value, shift = r.flattened(x, ("int32",)), r.constant(constant)
    if shift.size != 1 or value.offset is None:
        r.refuse(f"it adds {shift.size} int32 values; expected one, to the indices of a table")
    r.set(r.result, dataclasses.replace(value, offset=value.offset + sign * int(shift.ravel()[0])))


def _plus_constant(
    r: Reader, x: n.Layer, constant: Constant, spec: n.TensorSpec, multipliers: tuple[n.FixedPoint, ...],
    signs: tuple[int, int],
) -> None:  # fmt: skip
    """Append the sum of a tensor and a constant, with the sign and the multiplier of each."""
    if x.output.shape != spec.shape:
        r.refuse(f"it makes {spec.shape} of {x.output.shape} with a constant; expected the same shape")
    mine, its, whole = (pair(m) for m in multipliers)
    shift = fixed_point.LEFT_SHIFT
    value = constant.single
    if value is not None:
        other = signs[1] * fixed_point.scaled(value << shift, *its)
        r.give(
            r.table(
                x, spec,
                lambda q: spec.zero_point
                + fixed_point.scaled(signs[0] * fixed_point.scaled(q << shift, *mine) + other, *whole),
            )
        )  # fmt: skip
        return
    x = x if signs[0] == 1 else _negated(r, x, multipliers[0])
    integers, quantization = constant.integers, constant.spec
    if signs[1] != 1:
        _require_symmetric(r, np.unique(constant.shifted).tolist(), its)
        quantization = _mirrored(quantization)
        integers = quantization.lo + quantization.hi - integers.astype(np.int64)
    other_layer = constant_integers(r, x, integers, dataclasses.replace(quantization, shape=x.output.shape))
    names = (x.name, other_layer.name)
    r.compute(lambda name: n.Add(name=name, inputs=names, output=spec, multipliers=multipliers))


def _mirrored(spec: n.TensorSpec) -> n.TensorSpec:
    """Return the quantization in which the integer lo + hi - q stands for the real number of q, negated."""
    limits = np.iinfo(spec.dtype)
    return dataclasses.replace(
        spec, zero_point=int(limits.min) + int(limits.max) - spec.zero_point, lo=int(limits.min), hi=int(limits.max)
    )


def _negated(r: Reader, x: n.Layer, multiplier: n.FixedPoint) -> n.Layer:
    """Append the tensor with its sign changed, for a sum that multiplies it by a factor."""
    spec, zero = _mirrored(x.output), x.output.zero_point
    _require_symmetric(r, [q - zero for q in range(x.output.lo, x.output.hi + 1)], pair(multiplier))
    return r.table(x, spec, lambda q: spec.zero_point - q, whole=False)


def _require_symmetric(r: Reader, values: list[int], factor: tuple[int, int]) -> None:
    """Check that a factor rounds values and their negatives alike: high of (18) rounds half a step up."""
    shift = fixed_point.LEFT_SHIFT
    if any(fixed_point.scaled(-v << shift, *factor) != -fixed_point.scaled(v << shift, *factor) for v in values):
        r.refuse("it subtracts values that are halfway between two steps, which a sum rounds in the other direction")


def _broadcast(r: Reader, x: n.Layer, shape: tuple[int, ...]) -> n.Layer:
    """Return an operand in the shape of a sum: copies along the dimensions of size 1."""
    x = _broadcastable(r, x, len(shape))
    for axis, size in enumerate(shape):
        if x.output.shape[axis] == 1 < size:
            x = r.repeated(x, axis, size)
    if x.output.shape != shape:
        r.refuse(f"an operand has the shape {x.output.shape}, its output {shape}")
    return x


# ---------------------------------------------------------------- products


def _mul(r: Reader) -> None:
    a, b = _operands(r)
    spec = r.activated(0)
    _require_types(r, _spec(a), _spec(b), spec)
    s_a, s_b, s_y = _spec(a).scale, _spec(b).scale, spec.scale
    factor = s_a * s_b / s_y
    if spec.dtype == "uint8":
        factor = float(np.float32(s_a) * np.float32(s_b) / np.float32(s_y))
    multiplier = r.multiplier([factor])
    if isinstance(a, Constant) or isinstance(b, Constant):
        x, constant = (b, a) if isinstance(a, Constant) else (a, b)
        assert isinstance(constant, Constant)
        assert not isinstance(x, Constant)
        _times_constant(r, x, constant, spec, multiplier)
        return
    first, second = (_broadcastable(r, x, len(spec.shape)) for x in (a, b))
    names = (first.name, second.name)
    r.compute(lambda name: n.Mul(name=name, inputs=names, output=spec, multiplier=multiplier))


def _times_constant(r: Reader, x: n.Layer, constant: Constant, spec: n.TensorSpec, multiplier: n.FixedPoint) -> None:
    if x.output.shape != spec.shape:
        r.refuse(f"it makes {spec.shape} of {x.output.shape} with a constant; expected the same shape")
    value = constant.single
    if value is None:
        r.give(times_constant(r, x, constant.shifted, spec, multiplier, r.result))
        return
    m, e = pair(multiplier)
    if e > 14:
        r.refuse(f"its scales have a quotient of about 2**{e}, with which int32 overflows")
    r.give(r.table(x, spec, lambda q: spec.zero_point + fixed_point.scaled(q * value, m, e)))


def _broadcastable(r: Reader, x: n.Layer, rank: int) -> n.Layer:
    """Return an operand with the output's number of dimensions."""
    if len(x.output.shape) == 1 and rank == 3:
        return r.reshaped(x, (*x.output.shape, 1, 1))
    if len(x.output.shape) != rank:
        r.refuse(f"an operand has {len(x.output.shape)} dimensions without the batch, its output {rank}")
    return x


# ---------------------------------------------------------------- concatenations


def _concatenation(r: Reader) -> None:
    spec, rank = r.activated(1), len(r.result.shape)
    axis = r.options.number(0, "i")
    axis += rank if axis < 0 else 0
    if not 1 <= axis < rank:
        r.refuse(f"it concatenates along dimension {axis}; expected 1 to {rank - 1}")
    parts = []
    for index in range(len(r.operator.inputs)):
        x = r.value(index)
        if x.output.dtype != spec.dtype or len(x.output.shape) != len(spec.shape):
            r.refuse("its operands have other types or numbers of dimensions than its output")
        if (x.output.scale, x.output.zero_point) != (spec.scale, spec.zero_point):
            x = _concatenated(r, x, spec)
        parts.append(x)
    if not parts:
        r.refuse("it has no inputs")
    whole = dataclasses.replace(spec, lo=int(np.iinfo(spec.dtype).min), hi=int(np.iinfo(spec.dtype).max))
    names = tuple(x.name for x in parts)
    layer_dimension = layer_axis(axis - 1, rank - 1)
    joined = r.append(
        lambda name: n.Concat(
            name=name, inputs=names, output=whole, axis=layer_dimension, multipliers=(None,) * len(names)
        ),
        r.result if whole == spec else None,
    )
    r.give(clamped(r, joined, spec))


def _concatenated(r: Reader, x: n.Layer, spec: n.TensorSpec) -> n.Layer:
    """Return an operand in the output's scale: ConcatenationWithScaling, in float32."""
    if spec.dtype != "uint8":
        r.refuse("its int8 operands have other scales than its output, which TensorFlow Lite refuses too")
    scale = np.float32(x.output.scale) * (np.float32(1) / np.float32(spec.scale))
    bias = np.float32(-x.output.zero_point) * scale
    steps = (np.arange(256, dtype=np.float32) * scale + bias).astype(np.float64)
    rounded = (np.sign(steps) * np.floor(np.abs(steps) + 0.5)).clip(-1e6, 1e6).astype(np.int64) + spec.zero_point
    zero_point = x.output.zero_point
    operand = dataclasses.replace(spec, shape=x.output.shape, lo=0, hi=255)
    return r.table(x, operand, lambda q: int(rounded[q + zero_point]), whole=False)


JOINING: Mapping[str, Callable[[Reader], None]] = {
    "ADD": _sum(1),
    "CONCATENATION": _concatenation,
    "MUL": _mul,
    "SUB": _sum(-1),
}
"""What is read."""

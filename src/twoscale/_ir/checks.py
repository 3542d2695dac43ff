"""The conditions that every executor relies on, checked once when a network is made.

``check`` refuses layers that do not fit together. ``off_grid`` lists the reasons why executors may give different
integers. Such a network still runs, and verify counts its mismatches. Equation numbers are those of
docs/arithmetic.md.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, MULTIPLIER_LIMIT, sum_is_exact
from twoscale.errors import ConfigurationError, QuantizationError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["check", "in_fixed_point", "is_exact", "multipliers", "off_grid", "refuse_fixed_point", "sum_bounds"]

_LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "int32": (-(2**31), 2**31 - 1)}


_MOST_VALUES = 2**31 - 1

_LARGEST_FLOAT = 2.0**64
"""Free multipliers are below it, so that no product or sum of two products is beyond float32."""


def check(network: IntegerNetwork) -> None:
    """Check names, shapes, types, ranges, multipliers and accumulator bounds.

    Raises:
        QuantizationError: a condition does not hold; the message names the layer.
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
        if layer.output.dtype == "int32" and layer.output.zero_point:
            raise QuantizationError(
                f"layer {layer.name}: the zero point is {layer.output.zero_point}; accumulators have the zero point 0"
            )
        seen[layer.name] = layer.output
    count = sum(layer.arity == 0 for layer in network.layers)
    if not count or any(layer.arity for layer in network.layers[:count]):
        raise QuantizationError("expected a QuantizeInput for each input, as the first layers")
    if not isinstance(network.outputs, tuple) or not network.outputs:
        raise QuantizationError(f"the outputs are {network.outputs!r}; expected a tuple of names of layers")
    for name in network.outputs:
        if name not in seen:
            raise QuantizationError(f"the output {name} is made by no layer")
    if len(set(network.outputs)) < len(network.outputs):
        raise QuantizationError(f"the outputs {', '.join(network.outputs)} name a layer twice; names must differ")


def off_grid(network: IntegerNetwork) -> tuple[str, ...]:
    """Return one line per reason why a network is not on the grid."""
    reasons = []
    for layer in network.layers:
        if in_fixed_point(layer):
            reasons.append(f"layer {layer.name}: it has TensorFlow Lite's arithmetic, which rounds twice")
            continue
        if layer.output.zero_point % 2:
            reasons.append(f"layer {layer.name}: the zero point {layer.output.zero_point} is odd")
        if any(m.is_free for m in multipliers(layer)):
            reasons.append(f"layer {layer.name}: a multiplier is a free float, not a whole number on the grid")
        elif (products := sum_bounds(network, layer)) is not None and not sum_is_exact(*products):
            reasons.append(
                f"layer {layer.name}: its operands reach {products[0] / 2**ADD_SHIFT:.0f} and "
                f"{products[1] / 2**ADD_SHIFT:.0f} output steps; float32 sums are exact up to 1024 both, "
                "or up to 768 one of them"
            )
    return tuple(reasons)


def in_fixed_point(layer: n.Layer) -> bool:
    """Whether a layer has TensorFlow Lite's arithmetic, (18) to (21)."""
    exact = n.FixedPoint | n.WindowQuotient
    return isinstance(layer, n.FixedPointSoftmax) or any(isinstance(m, exact) for m in multipliers(layer))


def refuse_fixed_point(network: IntegerNetwork, form: str) -> None:
    """Refuse a network of TensorFlow Lite's arithmetic for a form that has no operators for it.

    Args:
        network: any.
        form: name of the form.

    Raises:
        ConfigurationError: a layer has that arithmetic; names it, and what to do.
    """
    for layer in network.layers:
        if in_fixed_point(layer):
            raise ConfigurationError(
                f"layer {layer.name} of {network.name} has TensorFlow Lite's arithmetic, which rounds twice and has no "
                f"{form} form; export or compile it as C, or move it onto the grid first: network.requantize() or "
                "twoscale requantize"
            )


def is_exact(network: IntegerNetwork) -> bool:
    """Whether every executor that runs a network gives the same integers.

    It is on the grid, or every layer that computes has TensorFlow Lite's arithmetic.
    """
    if not network.off_grid:
        return True
    computing = [layer for layer in network.layers if multipliers(layer) or not _only_moves(layer)]
    return all(in_fixed_point(layer) for layer in computing)


def _only_moves(layer: n.Layer) -> bool:
    """Whether a layer moves or looks up integers, or quantizes the images."""
    return layer.moves_values or isinstance(layer, n.QuantizeInput | n.Table | n.Concat)


def multipliers(layer: n.Layer) -> tuple[n.Multiplier, ...]:
    """Return every multiplier of a layer."""
    found: list[n.Multiplier] = []
    for attribute in dataclasses.fields(layer):
        value = getattr(layer, attribute.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, n.Multiplier):
                found.append(item)
    return tuple(found)


def sum_bounds(network: IntegerNetwork, layer: n.Layer) -> tuple[int, int] | None:
    """Return the largest products of an addition on the grid, in 2**-14ths; None for other layers."""
    return layer.sum_bounds([network.spec(name) for name in layer.inputs])


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
    if (values := math.prod(spec.shape)) > _MOST_VALUES:
        raise QuantizationError(
            f"layer {layer.name}: shape {spec.shape} has {values:,} values; expected at most {_MOST_VALUES:,}, which "
            "32-bit indices reach"
        )
    if spec.dtype == "int32" and (spec.zero_point, spec.lo, spec.hi) != (0, lowest, highest):
        raise QuantizationError(
            f"layer {layer.name}: accumulators with zero point {spec.zero_point} in [{spec.lo}, {spec.hi}]; expected "
            "zero point 0 and the range of int32, since they leave as they are"
        )


def _check_layer(layer: n.Layer, inputs: list[n.TensorSpec]) -> None:
    if len(inputs) != layer.arity:
        raise QuantizationError(f"layer {layer.name}: {layer.op} reads {layer.arity} tensors, got {len(inputs)}")
    if not layer.reads_accumulators and any(spec.dtype == "int32" for spec in inputs):
        raise QuantizationError(f"layer {layer.name}: {layer.op} reads accumulators; only a Reshape may")
    layer.check(inputs)
    try:
        shape = layer.output_shape(inputs)
    except (ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(str(spec.shape) for spec in inputs)
        raise QuantizationError(f"layer {layer.name}: {layer.op} does not fit its inputs {shapes}: {error}") from error
    if shape != layer.output.shape:
        raise QuantizationError(f"layer {layer.name}: {layer.op} makes {shape}, but says {layer.output.shape}")
    _check_values(layer, inputs)
    _check_multipliers(layer, inputs)


def _check_values(layer: n.Layer, inputs: list[n.TensorSpec]) -> None:
    """Check the tensors that a layer copies. Bounds rely on their scale, zero point and range."""
    out = layer.output
    for spec in layer.copied(inputs):
        if (spec.dtype, spec.scale, spec.zero_point) != (out.dtype, out.scale, out.zero_point):
            raise QuantizationError(
                f"layer {layer.name}: {layer.op} passes integers on, so type, scale and zero point must be its "
                f"input's ({spec.dtype}, {spec.scale:g}, {spec.zero_point}), "
                f"not ({out.dtype}, {out.scale:g}, {out.zero_point})"
            )
        if not layer.narrows and not out.lo <= spec.lo <= spec.hi <= out.hi:
            raise QuantizationError(
                f"layer {layer.name}: the input's [{spec.lo}, {spec.hi}] is not within [{out.lo}, {out.hi}]"
            )
    if (out.dtype == "int32") != layer.accumulates and not layer.reads_accumulators:
        raise QuantizationError(
            f"layer {layer.name}: {layer.op} to {out.dtype} "
            + (
                "needs a multiplier"
                if layer.accumulates
                else "cannot be; only accumulators without a multiplier are int32"
            )
        )


def _check_multipliers(layer: n.Layer, inputs: list[n.TensorSpec]) -> None:
    found = multipliers(layer)
    shift = layer.multiplier_shift
    for multiplier in found:
        values = multiplier.values
        sizes = (1, layer.channels_of(multiplier))
        if values.ndim != 1 or len(values) not in sizes or values.dtype != np.float32:
            raise QuantizationError(
                f"layer {layer.name}: multipliers are {values.dtype} of shape {values.shape}; expected float32, "
                + " or ".join(str(size) for size in sorted(set(sizes)))
            )
        if not (np.isfinite(values).all() and values.min() > 0):
            raise QuantizationError(f"layer {layer.name}: multipliers must be positive and finite")
        if values.max() >= _LARGEST_FLOAT:
            raise QuantizationError(
                f"layer {layer.name}: a multiplier is {values.max():g}; expected below 2**64, so that float32 holds "
                "every product"
            )
        if multiplier.shift not in (None, shift) or len({(m.shift, type(m)) for m in found}) > 1:
            raise QuantizationError(
                f"layer {layer.name}: multipliers count 2**-{multiplier.shift}ths; expected all in 2**-{shift}ths, "
                "or all free floats"
            )
        if isinstance(multiplier, n.FixedPoint):
            _check_fixed_point(layer, multiplier, inputs)
        if isinstance(multiplier, n.WindowQuotient) and not isinstance(layer, n.AveragePool2d):
            raise QuantizationError(f"layer {layer.name}: only an AveragePool2d divides by the size of its windows")
        integers = np.ldexp(values.astype(np.float64), shift)
        if multiplier.shift is None:
            continue
        if not (integers == np.rint(integers)).all() or integers.max() >= MULTIPLIER_LIMIT:
            raise QuantizationError(
                f"layer {layer.name}: multipliers must be whole numbers of 2**-{shift}ths below 2**24"
            )


def _check_fixed_point(layer: n.Layer, multiplier: n.FixedPoint, inputs: list[n.TensorSpec]) -> None:
    m, e = multiplier.mantissas, multiplier.exponents
    if m.dtype != np.int32 or e.dtype != np.int8 or not m.shape == e.shape == multiplier.values.shape:
        raise QuantizationError(
            f"layer {layer.name}: mantissas {m.dtype} {m.shape} and exponents {e.dtype} {e.shape}; expected int32 and "
            f"int8 {multiplier.values.shape}"
        )
    if m.min() < 1 or e.min() < -31 or e.max() > 30:
        raise QuantizationError(f"layer {layer.name}: expected positive mantissas, and exponents in [-31, 30]")
    if isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None:
        raise QuantizationError(f"layer {layer.name}: TensorFlow Lite's arithmetic has no residual in a convolution")
    reach = layer.accumulator_reach(inputs) << np.maximum(e.astype(np.int64), 0)
    if int(reach.max()) >= 2**31:
        raise QuantizationError(
            f"layer {layer.name}: accumulators times a factor of up to {multiplier.values.max():g} can reach "
            f"{int(reach.max())}, beyond int32"
        )

"""Softmax and norms as standard operators in float64, in which every step is exact by (15), (16) and (17)."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from twoscale._formats.onnx.graph_builder import GraphBuilder, q
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import NORM_BITS, NORM_RECIPROCAL_BITS, REQUANTIZE_SHIFT

__all__ = ["unsigned", "write_normalize", "write_softmax", "write_softmax_matmul"]


def unsigned(w: GraphBuilder, layer: n.Layer, index: int) -> tuple[str, str]:
    """Return an input as uint8, and its zero point: int8 is moved by 128.

    On CPUs without VNNI, kernels for int8 matrices may saturate in 16 bits.
    """
    name = layer.inputs[index]
    spec = w.network.spec(name)
    if spec.dtype == "uint8":
        return q(name), w.zero_point(name)
    wide = w.node("Cast", [q(name)], f"{layer.name}/wide{index}", to=TensorProto.INT32)
    moved = w.node("Add", [wide, w.constant("half_range", 128, np.int32)], f"{layer.name}/moved{index}")
    zero = w.constant(f"{layer.name}/zero_point{index}", spec.zero_point + 128, np.uint8)
    return w.node("Cast", [moved], f"{layer.name}/unsigned{index}", to=TensorProto.UINT8), zero


def write_softmax(w: GraphBuilder, layer: n.Softmax) -> None:
    """Write equation (15)."""
    entries, total = _exponentials(w, layer, layer.axis + 1)
    scaled = _by(w, layer, "Mul", entries, 2.0**layer.shift, "scaled")
    _round(w, layer, w.node("Div", [scaled, total], f"{layer.name}/ratio"))


def write_softmax_matmul(w: GraphBuilder, layer: n.SoftmaxMatMul) -> None:
    """Write equation (16)."""
    entries, total = _exponentials(w, layer, 3)
    acc = w.node("MatMul", [entries, _shifted(w, layer, 1)], f"{layer.name}/acc")
    assert layer.multiplier is not None
    factor = w.constant(f"{layer.name}/multiplier", layer.multiplier.values.reshape(()), np.float32)
    wide = w.node("Cast", [factor], f"{layer.name}/factor", to=TensorProto.DOUBLE)
    product = w.node("Mul", [acc, wide], f"{layer.name}/product")
    _round(w, layer, w.node("Div", [product, total], f"{layer.name}/ratio"))


def write_normalize(w: GraphBuilder, layer: n.Normalize) -> None:
    """Write equation (17)."""
    spec = w.network.spec(layer.inputs[0])
    count, t = layer.count(spec), layer.deviation_shift(spec)
    axes = w.constant(f"{layer.name}/axes", [axis + 1 for axis in layer.axes], np.int64)
    x = _shifted(w, layer, 0)
    squares = w.node("Mul", [x, x], f"{layer.name}/squares")
    variance = _by(w, layer, "Mul", w.node("ReduceSum", [squares, axes], f"{layer.name}/power"), count, "moment")
    centered = _by(w, layer, "Mul", x, count, "counted")
    if layer.centered:
        total = w.node("ReduceSum", [x, axes], f"{layer.name}/total")
        centered = w.node("Sub", [centered, total], f"{layer.name}/centered")
        squared = w.node("Mul", [total, total], f"{layer.name}/squared_total")
        variance = w.node("Sub", [variance, squared], f"{layer.name}/variance")
    variance = _by(w, layer, "Add", variance, layer.epsilon, "with_epsilon")
    root = w.node("Sqrt", [_by(w, layer, "Mul", variance, 4.0**t, "finer")], f"{layer.name}/root")
    deviation = w.node("Floor", [root], f"{layer.name}/deviation")
    one = w.constant(f"{layer.name}/one", 2.0**NORM_RECIPROCAL_BITS, np.float64)
    reciprocal = w.node("Floor", [w.node("Div", [one, deviation], f"{layer.name}/inverse")], f"{layer.name}/reciprocal")
    product = w.node("Mul", [centered, reciprocal], f"{layer.name}/product")
    real = _by(w, layer, "Mul", product, 2.0 ** -(NORM_RECIPROCAL_BITS - NORM_BITS - t), "normalized")
    value = w.node("Round", [real], f"{layer.name}/fixed")
    for operator, what, values, factor in (
        ("Mul", "gain", layer.gain, 1.0),
        ("Add", "bias", layer.bias, 2.0**NORM_BITS),
    ):
        constant = w.constant(f"{layer.name}/{what}", values, np.int32)
        wide = w.node("Cast", [constant], f"{layer.name}/wide_{what}", to=TensorProto.DOUBLE)
        if factor != 1.0:
            wide = _by(w, layer, "Mul", wide, factor, f"finer_{what}")
        value = w.node(operator, [value, wide], f"{layer.name}/with_{what}")
    _round(w, layer, _by(w, layer, "Mul", value, 2.0 ** -(NORM_BITS + REQUANTIZE_SHIFT), "real"))


def _by(w: GraphBuilder, layer: n.Layer, operator: str, value: str, number: float, what: str) -> str:
    """Return value · number or value + number."""
    return w.node(operator, [value, w.constant(f"{layer.name}/{what}_by", number, np.float64)], f"{layer.name}/{what}")


def _shifted(w: GraphBuilder, layer: n.Layer, index: int) -> str:
    """Return q − z of an input in float64."""
    name = layer.inputs[index]
    wide = w.node("Cast", [q(name)], f"{layer.name}/wide{index}", to=TensorProto.DOUBLE)
    zero_point = w.network.spec(name).zero_point
    return _by(w, layer, "Add", wide, -zero_point, f"shifted{index}") if zero_point else wide


def _exponentials(w: GraphBuilder, layer: n.Softmax | n.SoftmaxMatMul, axis: int) -> tuple[str, str]:
    """Return T[q_max − q] and the sum along an axis, in float64."""
    axes = w.constant(f"{layer.name}/axes", [axis], np.int64)
    wide = w.node("Cast", [q(layer.inputs[0])], f"{layer.name}/wide", to=TensorProto.INT32)
    top = w.node("ReduceMax", [wide, axes], f"{layer.name}/top")
    below = w.node("Sub", [top, wide], f"{layer.name}/below")
    table = w.constant(f"{layer.name}/table", layer.table, np.int32)
    entries = w.node(
        "Cast",
        [w.node("Gather", [table, below], f"{layer.name}/entries")],
        f"{layer.name}/exponentials",
        to=TensorProto.DOUBLE,
    )
    return entries, w.node("ReduceSum", [entries, axes], f"{layer.name}/sum")


def _round(w: GraphBuilder, layer: n.Layer, value: str) -> None:
    """Write clamp(RNE(value) + z, lo, hi) in the output's type."""
    spec = layer.output
    rounded = w.node("Round", [value], f"{layer.name}/rounded")
    if spec.zero_point:
        rounded = _by(w, layer, "Add", rounded, spec.zero_point, "moved")
    bounds: list[Any] = [
        w.constant(f"{layer.name}/{what}", bound, np.float64) for what, bound in (("lo", spec.lo), ("hi", spec.hi))
    ]
    clipped = w.node("Clip", [rounded, *bounds], f"{layer.name}/clipped")
    w.node("Cast", [clipped], q(layer.name), to=helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)))

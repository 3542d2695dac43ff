"""What the C sources say: comments about tensors and layers, initializers, templates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.calls import Constant, Inline, Name, Params, Value, Whole
from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.storage import memory_axes
from twoscale._codegen.c.common.tensors import Tensor
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.preprocessing import pixel_normalization

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "about",
    "array",
    "ctype",
    "decimal",
    "initializer",
    "kind",
    "layout",
    "normalization",
    "number_lines",
    "rows",
    "shape_text",
    "structs",
    "templates",
    "tensor_table",
    "value_text",
]

_WIDTH = 118


def ctype(tensor: Tensor) -> str:
    """Return the C type of a tensor's integers."""
    return f"{tensor.spec.dtype}_t"


def normalization(network: IntegerNetwork) -> str:
    """Return how a network's images are normalized, in words."""
    found = pixel_normalization(network.metadata, network.input_layout.shape[0])
    assert found is not None  # there is a table of pixels
    mean, std = ([f"{value:.6g}" for value in values] for values in found)
    return f"mean {', '.join(mean)} and std {', '.join(std)}"


def layout(tensor: Tensor) -> str:
    """Return the dimensions of a tensor as they lie in memory, for the header."""
    shape = tensor.spec.shape
    sizes = "".join(f"[{shape[axis]}]" for axis in memory_axes(len(shape)))
    return f"{sizes}: rows from the top, pixels from the left, channels together" if len(shape) == 3 else sizes


def shape_text(tensor: Tensor) -> str:
    """Return the sizes of a tensor in the order of memory."""
    shape = tensor.spec.shape
    return " x ".join(str(shape[axis]) for axis in memory_axes(len(shape)))


def decimal(value: np.floating[Any]) -> str:
    """Return the shortest decimal number that reads back as the value."""
    return np.format_float_scientific(value, unique=True, trim="0", exp_digits=1)


def tensor_table(tensors: Iterable[Tensor]) -> list[str]:
    """Return the lines of a table of tensors, for a comment."""
    heads = ("layer", "tensor", "type", "H x W x C", "scale", "zero", "q")
    rows = [heads]
    for index, tensor in enumerate(tensors):
        spec = tensor.spec
        bounds = "" if spec.dtype == "int32" else f"{spec.lo}..{spec.hi}"
        rows.append(
            (
                str(index),
                printable(tensor.name),
                spec.dtype,
                shape_text(tensor),
                f"{spec.scale:.6g}",
                str(spec.zero_point),
                bounds,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    right = {0, 4, 5}
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def kind(layer: n.Layer) -> str:
    """Return what a layer is, for its comment."""
    if isinstance(layer, n.Conv2d):
        kernel_h, kernel_w = layer.weight.shape[2:]
        told = [f"Conv2d {kernel_h} x {kernel_w}", f"stride {layer.stride[0]} x {layer.stride[1]}"]
        if any(layer.padding):
            told.append(_padding(layer.padding))
        if layer.dilation != (1, 1):
            told.append(f"dilation {layer.dilation[0]} x {layer.dilation[1]}")
        if layer.groups > 1:
            told.append(f"{layer.groups} groups")
        if layer.residual_multiplier is not None:
            told.append("and a residual")
        return ", ".join(told)
    if isinstance(layer, n.MaxPool2d | n.AveragePool2d):
        told = [
            f"{layer.op} {layer.kernel[0]} x {layer.kernel[1]}",
            f"stride {layer.stride[0]} x {layer.stride[1]}",
        ]
        return ", ".join([*told, _padding(layer.padding)] if any(layer.padding) else told)
    return layer.op


def _padding(padding: n.Padding) -> str:
    top, left, bottom, right = padding
    return f"padding {top} above, {left} left, {bottom} below, {right} right"


_EQUATIONS = {
    "Conv2d": "sum of (x - zero_x) * w + bias",
    "Linear": "sum of (x - zero_x) * w + bias",
    "AveragePool2d": "sum of (x - zero_x)",
    "Mul": "(a - zero_a) * (b - zero_b)",
    "Add": "",
}


def about(layer: n.Layer, tensors: Mapping[str, Tensor], macs: int) -> list[str]:
    """Return what a layer is and computes, for the comment before its constants."""
    inputs = ", ".join(f"{printable(name)} ({shape_text(tensors[name])})" for name in layer.inputs)
    lines = [f"{inputs} -> {shape_text(tensors[layer.name])}" + (f"; {macs:,} multiply-adds" if macs else "")]
    if layer.op in _EQUATIONS:
        lines.append(_equation(layer))
    return lines


def _equation(layer: n.Layer) -> str:
    """Return how the output comes from the inputs, for a comment."""
    if isinstance(layer, n.Add) and layer.in_fixed_point:
        return "y = clamp(zero + m * (m_a * (a - zero_a) + m_b * (b - zero_b)), lo, hi), in fixed point   (19)"
    if isinstance(layer, n.Add):
        return f"y = clamp(zero + RNE(((a - zero_a) * m_a + (b - zero_b) * m_b) / 2^{ADD_SHIFT}), lo, hi)   (7)"
    assert isinstance(layer, n.Requantize)
    acc = _EQUATIONS[layer.op]
    if layer.multiplier is None:
        return f"y = {acc}   (2)" if isinstance(layer, n.Accumulating) else f"y = {acc}"
    if isinstance(layer.multiplier, n.WindowQuotient):
        return "y = clamp(mean of x, lo, hi), rounded away from zero   (20)"
    if isinstance(layer.multiplier, n.FixedPoint):
        return f"y = clamp(zero + m * 2^(e - 31) * acc, lo, hi), rounded twice, acc = {acc}   (18)"
    if isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None:
        return (
            f"y = clamp(zero + RNE((acc * m + (r - zero_r) * m_r) / 2^{layer.multiplier.shift}), lo, hi), "
            f"acc = {acc}   (2, 7b)"
        )
    number = {"AveragePool2d": "3, 8", "Mul": "3"}.get(layer.op, "2, 3")
    return f"y = clamp(zero + RNE(acc * m / 2^{layer.multiplier.shift}), lo, hi), acc = {acc}   ({number})"


ConstantText = Callable[[Constant], str]
"""Returns the C expression of a static array."""


def _member_lines(params: Params, constant_text: ConstantText) -> list[str]:
    return [f".{name} = {value_text(value, constant_text)}" for name, value in params.members.items()]


def initializer(params: Params, constant_text: ConstantText) -> str:
    """Return a struct's initializer in lines, broken between members; nested ones have a line of their own."""
    lines = [""]
    for text in _member_lines(params, constant_text):
        if lines[-1] and (len(lines[-1]) + len(text) > _WIDTH - 8 or text.endswith("}")):
            lines.append("")
        lines[-1] += f" {text}," if lines[-1] else f"    {text},"
    return "\n".join(lines)


def value_text(value: Value, constant_text: ConstantText) -> str:
    """Return a member of a struct, or an argument that is no tensor, in C."""
    match value:
        case Params():
            return f"{{{', '.join(_member_lines(value, constant_text))}}}"
        case Constant():
            return constant_text(value)
        case Name():
            return value.text
        case Inline():
            return f"(const int32_t[]){{{', '.join(map(str, value.values))}}}"
        case Whole():
            return f"{value.value}.0f"
        case tuple():
            return f"{{{', '.join(map(str, value))}}}"
        case int():
            return str(value)
    return f"{decimal(value)}f"


def array(constant: Constant) -> str:
    """Return the definition of a static array."""
    dimensions = "".join(f"[{d}]" for d in constant.dimensions)
    declared = f"static const {constant.ctype} {constant.identifier}[{constant.values.size}] ="
    note = f", {constant.note}" if constant.note else ""
    about = f" /* {dimensions}{note} */" if len(constant.dimensions) > 1 else ""
    return f"{declared} {{{about}\n{number_lines(constant.values)}\n}};"


def number_lines(values: Iterable[Any] | NDArray[Any]) -> str:
    """Return numbers as indented lines, separated by commas."""
    texts = [str(value) for value in (values.tolist() if isinstance(values, np.ndarray) else values)]
    per_line = max(1, (_WIDTH - 3) // (max(map(len, texts)) + 2))
    return ",\n".join("    " + ", ".join(texts[start : start + per_line]) for start in range(0, len(texts), per_line))


def rows(values: Iterable[Any]) -> str:
    """Return the rows of a two-dimensional initializer."""
    texts = (number_lines(row).replace("\n", "\n    ") for row in values)
    return ",\n".join(f"    {{\n    {text}\n    }}" for text in texts)


def structs(members: Iterable[Iterable[Any]]) -> str:
    """Return the initializer of an array of structs of arrays: for each member, its rows."""
    return ",\n".join(f"    {{\n{rows(row)}\n    }}" for row in zip(*members, strict=True))


@cache
def templates() -> jinja2.Environment:
    """Return the templates of the sources."""
    import jinja2  # not needed where compiled networks are only loaded

    return jinja2.Environment(
        loader=jinja2.PackageLoader("twoscale._codegen.c", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )

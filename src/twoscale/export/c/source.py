"""Program → text: the header, the source, and what they say about themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata, resources
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from twoscale.arithmetic import ADD_SHIFT
from twoscale.export.c.lowering import Call, Constant, Operand, Program, Step, Tensor
from twoscale.export.c.names import Identifiers, network_identifier, printable
from twoscale.export.c.pixels import pixel_table
from twoscale.export.c.storage import memory_axes
from twoscale.network import layers as n
from twoscale.network.network import IntegerNetwork

__all__ = ["Source", "number_lines", "rows"]

_WIDTH = 118

_NEEDS: dict[str, tuple[str, ...]] = {
    "requantize": (),
    "store": ("requantize",),
    "dot": (),
    "conv2d": ("store", "dot"),
    "linear": ("store", "dot"),
    "add": ("requantize",),
    "multiply": ("store",),
    "average_pool2d": ("store",),
    "max_pool2d": (),
    "copy": (),
    "rescale": ("store",),
    "clamp": (),
    "look_up": (),
    "from_int8": (),
    "to_int8": (),
}
"""Kernels in the order in which they are written, and what each one calls."""


@dataclass(frozen=True)
class Source:
    """The C of a program.

    Args:
        program: what to write.
        name: of the network; its C identifier is the prefix of public names and files.
        compact: write 8-bit constants as strings, which compile about 20 times faster but cannot be read.
    """

    program: Program
    name: str
    compact: bool = False

    @cached_property
    def prefix(self) -> str:
        """What public names begin with, and what the files are called."""
        return network_identifier(self.name)

    @cached_property
    def macro(self) -> str:
        """What macros begin with."""
        return self.prefix.upper()

    @cached_property
    def input_type(self) -> str:
        """C type of the image's elements."""
        return _ctype(self.program.input)

    @cached_property
    def output_type(self) -> str:
        """C type of the output's elements."""
        return _ctype(self.program.output)

    @cached_property
    def pixels(self) -> NDArray[Any] | None:
        """The integers of 8-bit pixels, (C, 256), where the network says how it normalizes."""
        return None if self.compact else pixel_table(self.program.network)

    def header(self) -> str:
        """Return the text of the header."""
        program = self.program
        shape = program.input.spec.shape
        return self.render(
            "network.h.jinja",
            input=program.input,
            output=program.output,
            input_layout=_layout(program.input),
            output_layout=_layout(program.output),
            input_count=len(program.input.order),
            output_count=len(program.output.order),
            input_chw=shape if len(shape) == 3 else None,
            input_scale=f"{_decimal(np.float32(program.input.spec.scale))}f",
            output_scale=_decimal(np.float64(program.output.spec.scale)),
            arena_bytes=program.arena_bytes,
            classes=len(program.output.spec.shape) == 1,
            fingerprint=program.network.fingerprint,
            layers=len(program.steps),
            tensor_table=_tensor_table(program),
            normalization=None if self.pixels is None else _normalization(program.network),
        )

    def source(self) -> str:
        """Return the text of the source."""
        identifiers = Identifiers()
        constants, steps = [], []
        for step in self.program.steps:
            instances = [
                "" if call.fields is None else identifiers.of(f"{step.identifier}_layer") for call in step.calls
            ]
            if step.calls and (step.constants or any(instances)):
                constants.append(self._constants(step, instances))
            place = self.program.places[step.layer.name]
            pointer = "image" if place.where == "image" else self._pointer(Operand(step.layer.name))
            steps.append(
                {
                    "title": f"{step.index} {printable(step.layer.name)}{self._note(step)}",
                    "calls": [self._call(call, name) for call, name in zip(step.calls, instances, strict=True)],
                    "trace": f"TRACE({step.index}, {pointer}, {self.program.tensors[step.layer.name].size});",
                }
            )
        return self.render(
            "network.c.jinja",
            kernels=_kernels(self._used()),
            constants=constants,
            steps=steps,
            last=len(steps) - 1,
            pixels=None if self.pixels is None else rows(list(self.pixels)),
            output_count=len(self.program.output.order),
        )

    def render(self, template: str, **values: Any) -> str:
        """Return a template's text, with what all of them use."""
        return (
            _templates()
            .get_template(template)
            .render(
                file=self.prefix,
                prefix=self.prefix,
                macro=self.macro,
                title=printable(self.name),
                version=metadata.version("twoscale"),
                stamp=self.stamp,
                input_type=self.input_type,
                output_type=self.output_type,
                **values,
            )
        )

    @cached_property
    def stamp(self) -> str:
        """What tells files of one export from those of another."""
        pixels = b"" if self.pixels is None else self.pixels.tobytes()
        told = f"{self.program.network.fingerprint} {metadata.version('twoscale')} {self.program.arena_bytes} "
        return hashlib.sha256(told.encode() + pixels).hexdigest()[:12]

    def _used(self) -> set[str]:
        used = {call.kernel for step in self.program.steps for call in step.calls} & set(_NEEDS)
        if self.output_type == "int8_t":
            used.add("to_int8")
        while more := {need for kernel in used for need in _NEEDS[kernel]} - used:
            used |= more
        return used

    def _pointer(self, operand: Operand) -> str:
        place = self.program.places[operand.tensor]
        base = {"image": "image", "output": "y", "arena": "arena"}[place.where]
        offset = place.offset + operand.offset
        return f"{base} + {offset}" if offset or place.where == "arena" else base

    def _call(self, call: Call, instance: str) -> str:
        arguments = [f"&{instance}"] if instance else []
        arguments += [self._pointer(a) if isinstance(a, Operand) else str(a) for a in call.arguments]
        return f"{call.kernel}({', '.join(arguments)});"

    def _note(self, step: Step) -> str:
        """Say what a step does with memory where its calls do not."""
        if step.view_of is not None:
            return f": the same bytes as {printable(step.view_of)}"
        place = self.program.places[step.layer.name]
        if place.where == "arena" and any(self.program.places[name] == place for name in step.in_place_of):
            return ", in place"
        return ""

    def _constants(self, step: Step, instances: list[str]) -> str:
        parts = ["\n".join(["/* " + "\n * ".join(self._about(step)), " */"])]
        parts += [_array(constant, self.compact) for constant in step.constants]
        for call, instance in zip(step.calls, instances, strict=True):
            if call.fields is not None:
                parts.append(f"static const {call.kernel}_params {instance} = {{\n{_field_lines(call.fields)}\n}};")
        return "\n".join(parts)

    def _about(self, step: Step) -> list[str]:
        layer = step.layer
        inputs = ", ".join(f"{printable(name)} ({_shape(self.program.tensors[name])})" for name in layer.inputs)
        lines = [
            f"{step.index} of {len(self.program.steps) - 1}: {printable(layer.name)}, {_kind(layer)}",
            f"{inputs} -> {_shape(self.program.tensors[layer.name])}"
            + (f"; {step.macs:,} multiply-adds" if step.macs else ""),
        ]
        if layer.op in _EQUATIONS:
            lines.append(_equation(layer))
        return lines


def _ctype(tensor: Tensor) -> str:
    return f"{tensor.spec.dtype}_t"


def _normalization(network: IntegerNetwork) -> str:
    mean, std = ([f"{value:.6g}" for value in network.metadata[key]] for key in ("mean", "std"))
    return f"mean {', '.join(mean)} and std {', '.join(std)}"


def _layout(tensor: Tensor) -> str:
    shape = tensor.spec.shape
    sizes = "".join(f"[{shape[axis]}]" for axis in memory_axes(len(shape)))
    return f"{sizes}: rows from the top, pixels from the left, channels together" if len(shape) == 3 else sizes


def _shape(tensor: Tensor) -> str:
    shape = tensor.spec.shape
    return " x ".join(str(shape[axis]) for axis in memory_axes(len(shape)))


def _decimal(value: np.floating[Any]) -> str:
    """Return the shortest decimal number that reads back as the value."""
    return np.format_float_scientific(value, unique=True, trim="0", exp_digits=1)


def _tensor_table(program: Program) -> list[str]:
    heads = ("layer", "tensor", "type", "H x W x C", "scale", "zero", "q")
    rows = [heads]
    for step in program.steps:
        tensor = program.tensors[step.layer.name]
        spec = tensor.spec
        bounds = "" if spec.dtype == "int32" else f"{spec.lo}..{spec.hi}"
        rows.append(
            (
                str(step.index),
                printable(step.layer.name),
                spec.dtype,
                _shape(tensor),
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


def _kind(layer: n.Layer) -> str:
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


def _equation(layer: n.Layer) -> str:
    """Return how the output comes from the inputs, for a comment."""
    if isinstance(layer, n.Add):
        return f"y = clamp(zero + RNE(((a - zero_a) * m_a + (b - zero_b) * m_b) / 2^{ADD_SHIFT}), lo, hi)   (7)"
    assert isinstance(layer, n.Requantize)
    acc = _EQUATIONS[layer.op]
    if layer.multiplier is None:
        return f"y = {acc}   (2)" if isinstance(layer, n.Accumulating) else f"y = {acc}"
    if isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None:
        return (
            f"y = clamp(zero + RNE((acc * m + (r - zero_r) * m_r) / 2^{layer.multiplier.shift}), lo, hi), "
            f"acc = {acc}   (2, 7b)"
        )
    number = {"AveragePool2d": "3, 8", "Mul": "3"}.get(layer.op, "2, 3")
    return f"y = clamp(zero + RNE(acc * m / 2^{layer.multiplier.shift}), lo, hi), acc = {acc}   ({number})"


def _fields(fields: Mapping[str, Any]) -> list[str]:
    return [f".{name} = {_value(value)}" for name, value in fields.items()]


def _field_lines(fields: Mapping[str, Any]) -> str:
    """Return an initializer's lines, broken between fields; nested structs have a line of their own."""
    lines = [""]
    for text in _fields(fields):
        if lines[-1] and (len(lines[-1]) + len(text) > _WIDTH - 8 or text.endswith("}")):
            lines.append("")
        lines[-1] += f" {text}," if lines[-1] else f"    {text},"
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(_fields(value))}}}"
    if isinstance(value, tuple):
        return f"{{{', '.join(map(str, value))}}}"
    return str(value)


def _array(constant: Constant, compact: bool) -> str:
    dimensions = "".join(f"[{d}]" for d in constant.dimensions)
    declared = f"static const {constant.ctype} {constant.identifier}[{constant.values.size}] ="
    about = f" /* {dimensions} */" if len(constant.dimensions) > 1 else ""
    if compact and constant.ctype != "int32_t":
        return f"{declared}\n{_strings(constant.values)};"
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


def _strings(values: NDArray[Any]) -> str:
    content = values.astype(np.uint8).tobytes()
    escapes = [f"\\{byte:03o}" for byte in range(256)]
    return "\n".join(
        '    "' + "".join(escapes[byte] for byte in content[start : start + 28]) + '"'
        for start in range(0, len(content), 28)
    )


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("twoscale.export.c", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _kernels(used: set[str]) -> list[str]:
    folder = resources.files("twoscale.export.c") / "kernels" / "portable"
    return [(folder / f"{kernel}.c").read_text() for kernel in _NEEDS if kernel in used]

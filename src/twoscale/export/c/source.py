"""Program → text: the header, the source, and what they say about themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale.export.c.lowering import Call, Operand, Program, Step
from twoscale.export.c.names import Identifiers, network_identifier, printable
from twoscale.export.c.pixels import pixel_table
from twoscale.export.c.text import (
    about,
    array,
    ctype,
    decimal,
    field_lines,
    kind,
    layout,
    normalization,
    rows,
    templates,
    tensor_table,
)

__all__ = ["Source", "portable_kernels"]

_NEEDS: dict[str, tuple[str, ...]] = {
    "requantize": (),
    "store": ("requantize",),
    "dot": (),
    "rows": (),
    "conv2d_row": ("store", "dot", "rows"),
    "conv2d": ("conv2d_row",),
    "linear": ("store", "dot"),
    "add": ("requantize",),
    "multiply": ("store",),
    "average_pool2d_row": ("store", "rows"),
    "average_pool2d": ("average_pool2d_row",),
    "max_pool2d_row": ("rows",),
    "max_pool2d": ("max_pool2d_row",),
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

    row_by_row = False
    """Whether there are layers that compute row by row."""

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
        return ctype(self.program.input)

    @cached_property
    def output_type(self) -> str:
        """C type of the output's elements."""
        return ctype(self.program.output)

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
            input_layout=layout(program.input),
            output_layout=layout(program.output),
            input_count=len(program.input.order),
            output_count=len(program.output.order),
            input_chw=shape if len(shape) == 3 else None,
            input_scale=f"{decimal(np.float32(program.input.spec.scale))}f",
            output_scale=decimal(np.float64(program.output.spec.scale)),
            arena_bytes=program.arena_bytes,
            classes=len(program.output.spec.shape) == 1,
            fingerprint=program.network.fingerprint,
            layers=len(program.steps),
            row_by_row=self.row_by_row,
            tensor_table=tensor_table(program.tensors[layer.name] for layer in program.network),
            normalization=None if self.pixels is None else normalization(program.network),
        )

    def source(self) -> str:
        """Return the text of the source."""
        identifiers = Identifiers()
        constants, instances = [], []
        for step in self.program.steps:
            names = ["" if call.fields is None else identifiers.of(f"{step.identifier}_layer") for call in step.calls]
            if step.calls and (step.constants or any(names)):
                constants.append(self._constants(step, names))
            instances.append(names)
        return self.render(
            "network.c.jinja",
            kernels=portable_kernels(self._used()),
            constants=constants,
            steps=self._blocks(instances),
            last=len(self.program.steps) - 1,
            pixels=None if self.pixels is None else rows(list(self.pixels)),
            output_count=len(self.program.output.order),
        )

    def _blocks(self, instances: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Return title and lines of each part of the function; ``instances`` name each call's parameters."""
        return [self._block(step, names) for step, names in zip(self.program.steps, instances, strict=True)]

    def _block(self, step: Step, instances: Sequence[str]) -> dict[str, Any]:
        name = step.layer.name
        pointer = "image" if self.program.places[name].where == "image" else self._pointer(Operand(name))
        calls = [self._call(call, instance) for call, instance in zip(step.calls, instances, strict=True)]
        trace = f"TRACE({step.index}, {pointer}, {self.program.tensors[name].size});"
        return {"title": f"{step.index} {printable(name)}{self._note(step)}", "lines": [*calls, trace]}

    def render(self, template: str, **values: Any) -> str:
        """Return a template's text, with what all of them use."""
        return (
            templates()
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
        used = {call.kernel for step in self.program.steps for call in step.calls}
        return used | {"to_int8"} if self.output_type == "int8_t" else used

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

    def _constants(self, step: Step, instances: Sequence[str]) -> str:
        parts = ["\n".join(["/* " + "\n * ".join(self._about(step)), " */"])]
        parts += [array(constant, self.compact) for constant in step.constants]
        for call, instance in zip(step.calls, instances, strict=True):
            if call.fields is not None:
                kind_of = call.kernel.removesuffix("_row")
                parts.append(f"static const {kind_of}_params {instance} = {{\n{field_lines(call.fields)}\n}};")
        return "\n".join(parts)

    def _about(self, step: Step) -> list[str]:
        title = f"{step.index} of {len(self.program.steps) - 1}: {printable(step.layer.name)}, {kind(step.layer)}"
        return [title, *about(step.layer, self.program.tensors, step.macs)]


def portable_kernels(used: set[str]) -> list[str]:
    """Return the texts of the portable kernels among ``used``, and of what they call."""
    used = used & set(_NEEDS)
    while more := {need for kernel in used for need in _NEEDS[kernel]} - used:
        used |= more
    folder = resources.files("twoscale.export.c") / "kernels" / "portable"
    return [(folder / f"{kernel}.c").read_text() for kernel in _NEEDS if kernel in used]

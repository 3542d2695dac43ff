"""Program → text: the header, the source, and what they say about themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, ClassVar

from numpy.typing import NDArray

from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.pixels import pixel_table
from twoscale._codegen.c.common.program import Call, Operand, Program, Step
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.common.text import normalization, rows

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
class Source(SourceBase):
    """The C of a program for any target."""

    program: Program

    self_test_template = "selftest.c.jinja"
    row_by_row: ClassVar[bool] = False
    """Whether there are layers that compute row by row."""

    @cached_property
    def pixels(self) -> NDArray[Any] | None:
        """The integers of 8-bit pixels, (C, 256), where the network says how it normalizes."""
        return None if self.compact else pixel_table(self.program.network)

    def header(self) -> str:
        """Return the text of the header."""
        shape = self.program.input.spec.shape
        return self.render(
            "network.h.jinja",
            **self.facts(),
            input_chw=shape if len(shape) == 3 else None,
            row_by_row=self.row_by_row,
            normalization=None if self.pixels is None else normalization(self.program.network),
        )

    def source(self) -> str:
        """Return the text of the source."""
        return self.render(
            "network.c.jinja",
            kernels=portable_kernels(self._used()),
            constants=self.constants(),
            steps=self._blocks(self.instances),
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

    @property
    def choices(self) -> bytes:
        """What makes exports of one network differ: how it normalizes pixels is no part of its fingerprint."""
        return b"" if self.pixels is None else self.pixels.tobytes()

    def parameters_of(self, kernel: str) -> str:
        """Return the kernel whose struct of parameters this one takes."""
        return kernel.removesuffix("_row")

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


def portable_kernels(used: set[str]) -> list[str]:
    """Return the texts of the portable kernels among ``used``, and of what they call."""
    used = used & set(_NEEDS)
    while more := {need for kernel in used for need in _NEEDS[kernel]} - used:
        used |= more
    folder = resources.files("twoscale._codegen.c") / "kernels" / "portable"
    return [(folder / f"{kernel}.c").read_text() for kernel in _NEEDS if kernel in used]

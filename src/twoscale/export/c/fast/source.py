"""FastProgram → text: the header, the source, and the kernels that the source compiles for each instruction set."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, resources
from typing import Any

import numpy as np

from twoscale.export.c.fast.plan import FastCall, FastProgram, FastStep
from twoscale.export.c.lowering import Operand
from twoscale.export.c.names import Identifiers, network_identifier, printable
from twoscale.export.c.source import portable_kernels
from twoscale.export.c.text import about, array, ctype, decimal, field_lines, kind, layout, templates, tensor_table

__all__ = ["TARGETS", "FastSource"]


@dataclass(frozen=True)
class _Isa:
    """An instruction set: its vectors, how to compile for it, and how to know whether a CPU has it."""

    name: str
    title: str
    target: str = ""
    features: tuple[str, ...] = ()

    @property
    def macro(self) -> str:
        """What is defined while it is compiled for."""
        return f"FOR_{self.name.upper()}"

    @property
    def condition(self) -> str:
        """Where it exists at all."""
        return "defined(HAVE_X86)" if self.target else ""


_ISAS = (
    _Isa(
        "avx512vnni",
        "AVX-512 VNNI",
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
    ),
    _Isa("avx2", "AVX2", "avx2,fma", ("avx2", "fma")),
    _Isa("generic", "any CPU"),
)
TARGETS = {
    "native": ("avx512vnni", "avx2", "generic"),
    "avx512vnni": ("avx512vnni", "generic"),
    "avx2": ("avx2", "generic"),
}
"""The instruction sets of each target; a CPU with none of them runs the generic kernels."""

_NEEDS: dict[str, tuple[str, ...]] = {
    "read_images": (),
    "give_outputs": (),
    "fill_border": (),
    "copy_rows": (),
    "conv": (),
    "linear": ("conv",),
    "depthwise": (),
    "pool": (),
    "max_pool": ("pool",),
    "average_pool": ("pool",),
    "join": (),
    "add_rows": ("join",),
    "multiply_rows": ("join",),
}
"""Kernels in the order in which they are written, and what each one uses."""
_PARAMETERS = {
    "linear": "conv",
    "max_pool": "pool",
    "average_pool": "pool",
    "add_rows": "join",
    "multiply_rows": "join",
}
"""Whose parameters a kernel takes, if not its own."""


@dataclass(frozen=True)
class FastSource:
    """The C of a program for big CPUs.

    Args:
        program: what to write.
        name: of the network; its C identifier is the prefix of public names and files.
        target: which instruction sets; of TARGETS.
        compact: write 8-bit constants as strings, which compile about 20 times faster but cannot be read.
    """

    program: FastProgram
    name: str
    target: str = "native"
    compact: bool = True

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
    def stamp(self) -> str:
        """What tells files of one export from those of another."""
        program = self.program
        told = f"{program.network.fingerprint} {metadata.version('twoscale')} {self.target} {program.arena_bytes}"
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def texts(self) -> dict[str, str]:
        """Return file names and their texts."""
        return {
            f"{self.prefix}.h": self.header(),
            f"{self.prefix}.c": self.source(),
            f"{self.prefix}_kernels.h": self.kernels(),
        }

    def header(self) -> str:
        """Return the text of the header."""
        program = self.program
        shape = program.input.spec.shape
        return self.render(
            "fast.h.jinja",
            input=program.input,
            output=program.output,
            input_layout=layout(program.input),
            planes_layout="".join(f"[{size}]" for size in shape) + (": planes, of rows" if len(shape) == 3 else ""),
            output_layout=layout(program.output),
            input_count=len(program.input.order),
            output_count=len(program.output.order),
            input_scale=f"{decimal(np.float32(program.input.spec.scale))}f",
            output_scale=decimal(np.float64(program.output.spec.scale)),
            arena_bytes=program.arena_bytes,
            block=program.block,
            classes=len(program.output.spec.shape) == 1,
            fingerprint=program.network.fingerprint,
            layers=len(program.steps),
            tensor_table=tensor_table(program.tensors[layer.name] for layer in program.network),
            target_text=" or ".join(isa.title for isa in self._isas()),
        )

    def source(self) -> str:
        """Return the text of the source."""
        program = self.program
        constants = [self._constants(step) for step in program.steps if step.constants or self._instances[step.index]]
        return self.render(
            "fast.c.jinja",
            image_bytes=program.image_bytes,
            output_bytes=program.output.size,
            output_shift=program.output.shift,
            parameters=[_text(f"{kernel}.h") for kernel in self._used() if _exists(f"{kernel}.h")],
            portable=portable_kernels({call.kernel for step in program.steps for call in step.calls if call.portable}),
            constants=constants,
            isas=self._isas(),
        )

    def kernels(self) -> str:
        """Return the text of the kernels and of the network's layers."""
        program = self.program
        vectors = [(isa.macro, _text(f"{isa.name}.h")) for isa in self._isas()]
        kernels = [_text(f"{kernel}.c") for kernel in self._used() if _exists(f"{kernel}.c")]
        steps = []
        for step in program.steps:
            rows = program.rows[step.layer.name]
            offset = program.offsets[step.layer.name] + rows.first
            note = f": the same bytes as {printable(step.view_of)}" if step.view_of is not None else ""
            steps.append(
                {
                    "title": f"{step.index} {printable(step.layer.name)}{note}",
                    "calls": [
                        self._call(call, name)
                        for call, name in zip(step.calls, self._instances[step.index], strict=True)
                    ],
                    "trace": f"TRACE({step.index}, {offset}, {rows.count}, {rows.length}, {rows.stride});",
                }
            )
        instances = {(call.kernel, call.instance) for step in program.steps for call in step.calls if call.instance}
        names = sorted({name for text in (*(text for _, text in vectors), *kernels) for name in _defined(text)})
        names += sorted(f"{kernel}_{'_'.join(map(str, numbers))}" for kernel, numbers in instances)
        return self.render(
            "fast_kernels.h.jinja",
            vectors=vectors,
            kernels=kernels,
            instances=[
                f"{kernel.upper()}({kernel}_{'_'.join(map(str, numbers))}, {', '.join(map(str, numbers))})"
                for kernel, numbers in sorted(instances)
            ],
            names=names,
            steps=steps,
            output_offset=program.offsets[program.network.output] + program.rows[program.network.output].first,
        )

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

    def _isas(self) -> list[_Isa]:
        return [isa for isa in _ISAS if isa.name in TARGETS[self.target]]

    def _used(self) -> list[str]:
        used = {call.kernel for step in self.program.steps for call in step.calls if not call.portable}
        used |= {"give_outputs"}
        while more := {need for kernel in used for need in _NEEDS[kernel]} - used:
            used |= more
        return [kernel for kernel in _NEEDS if kernel in used]

    @cached_property
    def _instances(self) -> list[list[str]]:
        """Names of the parameters of each step's calls; empty where a call has none."""
        identifiers = Identifiers()
        return [
            ["" if call.fields is None else identifiers.of(f"{step.identifier}_layer") for call in step.calls]
            for step in self.program.steps
        ]

    def _pointer(self, operand: Operand) -> str:
        rows = self.program.rows[operand.tensor]
        return f"arena + {self.program.offsets[operand.tensor] + rows.first + operand.offset}"

    def _call(self, call: FastCall, instance: str) -> list[str]:
        arguments = [f"&{instance}"] if instance else []
        pointers = [self._pointer(a) if isinstance(a, Operand) else str(a) for a in call.arguments]
        if not call.portable:
            result = "bad = " if call.kernel == "read_images" else ""
            kernel = "_".join(map(str, (call.kernel, *call.instance)))
            return [f"{result}{kernel}({', '.join(arguments + pointers)});"]
        pointers = [f"{p} + n * IMAGE_BYTES" if p.startswith("arena") else p for p in pointers]
        return ["for (int32_t n = 0; n < count; n++)", f"    {call.kernel}({', '.join(arguments + pointers)});"]

    def _constants(self, step: FastStep) -> str:
        last = len(self.program.steps) - 1
        title = f"{step.index} of {last}: {printable(step.layer.name)}, {kind(step.layer)}"
        lines = [title, *about(step.layer, self.program.tensors, step.macs)]
        parts = ["\n".join(["/* " + "\n * ".join(lines), " */"])]
        parts += [array(constant, self.compact) for constant in step.constants]
        for call, instance in zip(step.calls, self._instances[step.index], strict=True):
            if call.fields is not None:
                kernel = _PARAMETERS.get(call.kernel, call.kernel)
                parts.append(f"static const {kernel}_params {instance} = {{\n{field_lines(call.fields)}\n}};")
        return "\n".join(parts)


def _defined(text: str) -> set[str]:
    """Return the names of the functions and types that a kernel's text defines."""
    functions = re.findall(r"^(?:static|INLINE) [\w ]+?\**(\w+)\(", text, re.MULTILINE)
    return {*functions, *re.findall(r"^(?:\} |typedef [\w ]+ )(\w+);", text, re.MULTILINE)}


def _exists(file: str) -> bool:
    return (resources.files("twoscale.export.c") / "kernels" / "fast" / file).is_file()


def _text(file: str) -> str:
    return (resources.files("twoscale.export.c") / "kernels" / "fast" / file).read_text()

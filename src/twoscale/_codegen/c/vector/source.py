"""FastProgram → text: the header, the source, and the kernels that the source compiles for each instruction set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.program import Operand
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.portable.source import portable_kernels
from twoscale._codegen.c.vector.lowering import FastCall, FastProgram

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
    "look_up_rows": (),
    "move": (),
    "rescale_runs": (),
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
class FastSource(SourceBase):
    """The C of a program for big CPUs.

    Args:
        target: which instruction sets; of TARGETS.
    """

    program: FastProgram
    target: str = "native"

    self_test_template = "fast_selftest.c.jinja"

    @property
    def choices(self) -> bytes:
        """What makes exports of one network differ."""
        return self.target.encode()

    def parameters_of(self, kernel: str) -> str:
        """Return the kernel whose struct of parameters this one takes."""
        return _PARAMETERS.get(kernel, kernel)

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
            **self.facts(),
            planes_layout="".join(f"[{size}]" for size in shape) + (": planes, of rows" if len(shape) == 3 else ""),
            block=program.block,
            target_text=" or ".join(isa.title for isa in self._isas()),
        )

    def source(self) -> str:
        """Return the text of the source."""
        program = self.program
        return self.render(
            "fast.c.jinja",
            image_bytes=program.image_bytes,
            output_bytes=program.output.size,
            output_shift=program.output.shift,
            parameters=[_text(f"{kernel}.h") for kernel in self._used() if _exists(f"{kernel}.h")],
            portable=portable_kernels({call.kernel for step in program.steps for call in step.calls if call.portable}),
            constants=self.constants(),
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
            offset = program.places[step.layer.name].offset
            note = f": the same bytes as {printable(step.view_of)}" if step.view_of is not None else ""
            steps.append(
                {
                    "title": f"{step.index} {printable(step.layer.name)}{note}",
                    "calls": [
                        self._call(call, name)
                        for call, name in zip(step.calls, self.instances[step.index], strict=True)
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
            output_offset=program.places[program.network.output].offset,
        )

    def _isas(self) -> list[_Isa]:
        return [isa for isa in _ISAS if isa.name in TARGETS[self.target]]

    def _used(self) -> list[str]:
        used = {call.kernel for step in self.program.steps for call in step.calls if not call.portable}
        used |= {"give_outputs"}
        while more := {need for kernel in used for need in _NEEDS[kernel]} - used:
            used |= more
        return [kernel for kernel in _NEEDS if kernel in used]

    def _pointer(self, operand: Operand) -> str:
        return f"arena + {self.program.places[operand.tensor].offset + operand.offset}"

    def _call(self, call: FastCall, instance: str) -> list[str]:
        arguments = [f"&{instance}"] if instance else []
        pointers = [self._pointer(a) if isinstance(a, Operand) else str(a) for a in call.arguments]
        if not call.portable:
            result = "bad = " if call.kernel == "read_images" else ""
            kernel = "_".join(map(str, (call.kernel, *call.instance)))
            return [f"{result}{kernel}({', '.join(arguments + pointers)});"]
        pointers = [f"{p} + n * IMAGE_BYTES" if p.startswith("arena") else p for p in pointers]
        return ["for (int32_t n = 0; n < count; n++)", f"    {call.kernel}({', '.join(arguments + pointers)});"]


def _defined(text: str) -> set[str]:
    """Return the names of the functions and types that a kernel's text defines."""
    functions = re.findall(r"^(?:static|INLINE) [\w ]+?\**(\w+)\(", text, re.MULTILINE)
    return {*functions, *re.findall(r"^(?:\} |typedef [\w ]+ )(\w+);", text, re.MULTILINE)}


def _exists(file: str) -> bool:
    return (resources.files("twoscale._codegen.c") / "kernels" / "vector" / file).is_file()


def _text(file: str) -> str:
    return (resources.files("twoscale._codegen.c") / "kernels" / "vector" / file).read_text()

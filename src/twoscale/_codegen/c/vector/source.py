"""VectorProgram → text: the header, the source, and the kernels that are compiled for each instruction set."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._codegen.c.common.calls import Call, Kernel, Operand, with_needs
from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.common.text import value_text
from twoscale._codegen.c.portable.kernels import kernel_texts
from twoscale._codegen.c.vector.kernels import (
    GIVE_OUTPUTS,
    HEADER_NAMES,
    KERNELS,
    BlockCall,
    ReadImages,
    VectorKernel,
    text_of,
)
from twoscale._codegen.c.vector.lowering import VectorProgram, lower
from twoscale._codegen.targets import Target
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["VectorSource", "source_of"]


def source_of(network: IntegerNetwork, name: str, target: Target, *, binary: bool = False) -> VectorSource:
    """Return the C of a network; see SourceBase.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    return VectorSource(lower(network), name, target, binary)


@dataclass(frozen=True)
class VectorSource(SourceBase):
    """The C of a program for big CPUs."""

    program: VectorProgram

    self_test_template = "vector_selftest.c.jinja"
    makefile_template = "vector_Makefile.jinja"

    @property
    def choices(self) -> bytes:
        """What makes exports of one network differ."""
        return self.target.name.encode()

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
            "vector.h.jinja",
            **self.facts(),
            planes_layout="".join(f"[{size}]" for size in shape) + (": planes, of rows" if len(shape) == 3 else ""),
            block=program.block,
            needs=", ".join(self.target.instruction_sets[-1].features),
            target_text=" or ".join(isa.title for isa in self.target.instruction_sets),
        )

    def source(self) -> str:
        """Return the text of the source."""
        program = self.program
        isas = self.target.instruction_sets
        return self.render(
            "vector.c.jinja",
            image_bytes=program.image_bytes,
            output_bytes=program.output.size,
            output_shift=program.output.shift,
            parameters=[text_of(f"{kernel.name}.h") for kernel in self._used() if kernel.has_params],
            portable=kernel_texts(self._portable()),
            constants=self.constants(),
            isas=isas,
            architectures=list(dict.fromkeys(isa.architecture for isa in isas if isa.architecture)),
        )

    def kernels(self) -> str:
        """Return the text of the kernels and of the network's layers."""
        program = self.program
        isas, kernels = self.target.instruction_sets, [kernel for kernel in self._used() if kernel.defines]
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
        instances = {
            (call.kernel.name, call.instance.numbers, call.function)
            for call in self._calls()
            if isinstance(call, BlockCall) and call.instance is not None
        }
        names = {*HEADER_NAMES}.union(*(isa.own_names for isa in isas), *(kernel.defines for kernel in kernels))
        return self.render(
            "vector_kernels.h.jinja",
            vectors=[(isa.macro, text_of(f"{isa.name}.h")) for isa in isas],
            kernels=[text_of(f"{kernel.name}.c") for kernel in kernels],
            instances=[
                f"{kernel.upper()}({function}, {', '.join(map(str, numbers))})"
                for kernel, numbers, function in sorted(instances)
            ],
            names=sorted(names) + sorted(function for _, _, function in instances),
            steps=steps,
            output_offset=program.places[program.network.output].offset,
        )

    def _calls(self) -> list[Call]:
        return [call for step in self.program.steps for call in step.calls]

    def _portable(self) -> list[Kernel]:
        called: list[Kernel] = [call.kernel for call in self._calls() if not isinstance(call, BlockCall)]
        return called + [needed for kernel in self._used() for needed in kernel.portable]

    def _used(self) -> list[VectorKernel]:
        used = [call.kernel for call in self._calls() if isinstance(call, BlockCall)]
        return with_needs([*used, GIVE_OUTPUTS], KERNELS)

    def _pointer(self, operand: Operand) -> str:
        return f"arena + {self.program.places[operand.tensor].offset + operand.offset}"

    def _call(self, call: Call, instance: str) -> list[str]:
        many = isinstance(call, BlockCall)
        arguments = [f"&{instance}"] if instance else []
        for argument in call.arguments:
            if isinstance(argument, Operand):
                arguments.append(self._pointer(argument) + ("" if many else " + n * IMAGE_BYTES"))
            else:
                arguments.append("NULL" if argument is None else value_text(argument, self.constant_text))
        if isinstance(call, BlockCall):
            result = "bad = " if isinstance(call, ReadImages) else ""
            return [f"{result}{call.function}({', '.join(arguments)});"]
        return ["for (int32_t n = 0; n < count; n++)", f"    {call.kernel.name}({', '.join(arguments)});"]

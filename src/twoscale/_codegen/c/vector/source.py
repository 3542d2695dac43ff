"""VectorProgram → text: the header, the source, and the kernels that are compiled for each instruction set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any, ClassVar

from twoscale._codegen.c.common.calls import Call, Kernel, Operand, with_needs
from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.common.text import value_text
from twoscale._codegen.c.portable.kernels import FIXED_POINT, chosen_parts, kernel_texts
from twoscale._codegen.c.vector.block_calls import BlockCall, ReadImages
from twoscale._codegen.c.vector.kernels import (
    FIXED_NUMBERS,
    GIVE_OUTPUTS,
    HEADER_NAMES,
    KERNELS,
    TILE_NAMES,
    VectorKernel,
    text_of,
)
from twoscale._codegen.c.vector.lowering import VectorProgram, lower
from twoscale._codegen.c.vector.sharing import Phase, is_shared, phases_of
from twoscale._codegen.targets import Target
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["VectorSource", "lowered", "source_of"]


def _in_order(lists: Iterable[Sequence[str]]) -> Iterable[str]:
    """Return each name once, in an order that agrees with every list."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for names in lists:
        for index, name in enumerate(names):
            order.add(name, *names[:index])
    return order.static_order()


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def source_of(network: IntegerNetwork, name: str, target: Target, *, binary: bool = False) -> VectorSource:
    """Return the C of a network; see SourceBase.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    return VectorSource(lowered(network, target), name, target, binary)


def lowered(network: IntegerNetwork, target: Target) -> VectorProgram:
    """Return the calls for a target's instruction sets.

    Raises:
        ConfigurationError: integers alone cannot compute the network; names the layer and what to do.
    """
    sets = target.instruction_sets
    return lower(
        network,
        pairs=any(isa.adds_pairs for isa in sets),
        matrices=any(isa.multiplies_matrices for isa in sets),
        always_matrices=target.always_multiplies_matrices,
        signed=any(isa.signed for isa in sets),
    )


@dataclass(frozen=True)
class VectorSource(SourceBase):
    """The C of a program for big CPUs."""

    program: VectorProgram

    source_template: ClassVar[str] = "vector.c.jinja"
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
        shape = program.inputs[0].spec.shape
        return self.render(
            "vector.h.jinja",
            **self.facts(),
            planes_layout="".join(f"[{size}]" for size in shape) + (": planes, of rows" if len(shape) == 3 else ""),
            block=program.block,
            shares_images=self.shares_images,
            needs=", ".join(self.target.instruction_sets[-1].features),
            choices=_listed([f'"{isa.name}"' for isa in self.target.instruction_sets]),
            target_text=" or ".join(isa.title for isa in self.target.instruction_sets),
        )

    def source(self) -> str:
        """Return the text of the source."""
        return self.render(self.source_template, **self.source_facts())

    def source_facts(self) -> Mapping[str, Any]:
        """Return what the template of the source needs."""
        program = self.program
        isas = self.target.instruction_sets
        return {
            "image_bytes": program.image_bytes,
            "parameters": [self._text(f"{kernel.name}.h") for kernel in self._used() if kernel.has_params],
            "portable": kernel_texts(self._portable(), fixed_point=self.program.network.in_fixed_point),
            "constants": self.constants(),
            "isas": isas,
            "shares_images": self.shares_images,
            "alone": len(self._phases_of(program.alone)),
            "phases": [self._facts_of(phase) for phase in self.phases],
            "reaches_minus_128": any(
                isinstance(layer, n.Accumulating) and (layer.weight == -128).any() for layer in program.network
            ),
            "architectures": list(dict.fromkeys(isa.architecture for isa in isas if isa.architecture)),
        }

    def kernels(self) -> str:
        """Return the text of the kernels and of the network's layers."""
        program = self.program
        isas, kernels = self.target.instruction_sets, [kernel for kernel in self._used() if kernel.defines]
        instances = {
            (call.kernel.name, call.instance.numbers, call.function)
            for call in self._calls()
            if isinstance(call, BlockCall) and call.instance is not None
        }
        headers = {name: text_of(f"{name}.h") for name in _in_order([isa.headers for isa in isas])}
        narrow = any(not isa.tiles for isa in isas)
        names = {*HEADER_NAMES, *TILE_NAMES}.union(
            *(isa.own_names for isa in isas), *(kernel.defines + kernel.narrow for kernel in kernels)
        )
        return self.render(
            "vector_kernels.h.jinja",
            vectors=[
                (" || ".join(f"defined({isa.macro})" for isa in isas if name in isa.headers), text)
                for name, text in headers.items()
            ],
            macros=sorted(set(re.findall(r"^#define (\w+)", "\n".join(headers.values()), re.MULTILINE))),
            kernels=[
                (
                    self._text(f"{kernel.name}.c"),
                    self._text(f"{kernel.name}_narrow.c") if narrow and kernel.narrow else "",
                )
                for kernel in kernels
            ],
            instances=[
                f"{kernel.upper()}({function}, {', '.join(map(str, numbers))})"
                for kernel, numbers, function in sorted(instances)
            ],
            names=sorted(names) + sorted(function for _, _, function in instances),
            phases=[self._phase(phase) for phase in self.phases],
            output_offsets=[program.places[name].offset for name in program.network.outputs],
        )

    @cached_property
    def phases(self) -> list[Phase]:
        """The phases that threads compute together."""
        return self._phases_of(len(self.program.steps))

    def _phases_of(self, steps: int) -> list[Phase]:
        """Return the phases of the first steps."""
        matrices = self.target.always_multiplies_matrices
        return phases_of(self.program.steps[:steps], self.instances[:steps], matrices=matrices)

    @property
    def shares_images(self) -> bool:
        """Whether threads share one image."""
        return is_shared(self.phases)

    def _phase(self, phase: Phase) -> dict[str, Any]:
        """Return the title and the calls of a phase, for its case in the C."""
        note = ""
        if phase.ends is not None and phase.ends.view_of is not None:
            note = f": the same bytes as {printable(phase.ends.view_of)}"
        title = "" if phase.ends is None else f" {phase.ends.index} {printable(phase.ends.layer.name)}{note}"
        lines = [line for call, name in phase.calls for line in self._call(call, name)]
        return {"title": title or " for the next layer", "lines": lines}

    def _facts_of(self, phase: Phase) -> str:
        """Return the initializer of a phase's facts: threads, layer that it ends, and where that layer's rows are."""
        if phase.ends is None:
            return f"{{{phase.most}, -1, 0, 0, 0, 0}}"
        name = phase.ends.layer.name
        rows, place = self.program.rows[name], self.program.places[name]
        return f"{{{phase.most}, {phase.ends.index}, {place.offset}, {rows.count}, {rows.length}, {rows.stride}}}"

    def _calls(self) -> list[Call]:
        return [call for step in self.program.steps for call in step.calls]

    def _portable(self) -> list[Kernel]:
        called: list[Kernel] = [
            kernel for call in self._calls() if not isinstance(call, BlockCall) for kernel in call.kernels
        ]
        return called + [needed for kernel in self._used() for needed in kernel.portable]

    def _used(self) -> list[VectorKernel]:
        used = [call.kernel for call in self._calls() if isinstance(call, BlockCall)]
        fixed_point = [FIXED_NUMBERS] if self.program.network.in_fixed_point else []
        return with_needs([*used, *fixed_point, GIVE_OUTPUTS], KERNELS)

    def _text(self, file: str) -> str:
        return chosen_parts(text_of(file), [FIXED_POINT] if self.program.network.in_fixed_point else [])

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
            if call.kernel.is_shared:
                arguments.append("part")
            result = "bad |= " if isinstance(call, ReadImages) else ""
            return [f"{result}{call.function}({', '.join(arguments)});"]
        return ["for (int32_t n = 0; n < count; n++)", f"    {call.kernel.name}({', '.join(arguments)});"]

"""Parts of the C source that all targets share: names, header contents, each layer's constants."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from twoscale._codegen.c.common.calls import Constant
from twoscale._codegen.c.common.names import member_names, network_identifier, printable
from twoscale._codegen.c.common.program import Lowered, Step
from twoscale._codegen.c.common.sizes import Footprint
from twoscale._codegen.c.common.text import (
    about,
    array,
    ctype,
    decimal,
    initializer,
    kind,
    layout,
    templates,
    tensor_table,
)
from twoscale._codegen.targets import Target
from twoscale._environment import VERSION
from twoscale._ir.preprocessing import picture_steps

__all__ = ["SourceBase"]

_ALIGNMENT = 64
"""Of each array in the file of constants."""


@dataclass(frozen=True)
class InputFacts:
    """One input, for the templates."""

    layer: str
    member: str
    """Of the struct, if there are several inputs."""
    ctype: str
    count: int
    """Elements."""
    layout: str
    scale: str
    zero_point: int
    lo: int
    hi: int
    number: str
    """Its number, in the names of macros and functions; empty if it is the only one."""


@dataclass(frozen=True)
class OutputFacts:
    """One output, for the templates."""

    layer: str
    member: str
    """Of the struct, if there are several outputs."""
    ctype: str
    count: int
    """Elements."""
    layout: str
    scale: str
    zero_point: int
    offset: int
    """In the caller's outputs of one image, in bytes."""
    bytes: int
    shift: int
    """Added to an integer to give the stored byte."""


@dataclass(frozen=True)
class SourceBase(ABC):
    """The C of a program.

    Args:
        program: what to write.
        name: of the network; its C identifier is the prefix of public names and files.
        target: the target to write for.
        binary: read constants from the file ``data`` when the source is assembled, which takes the compiler no time
            and no memory, instead of writing them as text.
    """

    program: Lowered
    name: str
    target: Target
    binary: bool = False

    self_test_template: ClassVar[str]
    makefile_template: ClassVar[str]

    @abstractmethod
    def texts(self) -> dict[str, str]:
        """Return the names and texts of the files to include and compile."""

    def makefile(self) -> str:
        """Return the text of the Makefile."""
        return self.render(self.makefile_template, cflags=self.target.cflags)

    def link(self) -> dict[str, str]:
        """Return the names and texts of the files that run the network on a board for ``verify``; none by default."""
        return {}

    def camera(self) -> dict[str, str]:
        """Return the names and texts of the files that read the pixels of cameras; none by default.

        Raises:
            ConfigurationError: the network does not take pixels of one or three channels.
        """
        return {}

    def log_mel(self, sample_rate: int) -> dict[str, str]:
        """Return the names and texts of the files that compute log-mel features of sound; none by default.

        Args:
            sample_rate: samples per second.

        Raises:
            ConfigurationError: the network does not take pixels of one channel, or too many for the sample rate.
        """
        return {}

    @property
    def pixel_bytes(self) -> int:
        """Size of the table from pixels to integers, in bytes; 0 if there is none."""
        return 0

    @property
    def footprint(self) -> Footprint | None:
        """Flash of the code, and stack; None if they are not known."""
        return None

    @cached_property
    def prefix(self) -> str:
        """Prefix of public names, and name of the files."""
        return network_identifier(self.name)

    @cached_property
    def macro(self) -> str:
        """Prefix of macros."""
        return self.prefix.upper()

    @cached_property
    def input_type(self) -> str:
        """C type of what the caller's inputs are an array of: the elements of the input, or structs of several."""
        inputs = self.program.inputs
        return ctype(inputs[0]) if len(inputs) == 1 else f"{self.prefix}_inputs"

    @cached_property
    def inputs(self) -> list[InputFacts]:
        """The inputs."""
        program = self.program
        members = member_names(tensor.name for tensor in program.inputs)
        return [
            InputFacts(
                layer=printable(tensor.name),
                member=member,
                ctype=ctype(tensor),
                count=len(tensor.order),
                layout=layout(tensor),
                scale=f"{decimal(np.float32(tensor.spec.scale))}f",
                zero_point=tensor.spec.zero_point,
                lo=tensor.spec.lo,
                hi=tensor.spec.hi,
                number=str(index) if len(members) > 1 else "",
            )
            for index, (tensor, member) in enumerate(zip(program.inputs, members, strict=True))
        ]

    @cached_property
    def output_type(self) -> str:
        """C type of what the caller's outputs are an array of: the elements of the output, or structs of several."""
        outputs = self.program.outputs
        return ctype(outputs[0]) if len(outputs) == 1 else f"{self.prefix}_outputs"

    @cached_property
    def outputs(self) -> list[OutputFacts]:
        """The outputs."""
        program = self.program
        members = member_names(program.network.outputs)
        return [
            OutputFacts(
                layer=printable(tensor.name),
                member=member,
                ctype=ctype(tensor),
                count=len(tensor.order),
                layout=layout(tensor),
                scale=decimal(np.float64(tensor.spec.scale)),
                zero_point=tensor.spec.zero_point,
                offset=offset,
                bytes=tensor.size,
                shift=tensor.shift,
            )
            for tensor, member, offset in zip(program.outputs, members, program.outputs_layout.offsets, strict=True)
        ]

    @cached_property
    def stamp(self) -> str:
        """Stamp that distinguishes the files of one export from those of another."""
        program = self.program
        told = f"{program.network.fingerprint} {VERSION} {program.arena_bytes} "
        return hashlib.sha256(told.encode() + self.choices).hexdigest()[:12]

    @property
    def choices(self) -> bytes:
        """Options that make exports of one network differ."""
        return b""

    @cached_property
    def instances(self) -> list[list[str]]:
        """Names of the parameters of each step's calls; empty where a call has none."""
        return self.program.instances()

    def render(self, template: str, **values: Any) -> str:
        """Render a template with the values that all templates use."""
        return (
            templates()
            .get_template(template)
            .render(
                file=self.prefix,
                prefix=self.prefix,
                macro=self.macro,
                title=printable(self.name),
                version=VERSION,
                stamp=self.stamp,
                input_type=self.input_type,
                inputs=self.inputs,
                output_type=self.output_type,
                outputs=self.outputs,
                outputs_bytes=self.program.outputs_layout.size,
                **values,
            )
        )

    def facts(self) -> dict[str, Any]:
        """Return the facts in every header: sizes, scales, the table of tensors."""
        program = self.program
        return {
            "arena_bytes": program.arena_bytes,
            "classes": [len(tensor.spec.shape) == 1 for tensor in program.outputs] == [True],
            "fingerprint": program.network.fingerprint,
            "preprocessing": picture_steps(program.network.metadata),
            "layers": len(program.steps),
            "tensor_table": tensor_table(program.tensors[layer.name] for layer in program.network),
        }

    def constants(self) -> list[str]:
        """Return a block for each layer with constants: a comment, its arrays, and the parameters of its calls."""
        steps = zip(self.program.steps, self.instances, strict=True)
        blocks = [self._constants(step, names) for step, names in steps if step.constants or any(names)]
        if not self.binary:
            return blocks
        size = sum(-(-constant.size // _ALIGNMENT) * _ALIGNMENT for constant in self._all_constants()) or _ALIGNMENT
        return [self.render("binary_constants.c.jinja", data_file=self.data_file, data_bytes=size), *blocks]

    @property
    def data_file(self) -> str:
        """Name of the file of constants, if they are binary."""
        return f"{self.prefix}.bin"

    def data(self) -> bytes:
        """Return the contents of the file of constants, if they are binary."""
        parts = [constant.content for constant in self._all_constants()]
        return b"".join(part + bytes(-len(part) % _ALIGNMENT) for part in parts) or bytes(_ALIGNMENT)

    def _all_constants(self) -> Iterator[Constant]:
        return (constant for step in self.program.steps for constant in step.constants)

    @cached_property
    def _data_places(self) -> dict[str, int]:
        """The offset of each static array in the file of constants."""
        places = {}
        end = 0
        for constant in self._all_constants():
            places[constant.identifier] = end
            end += -(-constant.size // _ALIGNMENT) * _ALIGNMENT
        return places

    def constant_text(self, constant: Constant) -> str:
        """Return the C expression of a static array."""
        if not self.binary:
            return constant.identifier
        return f"CONSTANT({constant.ctype}, {self._data_places[constant.identifier]})"

    def _constants(self, step: Step, instances: Sequence[str]) -> str:
        last = len(self.program.steps) - 1
        title = f"{step.index} of {last}: {printable(step.layer.name)}, {kind(step.layer)}"
        lines = [title, *about(step.layer, self.program.tensors, step.macs)]
        parts = ["\n".join(["/* " + "\n * ".join(lines), " */"])]
        parts += [] if self.binary else [array(constant) for constant in step.constants]
        for call, instance in zip(step.calls, instances, strict=True):
            if call.params is not None:
                members = initializer(call.params, self.constant_text)
                parts.append(f"static const {call.params.struct} {instance} = {{\n{members}\n}};")
        return "\n".join(parts)

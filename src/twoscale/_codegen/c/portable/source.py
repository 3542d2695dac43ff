"""Program → text of the header and the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from numpy.typing import NDArray

from twoscale._codegen.c.common.calls import Argument, Call, Kernel, Operand
from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.program import Step
from twoscale._codegen.c.common.sizes import Footprint
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.common.text import normalization, number_lines, rows, value_text
from twoscale._codegen.c.portable.footprint import footprint
from twoscale._codegen.c.portable.kernels import TO_INT8, Library, kernel_texts
from twoscale._codegen.c.portable.lowering import Program, lower
from twoscale._codegen.c.portable.parameters import PORTABLE
from twoscale._codegen.log_mel import LogMel
from twoscale._codegen.pixels import pixel_table
from twoscale._codegen.targets import Target
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

__all__ = ["Source", "source_of"]


def source_of(network: IntegerNetwork, name: str, target: Target, *, binary: bool = False) -> Source:
    """Return the C of a network; see SourceBase.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    return Source(lower(network), name, target, binary)


@dataclass(frozen=True)
class Source(SourceBase):
    """The C of a program that computes one image."""

    program: Program
    library: Library = PORTABLE

    self_test_template = "selftest.c.jinja"
    makefile_template = "Makefile.jinja"
    row_by_row: ClassVar[bool] = False
    """Whether any layer computes row by row."""

    @cached_property
    def pixels(self) -> NDArray[Any] | None:
        """The integers of 8-bit pixels, (C, 256), if the network's metadata says how images are normalized."""
        if self.binary or len(self.program.inputs) > 1:
            return None
        return pixel_table(self.program.inputs[0].spec, self.program.network.metadata)

    @property
    def pixel_bytes(self) -> int:
        """Size of the table of pixels, in bytes."""
        return 0 if self.pixels is None else self.pixels.size

    @property
    def calls(self) -> list[Call]:
        """All calls, in order."""
        return [call for step in self.program.steps for call in step.calls]

    @property
    def footprint(self) -> Footprint:
        """Flash of the code, and stack."""
        return self._footprint(rows=0, loops=0)

    def _footprint(self, rows: int, loops: int) -> Footprint:
        return footprint(
            self.calls,
            self._used(),
            self.library,
            fixed_point=self.program.network.in_fixed_point,
            rows=rows,
            loops=loops,
        )

    def texts(self) -> dict[str, str]:
        """Return file names and their texts."""
        return {f"{self.prefix}.h": self.header(), f"{self.prefix}.c": self.source()}

    def link(self) -> dict[str, str]:
        """Return the names and texts of the files that run the network on a board for ``verify``."""
        tensors = [self.program.tensors[layer.name] for layer in self.program.network]
        return {
            f"{self.prefix}_link.h": self.render("link.h.jinja"),
            f"{self.prefix}_link.c": self.render(
                "link.c.jinja",
                items=number_lines([tensor.item for tensor in tensors]),
                answer_bytes=sum(tensor.size for tensor in self.program.outputs),
            ),
        }

    def camera(self) -> dict[str, str]:
        """Return the names and texts of the files that read the pixels of cameras.

        Raises:
            ConfigurationError: the network does not take pixels of one or three channels.
        """
        shape = self.program.inputs[0].spec.shape
        if self.pixels is None or shape[0] not in (1, 3):
            raise ConfigurationError(
                f"{printable(self.name)} does not record how pixels are normalized, or has neither one nor three "
                "channels; expected a network of pictures"
            )
        return {f"{self.prefix}_camera{end}": self.render(f"camera{end}.jinja") for end in (".h", ".c")}

    def log_mel(self, sample_rate: int) -> dict[str, str]:
        """Return the names and texts of the files that compute log-mel features of sound.

        Raises:
            ConfigurationError: the network does not take pixels of one channel, or too many for the sample rate.
        """
        shape = self.program.inputs[0].spec.shape
        if self.pixels is None or shape[0] != 1:
            raise ConfigurationError(
                f"{printable(self.name)} does not take log-mel features; expected a network of grey pictures (frames, "
                "channels) that records how pixels are normalized"
            )
        features = LogMel.for_network(shape, sample_rate)
        texts = {
            "hann": number_lines(features.hann),
            "turns": ",\n    ".join(f"{{{cosine}, {sine}}}" for cosine, sine in features.turns),
            "ends": number_lines(features.ends),
            "weights": number_lines(features.weights),
            "logarithms": number_lines(features.logarithms),
        }
        return {
            f"{self.prefix}_log_mel{end}": self.render(f"log_mel{end}.jinja", features=features, **texts)
            for end in (".h", ".c")
        }

    def header(self) -> str:
        """Return the text of the header."""
        shape = self.program.inputs[0].spec.shape
        return self.render(
            "network.h.jinja",
            **self.facts(),
            input_chw=shape if len(shape) == 3 and len(self.program.inputs) == 1 else None,
            row_by_row=self.row_by_row,
            normalization=None if self.pixels is None else normalization(self.program.network),
        )

    def source(self) -> str:
        """Return the text of the source."""
        return self.render(
            "network.c.jinja",
            definitions=self.library.definitions(self.calls),
            kernels=kernel_texts(
                self._used(), fixed_point=self.program.network.in_fixed_point, order=self.library.kernels
            ),
            constants=self.constants(),
            steps=self._blocks(self.instances),
            last=len(self.program.steps) - 1,
            pixels=None if self.pixels is None else rows(list(self.pixels)),
        )

    def _blocks(self, instances: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Return the title and lines of each part of the function. ``instances`` are the names of each call's
        parameters."""
        return [self._block(step, names) for step, names in zip(self.program.steps, instances, strict=True)]

    def _block(self, step: Step, instances: Sequence[str]) -> dict[str, Any]:
        name = step.layer.name
        pointer = self._pointer(Operand(name))
        calls = [self._call(call, instance) for call, instance in zip(step.calls, instances, strict=True)]
        trace = f"TRACE({step.index}, {pointer}, {self.program.tensors[name].size});"
        return {"title": f"{step.index} {printable(name)}{self._note(step)}", "lines": [*calls, trace]}

    @property
    def choices(self) -> bytes:
        """What makes exports of one network differ. The normalization of pixels is not part of its fingerprint."""
        return b"" if self.pixels is None else self.pixels.tobytes()

    def _used(self) -> set[Kernel]:
        used = {kernel for call in self.calls for kernel in call.kernels}
        return used | {TO_INT8} if any(output.ctype == "int8_t" for output in self.outputs) else used

    def _pointer(self, operand: Operand) -> str:
        place = self.program.places[operand.tensor]
        base = {"image": "image", "output": "y", "arena": "arena"}[place.where]
        offset = place.offset + operand.offset
        return f"{base} + {offset}" if offset or place.where == "arena" else base

    def _call(self, call: Call, instance: str) -> str:
        arguments = [f"&{instance}"] if instance else []
        arguments += [self._argument(argument) for argument in call.arguments]
        return f"{call.kernel.name}({', '.join(arguments)});"

    def _argument(self, argument: Argument) -> str:
        if argument is None:
            return "NULL"
        return self._pointer(argument) if isinstance(argument, Operand) else value_text(argument, self.constant_text)

    def _note(self, step: Step) -> str:
        """Return a note on what a step does with memory, if its calls do not show it."""
        if step.view_of is not None:
            return f": the same bytes as {printable(step.view_of)}"
        place = self.program.places[step.layer.name]
        if place.where == "arena" and any(self.program.places[name] == place for name in step.in_place_of):
            return ", in place"
        return ""

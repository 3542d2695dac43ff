"""RowProgram → text: the portable source with loops over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from twoscale._codegen.c.common.calls import Call, Kernel, Operand
from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.program import Step
from twoscale._codegen.c.common.sizes import Footprint
from twoscale._codegen.c.common.text import number_lines
from twoscale._codegen.c.portable.kernels import ROWS
from twoscale._codegen.c.portable.parameters import RowCall
from twoscale._codegen.c.portable.source import Source
from twoscale._codegen.c.small_ram.lowering import RowProgram, lower
from twoscale._codegen.c.small_ram.segments import Segment
from twoscale._codegen.targets import Target
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["RowSource", "source_of"]


def source_of(network: IntegerNetwork, name: str, target: Target, *, binary: bool = False) -> RowSource:
    """Return the C of a network; see SourceBase.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    return RowSource(lower(network), name, target, binary)


@dataclass(frozen=True)
class RowSource(Source):
    """The C of a program for little RAM."""

    program: RowProgram
    row_by_row: ClassVar[bool] = True

    @property
    def footprint(self) -> Footprint:
        """Flash of the code, and stack."""
        listed = [segment for segment in self.program.segments if segment.order]
        layers = {index for segment in listed for index in segment.order}
        calls = sum(len(step.calls) for step in self.program.steps if step.index in layers)
        return self._footprint(rows=sum(len(segment.order) for segment in listed), loops=calls)

    def _used(self) -> set[Kernel]:
        streamed = any(segment.order for segment in self.program.segments)
        return super()._used() | ({ROWS} if streamed else set())

    def _blocks(self, instances: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        blocks = []
        for segment in self.program.segments:
            if segment.order:
                blocks.append(self._loop(segment, instances))
            else:
                step = self.program.steps[segment.first]
                blocks.append(self._block(step, instances[step.index]))
        return blocks

    def _loop(self, segment: Segment, instances: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return the block of a segment that computes row by row."""
        steps = self.program.steps[segment.first : segment.last + 1]
        height = steps[-1].layer.output.shape[1]
        if len(steps) == 1:
            (step,) = steps
            body = self._row(step, instances[step.index])
            lines = [f"for (int32_t row = 0; row < {height}; row++) {{", *_indented(body), "}"]
            return {"title": f"{step.index} {printable(step.layer.name)}, row by row", "lines": lines}
        order = number_lines([index - segment.first for index in segment.order]).splitlines()
        cases: list[str] = []
        for step in steps:
            cases += [f"case {step.index - segment.first}: {{ /* {step.index} {printable(step.layer.name)} */"]
            cases += _indented([*self._row(step, instances[step.index]), "break;"])
            cases += ["}"]
        loop = ["const int32_t row = done[order[i]]++;", "", "switch (order[i]) {", *cases, "}"]
        lines = [
            "{",
            "    static const uint8_t order[] = { /* whose next row is computed */",
            *_indented(order),
            "    };",
            f"    int32_t done[{len(steps)}] = {{0}}; /* rows of each layer */",
            "",
            "    for (size_t i = 0; i < sizeof order; i++) {",
            *_indented(loop, 2),
            "    }",
            "}",
        ]
        return {"title": f"{segment.first} to {segment.last}, row by row", "lines": lines}

    def _row(self, step: Step, instances: Sequence[str]) -> list[str]:
        """Return the statements that compute row ``row`` of a layer."""
        layer = step.layer
        kept, row_bytes = self.program.rows_of(layer.name)
        whole = kept == layer.output.shape[1]
        number = f"row * {row_bytes}" if whole else f"row % {kept} * {row_bytes}" if kept > 1 else ""
        lines = [f"uint8_t *const to = {self._pointer(Operand(layer.name))}{f' + {number}' if number else ''};"]
        for name, kept_as in _kept_as(layer).items():
            kept, row_bytes = self.program.rows_of(name)
            lines.append(f"const kept_rows {kept_as} = {{{self._pointer(Operand(name))}, {kept}, {row_bytes}}};")
        lines.append("")
        calls = [self._row_call(step, call, name) for call, name in zip(step.calls, instances, strict=True)]
        if isinstance(layer, n.Pad) and (inside := _inside(layer)):
            calls[-1] = f"if ({inside})\n    {calls[-1]}"
        lines += "\n".join(calls).splitlines()
        return [*lines, f"TRACE({step.index}, to, {self.program.tensors[layer.name].size // layer.output.shape[1]});"]

    def _row_call(self, step: Step, call: Call, instance: str) -> str:
        layer = step.layer
        takes_rows = isinstance(call, RowCall)
        kept_as = _kept_as(layer)
        arguments = [f"&{instance}"] if instance else []
        for argument in call.arguments:
            if not isinstance(argument, Operand):
                arguments.append(self._argument(argument))
            elif argument.tensor == layer.name:
                arguments.append(f"to + {argument.offset}" if argument.offset else "to")
            else:
                kept = f"&{kept_as[argument.tensor]}"
                text = kept if takes_rows else f"row_of({kept}, {_input_row(layer)})"
                arguments.append(f"{text} + {argument.offset}" if argument.offset else text)
        return f"{call.kernel.name}({', '.join([*arguments, *['row'] * takes_rows])});"


def _kept_as(layer: n.Layer) -> dict[str, str]:
    """Return the C variable that holds the rows of each input."""
    return dict(zip(dict.fromkeys(layer.inputs), ("from", "joins"), strict=False))


def _indented(lines: Sequence[str], levels: int = 1) -> list[str]:
    return ["    " * levels + line if line else "" for line in lines]


def _input_row(layer: n.Layer) -> str:
    """Return the C expression for the input row that row ``row`` of a layer is computed from."""
    if isinstance(layer, n.Slice) and layer.axis == 1:
        return "row" + f" * {layer.step}" * (layer.step != 1) + f" + {layer.start}" * (layer.start != 0)
    if isinstance(layer, n.Pad) and layer.widths[1][0]:
        return f"row - {layer.widths[1][0]}"
    return "row"


def _inside(layer: n.Pad) -> str:
    """Return the C condition under which row ``row`` has pixels of the input; empty if it always has."""
    before, after = layer.widths[1]
    height = layer.output.shape[1]
    told = [f"row >= {before}"] * (before > 0) + [f"row < {height - after}"] * (after > 0)
    return " && ".join(told)

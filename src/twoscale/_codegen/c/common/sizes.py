"""The cost of an exported network: constants, working memory, multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.program import Lowered
from twoscale._codegen.c.common.storage import memory_axes

__all__ = ["Footprint", "LayerSize", "SizeReport", "size_report", "size_table"]


@dataclass(frozen=True)
class LayerSize:
    """One layer of an exported network."""

    index: int
    name: str
    op: str
    shape: tuple[int, ...]
    """Of the output: channels, height, width."""
    macs: int
    """Multiply-adds of weights for one image."""
    constant_bytes: int
    """Flash for weights, biases, multipliers and tables (for the input, the table of pixels)."""
    output_bytes: int
    """Bytes of the output in memory at once: all, or the rows that are kept."""
    where: str
    """"image" or "output" (the caller's memory), or "arena"."""
    arena_offset: int | None
    """Of the output, in bytes; None if it is not in the arena."""
    live_bytes: int
    """Bytes of the arena in use while this layer runs."""


@dataclass(frozen=True)
class Footprint:
    """What the code takes: upper bounds for Arm's GCC at ``-O2`` on any Cortex-M."""

    code_bytes: int
    """Flash for functions, structs of parameters and lists of rows."""
    stack_bytes: int


@dataclass(frozen=True)
class SizeReport:
    """The sizes of an exported network on the target."""

    name: str
    fingerprint: str
    parameters: int
    macs: int
    """Multiply-adds for one image."""
    constant_bytes: int
    """Flash for weights, biases, multipliers and tables, without the code (see ``make size``)."""
    arena_bytes: int
    """Working memory."""
    arena_bound_bytes: int
    """The most bytes that a single layer needs: a lower bound for any plan."""
    unshared_bytes: int
    """Size of the arena if no tensors shared bytes."""
    input_bytes: int
    output_bytes: int
    layers: tuple[LayerSize, ...]
    footprint: Footprint | None = None
    """None for targets with vector kernels."""

    @property
    def flash_bytes(self) -> int:
        """Flash for constants and code, at most."""
        return self.constant_bytes + (self.footprint.code_bytes if self.footprint else 0)

    @property
    def ram_bytes(self) -> int:
        """RAM for arena, input, output and stack, at most."""
        stack = self.footprint.stack_bytes if self.footprint else 0
        return self.arena_bytes + self.input_bytes + self.output_bytes + stack


def size_report(program: Lowered, name: str, pixels: int, footprint: Footprint | None = None) -> SizeReport:
    """Return the sizes of a program.

    Args:
        program: the network as calls.
        name: name of the export.
        pixels: bytes of the table of pixels.
        footprint: of the code.
    """
    layers = []
    for step, live in zip(program.steps, program.live_bytes, strict=True):
        place = program.places[step.layer.name]
        layers.append(
            LayerSize(
                index=step.index,
                name=step.layer.name,
                op=step.layer.op,
                shape=step.layer.output.shape,
                macs=step.macs,
                constant_bytes=sum(constant.size for constant in step.constants) + (0 if step.index else pixels),
                output_bytes=program.bytes_kept(step.layer.name),
                where=place.where,
                arena_offset=place.offset if place.where == "arena" else None,
                live_bytes=live,
            )
        )
    return SizeReport(
        name=name,
        fingerprint=program.network.fingerprint,
        parameters=program.network.parameters,
        macs=sum(layer.macs for layer in layers),
        constant_bytes=sum(layer.constant_bytes for layer in layers),
        arena_bytes=program.arena_bytes,
        arena_bound_bytes=program.plan.bound,
        unshared_bytes=sum(
            tensor.size for name, tensor in program.tensors.items() if program.places[name].where == "arena"
        ),
        input_bytes=sum(tensor.size for tensor in program.inputs),
        output_bytes=program.outputs_layout.size,
        layers=tuple(layers),
        footprint=footprint,
    )


def size_table(report: SizeReport) -> str:
    """Return the report as plain text."""
    heads = (
        "layer",
        "name",
        "kind",
        "H x W x C",
        "multiply-adds",
        "constants",
        "output bytes",
        "arena bytes",
        "in use",
    )
    rows = [heads]
    for layer in report.layers:
        rows.append(
            (
                str(layer.index),
                printable(layer.name),
                layer.op,
                " x ".join(str(layer.shape[axis]) for axis in memory_axes(len(layer.shape))),
                f"{layer.macs:,}" if layer.macs else "",
                f"{layer.constant_bytes:,}" if layer.constant_bytes else "",
                f"{layer.output_bytes:,}",
                layer.where
                if layer.arena_offset is None
                else f"{layer.arena_offset:,}..{layer.arena_offset + layer.output_bytes - 1:,}",
                f"{layer.live_bytes:,}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    left = {1, 2, 3}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    code = report.footprint
    return "\n".join(
        [
            f"{printable(report.name)}: {report.parameters:,} parameters, {report.macs:,} multiply-adds per image",
            "",
            f"flash, constants  {report.constant_bytes:>12,} bytes (weights, biases, multipliers, tables; the code: "
            "make size)",
            *([] if code is None else [f"flash, code       {code.code_bytes:>12,} bytes at most (Arm's GCC, -O2)"]),
            f"RAM, arena        {report.arena_bytes:>12,} bytes (the largest layer needs "
            f"{report.arena_bound_bytes:,}; without sharing: {report.unshared_bytes:,})",
            f"RAM, image        {report.input_bytes:>12,} bytes (only read)",
            f"RAM, output       {report.output_bytes:>12,} bytes",
            *([] if code is None else [f"RAM, stack        {code.stack_bytes:>12,} bytes at most"]),
            "",
            *lines,
            "",
        ]
    )

"""``twoscale export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from twoscale._cli.common import File, batches_of, console, print_json, require_file
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from twoscale._codegen.c import SizeReport
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._page.tables import Table

__all__ = ["export_command"]


def export_command(
    network: File,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="PATH")],
    to: Literal["c", "qdq"] = "c",
    target: Literal["portable", "small-ram", "native", "avx512vnni", "avx2"] = "portable",
    name: str | None = None,
    data: str | None = None,
    images: int = 4,
    json: bool = False,
) -> None:
    """Write an integer network as source code: C99 for any target, without heap, libm or floating point, or C for
    big CPUs, with vector kernels and threads. Both compute the same integers.

    The folder gets NAME.h, NAME.c, a self-test with expected outputs and a checksum of every layer, a Makefile
    ("make test", "make size") and a report of flash, RAM and multiply-adds.

    ONNX Runtime needs no export: it runs the network's own file. For runtimes that want floating-point operators
    between quantize and dequantize nodes (OpenVINO, TensorRT), "--to qdq" writes such a file; how they round is their
    own affair, so integers may differ.

    Args:
        network: Integer network (.onnx).
        out: Folder to write to; for qdq, the file.
        to: "c", or "qdq" for an ONNX file in QDQ form, to which the other options do not apply.
        target: "portable" for microcontrollers, "small-ram" for those with little memory; "native" for big CPUs, with
            the instruction set chosen when it runs; "avx512vnni" or "avx2" for one of them.
        name: What files and public names begin with; the network's own name by default.
        data: Data set whose first test images the self-test uses, instead of made-up ones.
        images: How many.
        json: Print JSON for programs instead of a table.
    """
    from twoscale import data as data_room
    from twoscale._codegen.c import default_images, export_c
    from twoscale._formats import load
    from twoscale._ir.operators.vectorized import quantize_input

    if images < 1:
        raise ConfigurationError(f"--images is {images}; expected at least 1")
    loaded = load(require_file(network, "an integer network (.onnx)"))
    if to == "qdq":
        _qdq(loaded, network, out, json=json)
        return
    if data is None:
        inputs = default_images(loaded, images)
    else:
        dataset = data_room.load(data)
        real, _ = next(batches_of(dataset.test, dataset, batch_size=images, limit=images))
        inputs = quantize_input(real, loaded.input.output)
    result = export_c(loaded, out, target=target, name=name, inputs=inputs)
    if json:
        print_json(result)
        return
    from twoscale._page.terminal import rich_table

    printer = console()
    printer.print(rich_table(_table(result.sizes)))
    printer.print(_totals(result.sizes), markup=False, soft_wrap=True)
    printer.print(
        f"\nWrote {result.folder}: {', '.join(result.files)}\nCheck it: make -C {result.folder} test",
        markup=False,
        soft_wrap=True,
    )


def _qdq(network: IntegerNetwork, source: Path, out: Path, *, json: bool) -> None:
    if out.is_dir():
        raise ConfigurationError(f"{out} is a folder; expected a file to write the QDQ form to")
    if out.exists() and out.samefile(source):
        raise ConfigurationError(f"{out} is the network itself; the QDQ form cannot be read back, name another file")
    network.save(out, form="qdq")
    if json:
        print_json({"file": str(out), "form": "qdq", "fingerprint": network.fingerprint})
        return
    console().print(f"Wrote {out}: {network.name} in QDQ form, not to be read back", markup=False, soft_wrap=True)


def _table(sizes: SizeReport) -> Table:
    from twoscale._codegen.c.common.storage import memory_axes
    from twoscale._page.tables import Cell, Column, Table

    rows = [
        (
            layer.name,
            layer.op,
            "×".join(str(layer.shape[axis]) for axis in memory_axes(len(layer.shape))),
            f"{layer.macs:,}" if layer.macs else "",
            f"{layer.constant_bytes:,}" if layer.constant_bytes else "",
            f"{layer.live_bytes:,}",
        )
        for layer in sizes.layers
    ]
    columns = (
        Column("Layer", numeric=False),
        Column("Operator", numeric=False),
        Column("H×W×C"),
        Column("MACs"),
        Column("Flash", "bytes"),
        Column("Arena in use", "bytes"),
    )
    caption = f"{sizes.name}: {sizes.parameters:,} parameters, {sizes.macs:,} multiply-adds an image"
    return Table(caption, columns, tuple(tuple(map(Cell, row)) for row in rows))


def _totals(sizes: SizeReport) -> str:
    return (
        f"Flash: {sizes.constant_bytes:,} bytes of constants, and the code (make size).\n"
        f"RAM:   {sizes.arena_bytes:,} bytes of arena (the hungriest layer alone needs {sizes.arena_bound_bytes:,}; "
        f"without sharing {sizes.unshared_bytes:,}), image {sizes.input_bytes:,}, output {sizes.output_bytes:,}."
    )

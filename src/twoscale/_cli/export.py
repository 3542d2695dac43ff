"""``twoscale export``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from twoscale._cli.common import (
    File,
    Size,
    batches_of,
    budget_of,
    command,
    console,
    dataset_for,
    print_json,
    print_line,
    recorded,
    require_integer_file,
)
from twoscale._codegen.targets import PACKAGE_NAMES, TARGETS, WeightsInFlash
from twoscale._formats import FORMS, Form
from twoscale._progress import report
from twoscale._text import printable
from twoscale.errors import ConfigurationError

_WASM = "wasm"
_HEX = "hex"

if TYPE_CHECKING:
    PackageName = str
    TargetName = str
    To = str
    Io = str
else:
    PackageName = Literal[tuple(PACKAGE_NAMES)]
    TargetName = Literal[(*TARGETS, _WASM)]
    To = Literal[("c", _HEX, *FORMS)]
    Io = Literal[tuple(dict.fromkeys(io for form in FORMS.values() for io in form.io_types))]

if TYPE_CHECKING:
    from twoscale._codegen.c import SizeReport
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._page.tables import Table

__all__ = ["export_command", "require_on_grid"]

_HEX_HELP = f'"{_HEX}" for memory files of hardware, as $readmemh reads them, with golden vectors'
_TO_HELP = "; ".join(['"c" for C', _HEX_HELP, *(f'"{form.name}" for {form.promise}' for form in FORMS.values())])
_TARGET_HELP = "; ".join(
    [*(f'"{target.name}" for {target.promise}' for target in TARGETS.values()), f'"{_WASM}" for browsers (needs clang)']
)


def export_command(
    network: File,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="PATH")],
    to: Annotated[To, tyro.conf.arg(help=_TO_HELP)] = "c",
    target: Annotated[TargetName, tyro.conf.arg(help=_TARGET_HELP)] = "portable",
    io: Io | None = None,
    int4: bool = False,
    name: str | None = None,
    data: str | None = None,
    images: int = 4,
    max_ram: Size = None,
    max_flash: Size = None,
    link: bool = False,
    camera: bool = False,
    log_mel: int | None = None,
    package: PackageName | None = None,
    weights_in_flash: WeightsInFlash = "int8",
    json: bool = False,
) -> None:
    """Write an integer network as source code: C99 for any target, without heap, libm or floating point, or C for
    big CPUs, with vector kernels and threads, or as WebAssembly for browsers. All compute the same integers.

    The folder gets NAME.h, NAME.c, a self-test with expected outputs and a checksum of every layer, a Makefile
    ("make test", "make size") and a report of flash, RAM and multiply-adds. For "wasm" it gets NAME.wasm, an ES module
    NAME.mjs with its types, and pages that classify a picture, a drawing or the camera.

    ONNX Runtime needs no export: it runs the network's own file. For runtimes that want floating-point operators
    between quantize and dequantize nodes (OpenVINO, TensorRT), "--to qdq" writes such a file. Each of them rounds in
    its own way, so integers may differ. "--to tflite" writes a file for LiteRT, which computes the integers of networks
    that were quantized with "--scheme tflite". "--to hex" writes the constants, and the integers of every layer for a
    few images, as memory files.

    Args:
        network: Integer network (.onnx or .tflite).
        out: Folder to write to; for another form, the file.
        name: Prefix of files and public names; by default the network's own name.
        data: Data set whose first test images the self-test uses, instead of generated ones.
        images: Number of images of the self-test.
        max_ram: Most RAM on a microcontroller, e.g. 64K: arena, image, output and stack. If the network takes more,
            nothing is written, and the message says what is over and which target fits.
        max_flash: The same for flash: constants and code.
        camera: Also write NAME_camera.c, which resizes and normalizes pixels in RGB565, YUV 4:2:2, RGB or grey.
        log_mel: Also write NAME_log_mel.c, which computes log-mel features of sound with this many samples per second.
        package: Write a library of this form, with the self-test as its example.
        weights_in_flash: How convolutions store weights: a byte each, or for "winograd" and --target cortex-m4
            transformed where that takes fewer instructions, in 3.56 times the bytes.
        link: Also write NAME_link.c, with which a board runs the network for twoscale verify.
        io: Type of the input and output of a .tflite file. Default: int8.
        int4: Store weights that fit 4 bits in half a byte each, in ONNX files (opset 21). The integers stay the same.
            C packs such weights in any case.
        json: Print JSON instead of a table.
    """
    from twoscale._codegen.c import Budget, default_images, export_c
    from twoscale._formats import load
    from twoscale._ir.operators.vectorized import quantize_input

    if images < 1:
        raise ConfigurationError(f"--images is {images}; expected at least 1")
    budget = budget_of(max_ram, max_flash)
    loaded = load(require_integer_file(network))
    is_c = to == "c" and target != _WASM
    if (link or camera or log_mel is not None or package is not None) and not is_c:
        raise ConfigurationError(
            "--link, --camera, --log-mel and --package are for C on microcontrollers, not for another form"
        )
    if weights_in_flash != "int8" and not is_c:
        raise ConfigurationError("--weights-in-flash is for C with --target cortex-m4, not for another form")
    if budget != Budget() and not is_c:
        raise ConfigurationError("--max-ram and --max-flash are for C on microcontrollers, not for another form")
    if to in FORMS:
        _save(loaded, network, out, FORMS[to], io, int4=int4, json=json)
        return
    if int4:
        raise ConfigurationError(
            "--int4 is for ONNX files; C of targets portable and small-ram packs weights in any case"
        )
    if io is not None:
        raise ConfigurationError("--io is the type of a .tflite file's input and output; expected --to tflite with it")
    if to != _HEX:
        require_on_grid(loaded, network)
    if target == _WASM and to == "c":
        if data is not None:
            raise ConfigurationError("--data is for self-tests in C; the one of --target wasm makes its own images")
        _export_wasm(loaded, out, name, images, json=json)
        return
    if data is None:
        inputs = default_images(loaded, images)
    else:
        dataset = dataset_for(data, recorded(loaded))
        real, _ = next(iter(batches_of(dataset.test, dataset, batch_size=images, limit=images)))
        inputs = (quantize_input(real, loaded.input.output),)
    report("exporting", 0, None)
    if to == _HEX:
        from twoscale._codegen.hex import export_hex

        written = export_hex(loaded, out, inputs)
        if json:
            print_json(written)
        else:
            print_line(f"Wrote {written.folder}: {len(written.files) - 1} memory files and index.json")
        return
    result = export_c(
        loaded,
        out,
        target=target,
        name=name,
        inputs=inputs,
        max_ram=budget.ram,
        max_flash=budget.flash,
        link=link,
        camera=camera,
        log_mel=log_mel,
        package=package,
        weights_in_flash=weights_in_flash,
    )
    if json:
        print_json(result)
        return
    from twoscale._page.terminal import rich_table

    printer = console()
    printer.print(rich_table(_table(result.sizes)))
    printer.print(_totals(result.sizes), markup=False, soft_wrap=True)
    check = "" if package else "\nCheck it: " + shlex.join(["make", "-C", str(result.folder), "test"])
    printer.print(
        f"\nWrote {result.folder}: {', '.join(result.files)}{check}",
        markup=False,
        soft_wrap=True,
    )


def _export_wasm(network: IntegerNetwork, out: Path, name: str | None, images: int, *, json: bool) -> None:
    from twoscale._runtimes.wasm import export_wasm
    from twoscale.data._registry import class_names

    known = recorded(network) if len(network.inputs) == 1 else None
    classes = None if known is None else known.classes or (class_names(known.data) if known.data else None)
    spec = network[network.outputs[0]].output
    report("compiling", 0, None)
    fits = classes is not None and spec.shape == (len(classes),)
    result = export_wasm(network, out, name=name, classes=classes if fits else None, images=images)
    if json:
        print_json(result)
        return
    sizes = ", ".join(f"{kind} {size:,}" for kind, size in result.module_bytes.items())
    print_line(f"Wrote {result.folder}: {', '.join(result.files)}")
    print_line(f"Modules: {sizes} bytes; a page loads one of them")
    if "index.html" in result.files:
        print_line(f"Try it: {shlex.join(['python', '-m', 'http.server', '-d', result.folder])}")


def require_on_grid(network: IntegerNetwork, path: Path) -> None:
    """Check that C can compute a network.

    Raises:
        ConfigurationError: a multiplier is off the grid; gives the command that moves them onto it.
    """
    from twoscale._ir.checks import multipliers

    if any(multiplier.is_free for layer in network for multiplier in multipliers(layer)):
        moved = command("requantize", path, "-o", path.with_name(f"{path.stem}-on-grid.onnx"))
        raise ConfigurationError(
            f"{path} has free float multipliers, which integer-only C cannot reproduce; "
            f"move them onto the grid: {moved}"
        )


def _save(
    network: IntegerNetwork, source: Path, out: Path, form: Form, io: str | None, *, int4: bool, json: bool
) -> None:
    title = f"{form.name.upper()} form"
    if out.is_dir():
        raise ConfigurationError(f"{out} is a folder; expected a file to write the {title} to")
    if out.exists() and out.samefile(source):
        raise ConfigurationError(f"{out} is the network itself; expected another file to write the {title} to")
    network.save(out, form=form.name, io=io, int4=int4)
    if json:
        print_json({"file": str(out), "form": form.name, "fingerprint": network.fingerprint})
        return
    shown = printable(network.name, 100)
    console().print(
        f"Wrote {out}: {shown} in {title}{'' if form.is_read else ', not to be read back'}",
        markup=False,
        soft_wrap=True,
    )


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
    caption = f"{sizes.name}: {sizes.parameters:,} parameters, {sizes.macs:,} multiply-adds per image"
    return Table(caption, columns, tuple(tuple(map(Cell, row)) for row in rows))


def _totals(sizes: SizeReport) -> str:
    code = sizes.footprint
    most = f" (at most {code.code_bytes:,}; make size)" if code else " (make size)"
    stack = f", stack at most {code.stack_bytes:,}" if code else ""
    return (
        f"Flash: {sizes.constant_bytes:,} bytes of constants, and the code{most}.\n"
        f"RAM:   {sizes.arena_bytes:,} bytes of arena (the largest layer alone needs {sizes.arena_bound_bytes:,}; "
        f"without sharing {sizes.unshared_bytes:,}), image {sizes.input_bytes:,}, output {sizes.output_bytes:,}{stack}."
    )

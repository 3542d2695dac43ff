"""``twoscale sensitivity``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from twoscale._cli.common import (
    AS_RECORDED,
    Channels,
    DataName,
    File,
    ModelArgs,
    ModelName,
    Pictures,
    Size,
    as_pixels,
    at_least_one,
    batches_of,
    check_takes_pictures,
    console,
    dataset_for,
    load_float,
    origin_of,
    parse_bits,
    parse_memory,
    print_json,
    print_line,
    recorded,
    verify_with,
)
from twoscale._cli.learning import learning_from
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._page.tables import Table
    from twoscale._search import MeasuredChoice, Sensitivity

__all__ = ["SensitivityRecord", "sensitivity_command"]

Bits = Annotated[str, tyro.conf.arg(metavar="BITS,BITS,...")]


@dataclass(frozen=True)
class SensitivityRecord:
    """What ``twoscale sensitivity --json`` prints."""

    sensitivity: Sensitivity
    choice: MeasuredChoice | None
    """With --budget: the chosen bits, the predicted noise and the measured noise."""
    file: str | None
    """The file that the chosen network was written to."""


def sensitivity_command(
    file: File,
    bits: Bits = "2,3,4,6",
    activation_bits: Bits = "4,6",
    budget: Annotated[str | None, tyro.conf.arg(metavar="BYTES|RATIO")] = None,
    max_flash: Size = None,
    max_instructions: Annotated[float | None, tyro.conf.arg(metavar="MILLIONS")] = None,
    target: Literal["portable", "small-ram"] = "portable",
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",), metavar="FILE.onnx")] = None,
    data: DataName = None,
    max_samples: int = 1000,
    calibration_images: int = 400,
    model: ModelName = None,
    model_args: ModelArgs = None,
    mean: Channels = None,
    std: Channels = None,
    pictures: Pictures = AS_RECORDED,
    scheme: Literal["default", "fast", "course"] = "default",
    rounding: Literal["feedback", "learned"] = "feedback",
    effort: float = 1.0,
    json: bool = False,
) -> None:
    """Measure what fewer bits cost in each layer, and choose the bits of each layer for a given size.

    Rounds the weights or the output of one layer at a time to fewer bits, and keeps the other layers at 8. With
    --budget, chooses weight bits for every layer so that the network fits the budget with the least total noise, then
    quantizes and measures the chosen network.

    Args:
        file: Weights: .safetensors, .pt, .pth, a program of torch.export (.pt2), or a float network (.onnx, .tflite).
        bits: Weight bits to try, each from 2 to 8.
        activation_bits: Output bits to try, each from 2 to 8; "none" for none.
        budget: Size of all weights, packed at their bits, with 4 bytes per bias: bytes (120000, 120k, 1.5M), or a
            fraction of the size at 8 bits (0.5).
        max_flash: In place of --budget: most flash on a microcontroller, e.g. 64K, for the constants and code of the C
            that "twoscale export" writes, where weights take 8, 4 or 2 bits.
        max_instructions: Most instructions of multiply-adds for one image, in millions, on a Cortex-M4: 2.64 per
            multiply-add at 8 bits, 2.62 at 4 and 2.86 at 2.
        target: Target of that C.
        out: With a budget: write the chosen network to this file.
        data: Data set. Its training images calibrate the network, its test images measure it. Default: the one recorded
            in the file, or else digits.
        max_samples: Number of test images.
        calibration_images: Number of training images.
        model: Model of the weights, where the file does not record it: a name, or FILE.py:CLASS for your own, whose
            code then runs.
        model_args: Options of that model.
        mean: Mean of pixels / 255, for normalizing the images. Default: the mean recorded in the file, or else 0.5.
        std: Standard deviation of pixels / 255, with the same defaults.
        pictures: How pictures of your own become pixels. Default: as the file records.
        scheme: Scheme of the quantization; see twoscale quantize.
        rounding: How the chosen network is rounded. learned: weights, biases and scales are learned from the
            calibration images and up to 10,000 more, in minutes; see twoscale quantize.
        effort: How long learned rounding learns: 2 for twice the iterations, 0.1 for a tenth.
        json: Print JSON instead of tables.
    """
    at_least_one("--max-samples", max_samples)
    at_least_one("--calibration-images", calibration_images)
    if rounding == "learned" and budget is None and max_flash is None and max_instructions is None:
        raise ConfigurationError("--rounding learned is for the network that --budget chooses; give a budget too")
    weights = parse_bits("--bits", bits)
    activations = () if activation_bits == "none" else parse_bits("--activation-bits", activation_bits)
    size = None if budget is None else parse_size("--budget", budget)
    flash = None if max_flash is None else parse_memory("--max-flash", max_flash)
    for_target = flash is not None or max_instructions is not None
    if size is not None and for_target:
        raise ConfigurationError("--budget excludes --max-flash and --max-instructions; give one kind of budget")
    if max_instructions is not None and not max_instructions > 0:
        raise ConfigurationError(f"--max-instructions is {max_instructions:g}; expected a positive number of millions")
    if out is not None and size is None and not for_target:
        raise ConfigurationError("--out writes the network that --budget chooses; give a budget too")
    if out is not None and out.suffix != ".onnx":
        raise ConfigurationError(f"--out is {out}; expected a file name that ends in .onnx")
    from twoscale import _quantization as quantization
    from twoscale._calibration.profile import profile
    from twoscale._search import LearnedRounding, choose_for_target, measure_choice, measure_sensitivity

    learning = LearnedRounding().scaled(effort)
    network_float, info = load_float(file, model, model_args)
    dataset = dataset_for(data, recorded(info), mean, std, pictures)
    check_takes_pictures(network_float, dataset)
    how = quantization.SCHEMES[scheme]
    normalization = (dataset.mean, dataset.std)
    dataset = as_pixels(dataset)
    example, _ = next(iter(batches_of(dataset.train, dataset, limit=min(100, calibration_images))))
    graph = quantization.float_graph(network_float, example, how, normalization=normalization)
    found = profile(graph, batches_of(dataset.train, dataset, batch_size=100, limit=calibration_images))
    result = measure_sensitivity(
        graph,
        found,
        batches_of(dataset.test, dataset, limit=max_samples),
        scheme=how,
        weight_bits=weights,
        activation_bits=activations,
    )
    measured = None
    if size is not None or for_target:
        if size is not None:
            choice = result.choose(size)
        else:
            before = quantization.quantize_graph(graph, found, how)
            choice = choose_for_target(
                result, before, target=target, flash=flash, million_instructions=max_instructions
            )
        test = batches_of(dataset.test, dataset, limit=max_samples)
        make = None if rounding == "feedback" else learning_from(dataset, calibration_images, learning)
        network, measured = measure_choice(choice, graph, found, test, scheme=how, make=make)
        if flash is not None and make is not None:
            _require_flash(network, target, flash)
        if out is not None:
            origin = {
                **origin_of(dataset),
                "options": {"layer_weight_bits": dict(choice.layer_weight_bits)},
                "calibration_samples": found.images,
            }
            network = quantization.taking_pixels(network, normalization)
            replace(network, metadata={**network.metadata, **origin}).save(out)
    if json:
        print_json(SensitivityRecord(result, measured, None if out is None else str(out)))
        return
    from twoscale._page.terminal import rich_table

    printer = console()
    for part in _tables(result, None if measured is None else dict(measured.choice.layer_weight_bits)):
        printer.print(rich_table(part))
        printer.print()
    for line in _summary(result, measured):
        print_line(line)
    if out is not None:
        print_line(f"Wrote {out}. Check it: {verify_with(out, file, model, model_args, pictures)}")


def _require_flash(network: IntegerNetwork, target: str, flash: int) -> None:
    """Check that learned weights still fit: −8 and −2 beside a negative weight take more bits (see ``packing``).

    Raises:
        ConfigurationError: they do not.
    """
    from twoscale._codegen.c import sizes_of

    taken = sizes_of(network, target).flash_bytes
    if taken > flash:
        raise ConfigurationError(
            f"learned weights pack less well than the chosen bits: {taken:,} bytes of flash with target {target}, "
            f"and --max-flash is {flash:,}; give less to choose from, or leave out --rounding learned"
        )


def parse_size(option: str, text: str) -> float:
    """Return bytes, or a fraction up to 1, from "120000", "120k", "1.5M" or "0.5".

    Raises:
        ConfigurationError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([kKM]?)", text.strip())
    value = float(match[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6}[match[2]] if match else 0.0
    if not value > 0 or not math.isfinite(value):
        raise ConfigurationError(f"{option} is {text}; expected bytes (120000, 120k, 1.5M) or a ratio up to 1 (0.5)")
    return value


def _tables(result: Sensitivity, chosen: dict[str, int] | None) -> Iterator[Table]:
    from twoscale._page.numbers import count, fixed, percent
    from twoscale._page.tables import Cell, Column, Table

    for kind, title in (("weight", "weights"), ("activation", "output")):
        entries = {(s.layer, s.bits): s for s in result.layers if s.kind == kind}
        if not entries:
            continue
        levels = sorted({bits for _, bits in entries})
        columns = [Column("Layer", numeric=False), Column("Values")]
        columns += [Column(f"{bits} bits", "dB") for bits in levels]
        columns += [Column(f"agree at {levels[0]} bits", "%")]
        if kind == "weight" and chosen:
            columns.append(Column("Chosen", "bits"))
        rows = []
        for layer in dict.fromkeys(name for name, _ in entries):
            found = [entries.get((layer, bits)) for bits in levels]
            values = next(s.values for s in found if s is not None)
            row = [layer, count(values)]
            row += [fixed(None if s is None else s.sqnr_db, 1) for s in found]
            row += [percent(None if found[0] is None else found[0].agreement, 1)]
            if kind == "weight" and chosen:
                row.append(str(chosen[layer]))
            rows.append(tuple(Cell(text) for text in row))
        yield Table(f"{result.network}: one layer's {title} at fewer bits", tuple(columns), tuple(rows))


def _summary(result: Sensitivity, measured: MeasuredChoice | None) -> Iterator[str]:
    from twoscale._page.numbers import count, fixed, percent

    top1 = "" if result.top1 is None else f", top-1 {percent(result.top1)} %"
    yield (
        f"Before: {count(result.size_bytes)} bytes, logit SQNR {fixed(result.sqnr_db, 1)} dB, agreement "
        f"{percent(result.agreement)} %{top1} over {count(result.samples)} images"
    )
    if measured is not None:
        choice = measured.choice
        top1 = "" if measured.top1 is None else f", top-1 {percent(measured.top1)} %"
        if choice.flash_bytes is None:
            size = f"{count(choice.size_bytes)} bytes (at most {count(choice.budget_bytes)})"
        else:
            size = (
                f"{count(choice.flash_bytes)} bytes of flash with target {choice.target}, "
                f"{fixed(choice.million_instructions, 2)} million instructions of multiply-adds"
            )
        yield (
            f"Chosen: {size}, logit SQNR "
            f"{fixed(measured.sqnr_db, 1)} dB (predicted {fixed(choice.predicted_sqnr_db, 1)}), agreement "
            f"{percent(measured.agreement)} %{top1}"
        )

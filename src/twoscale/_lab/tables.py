"""The lab's tables as data: the contents of each cell, independent of how a page or a terminal draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twoscale._lab.changes import change
from twoscale._lab.records import (
    BiasIntegers,
    BitsResult,
    LabNetwork,
    LabResults,
    LayerScales,
    RangeMethodResult,
    StageResult,
    WeightNoise,
    WorkedOutput,
)
from twoscale._page.numbers import MISSING, count, decimals_for, fixed, percent, signed, yes_no
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale._quantization.records import RangeRecord
from twoscale._verification.results import VerifyResult

_MOST_SHOWN = 16
"""Biases of a layer that are listed one by one."""

__all__ = [
    "activation_ranges_table",
    "bias_integers_table",
    "bits_table",
    "details_tables",
    "explained_table",
    "methods_table",
    "scales_table",
    "stages_table",
    "verify_table",
    "weight_ranges_table",
    "worked_table",
]


def stages_table(stages: Sequence[StageResult], caption: str) -> Table:
    """Return one row per stage; changes are relative to the float row of the same network."""
    several = len({stage.network for stage in stages}) > 1
    floats = {stage.network: stage for stage in stages if stage.stage == "float"}
    rows: list[list[str | Cell]] = []
    for stage in stages:
        base = floats.get(stage.network)
        points = None if base is None or base is stage else change(stage, base).points
        row: list[str | Cell] = [
            Cell(stage.title, stage.note),
            MISSING if stage.stage == "float" else stage.scheme,
            percent(stage.top1),
            signed(points, 2),
            percent(stage.agreement),
            fixed(stage.sqnr_db, 1),
            count(stage.mismatches),
        ]
        rows.append([stage.network, *row] if several else row)
    columns = [
        text_column("Stage"),
        text_column("Scheme"),
        Column("Top-1", "%"),
        Column("Against float", "points"),
        Column("Agreement", "%"),
        Column("Logit SQNR", "dB"),
        Column("Differing integers"),
    ]
    return table(caption, [text_column("Network"), *columns] if several else columns, rows)


def methods_table(methods: Sequence[RangeMethodResult], base: StageResult | None, caption: str) -> Table:
    """Return one row per range method of the weights; changes are relative to the float row ``base``."""
    rows = [
        [
            one.method,
            percent(one.clipped, 3),
            fixed(one.sqnr_db, 1),
            fixed(one.logit_sqnr_db, 1),
            percent(one.top1),
            signed(change(one, base).points if base else None, 2),
            percent(one.agreement),
        ]
        for one in methods
    ]
    columns = [
        text_column("Range method"),
        Column("Clipped", "%"),
        Column("Weights SQNR", "dB"),
        Column("Logit SQNR", "dB"),
        Column("Top-1", "%"),
        Column("Against float", "points"),
        Column("Agreement", "%"),
    ]
    return table(caption, columns, rows)


def weight_ranges_table(ranges: Sequence[RangeRecord], noise: Sequence[WeightNoise], caption: str) -> Table:
    """Return the scales of weights and their noise; for a per-channel tensor, the smallest and largest scale."""
    decimals = decimals_for(scale for one in ranges for scale in one.scales)
    of = {one.layer: one for one in noise}
    compared = any(one.nearest_output_db is not None for one in noise)
    rows = []
    for one in ranges:
        row = [
            one.name,
            count(len(one.scales)),
            _span([fixed(scale, decimals) for scale in _ends(one.scales)]),
            _integers(one.lo, one.hi),
            _integers(one.seen_lo, one.seen_hi),
            one.method,
            fixed(one.sqnr_db, 1),
        ]
        known = of.get(one.name)
        if noise:
            row.append(fixed(known.output_db if known else None, 1))
        if compared:
            row.append(fixed(known.nearest_weights_db if known else None, 1))
            row.append(fixed(known.nearest_output_db if known else None, 1))
        rows.append(row)
    columns = [
        text_column("Tensor"),
        Column("Scales"),
        Column("Scale"),
        Column("Allowed integers"),
        Column("Integers seen"),
        text_column("Range method"),
        Column("Weights SQNR", "dB"),
    ]
    columns += [Column("Output SQNR", "dB")] * bool(noise)
    columns += [Column("Nearest: weights", "dB"), Column("Nearest: output", "dB")] * compared
    return table(caption, columns, rows)


def scales_table(scales: Sequence[LayerScales], caption: str) -> Table:
    """Return the scales that meet in each layer and its multipliers; the smallest and largest of several."""
    weight_decimals = decimals_for(value for one in scales for value in one.weight_scales)
    decimals = decimals_for(value for one in scales for value in (one.x_scale, one.y_scale))
    m_decimals = decimals_for(value for one in scales for value in one.multipliers)
    rows = [
        [
            one.layer,
            fixed(one.x_scale, decimals),
            _span([fixed(value, weight_decimals) for value in _ends(one.weight_scales)]),
            fixed(one.y_scale, decimals),
            _span([fixed(value, m_decimals) for value in _ends(one.multipliers)]),
            _span([count(int(value)) for value in _ends(one.numerators)]),
        ]
        for one in scales
    ]
    columns = [
        text_column("Layer"),
        Column("Input scale s_x"),
        Column("Weight scale s_w"),
        Column("Output scale s_y"),
        Column("M = s_x·s_w/s_y"),
        Column("M in 65536ths"),
    ]
    return table(caption, columns, rows)


def explained_table(page: str, caption: str) -> Table:
    """Return a link to the page of every integer."""
    return table(caption, [text_column("Picture"), text_column("Page")], [("first test image", Cell(page, href=page))])


def worked_table(one: WorkedOutput, caption: str) -> Table:
    """Return the steps from one accumulator to one output integer."""
    product = one.accumulator * one.multiplier
    whole = MISSING if one.numerator is None else f"{count(one.numerator)} / 65,536"
    rows = [
        ["Test image", count(one.image)],
        ["Output (channel, row, column)", ", ".join(map(str, one.index))],
        ["Input scale s_x", _digits(one.x_scale)],
        ["Weight scale s_w", _digits(one.weight_scale)],
        ["Output scale s_y", _digits(one.y_scale)],
        ["M = s_x·s_w/s_y", _digits(one.multiplier)],
        ["M as a whole number of 65536ths", whole],
        ["Bias, in units of s_x·s_w", count(one.bias)],
        ["Accumulator a: bias and products", count(one.accumulator)],
        ["a · M", fixed(product, 4)],
        ["Rounded to the nearest integer", count(round(product))],
        ["Zero point z, added", count(one.zero_point)],
        ["Integers of the output", _integers(one.lo, one.hi)],
        ["Output integer q", count(one.output)],
        ["q stands for s_y · (q − z)", _digits(one.y_scale * (one.output - one.zero_point))],
        ["The float network computes", _digits(one.real)],
    ]
    return table(caption, [text_column("Step"), Column("Value")], rows)


def bias_integers_table(biases: Sequence[BiasIntegers], caption: str) -> Table:
    """Return unit, range and integers of each layer's biases; the integers themselves where they are few."""
    decimals = decimals_for(value for one in biases for value in one.reals)
    rows: list[list[str | Cell]] = [
        [
            Cell(one.layer, ", ".join(map(count, one.integers)) if len(one.integers) <= _MOST_SHOWN else ""),
            count(len(one.integers)),
            _span([fixed(value, decimals) for value in _ends(one.reals)]),
            _span([_digits(value, 3) for value in _ends(one.units)]),
            _span([count(int(value)) for value in _ends(one.integers)]),
            percent(max(map(abs, one.integers)) / 2**31, 6),
        ]
        for one in biases
    ]
    columns = [
        text_column("Layer"),
        Column("Biases"),
        Column("Float network"),
        Column("Unit s_x·s_w"),
        Column("Integers"),
        Column("Of int32", "%"),
    ]
    return table(caption, columns, rows)


def bits_table(bits: Sequence[BitsResult], base: StageResult | None, caption: str) -> Table:
    """Return one row per scheme and number of bits; changes are relative to the float row ``base``."""
    rows = [
        [
            count(one.bits),
            one.scheme,
            percent(one.top1),
            signed(change(one, base).points if base else None, 2),
            percent(one.agreement),
            fixed(one.sqnr_db, 1),
        ]
        for one in bits
    ]
    columns = [
        Column("Weight bits"),
        text_column("Scheme"),
        Column("Top-1", "%"),
        Column("Against float", "points"),
        Column("Agreement", "%"),
        Column("Logit SQNR", "dB"),
    ]
    return table(caption, columns, rows)


def activation_ranges_table(ranges: Sequence[RangeRecord], verify: VerifyResult | None, caption: str) -> Table:
    """Return scale, zero point and use of the integer range, one row per activation tensor."""
    saturated = {layer.name: layer.saturated for layer in verify.layers} if verify else {}
    decimals = decimals_for(scale for one in ranges for scale in one.scales)
    rows = [
        [
            one.name,
            fixed(one.scales[0] if one.scales else None, decimals),
            count(one.zero_point),
            _integers(one.lo, one.hi),
            _integers(one.seen_lo, one.seen_hi),
            percent(saturated.get(one.name), 3),
            fixed(one.sqnr_db, 1),
            one.method,
        ]
        for one in ranges
    ]
    columns = [
        text_column("Tensor"),
        Column("Scale"),
        Column("Zero point"),
        Column("Allowed integers"),
        Column("Integers seen"),
        Column("Saturated", "%"),
        Column("SQNR", "dB"),
        text_column("Range method"),
    ]
    return table(caption, columns, rows)


def verify_table(results: Sequence[VerifyResult], caption: str) -> Table:
    """Return one row per scheme: which executors ran, how much was compared, how much differed."""
    rows: list[list[str | Cell]] = [
        [
            result.scheme,
            Cell(", ".join(result.executors), _by_executor(result)),
            yes_no(result.on_grid),
            count(result.samples),
            count(result.compared),
            count(result.mismatches),
            percent(result.top1),
            percent(result.agreement),
            fixed(result.sqnr_db, 1),
        ]
        for result in results
    ]
    columns = [
        text_column("Scheme"),
        text_column("Executors"),
        text_column("On the grid"),
        Column("Images"),
        Column("Integers compared"),
        Column("Differing"),
        Column("Top-1", "%"),
        Column("Agreement", "%"),
        Column("Logit SQNR", "dB"),
    ]
    return table(caption, columns, rows)


def details_tables(results: LabResults) -> tuple[Table, ...]:
    """Return how the results were made, as tables of two columns, and the files of each network."""
    environment = results.environment
    data = {
        "Data set": results.data,
        "Training images": count(results.train_samples),
        "Test images": count(results.test_samples),
        "Calibration images": count(results.calibration_samples),
        "Seed": str(results.seed),
    }
    machine = {
        "Date (UTC)": environment.date,
        "Processor": environment.machine,
        "Cores": count(environment.cores),
        "Python": environment.python,
        **environment.versions,
    }
    seconds = {name: fixed(value, 2) for name, value in results.seconds.items()}
    tables = [
        _pairs("Data", data),
        _recipe(results.recipe),
        _pairs("Machine and versions", machine),
        replace(_pairs("Time", seconds), columns=(text_column("Step"), Column("Wall clock", "s"))),
    ]
    tables += [_files(network) for network in results.networks]
    return tuple(one for one in tables if one.rows)


def _ends(values: Sequence[float]) -> list[float]:
    """Return the smallest and the largest value, or the only one."""
    return sorted({min(values), max(values)}) if values else []


def _span(texts: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(texts)) or MISSING


def _digits(value: float, digits: int = 6) -> str:
    """Return a number with so many significant digits."""
    return f"{value:.{digits}g}".replace("-", "−")


def _pairs(caption: str, values: dict[str, str]) -> Table:
    return table(caption, [text_column("What"), text_column("Value")], values.items())


def _recipe(recipe: dict[str, Any]) -> Table:
    """Return one row per option, with one column per network if each has its own recipe."""
    if not recipe or not all(isinstance(value, dict) for value in recipe.values()):
        return _pairs("Training recipe", {name: _plain(value) for name, value in recipe.items()})
    options = dict.fromkeys(option for one in recipe.values() for option in one)
    rows = [[option, *(_plain(one.get(option)) for one in recipe.values())] for option in options]
    return table("Training recipe", [text_column("What"), *map(text_column, recipe)], rows)


def _files(network: LabNetwork) -> Table:
    rows = [(what, Cell(name, href=name)) for what, name in network.files.items()]
    return table(f"Files of {network.name}", [text_column("What"), text_column("File")], rows)


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return yes_no(value)
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _by_executor(result: VerifyResult) -> str:
    """Return which executors differed, if any did."""
    differing = [f"{name} {count(n)}" for name, n in result.mismatches_by_executor.items() if n]
    return "differing: " + ", ".join(differing) if differing else ""


def _integers(lo: int, hi: int) -> str:
    return f"{count(lo)} to {count(hi)}"

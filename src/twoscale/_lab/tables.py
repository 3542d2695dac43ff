"""The lab's tables as data: the contents of each cell, independent of how a page or a terminal draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twoscale._lab.changes import change
from twoscale._lab.records import LabNetwork, LabResults, StageResult
from twoscale._page.numbers import MISSING, count, decimals_for, fixed, percent, signed, yes_no
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale._quantization.records import RangeRecord
from twoscale._verification.results import VerifyResult

__all__ = [
    "activation_ranges_table",
    "details_tables",
    "stages_table",
    "verify_table",
    "weight_ranges_table",
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


def weight_ranges_table(ranges: Sequence[RangeRecord], caption: str) -> Table:
    """Return the scales of weights; for a per-channel tensor, the smallest and the largest."""
    decimals = decimals_for(scale for one in ranges for scale in one.scales)
    rows = [
        [
            one.name,
            count(len(one.scales)),
            fixed(min(one.scales, default=None), decimals),
            fixed(max(one.scales, default=None), decimals),
            _integers(one.lo, one.hi),
            _integers(one.seen_lo, one.seen_hi),
            fixed(one.sqnr_db, 1),
            one.method,
        ]
        for one in ranges
    ]
    columns = [
        text_column("Tensor"),
        Column("Scales"),
        Column("Smallest"),
        Column("Largest"),
        Column("Allowed integers"),
        Column("Integers seen"),
        Column("SQNR", "dB"),
        text_column("Range method"),
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

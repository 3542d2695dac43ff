from __future__ import annotations

import io
import itertools
from dataclasses import replace

from rich.console import Console

from twoscale._lab.records import LabResults
from twoscale._lab.terminal import summary_table
from twoscale._page.tables import Cell, Column, Table
from twoscale._page.terminal import rich_table


def _printed(results: LabResults, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary_table(results))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_summary_fits_80_columns(results: LabResults) -> None:
    lines = _printed(results)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "cifar10: 10,000 test images"
    rows = [line.split() for line in lines if line.startswith("    all integer") or line.startswith("   all integer")]
    assert rows == [
        ["all", "integer", "course", "53.91", "97.75", "26.8", "14"],
        ["all", "integer", "default", "54.19", "98.83", "35.4", "0"],
        ["all", "integer", "course", "54.45", "97.65", "26.0", "14"],
        ["all", "integer", "default", "54.66", "98.73", "34.6", "0"],
    ]


def test_every_stage_has_a_row(results: LabResults) -> None:
    text = "\n".join(_printed(results, width=200))
    for network in results.networks:
        for stage in network.stages:
            assert f"{100 * stage.top1:.2f}" in text
            assert stage.title.split(",")[0] in text


def test_missing_values_and_odd_names(results: LabResults) -> None:
    network = results.networks[0]
    stages = tuple(replace(one, title="[red]x[/red]", sqnr_db=None) for one in network.stages[:1])
    lines = _printed(replace(results, networks=(replace(network, name="[bold]n", stages=stages),)))
    assert any(line.strip() == "[bold]n" for line in lines)
    assert any(line.split() == ["[red]x[/red]", "–", "54.21", "–", "–", "–"] for line in lines)


def test_a_narrow_terminal_cuts_no_number() -> None:
    columns = (
        Column("Layer", numeric=False),
        Column("Operator", numeric=False),
        Column("Size"),
        Column("Bound", "bits"),
    )
    rows = (("stack1.shortcut", "QuantizeInput", "1,234,567", "22.4"), ("fc", "Linear", "10", "–"))
    table = Table("caption", columns, tuple(tuple(map(Cell, row)) for row in rows))

    def printed(width: int) -> list[list[str]]:
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(rich_table(table))
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        return [line.split() for line in lines]

    fc = ["fc", "Linear", "10", "–"]
    assert printed(48)[5:] == [["stack1.shortcut", "QuantizeInput", "1,234,567", "22.4"], fc]
    assert printed(34)[5:] == [["stack1.", "Quantize", "1,234,567", "22.4"], ["shortcut", "Input"], fc]
    left_out = ["columns", "not", "shown,", "the", "terminal", "is", "too", "narrow:", "Operator"]
    narrow = printed(25)[5:]
    assert narrow[:3] == [["stack1.", "1,234,567", "22.4"], ["shortcut"], ["fc", "10", "–"]]
    assert [*itertools.chain(*narrow[3:])] == left_out
    assert [*itertools.chain(*printed(18))][-2:] == ["Operator,", "Bound"]

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from twoscale.records import LabResults
from twoscale.report import summary_table


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

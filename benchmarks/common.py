"""Shared by the benchmarks: paired runs of two sides, and the file of a result."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoscale._environment import current_environment, load_average
from twoscale._files import write_record
from twoscale._page.tables import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Pair:
    """Two sides measured in turn.

    The ratio is a's median over b's. Its spread is the smallest and the largest ratio of neighbouring runs, which have
    the same load from other programs.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    median_a: float
    median_b: float
    ratio: float
    ratio_spread: tuple[float, float]


def paired(run_a: Callable[[], float], run_b: Callable[[], float], repeats: int) -> Pair:
    """Run a and b in turn, ``repeats`` times each, alternating which goes first. Each returns its figure."""
    runs: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats):
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            runs[side].append((run_a, run_b)[side]())
    a, b = runs
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    median_a, median_b = statistics.median(a), statistics.median(b)
    spread = (min(ratios), max(ratios))
    return Pair(tuple(a), tuple(b), median_a, median_b, median_a / median_b, spread)


def write_result(name: str, payload: Any, *packages: str) -> Path:
    """Write ``results/<name>.json``: the payload, a dict or a dataclass, with machine, versions, date and load.

    Args:
        name: of the benchmark.
        payload: its figures.
        packages: whose versions are recorded besides twoscale, torch and numpy.
    """
    content = dataclasses.asdict(payload) if dataclasses.is_dataclass(payload) else dict(payload)  # type: ignore[arg-type]
    path = RESULTS / f"{name}.json"
    load = load_average()
    write_record(path, {**content, "load_average_at_end": load, "environment": current_environment(*packages)})
    return path


def markdown(table: Table, columns: Sequence[int] | None = None) -> str:
    """Return a table, or some columns of it, as Markdown."""
    chosen = range(len(table.columns)) if columns is None else columns
    heads = [table.columns[i] for i in chosen]
    lines = [
        "| " + " | ".join(f"{head.label}, {head.unit}" if head.unit else head.label for head in heads) + " |",
        "|" + "|".join("--:" if head.numeric else "---" for head in heads) + "|",
    ]
    for row in table.rows:
        cells = [row[i] for i in chosen]
        noted = [
            f"{cell.text} ({cell.note})" if head.numeric and cell.note and len(cell.note) < 25 else cell.text
            for head, cell in zip(heads, cells, strict=True)
        ]
        lines.append("| " + " | ".join(noted) + " |")
    return "\n".join(lines)

"""What the verdict of a scaling study finds of causes that were planted under it.

    python -m benchmarks.planted_causes [--only NAME ...]

Runs the studies of ``tests/scaling/plants.py``: nothing planted, slow data, half of a core stolen, a long round trip,
and contention. Of each it records what a step lost, what the planted cause is said to take, and what no cause explains.
Takes about ten minutes on two cores that do nothing else; the link needs root and iproute2.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.common import write_result
from tests.scaling.plants import PLANTS, Plant, real_time
from twoscale._environment import load_average


@dataclass(frozen=True)
class Row:
    """One planted cause; seconds per step."""

    planted: str
    cause: str | None
    """The verdict's name for what was planted."""
    planted_seconds: float | None
    named: str
    """The largest cause that the verdict found."""
    found_seconds: float | None
    """What the verdict says that the planted cause takes."""
    lost_seconds: float
    unexplained_seconds: float
    load: tuple[float, float, float] | None
    """As the study began."""


def measure(name: str, plant: Plant) -> Row:
    """Run one study."""
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        verdict = plant.run(Path(folder), real_time())
    found = {cause.name: cause.seconds for cause in verdict.causes}
    return Row(
        name,
        plant.cause,
        plant.seconds,
        verdict.causes[0].name,
        None if plant.cause is None else found[plant.cause],  # type: ignore[index]
        verdict.loss.mean,
        verdict.unexplained,
        load,
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PLANTS), default=list(PLANTS))
    rows: list[Row] = []
    print("planted           lost, ms   largest      planted cause, ms   not explained, ms", flush=True)
    for name in parser.parse_args().only:
        try:
            row = measure(name, PLANTS[name])
        except pytest.skip.Exception as skipped:
            print(f"{name}: left out, {skipped}", flush=True)
            continue
        print(
            f"{row.planted:16} {_milliseconds(row.lost_seconds):>9}   {row.named:11} "
            f"{_milliseconds(row.found_seconds):>18} {_milliseconds(row.unexplained_seconds):>19}",
            flush=True,
        )
        rows.append(row)
    print(f"written to {write_result('planted_causes', {'world_size': 2, 'rows': rows})}")


if __name__ == "__main__":
    main()

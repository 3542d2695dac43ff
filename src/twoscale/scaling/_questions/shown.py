"""Numbers as the study's sentences and tables show them."""

from __future__ import annotations

from twoscale._page.charts import Drawing
from twoscale._page.document import Figure
from twoscale._page.numbers import MISSING, fixed, signed
from twoscale._page.tables import Cell
from twoscale.scaling._measure.records import RankGroup, Summary

__all__ = ["figures", "milliseconds", "number", "plural", "ranks_cell", "rounds", "seconds_text", "with_interval"]


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with three digits."""
    value = 1000 * seconds
    return f"{fixed(value, 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2)} ms"


def ranks_cell(group: RankGroup) -> Cell:
    """Return a number of ranks, with the hosts under it where there are several."""
    return Cell(str(group.world_size), f"on {group.hosts} hosts" if group.hosts > 1 else "")


def seconds_text(seconds: float) -> str:
    """Return a time of an epoch, in seconds with three digits."""
    return f"{fixed(seconds, 0 if seconds >= 100 else 1 if seconds >= 10 else 2 if seconds >= 0.1 else 3)} s"


def plural(count: int, noun: str) -> str:
    """Return "1 rank", "2 ranks"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _decimals(value: float) -> int:
    """Return how many decimals show three digits of ``value``."""
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number with three digits, or with so many decimals."""
    if value is None:
        return MISSING
    return fixed(value, _decimals(value) if decimals is None else decimals)


def with_interval(summary: Summary | None, factor: float = 1.0, decimals: int | None = None) -> Cell:
    """Return the mean of launches of a positive quantity with Student's interval under it.

    Where that interval reaches below zero, and so says nothing, the smallest and the largest launch take its place.
    """
    if summary is None:
        return Cell(MISSING)
    places = _decimals(summary.mean * factor) if decimals is None else decimals
    interval = summary.mean_interval
    if interval is None:
        return Cell(fixed(summary.median * factor, places), "1 launch")
    known = interval.low > 0
    ends = (interval.low, interval.high) if known else (summary.min, summary.max)
    low, high = (fixed(value * factor, places) for value in ends)
    launches = "" if known else f" in {summary.n} launches"
    return Cell(fixed(summary.mean * factor, places), f"{low} to {high}{launches}")


def rounds(summary: Summary | None, *, signs: bool = False) -> Cell:
    """Return the median of rounds in milliseconds with its interval under it."""
    if summary is None:
        return Cell(MISSING)
    show = signed if signs else fixed
    places = _decimals(summary.median * 1e3)
    interval = summary.median_interval
    return Cell(
        show(summary.median * 1e3, places),
        f"{fixed(interval.low * 1e3, places)} to {fixed(interval.high * 1e3, places)}",
    )


def figures(**drawings: Drawing | None) -> list[Figure]:
    """Return charts under the names of their files; charts without data are left out."""
    return [Figure(name.replace("_", "-"), drawing) for name, drawing in drawings.items() if drawing is not None]

"""Dot plots: one row per name, with one marker per series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts.axes import horizontal_axis, padded
from twoscale._page.charts.drawing import Drawing, legend, marker, number, path, point, shortened, text_at, title_line
from twoscale._page.charts.style import CHARACTER, WIDTH

__all__ = ["Reference", "Series", "dot_plot"]


@dataclass(frozen=True)
class Series:
    """One value per row; None if it has none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Reference:
    """A vertical line across a dot plot."""

    value: float
    label: str


def dot_plot(
    title: str,
    rows: Sequence[str],
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    note: str = "",
    references: Sequence[Reference] = (),
    span: tuple[float, float] | None = None,
    least_span: float = 1.0,
    limits: tuple[float, float] = (-math.inf, math.inf),
    row_height: float = 22,
    width: float = WIDTH,
) -> Drawing:
    """Draw one row per name, with a marker for each series at its value.

    Args:
        title: at the top left, bold.
        rows: names, from top to bottom.
        series: values in the order of ``rows``; colour and shape follow the order of the series.
        label: the chart in words.
        x_label: what the values are, with their unit.
        note: at the top right, muted.
        references: vertical lines.
        span: ends of the axis; by default what the values need, and at least ``least_span``.
        least_span: so that differences which mean nothing do not look large.
        limits: of what is possible; the axis ends there.
        row_height: units.
        width: of the chart, units.
    """
    names = [shortened(row) for row in rows]
    left = min(150.0, 12 + CHARACTER * max(map(len, names), default=0))
    right = width - 14.0
    top = 26.0 + (16 if len(series) > 1 else 0) + (14 if references else 0)
    bottom = top + row_height * len(rows)
    values = [value for one in series for value in one.values if value is not None]
    values += [reference.value for reference in references]
    x_lo, x_hi = span or padded(values, least_span)
    x_lo, x_hi = max(x_lo, limits[0]), min(x_hi, limits[1])

    def across(value: float) -> float:
        return left + (value - x_lo) / (x_hi - x_lo) * (right - left)

    parts = [title_line(title, note, width)]
    if len(series) > 1:
        parts.append(legend([one.name for one in series], left, markers=True))
    for row, name in enumerate(names):
        y = top + row_height * (row + 0.5)
        parts.append(path(f"M{point(left, y)}H{number(right)}", "grid"))
        parts.append(text_at(left - 8, y + 4, name, "end row"))
    taken = -math.inf
    for reference in references:
        x = across(reference.value)
        parts.append(path(f"M{point(x, top - 4)}V{number(bottom)}", "reference"))
        half = CHARACTER * len(reference.label) / 2
        middle = max(min(max(x, left + half - 8), width - half - 2), taken + half)
        taken = middle + half + 6
        parts.append(text_at(middle, top - 8, reference.label, "middle"))
    for index, one in enumerate(series):
        shift = 0.0 if len(series) == 1 else 8.0 * (index / (len(series) - 1) - 0.5)
        for row, value in enumerate(one.values):
            if value is not None:
                y = top + row_height * (row + 0.5) + shift
                parts.append(marker(index, across(value), y, f"mark{index % 3}"))
    parts.append(horizontal_axis(x_lo, x_hi, left, right, bottom, x_label))
    return Drawing(width, bottom + 36, label, "".join(parts))

"""Histograms, with ranges drawn above their bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twoscale._page.charts.axes import LinearScale, LogScale, horizontal_axis, widened
from twoscale._page.charts.drawing import Drawing, Frame, marker, number, path, point, text_at, title_line
from twoscale._page.charts.style import CHARACTER, WIDTH
from twoscale._page.numbers import compact

__all__ = ["Bracket", "histogram", "merged_bars"]


@dataclass(frozen=True)
class Bracket:
    """A range drawn above a histogram, with a dot on it where ``dot`` is given."""

    label: str
    lo: float
    hi: float
    dot: float | None = None


def histogram(
    title: str,
    counts: Sequence[int],
    lo: float,
    hi: float,
    *,
    label: str,
    x_label: str,
    note: str = "",
    brackets: Sequence[Bracket] = (),
    log: bool = False,
    height: float = 204,
    width: float = WIDTH,
) -> Drawing:
    """Draw counts in equal bins over [lo, hi].

    Neighbouring bins are drawn as one bar where there are too few values for so many bars.

    Args:
        title: at the top left, bold.
        counts: values in each bin.
        lo: left edge of the first bin.
        hi: right edge of the last bin.
        label: the chart in words.
        x_label: what the values are, with their unit.
        note: at the top right, muted.
        brackets: at most two ranges to draw above the bars.
        log: draw counts on a logarithmic axis, from 1.
        height: of the chart, units.
        width: of the chart, units.
    """
    edges, heights = merged_bars(counts, lo, hi)
    peak = float(max(heights, default=0.0))
    vertical = LogScale(peak) if log else LinearScale(peak)
    ends = [edges[0], edges[-1], *(end for b in brackets for end in (b.lo, b.hi))]
    x_lo, x_hi = widened(min(ends), max(ends))
    labels = [compact(tick) for tick in vertical.ticks]
    left = 10 + CHARACTER * max(map(len, [*labels, *(bracket.label for bracket in brackets)]))
    right, bottom, top = width - 8.0, height - 36.0, 38.0 + 13 * len(brackets)

    frame = Frame(left, right, top, bottom, x_lo, x_hi)
    across = frame.across

    def up(value: float) -> float:
        return bottom - vertical.position(value) * (bottom - top)

    parts = [title_line(title, note, width)]
    for row, bracket in enumerate(brackets):
        y = 32.0 + 13 * row
        start, stop = across(bracket.lo), across(bracket.hi)
        parts.append(text_at(left - 6, y + 3.5, bracket.label, "end"))
        parts.append(
            path(
                f"M{point(start, y - 3.5)}v7M{point(start, y)}H{number(stop)}M{point(stop, y - 3.5)}v7",
                f"bracket{row}",
            )
        )
        if bracket.dot is not None:
            parts.append(marker(0, across(bracket.dot), y, f"dot{row}"))
    for tick, text in zip(vertical.ticks, labels, strict=True):
        parts.append(path(f"M{point(left, up(tick))}H{number(right)}", "grid"))
        parts.append(text_at(left - 6, up(tick) + 3.5, text, "end"))
    outline = [f"M{point(across(edges[0]), bottom)}"]
    for edge, value in zip(edges[1:], heights, strict=True):
        outline.append(f"V{number(up(value))}H{number(across(edge))}")
    parts.append(path("".join(outline) + f"V{number(bottom)}Z", "area"))
    parts.append(horizontal_axis(x_lo, x_hi, left, right, bottom, x_label))
    return Drawing(width, height, label, "".join(parts), frame)


def merged_bars(counts: Sequence[int], lo: float, hi: float) -> tuple[list[float], list[float]]:
    """Return edges and counts of equal bars: no empty ones at the ends, as many as the values allow.

    The last bar may reach beyond ``hi``, where there are no values, so that it is as wide as the others.
    """
    array = np.asarray(counts, dtype=np.float64)
    used = np.flatnonzero(array)
    if used.size == 0:
        return [lo, hi], [0.0]
    width = (hi - lo) / array.size
    first = int(used[0])
    array = array[first : int(used[-1]) + 1]
    wanted = min(128.0, max(24.0, 5 * float(array.sum()) ** (1 / 3)))
    group = math.ceil(array.size / wanted)
    heights = np.add.reduceat(array, np.arange(0, array.size, group))
    edges = [lo + width * (first + group * index) for index in range(heights.size + 1)]
    return edges, [float(value) for value in heights]

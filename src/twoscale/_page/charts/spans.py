"""Charts of what happens when: bars on rows along a time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts.axes import horizontal_axis
from twoscale._page.charts.drawing import Drawing, number, path, point, shortened, text_at, title_line
from twoscale._page.charts.style import CHARACTER, WIDTH

__all__ = ["Bar", "span_plot"]

_SWATCH = 12.0


@dataclass(frozen=True)
class Bar:
    """A bar from ``start`` to ``end`` on a row; ``kind`` is the place of its name in the legend."""

    row: int
    start: float
    end: float
    kind: int


def span_plot(
    title: str,
    rows: Sequence[str],
    bars: Sequence[Bar],
    kinds: Sequence[str],
    *,
    label: str,
    x_label: str,
    row_height: float = 22,
    width: float = WIDTH,
) -> Drawing:
    """Draw bars on rows.

    Args:
        title: of the chart.
        rows: their names, from the top.
        bars: in any order.
        kinds: at most three names of kinds of bars, each with a colour of its own.
        label: what the chart shows, for those who cannot see it.
        x_label: of the axis, which begins at 0.
        row_height: units.
        width: of the chart, units.
    """
    names = [shortened(row) for row in rows]
    left = min(150.0, 12 + CHARACTER * max(map(len, names), default=0))
    right, top = width - 14.0, 42.0
    bottom = top + row_height * len(rows)
    last = max((bar.end for bar in bars), default=0.0) or 1.0

    def across(value: float) -> float:
        return left + value / last * (right - left)

    def box(x: float, y: float, length: float, height: float, kind: int) -> str:
        size = f'width="{number(max(0.5, length))}" height="{number(height)}"'
        return f'<rect class="mark{kind}" x="{number(x)}" y="{number(y)}" {size}/>\n'

    parts = [title_line(title, "", width)]
    x = left
    for kind, name in enumerate(kinds):
        parts += [box(x, 26, 9, 9, kind), text_at(x + _SWATCH, 35, name)]
        x += _SWATCH + CHARACTER * len(name) + 14
    for row, name in enumerate(names):
        y = top + row_height * (row + 0.5)
        parts.append(path(f"M{point(left, y)}H{number(right)}", "grid"))
        parts.append(text_at(left - 8, y + 4, name, "end row"))
    for bar in bars:
        y = top + row_height * bar.row + 4
        parts.append(box(across(bar.start), y, across(bar.end) - across(bar.start) - 0.5, row_height - 8, bar.kind))
    parts.append(horizontal_axis(0.0, last, left, right, bottom, x_label))
    return Drawing(width, bottom + 36, label, "".join(parts))

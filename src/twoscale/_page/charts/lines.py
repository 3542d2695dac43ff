"""Line plots."""

from __future__ import annotations

from collections.abc import Sequence

from twoscale._page.charts.axes import horizontal_axis, padded, tick_decimals, ticks_between, widened
from twoscale._page.charts.drawing import Drawing, legend, marker, number, path, point, text_at, title_line
from twoscale._page.charts.style import CHARACTER, WIDTH
from twoscale._page.numbers import fixed

__all__ = ["line_plot"]


def line_plot(
    title: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    label: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    y_from: float | None = None,
    dots: bool = False,
    height: float = 220,
) -> Drawing:
    """Draw named lines through (x, y) points; their dashes distinguish them.

    Args:
        title: at the top left, bold.
        lines: name and points, in the order of x.
        label: the chart in words.
        x_label: what x is.
        y_label: what y is; written at the top right.
        x_ticks: places and their labels, where x is not what it is called, as on a logarithmic axis; x then begins
            at the first point, not at 0.
        y_from: where the y axis begins, if points do not lie below it. Default: near the lowest point.
        dots: draw the points too.
        height: of the chart, units.
    """
    points = [point for _, line in lines for point in line] or [(0.0, 0.0)]
    begin = [] if x_ticks else [0.0]
    x_lo, x_hi = widened(min([*begin, *(x for x, _ in points)]), max(x for x, _ in points))
    bottom_value = [] if y_from is None else [y_from]
    y_lo, y_hi = padded([*bottom_value, *(y for _, y in points)], 0.1 if y_from is None else 0.0)
    if y_hi == y_lo:
        y_lo, y_hi = widened(y_lo, y_hi)
    if min(y for _, y in points) >= 0:
        y_lo = max(y_lo, 0.0)
    ticks = ticks_between(y_lo, y_hi, 5)
    decimals = tick_decimals(ticks)
    labels = [fixed(tick, decimals) for tick in ticks]
    left = max(30.0, 12 + CHARACTER * max(map(len, labels), default=0))
    right, top, bottom = WIDTH - 14.0, 44.0, height - 36.0

    def across(value: float) -> float:
        return left + (value - x_lo) / (x_hi - x_lo) * (right - left)

    def up(value: float) -> float:
        return bottom - (value - y_lo) / (y_hi - y_lo) * (bottom - top)

    parts = [title_line(title, y_label, WIDTH)]
    if any(name for name, _ in lines):
        parts.append(legend([name for name, _ in lines], left, markers=False))
    for tick, text in zip(ticks, labels, strict=True):
        parts.append(path(f"M{point(left, up(tick))}H{number(right)}", "grid"))
        parts.append(text_at(left - 6, up(tick) + 3.5, text, "end"))
    for index, (_, line) in enumerate(lines):
        if len(line) == 1:
            parts.append(marker(index, across(line[0][0]), up(line[0][1]), "mark"))
        elif line:
            corners = "L".join(point(across(x), up(y)) for x, y in line)
            parts.append(path(f"M{corners}", f"line line{index % 3}"))
            if dots:
                parts += [marker(index, across(x), up(y), f"mark{index % 3}") for x, y in line]
    parts.append(horizontal_axis(x_lo, x_hi, left, right, bottom, x_label, x_ticks))
    return Drawing(WIDTH, height, label, "".join(parts))

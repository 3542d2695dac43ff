"""Small charts as SVG: histograms, dot plots and lines that one reads on a phone and in the dark.

A chart is 320 units wide, so that its 11-unit text is 11 pixels high in a phone's column; lists of layers
grow downwards, never sideways. Colours come from style sheet classes: inside the page they follow its
variables, and a file of its own carries both palettes. Nothing here is random or dated: the same numbers
give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

import numpy as np

from twoscale._page.numbers import compact, fixed

__all__ = [
    "DARK",
    "LIGHT",
    "WIDTH",
    "Bracket",
    "Drawing",
    "Reference",
    "Series",
    "dot_plot",
    "histogram",
    "line_plot",
    "palette_variables",
    "side_by_side",
    "style_rules",
]

WIDTH = 320
_TEXT = 11
_CHARACTER = 0.58 * _TEXT  # mean advance of a character in the usual sans-serif faces

LIGHT = {
    "paper": "#ffffff",
    "tint": "#f5f7f9",
    "ink": "#1b2128",
    "muted": "#56606b",
    "rule": "#d5dbe1",
    "link": "#1a5ba3",
    "first": "#2866ad",
    "second": "#b5500c",
    "third": "#20795a",
}
DARK = {
    "paper": "#14181c",
    "tint": "#1c2227",
    "ink": "#e4e8ec",
    "muted": "#9fa9b4",
    "rule": "#39424b",
    "link": "#8abaf2",
    "first": "#78aeea",
    "second": "#ee9d5c",
    "third": "#69c3a0",
}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

_RULES = Template("""\
.plot text { fill: $muted; font-family: $font; font-size: 11px; font-variant-numeric: tabular-nums; }
.plot .title { fill: $ink; font-size: 13px; font-weight: 600; }
.plot .row { fill: $ink; }
.plot .end { text-anchor: end; }
.plot .middle { text-anchor: middle; }
.plot .axis { stroke: $muted; fill: none; }
.plot .grid { stroke: $rule; fill: none; }
.plot .reference { stroke: $ink; stroke-dasharray: 2 3; fill: none; }
.plot .area { fill: $first; }
.plot .mark { fill: $ink; }
.plot .mark0 { fill: $first; } .plot .mark1 { fill: $second; } .plot .mark2 { fill: $third; }
.plot .line { fill: none; stroke: $ink; stroke-width: 1.5; }
.plot .line1 { stroke-dasharray: 5 3; } .plot .line2 { stroke-dasharray: 1.5 3; }
.plot .bracket0 { stroke: $ink; fill: none; } .plot .bracket1 { stroke: $second; fill: none; }
.plot .dot1 { fill: $second; }
""")


def style_rules(palette: dict[str, str]) -> str:
    """Return the style sheet of the charts in the colours of ``palette``."""
    return _RULES.substitute(palette, font=FONT)


def palette_variables(palette: dict[str, str]) -> str:
    """Return ``palette`` as declarations of CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


@dataclass(frozen=True)
class Drawing:
    """A finished chart.

    ``body`` holds SVG elements in a coordinate system of ``width`` by ``height`` units.
    """

    width: float
    height: float
    label: str
    """What the chart shows, for those who cannot see it."""
    body: str

    def inline(self) -> str:
        """Return the element for a page that defines the colours."""
        return self._element("")

    def standalone(self, palette: dict[str, str] | None = None) -> str:
        """Return a file of its own, in ``palette``, or else in light or dark as the reader prefers."""
        if palette is None:
            rules = (
                f":root {{ color-scheme: light dark; }}\n{style_rules(LIGHT)}"
                f"@media (prefers-color-scheme: dark) {{\n{style_rules(DARK)}}}\n"
            )
        else:
            rules = style_rules(palette)
        return self._element(f"<style>\n{rules}</style>\n", margin=8) + "\n"

    def __html__(self) -> str:
        """Return the inline element; templates take this as safe."""
        return self.inline()

    def _element(self, head: str, margin: float = 0) -> str:
        box = (-margin, -margin, self.width + 2 * margin, self.height + 2 * margin)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="{" ".join(map(_number, box))}" '
            f'role="img" aria-label="{escape(self.label)}">\n{head}{self.body}</svg>'
        )


def side_by_side(drawings: Sequence[Drawing], label: str, gap: float = 24) -> Drawing:
    """Return ``drawings`` in one row, tops aligned."""
    parts, x = [], 0.0
    for drawing in drawings:
        parts.append(f'<g transform="translate({_number(x)} 0)">\n{drawing.body}</g>\n')
        x += drawing.width + gap
    return Drawing(x - gap, max(drawing.height for drawing in drawings), label, "".join(parts))


@dataclass(frozen=True)
class Bracket:
    """A range drawn above a histogram, with a dot on it where ``dot`` is given."""

    label: str
    lo: float
    hi: float
    dot: float | None = None


@dataclass(frozen=True)
class Series:
    """One value a row, None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Reference:
    """A vertical line across a dot plot."""

    value: float
    label: str


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
    edges, heights = _bars(counts, lo, hi)
    peak = float(max(heights, default=0.0))
    vertical = _LogScale(peak) if log else _LinearScale(peak)
    ends = [edges[0], edges[-1], *(end for b in brackets for end in (b.lo, b.hi))]
    x_lo, x_hi = _widened(min(ends), max(ends))
    labels = [compact(tick) for tick in vertical.ticks]
    left = 10 + _CHARACTER * max(map(len, [*labels, *(bracket.label for bracket in brackets)]))
    right, bottom, top = width - 8.0, height - 36.0, 38.0 + 13 * len(brackets)

    def across(value: float) -> float:
        return left + (value - x_lo) / (x_hi - x_lo) * (right - left)

    def up(value: float) -> float:
        return bottom - vertical.position(value) * (bottom - top)

    parts = [_title(title, note, width)]
    for row, bracket in enumerate(brackets):
        y = 32.0 + 13 * row
        start, stop = across(bracket.lo), across(bracket.hi)
        parts.append(_text(left - 6, y + 3.5, bracket.label, "end"))
        parts.append(
            _path(
                f"M{_point(start, y - 3.5)}v7M{_point(start, y)}H{_number(stop)}M{_point(stop, y - 3.5)}v7",
                f"bracket{row}",
            )
        )
        if bracket.dot is not None:
            parts.append(_marker(0, across(bracket.dot), y, f"dot{row}"))
    for tick, text in zip(vertical.ticks, labels, strict=True):
        parts.append(_path(f"M{_point(left, up(tick))}H{_number(right)}", "grid"))
        parts.append(_text(left - 6, up(tick) + 3.5, text, "end"))
    outline = [f"M{_point(across(edges[0]), bottom)}"]
    for edge, value in zip(edges[1:], heights, strict=True):
        outline.append(f"V{_number(up(value))}H{_number(across(edge))}")
    parts.append(_path("".join(outline) + f"V{_number(bottom)}Z", "area"))
    parts.append(_horizontal_axis(x_lo, x_hi, left, right, bottom, x_label))
    return Drawing(width, height, label, "".join(parts))


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
    """Draw one row a name, with a marker of each series at its value.

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
    names = [_shortened(row) for row in rows]
    left = min(150.0, 12 + _CHARACTER * max(map(len, names), default=0))
    right = width - 14.0
    top = 26.0 + (16 if len(series) > 1 else 0) + (14 if references else 0)
    bottom = top + row_height * len(rows)
    values = [value for one in series for value in one.values if value is not None]
    values += [reference.value for reference in references]
    x_lo, x_hi = span or _padded(values, least_span)
    x_lo, x_hi = max(x_lo, limits[0]), min(x_hi, limits[1])

    def across(value: float) -> float:
        return left + (value - x_lo) / (x_hi - x_lo) * (right - left)

    parts = [_title(title, note, width)]
    if len(series) > 1:
        parts.append(_legend([one.name for one in series], left, markers=True))
    for row, name in enumerate(names):
        y = top + row_height * (row + 0.5)
        parts.append(_path(f"M{_point(left, y)}H{_number(right)}", "grid"))
        parts.append(_text(left - 8, y + 4, name, "end row"))
    taken = -math.inf
    for reference in references:
        x = across(reference.value)
        parts.append(_path(f"M{_point(x, top - 4)}V{_number(bottom)}", "reference"))
        half = _CHARACTER * len(reference.label) / 2
        middle = max(min(max(x, left + half - 8), width - half - 2), taken + half)
        taken = middle + half + 6
        parts.append(_text(middle, top - 8, reference.label, "middle"))
    for index, one in enumerate(series):
        shift = 0.0 if len(series) == 1 else 8.0 * (index / (len(series) - 1) - 0.5)
        for row, value in enumerate(one.values):
            if value is not None:
                y = top + row_height * (row + 0.5) + shift
                parts.append(_marker(index, across(value), y, f"mark{index % 3}"))
    parts.append(_horizontal_axis(x_lo, x_hi, left, right, bottom, x_label))
    return Drawing(width, bottom + 36, label, "".join(parts))


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
    """Draw named lines through (x, y) points; they are told apart by their dashes.

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
    x_lo, x_hi = _widened(min([*begin, *(x for x, _ in points)]), max(x for x, _ in points))
    bottom_value = [] if y_from is None else [y_from]
    y_lo, y_hi = _padded([*bottom_value, *(y for _, y in points)], 0.1 if y_from is None else 0.0)
    if y_hi == y_lo:
        y_lo, y_hi = _widened(y_lo, y_hi)
    if min(y for _, y in points) >= 0:
        y_lo = max(y_lo, 0.0)
    ticks = _ticks(y_lo, y_hi, 5)
    decimals = _tick_decimals(ticks)
    labels = [fixed(tick, decimals) for tick in ticks]
    left = max(30.0, 12 + _CHARACTER * max(map(len, labels), default=0))
    right, top, bottom = WIDTH - 14.0, 44.0, height - 36.0

    def across(value: float) -> float:
        return left + (value - x_lo) / (x_hi - x_lo) * (right - left)

    def up(value: float) -> float:
        return bottom - (value - y_lo) / (y_hi - y_lo) * (bottom - top)

    parts = [_title(title, y_label, WIDTH)]
    if any(name for name, _ in lines):
        parts.append(_legend([name for name, _ in lines], left, markers=False))
    for tick, text in zip(ticks, labels, strict=True):
        parts.append(_path(f"M{_point(left, up(tick))}H{_number(right)}", "grid"))
        parts.append(_text(left - 6, up(tick) + 3.5, text, "end"))
    for index, (_, line) in enumerate(lines):
        if len(line) == 1:
            parts.append(_marker(index, across(line[0][0]), up(line[0][1]), "mark"))
        elif line:
            corners = "L".join(_point(across(x), up(y)) for x, y in line)
            parts.append(_path(f"M{corners}", f"line line{index % 3}"))
            if dots:
                parts += [_marker(index, across(x), up(y), f"mark{index % 3}") for x, y in line]
    parts.append(_horizontal_axis(x_lo, x_hi, left, right, bottom, x_label, x_ticks))
    return Drawing(WIDTH, height, label, "".join(parts))


class _LinearScale:
    def __init__(self, peak: float) -> None:
        self.top = peak * 1.04 or 1.0
        self.ticks = _ticks(0.0, self.top, 4)

    def position(self, value: float) -> float:
        return value / self.top


class _LogScale:
    """From a little below 1, so that a single value is still seen, to the next tick above the peak."""

    bottom = math.log10(0.6)

    def __init__(self, peak: float) -> None:
        decades = max(1, math.ceil(math.log10(max(peak, 1.0))))
        step = math.ceil(decades / 4)
        self.top = math.log10(max(peak, 1.0) * 1.3)
        self.top = max(self.top, 1.0)
        self.ticks = [10.0**power for power in range(0, decades + 1, step) if power <= self.top]

    def position(self, value: float) -> float:
        if value <= 0:
            return 0.0
        return max(0.0, (math.log10(value) - self.bottom) / (self.top - self.bottom))


def _bars(counts: Sequence[int], lo: float, hi: float) -> tuple[list[float], list[float]]:
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


def _widened(lo: float, hi: float) -> tuple[float, float]:
    """Return an axis that is never empty."""
    if hi > lo:
        return lo, hi
    margin = abs(lo) / 2 or 0.5
    return lo - margin, hi + margin


def _padded(values: Sequence[float], least_span: float) -> tuple[float, float]:
    """Return an axis with a little room on both sides of ``values``."""
    if not values:
        return 0.0, least_span
    lo, hi = min(values), max(values)
    margin = max(0.06 * (hi - lo), (least_span - (hi - lo)) / 2)
    return lo - margin, hi + margin


def _ticks(lo: float, hi: float, about: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten inside [lo, hi], about so many."""
    rough = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= 0.999 * rough)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _tick_decimals(ticks: Sequence[float]) -> int:
    if len(ticks) < 2:
        return 2
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def _horizontal_axis(
    lo: float,
    hi: float,
    left: float,
    right: float,
    y: float,
    label: str,
    named: Sequence[tuple[float, str]] | None = None,
) -> str:
    """Draw the x axis at height ``y``; tick labels under it, of ``named`` ticks theirs, then what it measures."""
    every = list(named or ())

    def fit(labels: Sequence[str]) -> bool:
        return (_CHARACTER * max(map(len, labels), default=0) + 12) * len(labels) <= right - left

    for about in range(8, 1, -1):  # as many as fit beside each other
        if named:
            shown = every[:: max(1, math.ceil(len(every) / about))]
            ticks, labels = [tick for tick, _ in shown], [text for _, text in shown]
        else:
            ticks = _ticks(lo, hi, about)
            decimals = _tick_decimals(ticks)
            labels = [compact(tick) if abs(tick) >= 10000 else fixed(tick, decimals) for tick in ticks]
        if fit(labels):
            break
    parts = [_path(f"M{_point(left, y)}H{_number(right)}", "axis")]
    for tick, text in zip(ticks, labels, strict=True):
        x = left + (tick - lo) / (hi - lo) * (right - left)
        parts.append(_path(f"M{_point(x, y)}v4", "axis"))
        parts.append(_text(x, y + 15, text, "middle"))
    middle = min((left + right) / 2, right + 10 - _CHARACTER * len(label) / 2)
    parts.append(_text(middle, y + 31, label, "middle"))
    return "".join(parts)


def _title(title: str, note: str, width: float) -> str:
    body = _text(0, 13, _shortened(title) if note else title, "title")
    return body + (_text(width - 8, 13, _shortened(note, 26), "end") if note else "")


def _legend(names: Sequence[str], left: float, *, markers: bool) -> str:
    parts, x = [], left
    for index, name in enumerate(names):
        if markers:
            parts.append(_marker(index, x + 5, 31, f"mark{index % 3}"))
            x += 14
        else:
            parts.append(_path(f"M{_point(x, 31)}h22", f"line line{index % 3}"))
            x += 28
        parts.append(_text(x, 35, name))
        x += _CHARACTER * len(name) + 16
    return "".join(parts)


def _marker(index: int, x: float, y: float, kind: str) -> str:
    """Draw a circle, a square or a diamond: series differ by shape as well as by colour."""
    if index % 3 == 0:
        return f'<circle class="{kind}" cx="{_number(x)}" cy="{_number(y)}" r="3.5"/>\n'
    if index % 3 == 1:
        return f'<rect class="{kind}" x="{_number(x - 3.2)}" y="{_number(y - 3.2)}" width="6.4" height="6.4"/>\n'
    return _path(f"M{_point(x, y - 4.5)}l4.5 4.5l-4.5 4.5l-4.5-4.5Z", kind)


def _shortened(name: str, longest: int = 20) -> str:
    """Return ``name``, without its beginning where it is too long: layers differ at the end."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{_number(x)}" y="{_number(y)}"{attribute}>{escape(text)}</text>\n'


def _path(commands: str, kind: str) -> str:
    return f'<path class="{kind}" d="{commands}"/>\n'


def _point(x: float, y: float) -> str:
    return f"{_number(x)} {_number(y)}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

"""A finished chart as SVG, and the elements that charts are drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from twoscale._page.charts.style import CHARACTER, DARK, LIGHT, style_rules
from twoscale._text import printable

__all__ = [
    "Drawing",
    "Frame",
    "legend",
    "marker",
    "number",
    "path",
    "point",
    "shortened",
    "side_by_side",
    "text_at",
    "title_line",
]


@dataclass(frozen=True)
class Frame:
    """Where the axes of a chart are: x values ``lo`` to ``hi`` between ``left`` and ``right``, in units."""

    left: float
    right: float
    top: float
    bottom: float
    lo: float
    hi: float

    def across(self, value: float) -> float:
        """Return the place of an x value."""
        return self.left + (value - self.lo) / (self.hi - self.lo) * (self.right - self.left)


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
    frame: Frame | None = None
    """Of charts that something can be drawn over."""

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
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="{" ".join(map(number, box))}" '
            f'role="img" aria-label="{escape(printable(self.label, 2000))}">\n{head}{self.body}</svg>'
        )


def side_by_side(drawings: Sequence[Drawing], label: str, gap: float = 24) -> Drawing:
    """Return ``drawings`` in one row, tops aligned."""
    parts, x = [], 0.0
    for drawing in drawings:
        parts.append(f'<g transform="translate({number(x)} 0)">\n{drawing.body}</g>\n')
        x += drawing.width + gap
    return Drawing(x - gap, max(drawing.height for drawing in drawings), label, "".join(parts))


def title_line(title: str, note: str, width: float) -> str:
    body = text_at(0, 13, shortened(title) if note else title, "title")
    return body + (text_at(width - 8, 13, shortened(note, 26), "end") if note else "")


def legend(names: Sequence[str], left: float, *, markers: bool) -> str:
    parts, x = [], left
    for index, name in enumerate(names):
        if markers:
            parts.append(marker(index, x + 5, 31, f"mark{index % 3}"))
            x += 14
        else:
            parts.append(path(f"M{point(x, 31)}h22", f"line line{index % 3}"))
            x += 28
        parts.append(text_at(x, 35, name))
        x += CHARACTER * len(name) + 16
    return "".join(parts)


def marker(index: int, x: float, y: float, kind: str) -> str:
    """Draw a circle, a square or a diamond: series differ by shape as well as by colour."""
    if index % 3 == 0:
        return f'<circle class="{kind}" cx="{number(x)}" cy="{number(y)}" r="3.5"/>\n'
    if index % 3 == 1:
        return f'<rect class="{kind}" x="{number(x - 3.2)}" y="{number(y - 3.2)}" width="6.4" height="6.4"/>\n'
    return path(f"M{point(x, y - 4.5)}l4.5 4.5l-4.5 4.5l-4.5-4.5Z", kind)


def shortened(name: str, longest: int = 20) -> str:
    """Return ``name``, without its beginning where it is too long: layers differ at the end."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def text_at(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{number(x)}" y="{number(y)}"{attribute}>{escape(printable(text))}</text>\n'


def path(commands: str, kind: str) -> str:
    return f'<path class="{kind}" d="{commands}"/>\n'


def point(x: float, y: float) -> str:
    return f"{number(x)} {number(y)}"


def number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

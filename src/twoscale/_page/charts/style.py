"""Colours and type of the charts: palettes for light and dark, and the style sheet."""

from __future__ import annotations

from string import Template

__all__ = ["CHARACTER", "DARK", "LIGHT", "WIDTH", "palette_variables", "style_rules"]

WIDTH = 320
_TEXT = 11
CHARACTER = 0.58 * _TEXT  # mean advance of a character in the usual sans-serif faces

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
.plot .shade { fill: $second; fill-opacity: 0.16; }
.plot .handle { stroke: $second; stroke-width: 2; fill: none; }
""")


def style_rules(palette: dict[str, str]) -> str:
    """Return the style sheet of the charts in the colours of ``palette``."""
    return _RULES.substitute(palette, font=FONT)


def palette_variables(palette: dict[str, str]) -> str:
    """Return ``palette`` as declarations of CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())

"""Small charts as SVG: histograms, dot plots and line plots that are readable on a phone and in dark mode.

A chart is 320 units wide, so that its 11-unit text is 11 pixels high in a phone's column. Lists of layers grow
downwards, never sideways. Colours come from style sheet classes: inside a page they follow its variables, and a
separate file carries both palettes. Nothing here is random or dated: equal numbers give equal bytes.
"""

from __future__ import annotations

from twoscale._page.charts.clipping import clip_overlay
from twoscale._page.charts.dots import Reference, Series, dot_plot
from twoscale._page.charts.drawing import Drawing, side_by_side
from twoscale._page.charts.histograms import Bracket, histogram
from twoscale._page.charts.lines import line_plot
from twoscale._page.charts.spans import Bar, span_plot
from twoscale._page.charts.style import DARK, LIGHT, WIDTH, palette_variables, style_rules

__all__ = [
    "DARK",
    "LIGHT",
    "WIDTH",
    "Bar",
    "Bracket",
    "Drawing",
    "Reference",
    "Series",
    "clip_overlay",
    "dot_plot",
    "histogram",
    "line_plot",
    "palette_variables",
    "side_by_side",
    "span_plot",
    "style_rules",
]

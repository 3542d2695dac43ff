"""Two handles over a histogram that show a symmetric clip range, with what is outside it shaded."""

from __future__ import annotations

from dataclasses import replace

from twoscale._page.charts.drawing import Drawing, number

__all__ = ["clip_overlay"]


def clip_overlay(drawing: Drawing, clip: float) -> Drawing:
    """Return the histogram with the range −clip to clip drawn over it; a script can move what has class "clip".

    Args:
        drawing: a histogram.
        clip: largest magnitude inside the range, in the units of the x axis.
    """
    assert drawing.frame is not None
    f = drawing.frame
    low, high = (min(max(f.across(end), f.left), f.right) for end in (-clip, clip))
    top, height = number(f.top - 4), number(f.bottom - f.top + 4)
    shades = "".join(
        f'<rect class="clip shade {side}" x="{number(x)}" y="{top}" width="{number(max(0.0, width))}" '
        f'height="{height}"/>\n'
        for side, x, width in (("below", f.left, low - f.left), ("above", high, f.right - high))
    )
    lines = "".join(
        f'<path class="clip handle {side}" d="M{number(x)} {top}V{number(f.bottom)}"/>\n'
        for side, x in (("below", low), ("above", high))
    )
    return replace(drawing, body=drawing.body + shades + lines)

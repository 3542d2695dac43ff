"""Axes: where they begin and end, their ticks, and the x axis as drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twoscale._page.charts.drawing import number, path, point, text_at
from twoscale._page.charts.style import CHARACTER
from twoscale._page.numbers import compact, fixed

__all__ = ["LinearScale", "LogScale", "horizontal_axis", "padded", "tick_decimals", "ticks_between", "widened"]


class LinearScale:
    def __init__(self, peak: float) -> None:
        self.top = peak * 1.04 or 1.0
        self.ticks = ticks_between(0.0, self.top, 4)

    def position(self, value: float) -> float:
        return value / self.top


class LogScale:
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


def widened(lo: float, hi: float) -> tuple[float, float]:
    """Return an axis that is never empty."""
    if hi > lo:
        return lo, hi
    margin = abs(lo) / 2 or 0.5
    return lo - margin, hi + margin


def padded(values: Sequence[float], least_span: float) -> tuple[float, float]:
    """Return an axis with a little room on both sides of ``values``."""
    if not values:
        return 0.0, least_span
    lo, hi = min(values), max(values)
    margin = max(0.06 * (hi - lo), (least_span - (hi - lo)) / 2)
    return lo - margin, hi + margin


def ticks_between(lo: float, hi: float, about: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten inside [lo, hi], about so many."""
    rough = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= 0.999 * rough)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_decimals(ticks: Sequence[float]) -> int:
    if len(ticks) < 2:
        return 2
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def horizontal_axis(
    lo: float,
    hi: float,
    left: float,
    right: float,
    y: float,
    label: str,
    named: Sequence[tuple[float, str]] | None = None,
) -> str:
    """Draw the x axis at height ``y``; below it the tick labels (those given in ``named``), then the axis label."""
    every = list(named or ())

    def fit(labels: Sequence[str]) -> bool:
        return (CHARACTER * max(map(len, labels), default=0) + 12) * len(labels) <= right - left

    for about in range(8, 1, -1):  # as many as fit beside each other
        if named:
            shown = every[:: max(1, math.ceil(len(every) / about))]
            ticks, labels = [tick for tick, _ in shown], [text for _, text in shown]
        else:
            ticks = ticks_between(lo, hi, about)
            decimals = tick_decimals(ticks)
            labels = [compact(tick) if abs(tick) >= 10000 else fixed(tick, decimals) for tick in ticks]
        if fit(labels):
            break
    parts = [path(f"M{point(left, y)}H{number(right)}", "axis")]
    for tick, text in zip(ticks, labels, strict=True):
        x = left + (tick - lo) / (hi - lo) * (right - left)
        parts.append(path(f"M{point(x, y)}v4", "axis"))
        parts.append(text_at(x, y + 15, text, "middle"))
    middle = min((left + right) / 2, right + 10 - CHARACTER * len(label) / 2)
    parts.append(text_at(middle, y + 31, label, "middle"))
    return "".join(parts)

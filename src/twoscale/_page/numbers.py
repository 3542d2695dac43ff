"""Numbers as readers see them: sensible digits, a true minus sign, an en dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["MISSING", "compact", "count", "decimals_for", "fixed", "joined", "percent", "signed", "yes_no"]

MISSING = "–"
"""Shown in place of a value that is not applicable or was not measured."""


def fixed(value: float | None, decimals: int) -> str:
    """Return ``value`` with ``decimals`` digits after the point; scientific from ten million on.

    A value that rounds to zero has no sign.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) >= 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float | None, decimals: int) -> str:
    """Like `fixed`, with a plus sign before positive values."""
    text = fixed(value, decimals)
    positive = value is not None and value > 0 and any(digit in text for digit in "123456789")
    return f"+{text}" if positive else text


def percent(fraction: float | None, decimals: int = 2) -> str:
    """Return a fraction (0..1) in percent, without the sign %."""
    return fixed(None if fraction is None else 100 * fraction, decimals)


def count(number: int | None) -> str:
    """Return a whole number with a comma between groups of three digits."""
    return MISSING if number is None else f"{number:,}".replace("-", "−")


def compact(number: float) -> str:
    """Return a tick label such as 500, 10k or 2M."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:.10g}{suffix}".replace("-", "−")
    return f"{number:.10g}".replace("-", "−")


def decimals_for(values: Iterable[float], significant: int = 3, limit: int = 8) -> int:
    """Return how many decimals show the smallest nonzero of ``values`` with ``significant`` digits.

    One number for a whole column keeps its decimal points aligned.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return significant
    return min(limit, max(0, significant - 1 - math.floor(math.log10(min(sizes)))))


def yes_no(value: bool | None) -> str:
    """Return "yes", "no", or a dash."""
    return MISSING if value is None else "yes" if value else "no"


def joined(names: Iterable[str]) -> str:
    """Return names as prose: "a", "a and b", "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last

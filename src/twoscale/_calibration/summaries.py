"""Statistics of a tensor as records: frozen dataclasses of plain values."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale import _delegates as delegates

__all__ = ["Histogram", "TensorSummary"]


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins over [lo, hi] (real units)."""

    lo: float
    hi: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TensorSummary:
    """Statistics of a weight tensor, or of an activation over many images."""

    name: str
    kind: str
    """"weight", "bias", "input" or "activation"."""
    count: int
    """Number of values seen."""
    mean: float
    std: float
    """Population standard deviation."""
    min: float
    max: float
    zeros: int
    """Number of values that are exactly 0."""
    histogram: Histogram

    @property
    def range(self) -> float:
        """Total range, max - min."""
        return self.max - self.min

    @property
    def three_sigma(self) -> tuple[float, float]:
        """(mean - 3 std, mean + 3 std)."""
        return self.mean - 3 * self.std, self.mean + 3 * self.std

    def _repr_svg_(self) -> str:
        svg: str = delegates.call("summary_svg", self)
        return svg

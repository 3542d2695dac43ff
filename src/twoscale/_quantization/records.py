"""Records of how tensors were quantized: frozen dataclasses of plain values."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._calibration.summaries import Histogram

__all__ = ["RangeRecord"]


@dataclass(frozen=True)
class RangeRecord:
    """How one tensor was quantized: r = scale * (q - zero_point), q in [lo, hi]."""

    name: str
    kind: str
    """"weight", "input" or "activation"."""
    scales: tuple[float, ...]
    """One, or one per output channel."""
    zero_point: int
    lo: int
    hi: int
    method: str
    """Range method, e.g. "minmax", "3-sigma", "percentile-99.99", "mse", "entropy"."""
    seen_lo: int
    """Smallest integer that occurred."""
    seen_hi: int
    """Largest integer that occurred."""
    sqnr_db: float | None
    """Signal to quantization noise ratio of this tensor alone, if measured."""
    histogram: Histogram | None = None
    """Histogram of the integers, if kept."""

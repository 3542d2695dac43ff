"""Moments on a device's own time line."""

from __future__ import annotations

import time
from typing import Any

import torch

__all__ = ["Mark", "mark", "seconds_between"]

Mark = Any
"""A moment: host seconds, or a CUDA event."""


def mark(device: torch.device) -> Mark:
    """Return this moment."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """Return the seconds from one moment to a later one; CUDA events must have passed."""
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1000

"""Spans of a step as a trace for Perfetto and chrome://tracing (the Trace Event Format)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from twoscale.scaling._measure.records import Span

__all__ = ["chrome_trace"]

_LANES = ("step", "communication", "operators")


def chrome_trace(spans: Sequence[Span]) -> bytes:
    """Return a JSON trace: a process for each rank, a thread for each lane, times in microseconds."""
    events: list[dict[str, Any]] = []
    for rank, lane in sorted({(span.rank, span.lane) for span in spans}):
        place = {"ph": "M", "pid": rank, "tid": _LANES.index(lane)}
        events.append({**place, "name": "process_name", "args": {"name": f"rank {rank}"}})
        events.append({**place, "name": "thread_name", "args": {"name": lane}})
    for span in spans:
        events.append(
            {
                "ph": "X",
                "name": span.name,
                "cat": span.lane,
                "pid": span.rank,
                "tid": _LANES.index(span.lane),
                "ts": 1e6 * span.start,
                "dur": 1e6 * span.seconds,
            }
        )
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})

"""Ctrl-C: the current step is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["TrainingInterrupted", "deferred_interrupt"]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a run; the message names the checkpoint and how to continue."""


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event, so that a step is never left half done; the second one ends at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may change what a signal does
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before: Any = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)

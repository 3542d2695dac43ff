"""Progress of work that takes long: what does the work reports it, and whoever listens shows it.

Work reports from wherever it is, so no function has to pass a callback on. Without a listener nothing happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["Listener", "listening", "report"]

Listener = Callable[[str, int, int | None], None]
"""Called with the step, such as "tuning ranges", what is done of it, and how much there is; None if that is not
known."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(step: str, done: int, total: int | None) -> None:
    """Tell the listener, if there is one, how much of a step is done."""
    listener = _listener.get()
    if listener is not None:
        listener(step, done, total)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call a listener for everything that is reported in a with block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)

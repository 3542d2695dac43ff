"""Progress of a command on standard error, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from twoscale._progress import listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["shown_progress"]

_PATIENCE = 2.0
"""Seconds from the first report until anything is shown."""


@contextlib.contextmanager
def shown_progress() -> Iterator[None]:
    """Show what is reported in a with block: the step, a bar, and the time left. It disappears at the end."""
    if not sys.stderr.isatty():
        yield
        return
    bar = _Bar()
    try:
        with listening(bar):
            yield
    finally:
        bar.close()


class _Bar:
    """Draws the latest report. Nothing is drawn before _PATIENCE has passed since the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: tuple[str, int, int | None] | None = None
        self._progress: Progress | None = None
        self._is_closed = False
        self._tasks: dict[str, TaskID] = {}
        self._timer = threading.Timer(_PATIENCE, self._start)
        self._timer.daemon = True

    def __call__(self, step: str, done: int, total: int | None) -> None:
        with self._lock:
            is_first, self._latest = self._latest is None, (step, done, total)
            if self._progress is not None:
                self._draw(self._progress, *self._latest)
        if is_first:
            self._timer.start()

    def _start(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._progress = _new_progress()
            self._progress.start()
            assert self._latest is not None  # the timer starts with the first report
            self._draw(self._progress, *self._latest)

    def _draw(self, progress: Progress, step: str, done: int, total: int | None) -> None:
        for other, task in self._tasks.items():
            progress.update(task, visible=other == step)
        if step not in self._tasks:
            self._tasks[step] = progress.add_task(step, total=total)
        progress.update(self._tasks[step], completed=done, total=total)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_closed = True
            if self._progress is not None:
                self._progress.stop()


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True, highlight=False),
        transient=True,
        refresh_per_second=4,
    )

"""Progress on standard error, only if that is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported when something is shown: a service that only classifies starts without it
    from rich.progress import Progress

__all__ = ["Bar", "FetchProgress"]


class Bar:
    """A download's bar with the four members that pooch uses: total, update, reset, close."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=None)

    @property
    def total(self) -> float | None:
        """Bytes expected; None while unknown."""
        return self._progress.tasks[self._progress.task_ids.index(self._task)].total

    @total.setter
    def total(self, value: float) -> None:
        # Without a length from the server, pooch reports 0, which would show as finished.
        self._progress.update(self._task, total=value or None)

    def update(self, n: int) -> None:
        """Add ``n`` bytes."""
        self._progress.advance(self._task, n)

    def reset(self) -> None:
        """Start again at 0."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.remove_task(self._task)


class FetchProgress:
    """Draws the progress of a fetch; silent with ``enabled=False`` or if standard error is not a terminal."""

    def __init__(self, *, enabled: bool = True) -> None:
        from rich.console import Console

        console = Console(stderr=True)
        self._disable = not (enabled and console.is_terminal)
        self._console = console

    @contextlib.contextmanager
    def downloading(self, description: str) -> Iterator[Bar]:
        """Draw a bar of bytes while the block runs."""
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, disable=self._disable, transient=True) as progress:
            yield Bar(progress, description)

    @contextlib.contextmanager
    def working(self, description: str) -> Iterator[None]:
        """Draw a spinner while the block runs."""
        from rich.progress import Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console, disable=self._disable, transient=True) as progress:
            progress.add_task(description, total=None)
            yield

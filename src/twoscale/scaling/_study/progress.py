"""The progress of a study on standard error: a table in a terminal, otherwise one line per cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from twoscale.scaling._study.cells import KINDS, CellRecord, StudyCell

__all__ = ["NoProgress", "StudyProgress", "duration", "study_progress"]

Cell = StudyCell[Any]
Record = CellRecord[Any, Any]


def duration(seconds: float | None) -> str:
    """Return minutes and seconds."""
    if seconds is None:
        return "–"
    return f"{int(seconds + 0.5) // 60}:{int(seconds + 0.5) % 60:02d}"


_SILENCE = 20.0
"""Seconds without a line after which a cell that is at work has one."""


class StudyProgress(Protocol):
    """What a study reports while it measures, in this order."""

    def plan(self, cells: Sequence[Cell]) -> None:
        """All cells that are known to be needed; comes again when there are more."""

    def begin(self, cell: Cell, left: float | None) -> None:
        """A cell begins; all that is left takes about so many seconds."""

    def within(self, cell: Cell, what: str) -> None:
        """What a cell that began is doing now."""

    def end(self, record: Record, left: float | None, *, again: bool) -> None:
        """A cell is done, or was found done already."""

    def left_out(self, cell: Cell) -> None:
        """A cell is skipped for lack of time."""

    def close(self) -> None:
        """The end; always reported."""


class NoProgress:
    """Reports nothing."""

    def plan(self, cells: Sequence[Cell]) -> None:
        pass

    def begin(self, cell: Cell, left: float | None) -> None:
        pass

    def within(self, cell: Cell, what: str) -> None:
        pass

    def end(self, record: Record, left: float | None, *, again: bool) -> None:
        pass

    def left_out(self, cell: Cell) -> None:
        pass

    def close(self) -> None:
        pass


def study_progress(enabled: bool = True) -> StudyProgress:
    """Return what reports on this process's standard error, or what reports nothing."""
    if not enabled:
        return NoProgress()
    console = Console(stderr=True, highlight=False)
    return _Live(console) if console.is_terminal else _Lines()


class _Lines(NoProgress):
    def __init__(self) -> None:
        self._total = self._done = 0
        self._spoke = time.monotonic()

    def plan(self, cells: Sequence[Cell]) -> None:
        self._total = len(cells)

    def end(self, record: Record, left: float | None, *, again: bool) -> None:
        self._done += 1
        outcome = record.outcome
        state = "measured before" if again else f"{outcome.seconds:.1f} s"
        failed = "" if outcome.ok else f" {outcome.status}: {outcome.message};"
        self._say(f"{self._done}/{self._total} {record.cell.title}:{failed} {state}; about {duration(left)} left")

    def within(self, cell: Cell, what: str) -> None:
        # A line now and then in cells that take long; a short cell has one line, at its end.
        if time.monotonic() - self._spoke >= _SILENCE:
            self._say(f"{self._done + 1}/{self._total} {cell.title}: {what}")

    def left_out(self, cell: Cell) -> None:
        self._say(f"{cell.title}: no time left for it")

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class _Live:
    """One row per kind of cell."""

    def __init__(self, console: Console) -> None:
        self._cells: Sequence[Cell] = ()
        self._status: dict[str, str] = {}
        self._running: Cell | None = None
        self._doing = ""
        self._ends: float | None = None
        """When everything is expected to be done, by the monotonic clock."""
        self._live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._table)

    def plan(self, cells: Sequence[Cell]) -> None:
        self._cells = cells
        self._live.start(refresh=True)  # once: later calls do nothing

    def begin(self, cell: Cell, left: float | None) -> None:
        self._running, self._doing = cell, ""
        self._expect(left)
        self._live.refresh()

    def within(self, cell: Cell, what: str) -> None:
        self._doing = what
        self._live.refresh()

    def end(self, record: Record, left: float | None, *, again: bool) -> None:
        self._status[record.cell.name] = "done" if record.outcome.ok else "failed"
        self._running = None
        self._expect(left)
        if not record.outcome.ok and not again:
            line = f"{record.cell.title}: {record.outcome.status}: {record.outcome.message}"
            self._live.console.print(line, markup=False, soft_wrap=True)
        self._live.refresh()

    def left_out(self, cell: Cell) -> None:
        self._status[cell.name] = "no time"

    def close(self) -> None:
        self._running = None
        self._live.stop()

    def _expect(self, left: float | None) -> None:
        self._ends = None if left is None else time.monotonic() + left

    def _table(self) -> Table:
        left = None if self._ends is None else max(0.0, self._ends - time.monotonic())
        done = sum(cell.name in self._status for cell in self._cells)
        doing = f": {self._doing}" if self._doing else ""
        running = "" if self._running is None else f"; now {self._running.title}{doing}"
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            caption=f"{done} of {len(self._cells)} cells, about {duration(left)} left{running}",
            caption_justify="left",
        )
        table.add_column("cells")
        for head in ("done", "failed", "no time", "to do"):
            table.add_column(head, justify="right")
        for kind in dict.fromkeys(cell.kind for cell in self._cells):
            states = [self._status.get(cell.name, "to do") for cell in self._cells if cell.kind == kind]
            counts = [states.count(state) or "" for state in ("done", "failed", "no time", "to do")]
            table.add_row(KINDS[kind].title, *map(str, counts))
        return table

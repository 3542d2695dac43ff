"""What a step waits for its batch, by source and number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoscale.scaling._measure.records.base import Summary

__all__ = ["LoadingRecord", "LoadingRow"]


@dataclass(frozen=True)
class LoadingRow:
    """A source of batches with a number of workers, under a training loop."""

    source: Literal["folder", "arrays"]
    workers: int
    """Processes that decode ahead; 0: the process of the step decodes each batch when it needs it."""
    wait: Summary
    """Seconds per step that the loop waits for its batch, one value per run."""
    step: Summary
    """Seconds per step, the wait included."""


@dataclass(frozen=True)
class LoadingRecord:
    """Every source and number of workers."""

    batch_size: int
    threads: int
    """Of the step's process."""
    cores: int
    pictures: int
    """Files of the folder."""
    own_pictures: bool
    """Whether they are the user's own, or written for the measurement."""
    shape: tuple[int, int, int]
    """(C, H, W) of a decoded picture."""
    decode: Summary
    """Seconds that one process takes for one picture."""
    compute: float
    """Seconds of a step that has its batch."""
    rows: tuple[LoadingRow, ...]

    @property
    def needed(self) -> float:
        """Workers, each on a core of its own, that decode a batch while the step before computes."""
        return self.batch_size * self.decode.median / self.compute

    def of(self, source: str) -> tuple[LoadingRow, ...]:
        """Return the rows of a source, by number of workers."""
        return tuple(sorted((row for row in self.rows if row.source == source), key=lambda row: row.workers))

    @property
    def best(self) -> LoadingRow:
        """The number of workers with the shortest step."""
        return min(self.of("folder"), key=lambda row: row.step.median)

    @property
    def not_slower(self) -> tuple[LoadingRow, ...]:
        """Numbers of workers that are not measurably slower than another: no other has only faster runs."""
        rows = self.of("folder")
        return tuple(row for row in rows if row.step.min <= min(other.step.max for other in rows))

"""The answers of a study: what ``study.json`` holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from twoscale._environment import Environment
from twoscale.scaling._measure.records import Status
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.machine import StudyHost

__all__ = ["CellFailure", "StudyResults"]

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class CellFailure:
    """A cell that has no result."""

    name: str
    what: str
    """The cell in words."""
    status: Status
    message: str


@dataclass(frozen=True)
class StudyResults:
    """The answers in the order of the questions; what was not measured is empty or None."""

    config: StudyConfig
    environment: Environment
    complete: bool
    """Whether no cell was skipped for lack of time."""
    sentences: dict[str, str]
    """Section to its answer."""
    answers: tuple[object, ...]
    """One record per question, the verdict's first; in study.json their fields stand side by side."""
    failures: tuple[CellFailure, ...]
    left_out: tuple[str, ...]
    """Cells that were skipped for lack of time."""
    seconds: float
    """That all cells took together."""
    loads: tuple[float, float] | None
    """Smallest and largest load of the machine as cells began."""
    gpus: tuple[str, ...] = ()
    """Names of those that ranks ran on, rank 0's first; empty on a processor."""
    hosts: tuple[StudyHost, ...] = ()
    """Of a study on several, in order; empty on one."""

    def of(self, kind: type[Answer]) -> Answer:
        """Return the answer of a type."""
        return next(answer for answer in self.answers if isinstance(answer, kind))

    def changed(self, *changed: object) -> StudyResults:
        """Return the same with other answers in the place of those of their types."""
        by_type = {type(answer): answer for answer in changed}
        return replace(self, answers=tuple(by_type.get(type(answer), answer) for answer in self.answers))

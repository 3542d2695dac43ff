"""The interface of a study's questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from twoscale._page.document import Group
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._study.cells import Measured
from twoscale.scaling._study.plan import Need

__all__ = ["Content", "Question"]

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Content:
    """A question's part of the page."""

    intro: Sequence[str]
    """How to read the answer."""
    groups: Sequence[Group]
    """Charts and tables."""
    findings: Sequence[str] = ()


@dataclass(frozen=True)
class Question(Generic[Answer]):
    """A question of the study: what it needs measured, its numbers, its sentence, and its part of the page."""

    name: str
    title: str
    needs: frozenset[Need]
    record: type[Answer]
    """Its numbers; each field has a default for what was not measured, and a name that no other question has."""
    answer: Callable[[Measured], Answer]
    sentence: Callable[[StudyResults], str | None]
    """The answer in a plain sentence; None where nothing was measured."""
    content: Callable[[StudyResults], Content]
    of_step: bool = False
    """Whether it can be asked about a step of the user's own, with a loss, an optimizer and a loader of its own."""
    by_default: bool = True
    """Whether a study asks it when no questions are named."""

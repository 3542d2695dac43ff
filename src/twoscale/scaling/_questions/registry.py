"""The questions of a study, in the order of its page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twoscale.errors import ConfigurationError, UnknownNameError
from twoscale.scaling._questions import (
    accuracy,
    batch,
    breakdown,
    communication,
    forecast,
    loading,
    noise,
    optimizers,
    replicas,
    sampler,
    speedup,
    strategies,
    variants,
    verdict,
    wire,
)
from twoscale.scaling._questions.question import Question
from twoscale.scaling._study.plan import Need

__all__ = [
    "ANSWERED",
    "DEFAULT_SECTIONS",
    "QUESTIONS",
    "SECTIONS",
    "VERDICT",
    "check_sections",
    "needs_of",
    "numbered_title",
    "question",
]

QUESTIONS: tuple[Question[Any], ...] = (
    batch.QUESTION,
    speedup.QUESTION,
    communication.QUESTION,
    accuracy.QUESTION,
    sampler.QUESTION,
    wire.QUESTION,
    replicas.QUESTION,
    forecast.QUESTION,
    strategies.QUESTION,
    loading.QUESTION,
    breakdown.QUESTION,
    variants.QUESTION,
    optimizers.QUESTION,
    noise.QUESTION,
)
VERDICT = verdict.QUESTION
"""Answered from what the others need measured; its answer is the page's summary."""
ANSWERED: tuple[Question[Any], ...] = (VERDICT, *QUESTIONS)
SECTIONS = tuple(one.name for one in QUESTIONS)
"""Names of the questions, which are the sections of the page."""
DEFAULT_SECTIONS = tuple(one.name for one in QUESTIONS if one.by_default)
"""Those of a study that names none: together they take two minutes on two cores."""


def question(name: str) -> Question[Any]:
    """Return the question of a section.

    Raises:
        UnknownNameError: there is no such section.
    """
    for one in QUESTIONS:
        if one.name == name:
            return one
    raise UnknownNameError("section", name, SECTIONS)


def check_sections(sections: Iterable[str]) -> tuple[str, ...]:
    """Return sections in the order of the page.

    Raises:
        UnknownNameError: there is no such section.
        ConfigurationError: there are none.
    """
    names = {question(name).name for name in sections}
    if not names:
        raise ConfigurationError(f"no section; expected some of {', '.join(SECTIONS)}")
    return tuple(name for name in SECTIONS if name in names)


def needs_of(sections: Sequence[str]) -> frozenset[Need]:
    """Return what these sections need measured."""
    return frozenset[Need]().union(*(question(name).needs for name in sections))


def numbered_title(name: str) -> str:
    """Return the title of a section with its number."""
    return f"{SECTIONS.index(name) + 1} {question(name).title}"

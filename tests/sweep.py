"""How much of a long sweep runs: a fixed sample in ``make test``, all of it in ``make test-all`` (``--sweep all``).

A parametrized test is marked with ``@pytest.mark.sweep`` or ``@pytest.mark.sweep(keep)``; ``tests/conftest.py`` leaves
cases out. A loop over cases inside a test takes :func:`some` of them, and hypothesis :func:`count` examples. The sample
is the same in every run.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import TypeVar

__all__ = ["VARIABLE", "count", "covering", "some", "whole"]

VARIABLE = "TWOSCALE_TESTS_SWEEP"
"""Environment variable that is "all" for whole sweeps; ``--sweep`` sets it, also for the processes that tests start."""

T = TypeVar("T")


def whole() -> bool:
    """Return whether sweeps run whole."""
    return os.environ.get(VARIABLE) == "all"


def some(cases: Sequence[T], keep: int) -> list[T]:
    """Return all cases, or in a sample ``keep`` of them at equal distances: the first, the last, and between."""
    if whole() or len(cases) <= keep:
        return list(cases)
    if keep == 1:
        return [cases[0]]
    return [cases[round(i * (len(cases) - 1) / (keep - 1))] for i in range(keep)]


def count(all_of_them: int, sample: int) -> int:
    """Return how many random cases to draw."""
    return all_of_them if whole() else min(sample, all_of_them)


def covering(cases: Sequence[frozenset[Hashable]]) -> set[int]:
    """Return the numbers of cases that hold each value of every parameter at least once, but not every combination.

    Args:
        cases: of each case, its values, each with the name of its parameter.
    """
    unseen: set[Hashable] = set().union(*cases)
    kept: set[int] = set()
    while unseen:
        best = max(range(len(cases)), key=lambda number: (len(cases[number] & unseen), -number))
        kept.add(best)
        unseen -= cases[best]
    return kept

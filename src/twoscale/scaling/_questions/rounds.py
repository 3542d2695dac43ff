"""Rounds of launches at one number of ranks, and which of them count.

A round is left out where a launch of it began at a load of more than twice the cores or ranks, whichever are more, or
where a step of it took more than 1.5 times the median of the rounds, of which there must be three. If every round began
at such a load, none is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from twoscale.scaling._measure.records import EpochTime
from twoscale.scaling._questions.shown import milliseconds

__all__ = ["Round", "busy_warning", "counted_rounds"]

_BUSY = 2.0
"""A round that began at more than so many times the cores or ranks is left out."""
_OUTLIER = 1.5
"""So is one with a step of more than so many times the median of the rounds."""


@dataclass(frozen=True)
class Round:
    """Launches of one round, at the same batch per rank."""

    alone: EpochTime
    """The bare module on one rank."""
    apart: EpochTime
    """Bare modules on all ranks, which never talk."""
    ddp: EpochTime
    """DDP on all ranks."""
    load: float | None = None
    """Largest at the start of one of these launches."""
    number: int = 1
    """Which it is, from 1."""
    silent: EpochTime | None = None
    """DDP that sends nothing on all ranks; None in records of earlier versions."""


def counted_rounds(rounds: Sequence[Round], cores: int) -> tuple[list[Round], tuple[str, ...]]:
    """Return the rounds that count, and one line for each that is left out.

    Args:
        rounds: at least one.
        cores: of the machine, all together.
    """
    most = _BUSY * max(cores, rounds[0].ddp.world_size)
    quiet = [one for one in rounds if one.load is None or one.load <= most]
    if not quiet:
        return list(rounds), ()
    left_out = [f"round {one.number}, which began at load {one.load:.1f}" for one in rounds if one not in quiet]
    if len(quiet) >= 3:
        usual = [statistics.median(step) for step in zip(*map(_steps, quiet), strict=True)]
        for one in list(quiet):
            over = [(seconds, limit) for seconds, limit in zip(_steps(one), usual, strict=True)
                    if seconds > _OUTLIER * limit]  # fmt: skip
            if over:
                seconds, limit = max(over, key=lambda pair: pair[0] / pair[1])
                load = "" if one.load is None else f", and which began at load {one.load:.1f}"
                left_out.append(
                    f"round {one.number}, in which a step took {milliseconds(seconds)} where the median of the rounds "
                    f"is {milliseconds(limit)}{load}"
                )
                quiet.remove(one)
    return quiet, tuple(left_out)


def busy_warning(rounds: Sequence[Round], cores: int) -> str:
    """Return a warning where every round that counts began at a load at which others are left out, else nothing.

    Args:
        rounds: that count.
        cores: of the machine, all together.
    """
    loads = [one.load for one in rounds]
    most = _BUSY * max(cores, rounds[0].ddp.world_size)
    known = [load for load in loads if load is not None and load > most]
    if len(known) < len(loads):
        return ""
    between = f"{min(known):.1f}" if len(known) == 1 else f"{min(known):.1f} to {max(known):.1f}"
    return (
        f" Every round began at a load of more than {most:.0f} ({between}), so other processes have part in all of "
        "this; measure again on a quieter machine."
    )


def _steps(one: Round) -> tuple[float, ...]:
    """Return the steps of a round, seconds."""
    return one.alone.step.median, one.apart.step.median, one.ddp.step.median

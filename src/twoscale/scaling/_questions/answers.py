"""A study's answers: made from its cells, and read from and written to ``study.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from twoscale._environment import Environment
from twoscale._files import read_record
from twoscale.scaling._questions.registry import ANSWERED, question
from twoscale.scaling._questions.results import CellFailure, StudyResults
from twoscale.scaling._study.cells import Measured
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.machine import StudyHost

__all__ = ["answered", "plain", "read_results", "sentences"]


def answered(measured: Measured) -> StudyResults:
    """Return the answers that a study's cells give."""
    loads = [record.load for record in measured.records if record.load is not None]
    results = StudyResults(
        config=measured.config,
        environment=measured.environment,
        complete=not measured.left_out,
        sentences={},
        answers=tuple(one.answer(measured) for one in ANSWERED),
        failures=tuple(_failures(measured)),
        left_out=tuple(cell.title for cell in measured.left_out),
        seconds=sum(record.outcome.seconds for record in measured.records),
        loads=(min(loads), max(loads)) if loads else None,
        gpus=measured.gpus,
        hosts=measured.hosts,
    )
    return replace(results, sentences=sentences(results))


def _failures(measured: Measured) -> Iterable[CellFailure]:
    for record in measured.records:
        if not record.outcome.ok:
            yield CellFailure(record.cell.name, record.cell.title, record.outcome.status, record.outcome.message)


def sentences(results: StudyResults) -> dict[str, str]:
    """Return the answer to each section that was asked for; a section without numbers says so."""
    return {
        name: question(name).sentence(results)
        or "Nothing was measured: see the cells that failed, or that there was no time for."
        for name in results.config.sections
    }


@dataclass(frozen=True)
class _Head:
    """What study.json holds beside the answers."""

    config: StudyConfig
    environment: Environment
    complete: bool
    sentences: dict[str, str]
    failures: tuple[CellFailure, ...]
    left_out: tuple[str, ...]
    seconds: float
    loads: tuple[float, float] | None
    gpus: tuple[str, ...] = ()
    hosts: tuple[StudyHost, ...] = ()


def plain(results: StudyResults) -> Mapping[str, object]:
    """Return what study.json holds: the fields of the results, and those of each answer in the place of ``answers``."""
    fields: dict[str, object] = {}
    for name, value in _shallow(results).items():
        if name == "answers":
            for answer in results.answers:
                fields |= _shallow(answer)
        else:
            fields[name] = value
    return fields


def _shallow(record: object) -> dict[str, object]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}  # type: ignore[arg-type]


def read_results(file: Path) -> StudyResults:
    """Read a study.json.

    Raises:
        TwoscaleError: it cannot be read, or holds no study.
    """
    head = read_record(file, _Head)
    answers = tuple(read_record(file, one.record) for one in ANSWERED)
    return StudyResults(answers=answers, **_shallow(head))  # type: ignore[arg-type]

"""What do compiling, precision and memory layout change?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.document import Group
from twoscale._page.numbers import MISSING
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import VariantRecord
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import milliseconds, number, rounds
from twoscale.scaling._study.cells import VARIANTS, Measured

__all__ = ["QUESTION", "VariantsAnswer", "variants_table"]


@dataclass(frozen=True)
class VariantsAnswer:
    """Ways to run the same step on one device, the eager one first."""

    variants: tuple[VariantRecord, ...] = ()


def _answer(measured: Measured) -> VariantsAnswer:
    return VariantsAnswer(next((record.result for record in measured.of(VARIANTS)), ()))


def _sentence(results: StudyResults) -> str | None:
    records = [one for one in results.of(VariantsAnswer).variants if one.step is not None]
    if not records or records[0].step is None:
        return None
    eager = records[0].step.median
    faster = [one for one in records if one.against_eager is not None and one.against_eager.median_interval.high < 0]
    if not faster:
        return f"An eager fp32 step takes {milliseconds(eager)}, and no other way is measurably faster."
    best = min(faster, key=lambda one: one.step.median if one.step else eager)
    assert best.step is not None
    return (
        f"An eager fp32 step takes {milliseconds(eager)}; {best.name} is the fastest of those that are measurably "
        f"faster, {milliseconds(best.step.median)}, {number(eager / best.step.median)} times as fast, "
        f"after a first step of {number(best.first)} s."
    )


def variants_table(records: Sequence[VariantRecord]) -> Table:
    """Return the time of a step in every way."""
    eager = records[0].step
    rows: list[list[str | Cell]] = []
    for one in records:
        ratio = MISSING if one.step is None or eager is None else number(eager.median / one.step.median)
        rows.append(
            [
                Cell(one.name, one.message),
                rounds(one.step),
                rounds(one.against_eager, signs=True),
                ratio,
                number(one.first),
                MISSING if one.distance is None else "0" if one.distance == 0 else f"{one.distance:.0e}",
            ]
        )
    columns = [
        text_column("Way"), Column("Step", "ms"), Column("Against eager", "ms"), Column("Times as fast"),
        Column("First step", "s"), Column("Weights' distance from eager's"),
    ]  # fmt: skip
    return table("The same step on one device, with all its cores", columns, rows)


def _content(results: StudyResults) -> Content:
    records = results.of(VariantsAnswer).variants
    return Content(
        (
            "All ways take the same steps in one process, in turn, in an order that rotates from round to round. The "
            "first step includes compiling. Weights are compared after three steps from the same weights and batches.",
        ),
        [Group(tables=[variants_table(records)])] if records else [],
    )


QUESTION = Question(
    "variants",
    "What do compiling, precision and memory layout change?",
    frozenset(("variants",)),
    VariantsAnswer,
    _answer,
    _sentence,
    _content,
    by_default=False,
)

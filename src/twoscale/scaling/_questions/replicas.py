"""Are gradients alone enough?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import yes_no
from twoscale._page.tables import Table, table, text_column
from twoscale.scaling._measure.records import ReplicasRecord
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures
from twoscale.scaling._study.cells import WIRE, Measured

__all__ = ["QUESTION", "ReplicasAnswer", "replicas_table"]


@dataclass(frozen=True)
class ReplicasAnswer:
    """Replicas by how they began and what was broadcast."""

    replicas: tuple[ReplicasRecord, ...] = ()


def _answer(measured: Measured) -> ReplicasAnswer:
    # Ranks of several hosts write ledgers only.
    return ReplicasAnswer(next((record.result.replicas for record in measured.of(WIRE) if record.cell.hosts == 1), ()))


def _sentence(results: StudyResults) -> str | None:
    if not results.of(ReplicasAnswer).replicas:
        return None
    cases = [case for record in results.of(ReplicasAnswer).replicas for case in record.cases]
    started = [case for case in cases if case.same_seed or case.initial_broadcast]
    otherwise = [case for case in cases if not (case.same_seed or case.initial_broadcast)]
    if not all(case.parameters_equal for case in started):
        return "Replicas that began alike did not stay alike: updates are not the same on every rank."
    parts = ["Gradients alone keep the parameters of replicas equal that began equal"]
    if otherwise and not any(case.parameters_equal for case in otherwise):
        parts.append("never of those that did not")
    silent = [case for case in started if not case.buffers_broadcast and case.buffers_equal is not None]
    text = ", ".join(parts)
    if silent and not any(case.buffers_equal for case in silent):
        text += "; BatchNorm's statistics drift apart unless they are broadcast"
    return text + "."


def replicas_table(record: ReplicasRecord) -> Table:
    """Return one row per case."""
    rows = [
        [
            "same" if case.same_seed else "different",
            yes_no(case.initial_broadcast),
            yes_no(case.buffers_broadcast),
            yes_no(case.parameters_equal),
            yes_no(case.buffers_equal_in_forward),
            yes_no(case.buffers_equal),
            case.steps[-1].parameters[0][:8],
            case.steps[-1].parameters[-1][:8],
        ]
        for case in record.cases
    ]
    columns = [
        text_column("Seeds"),
        text_column("Initial broadcast"),
        text_column("Buffers broadcast"),
        text_column("Parameters stay equal"),
        text_column("Buffers equal in forward"),
        text_column("Buffers equal after a step"),
        text_column("Hash, first rank"),
        text_column("Hash, last rank"),
    ]
    steps = len(record.cases[0].steps) - 1
    return table(f"{record.model}, {record.world_size} ranks, {steps} steps on each rank's own images", columns, rows)


def replicas_plot(record: ReplicasRecord) -> Drawing:
    """Draw in how many steps replicas were the same, by how they began and what was broadcast."""

    def equal(hashes: Sequence[tuple[str, ...]]) -> float:
        return float(sum(len(set(one)) == 1 for one in hashes))

    rows: list[str] = []
    parameters: list[float | None] = []
    inside: list[float | None] = []
    after: list[float | None] = []
    for case in record.cases:
        seeds = "same" if case.same_seed else "other"
        rows.append(f"{seeds} {'i' if case.initial_broadcast else '–'} {'b' if case.buffers_broadcast else '–'}")
        steps = case.steps[1:]
        parameters.append(equal([step.parameters for step in steps]))
        has_buffers = case.buffers_equal is not None
        inside.append(equal([step.buffers_in_forward for step in steps]) if has_buffers else None)
        after.append(equal([step.buffers for step in steps]) if has_buffers else None)
    last = len(record.cases[0].steps) - 1
    series = [Series("parameters", tuple(parameters))]
    if any(value is not None for value in after):
        series += [Series("buffers", tuple(inside)), Series("after", tuple(after))]
    return dot_plot(
        f"Equal replicas: {record.model}",
        rows,
        series,
        label=f"Of {last} steps, those in which replicas of {record.model} were equal",
        x_label=f"steps of {last} in which all ranks were equal",
        span=(-0.2, last + 0.2),
    )


def _content(results: StudyResults) -> Content:
    groups = [
        Group(
            one.model if len(results.of(ReplicasAnswer).replicas) > 1 else "",
            figures=figures(replicas=replicas_plot(one)),
            tables=[replicas_table(one)],
        )
        for one in results.of(ReplicasAnswer).replicas
    ]
    return Content(
        (
            "Replicas begin from the same seed or from different ones, with or without DDP's initial broadcast, and "
            "with or without the broadcast of buffers before every forward pass; after each step, parameters and "
            "buffers of every rank are hashed. In the chart a row reads seeds, i for initial broadcast, b for buffers; "
            "buffers are those that the forward pass sees, and those after the step.",
        ),
        groups,
    )


QUESTION = Question(
    "replicas", "Would gradients alone do?", frozenset(("replicas",)), ReplicasAnswer, _answer, _sentence, _content
)

"""How many workers should load data?"""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, joined, percent
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import LoadingRecord, LoadingRow
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, milliseconds, number, plural, rounds
from twoscale.scaling._study.cells import LOADING, Measured

__all__ = ["QUESTION", "LoadingAnswer", "loading_table"]


@dataclass(frozen=True)
class LoadingAnswer:
    """What a step waits for its batch, by number of workers."""

    loading: LoadingRecord | None = None


def _answer(measured: Measured) -> LoadingAnswer:
    return LoadingAnswer(next((record.result for record in measured.of(LOADING)), None))


def _sentence(results: StudyResults) -> str | None:
    record = results.of(LoadingAnswer).loading
    if record is None:
        return None
    rows, best = record.of("folder"), record.best
    (arrays,) = record.of("arrays")
    text = f"A step of {milliseconds(record.compute)} waits {milliseconds(rows[0].wait.median)} for pictures"
    text += " that its own process decodes" if rows[0].workers == 0 else f" with {plural(rows[0].workers, 'worker')}"
    if rows[0] in record.not_slower:
        text += "; no number of workers is measurably faster"
    else:
        others = [row.workers for row in record.not_slower if row is not best]
        are = "is" if len(others) == 1 else "are"
        alike = f" ({joined(map(str, others))} {are} not measurably slower)" if others else ""
        text += (
            f", and {milliseconds(best.wait.median)} with {plural(best.workers, 'worker')}, the fastest number{alike}; "
            f"from arrays in memory it waits {milliseconds(arrays.wait.median)}"
        )
    return f"{text}. {_why(record)}"


def _why(record: LoadingRecord) -> str:
    batch = record.batch_size * record.decode.median
    text = (
        f"A picture takes {milliseconds(record.decode.median)} to decode and a batch {milliseconds(batch)}: to "
        f"decode it while a step computes takes {number(record.needed, 1)} workers on cores of their own, and this "
        f"machine has {plural(record.cores, 'core')} for {plural(record.threads, 'thread')} of the step and all workers"
    )
    return text + "."


def loading_table(record: LoadingRecord) -> Table:
    """Return what a step waits, by source and number of workers."""

    def row(one: LoadingRow) -> list[str | Cell]:
        return [
            "folder" if one.source == "folder" else "arrays in memory",
            str(one.workers) if one.source == "folder" else MISSING,
            rounds(one.wait),
            rounds(one.step),
            percent(one.wait.median / one.step.median, 0),
            count(round(record.batch_size / one.step.median)),
        ]

    columns = [
        text_column("Source"), text_column("Workers"), Column("Waits for data", "ms per step"), Column("Step", "ms"),
        Column("Waits", "% of step"), Column("Images", "per s"),
    ]  # fmt: skip
    of = "of your own" if record.own_pictures else "written as JPEG files of 256×256"
    height, width = record.shape[1:]
    return table(
        f"Batch {record.batch_size}, {plural(record.threads, 'thread')}; {count(record.pictures)} pictures {of}, "
        f"decoded to {height}×{width}",
        columns,
        [row(one) for one in (*record.of("folder"), *record.of("arrays"))],
    )


def loading_plot(record: LoadingRecord) -> Drawing:
    """Draw what a step waits and takes, by source and number of workers."""
    rows = (*record.of("folder"), *record.of("arrays"))
    names = [plural(row.workers, "worker") if row.source == "folder" else "arrays" for row in rows]
    series = [
        Series("waits", tuple(row.wait.median * 1e3 for row in rows)),
        Series("step", tuple(row.step.median * 1e3 for row in rows)),
    ]
    return dot_plot(
        "Waiting for data",
        names,
        series,
        label="What a step waits for its batch: "
        + ", ".join(f"{name} {milliseconds(row.wait.median)}" for name, row in zip(names, rows, strict=True)),
        x_label="ms per step",
        span=(0.0, 1.08 * max(series[1].values, default=1.0)),  # type: ignore[operator, type-var]
    )


def _content(results: StudyResults) -> Content:
    record = results.of(LoadingAnswer).loading
    groups = []
    if record is not None:
        groups.append(Group(figures=figures(loading=loading_plot(record)), tables=[loading_table(record)]))
    return Content(
        (
            "The training loop takes its batches from pictures in a folder, which worker processes decode ahead, and "
            "from arrays in memory. Each number of workers has a run in turn, in an order that rotates. A run fills "
            "its pipeline with one step that is not timed.",
            "Workers help until they decode as fast as steps compute. More only take cores from the step.",
        ),
        groups,
    )


QUESTION = Question(
    "loading",
    "How many workers should load data?",
    frozenset(("loading",)),
    LoadingAnswer,
    _answer,
    _sentence,
    _content,
    by_default=False,
)

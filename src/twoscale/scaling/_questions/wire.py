"""What crosses the wire?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import count
from twoscale._page.tables import Column, Table, table, text_column
from twoscale.scaling._measure.records import LedgerEntry, LedgerRecord
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, plural
from twoscale.scaling._study.cells import WIRE, Measured

__all__ = ["QUESTION", "WireAnswer", "ledger_table"]


@dataclass(frozen=True)
class WireAnswer:
    """Collectives of DDP, predicted and observed."""

    ledgers: tuple[LedgerRecord, ...] = ()


def _answer(measured: Measured) -> WireAnswer:
    records = sorted(measured.of(WIRE), key=lambda record: record.cell.hosts)
    return WireAnswer(tuple(ledger for record in records for ledger in record.result.ledgers))


def _sentence(results: StudyResults) -> str | None:
    if not results.of(WireAnswer).ledgers:
        return None
    ledger = results.of(WireAnswer).ledgers[0]
    off = sum(len(one.differences) for one in results.of(WireAnswer).ledgers)
    if all(one.ok for one in results.of(WireAnswer).ledgers):
        state = "every collective was observed as predicted, to the byte"
    elif off:
        state = f"{off} collective{'s were' if off > 1 else ' was'} not observed as predicted"
    else:
        state = "nothing was observed to compare the prediction with"
    return (
        f"Every step all-reduces {count(_gradient_bytes(ledger))} bytes of gradients in "
        f"{plural(_buckets(ledger), 'bucket')}; {state}."
    )


def _last_backward(ledger: LedgerRecord) -> str:
    return f"backward {ledger.mini_batches}"


def _gradient_bytes(ledger: LedgerRecord) -> int:
    """Return the bytes of gradients of a later step."""
    return sum(e.bytes for e in ledger.predicted if e.phase == _last_backward(ledger) and e.what == "gradients")


def _buckets(ledger: LedgerRecord) -> int:
    """Return in how many all-reduces they go."""
    return sum(e.phase == _last_backward(ledger) and e.what == "gradients" for e in ledger.predicted)


def _crossing(ledger: LedgerRecord) -> str:
    if ledger.hosts == 1 or ledger.crossing_bytes is None:
        return ""
    sent = ", ".join(f"host {host} {count(size)}" for host, size in enumerate(ledger.crossing_bytes))
    return f"; bytes sent to other hosts in all: {sent}"


def ledger_table(ledger: LedgerRecord) -> Table:
    """Return every collective, predicted and observed, equal ones of a phase in one row."""
    rows: list[list[str]] = []
    for phase in dict.fromkeys(entry.phase for entry in ledger.predicted):
        predicted = [entry for entry in ledger.predicted if entry.phase == phase]
        observed = [entry for entry in ledger.observed or () if entry.phase == phase]
        for number, entry in enumerate(predicted):
            seen = observed[number].bytes if number < len(observed) else None
            row = [phase if number == 0 else "", entry.op.replace("_", "-"), entry.what, entry.dtype,
                   count(entry.bytes), count(seen)]  # fmt: skip
            rows.append(row)
    columns = [
        text_column("When"), text_column("Collective"), text_column("What"), text_column("Type"),
        Column("Predicted", "bytes"), Column("Observed", "bytes"),
    ]  # fmt: skip
    return table(
        f"{ledger.model}: {count(ledger.parameters)} parameters in {ledger.parameter_tensors} tensors, "
        f"{count(ledger.buffer_bytes)} bytes of buffers; {ledger.group}{_crossing(ledger)}",
        columns,
        rows,
    )


def ledger_plot(ledger: LedgerRecord) -> Drawing:
    """Draw the bytes of each phase, predicted and observed."""
    phases = list(dict.fromkeys(entry.phase for entry in ledger.predicted))

    def totals(entries: Sequence[LedgerEntry]) -> tuple[float, ...]:
        return tuple(sum(entry.bytes for entry in entries if entry.phase == phase) / 1000 for phase in phases)

    series = [Series("predicted", totals(ledger.predicted))]
    if ledger.observed is not None:
        series.append(Series("observed", totals(ledger.observed)))
    return dot_plot(
        f"Bytes by phase: {ledger.model}",
        phases,
        series,
        label=f"Bytes that a rank of {ledger.model} puts into collectives, by phase",
        x_label="kB",
        span=(0.0, 1.08 * max(1.0, *totals(ledger.predicted))),
    )


def _heading(ledger: LedgerRecord) -> str:
    return ledger.model if ledger.hosts == 1 else f"{ledger.model}, {ledger.group}"


def _content(results: StudyResults) -> Content:
    groups = [
        Group(
            _heading(one) if len(results.of(WireAnswer).ledgers) > 1 else "",
            findings=list(one.differences),
            figures=figures(ledger=ledger_plot(one)),
            tables=[ledger_table(one)],
        )
        for one in results.of(WireAnswer).ledgers
    ]
    return Content(
        (
            "Predicted from the model's tensors and PyTorch's rules for buckets, without running DDP; observed in "
            "PyTorch's own dispatcher, where every collective passes. Bytes are those of the tensor that a rank puts "
            "in.",
        ),
        groups,
    )


QUESTION = Question(
    "wire", "What crosses the wire", frozenset(("wire",)), WireAnswer, _answer, _sentence, _content, of_step=True
)

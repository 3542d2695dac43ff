"""Statistics of tensors as tables and histograms, for terminals, notebooks and pages."""

from __future__ import annotations

from collections.abc import Sequence

from twoscale._calibration.inspection import Inspection
from twoscale._calibration.summaries import TensorSummary
from twoscale._page.charts import LIGHT, WIDTH, Bracket, Drawing, histogram
from twoscale._page.document import table_html
from twoscale._page.numbers import compact, count, decimals_for, fixed, percent
from twoscale._page.tables import Column, Table, table, text_column

__all__ = ["inspection_html", "inspection_tables", "statistics_table", "summary_svg", "values_histogram"]


def statistics_table(summaries: Sequence[TensorSummary], caption: str, *, zeros: bool) -> Table:
    """Return mean, standard deviation and ranges, one row per tensor, in its real units."""
    decimals = decimals_for(summary.std for summary in summaries)
    rows = []
    for summary in summaries:
        lo, hi = summary.three_sigma
        numbers = (summary.mean, summary.std, summary.min, summary.max, summary.range, lo, hi)
        row = [summary.name, count(summary.count), *(fixed(number, decimals) for number in numbers)]
        if zeros:
            row.append(percent(summary.zeros / summary.count if summary.count else None, 1))
        rows.append(row)
    heads = ("Values", "Mean", "Std", "Min", "Max", "Range", "Mean − 3σ", "Mean + 3σ")
    columns = [text_column("Tensor"), *(Column(head) for head in heads)]
    if zeros:
        columns.append(Column("Exact zeros", "%"))
    return table(caption, columns, rows)


def inspection_tables(found: Inspection, images: str = "images") -> tuple[Table, Table]:
    """Return the statistics of the weights and of the activations; ``images`` says what the activations are of."""
    return (
        _with_zeros(found.weights, f"{found.network}: weights"),
        _with_zeros(found.activations, f"{found.network}: activations over {found.images:,} {images}"),
    )


def _with_zeros(summaries: Sequence[TensorSummary], caption: str) -> Table:
    return statistics_table(summaries, caption, zeros=any(summary.zeros for summary in summaries))


def inspection_html(found: Inspection) -> str:
    """Return the statistics of weights and activations for a notebook."""
    return "".join(table_html(part) for part in inspection_tables(found))


def summary_svg(summary: TensorSummary) -> str:
    """Return a tensor's histogram for a notebook; activations, with their long tails, on a logarithmic axis."""
    drawing = values_histogram(summary, log=summary.kind == "activation")
    return drawing.standalone(LIGHT).replace("<svg ", '<svg style="max-width: 30em" ', 1)


def values_histogram(summary: TensorSummary, *, log: bool, title: str = "", width: float = WIDTH) -> Drawing:
    """Draw a tensor's real values with its total range and its 3-sigma range.

    A ``title`` replaces the tensor's name and the number of its values.
    """
    lo, hi = summary.three_sigma
    zeros = summary.zeros / summary.count if summary.count else 0.0
    note = f"{count(summary.count)} values" if summary.count < 100_000 else f"{_million(summary.count)} values"
    if zeros >= 0.001:
        note += f", {percent(zeros, 1)} % zero"
    decimals = 3
    return histogram(
        title or summary.name,
        summary.histogram.counts,
        summary.histogram.lo,
        summary.histogram.hi,
        brackets=[
            Bracket("range", summary.min, summary.max),
            Bracket("3σ", lo, hi, dot=summary.mean),
        ],
        label=(
            f"Histogram of {summary.name}: from {fixed(summary.min, decimals)} to "
            f"{fixed(summary.max, decimals)}, mean {fixed(summary.mean, decimals)}, "
            f"3-sigma range {fixed(lo, decimals)} to {fixed(hi, decimals)}"
        ),
        x_label=f"{summary.kind} value" + (", counts on a log axis" if log else ""),
        note="" if title else note,
        width=width,
        log=log,
    )


def _million(number: int) -> str:
    """Return a large count with three digits, such as 1.18M."""
    digits = 10 ** (len(str(number)) - 3)
    return compact(round(number / digits) * digits)

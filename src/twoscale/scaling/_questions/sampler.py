"""Why does the sampler need the epoch?"""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import fixed, percent
from twoscale._page.tables import Table, table, text_column
from twoscale.scaling._measure.records import OrderRow, SamplerRecord
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures
from twoscale.scaling._study.cells import WIRE, Measured

__all__ = ["QUESTION", "SamplerAnswer"]


@dataclass(frozen=True)
class SamplerAnswer:
    """Orders of the sampler, without and with the epoch."""

    orders: tuple[OrderRow, ...] = ()
    shown_orders: tuple[SamplerRecord, ...] = ()
    """The orders of a few images."""


def _answer(measured: Measured) -> SamplerAnswer:
    # Ranks of several hosts write ledgers only.
    result = next((record.result for record in measured.of(WIRE) if record.cell.hosts == 1), None)
    return SamplerAnswer() if result is None else SamplerAnswer(result.orders, result.shown)


def _sentence(results: StudyResults) -> str | None:
    with_epoch = next((row for row in results.of(SamplerAnswer).orders if row.set_epoch), None)
    without = next((row for row in results.of(SamplerAnswer).orders if not row.set_epoch), None)
    if with_epoch is None or without is None:
        return None
    least, most = min(without.same_place[1:], default=1.0), max(with_epoch.same_place[1:], default=1.0)
    text = (
        f"Without set_epoch {percent(least, 0)} % of the images have the same place in every epoch, with it at most "
        f"{percent(most, 2)} %"
    )
    return f"{text}: only then is the order drawn anew." if most < least else f"{text}: it makes no difference."


def orders_table(record: SamplerRecord) -> Table:
    """Return the orders of a few images, one row per epoch."""
    rows = [
        [f"epoch {number}", *(" ".join(map(str, shard)) for shard in order)]
        for number, order in enumerate(record.orders, 1)
    ]
    words = "with" if record.set_epoch else "without"
    columns = [text_column("Epoch"), *(text_column(f"Rank {rank}") for rank in range(record.world_size))]
    return table(f"{record.samples} images {words} set_epoch", columns, rows)


def orders_plot(results: StudyResults) -> Drawing | None:
    """Draw how many images keep their place from epoch to epoch."""
    if not results.of(SamplerAnswer).orders:
        return None
    epochs = len(results.of(SamplerAnswer).orders[0].same_place)
    series = [
        Series(
            "with set_epoch" if row.set_epoch else "without",
            tuple(100 * share for share in row.same_place),
        )
        for row in results.of(SamplerAnswer).orders
    ]
    return dot_plot(
        "Images in the same place",
        [f"epoch {i + 1}" for i in range(epochs)],
        series,
        label="Share of images in the place they have in the first epoch: "
        + "; ".join(f"{one.name} {', '.join(fixed(v, 1) for v in one.values)} %" for one in series),
        x_label="as in epoch 1, %",
        span=(-3.0, 103.0),
    )


def _content(results: StudyResults) -> Content:
    return Content(
        (
            "DistributedSampler draws its order from its seed and the epoch that set_epoch gives it. Each rank takes "
            "every n-th image of it; where they do not divide evenly, the first images come a second time.",
        ),
        [
            Group(
                figures=figures(orders=orders_plot(results)),
                tables=[orders_table(one) for one in results.of(SamplerAnswer).shown_orders],
            )
        ],
    )


QUESTION = Question(
    "sampler", "The epoch in the sampler", frozenset(("sampler",)), SamplerAnswer, _answer, _sentence, _content
)

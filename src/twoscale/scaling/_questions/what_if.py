"""What a faster link, fewer bytes or a larger batch would change about a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoscale._page.numbers import signed
from twoscale._page.tables import Column, Table, table, text_column
from twoscale.scaling._measure.records import RankGroup
from twoscale.scaling._questions.communication import ArmsAt
from twoscale.scaling._questions.link_model import LinkModel, collective_seconds
from twoscale.scaling._questions.shown import number
from twoscale.scaling._questions.step_forecast import replay

__all__ = ["WhatIf", "what_if_table", "what_ifs"]


@dataclass(frozen=True)
class WhatIf:
    """The step after a hypothetical change."""

    what: str
    step: float
    """Seconds."""
    saved: float | None
    """Seconds by which the step is shorter; None where it has another batch."""
    gain: float
    """Increase in images per second, as a share of the present rate."""


def what_ifs(arms: Sequence[ArmsAt], group: RankGroup, batch_size: int, model: LinkModel | None) -> list[WhatIf]:
    """Return the step after each change, by the fitted line and the arms.

    Args:
        arms: of a study.
        group: ranks of the step.
        batch_size: per rank.
        model: the link, fitted. None: only larger batches are compared.
    """
    found = {at.batch_size: at.record for at in arms if at.record.group == group}
    record = found.get(batch_size)
    if record is None:
        return []
    now = record.free_running.median
    rows = []
    if model is not None and record.buckets:
        rate = model.rates[1] if model.rates else None
        n = record.world_size

        def waits(factor: float, latency: float = 1.0) -> float:
            one = collective_seconds(model, "all_reduce", 0, n, rate)
            buckets = []
            for bucket in record.buckets:
                whole = collective_seconds(model, "all_reduce", bucket.bytes, n, rate)
                buckets.append((bucket, latency * one + factor * (whole - one)))
            return replay(record.silent.median, buckets)[0] - record.silent.median

        exposed = max(0.0, record.exposed.median)
        for what, factor, latency in (
            ("a link ten times as fast", 0.1, 1.0),
            ("a tenth of the latency", 1.0, 0.1),
            ("gradients sent as bf16", 0.5, 1.0),
        ):
            step = now - min(exposed, waits(1.0) - waits(factor, latency))
            rows.append(WhatIf(what, step, now - step, now / step - 1))
    for size in sorted(size for size in found if size > batch_size):
        step = found[size].free_running.median
        rows.append(WhatIf(f"batch {size} per rank, measured", step, None, size / batch_size * now / step - 1))
    return rows


def what_if_table(rows: Sequence[WhatIf]) -> Table:
    """Return one row per change."""
    return table(
        "What would help a step of weak scaling: one thing changed, by the fitted line where nothing else is stated",
        [text_column("With"), Column("Step", "ms"), Column("Saved per step", "ms"), Column("Images per second", "%")],
        [
            [
                row.what,
                number(1e3 * row.step),
                number(None if row.saved is None else 1e3 * row.saved),
                signed(100 * row.gain, 0),
            ]
            for row in rows
        ],
    )

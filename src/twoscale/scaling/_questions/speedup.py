"""How much faster are more devices?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from twoscale._page.charts import Drawing, line_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, fixed, joined, percent
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import EpochTime, Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import Arm
from twoscale.scaling._questions.batch import BatchAnswer
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, number, with_interval
from twoscale.scaling._study.cells import RANKS, Measured
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.plan import strong_batch

__all__ = ["QUESTION", "Launches", "SpeedRow", "SpeedupAnswer", "speed_table", "times_of"]

Launches = Mapping[tuple[Arm, int, int], Mapping[int, EpochTime]]
"""(arm, ranks, batch per rank) to what each round's launch measured."""
Points = list[tuple[float, float]]
Scaling = Literal["bare", "ddp-alone", "apart", "weak", "strong"]


@dataclass(frozen=True)
class SpeedRow:
    """A number of ranks against the bare module on one of them."""

    scaling: Scaling
    """bare: T₁. ddp-alone: DDP at one rank. apart: bare modules on all ranks, which never talk. weak: DDP, the batch of
    a rank stays. strong: DDP, the batch of all ranks stays."""
    world_size: int
    batch_size: int
    """Per rank."""
    threads_per_rank: int
    step: Summary
    """Seconds, one value per launch."""
    epoch: Summary
    """Seconds, one value per launch."""
    speedup: Summary | None
    """T₁ / Tₙ of epochs, launches of a round paired; None for T₁ itself."""
    efficiency: Summary | None
    """Speed-up / ranks."""


@dataclass(frozen=True)
class SpeedupAnswer:
    """Numbers of ranks against one."""

    speed: tuple[SpeedRow, ...] = ()


def times_of(measured: Measured) -> Launches:
    """Return the steps that were timed at each number of ranks."""
    found: dict[tuple[Arm, int, int], dict[int, EpochTime]] = {}
    for record in measured.of(RANKS):
        for time in record.result:
            key = (time.arm, time.world_size, time.workload.batch_size)
            found.setdefault(key, {})[record.cell.repeat] = time
    return found


def _answer(measured: Measured) -> SpeedupAnswer:
    if "speedup" not in measured.config.sections:
        return SpeedupAnswer()
    return SpeedupAnswer(_speed(measured.config, times_of(measured)))


def _speed(config: StudyConfig, found: Launches) -> tuple[SpeedRow, ...]:
    """Return the rows in order; ratios are taken within a round of launches."""
    base = found.get(("bare", 1, config.base_batch), {})
    rows: list[SpeedRow] = []

    def add(scaling: Scaling, arm: Arm, n: int, batch: int) -> None:
        launches = found.get((arm, n, batch))
        if not launches:
            return
        # Images per second are compared, not epochs: rounding an epoch to whole steps is no speed.
        speedups = [
            time.samples_per_second / base[repeat].samples_per_second
            for repeat, time in launches.items()
            if repeat in base
        ]
        compared = bool(speedups) and scaling != "bare"
        rows.append(
            SpeedRow(
                scaling=scaling,
                world_size=n,
                batch_size=batch,
                threads_per_rank=next(iter(launches.values())).threads_per_rank,
                step=summarize([time.step.median for time in launches.values()]),
                epoch=summarize([time.epoch_seconds for time in launches.values()]),
                speedup=summarize(speedups) if compared else None,
                efficiency=summarize([value / n for value in speedups]) if compared else None,
            )
        )

    add("bare", "bare", 1, config.base_batch)
    add("ddp-alone", "ddp", 1, config.base_batch)
    more = [n for n in config.world_sizes if n > 1]
    for n in more:
        add("apart", "bare", n, config.base_batch)
    for n in more:
        add("weak", "ddp", n, config.base_batch)
    for n in more:
        add("strong", "ddp", n, strong_batch(config, n))
    return tuple(rows)


def _sentence(results: StudyResults) -> str | None:
    speed = results.of(SpeedupAnswer).speed

    def last(scaling: str) -> SpeedRow | None:
        return max((r for r in speed if r.scaling == scaling), key=lambda r: r.world_size, default=None)

    weak, strong, alone = last("weak"), last("strong"), last("ddp-alone")
    parts = [
        f"{fixed(row.speedup.mean, 2)} times as fast {what} (efficiency {_range(row.efficiency)})"
        for row, what in ((weak, "with the batch of a rank kept"), (strong, "with the batch of all kept"))
        if row is not None and row.speedup is not None and row.efficiency is not None
    ]
    if parts and weak is not None:
        return f"Against the bare module on one, {weak.world_size} ranks train {joined(parts)}."
    if alone is not None and alone.efficiency is not None:
        why = "one rank was asked for" if results.config.world_sizes[-1] == 1 else "more ranks gave no result"
        return (
            f"There is no speed-up to tell: {why}; DDP at one rank keeps {percent(alone.efficiency.mean, 0)} % of the "
            "bare module's speed."
        )
    if speed:
        return "There is no speed-up to tell: the bare module on one rank, to compare with, gave no result."
    return None


def _range(share: Summary) -> str:
    """Return a mean share of launches in percent, with its interval."""
    interval = share.mean_interval
    between = ", 1 launch" if interval is None else f", {percent(interval.low, 0)} to {percent(interval.high, 0)}"
    return f"{percent(share.mean, 0)} %{between}"


_SCALINGS = {
    "bare": "T₁: bare module",
    "ddp-alone": "DDP at one rank",
    "apart": "bare modules that never talk",
    "weak": "weak: a rank's batch kept",
    "strong": "strong: all ranks' batch kept",
}


def speed_table(results: StudyResults) -> Table:
    """Return one row per way of scaling and number of ranks."""
    speed = results.of(SpeedupAnswer).speed
    rows: list[list[str | Cell]] = [
        [
            _SCALINGS[row.scaling],
            count(row.world_size),
            count(row.batch_size),
            count(row.batch_size * row.world_size),
            count(row.threads_per_rank),
            with_interval(row.step, 1e3),
            with_interval(row.epoch),
            with_interval(row.speedup, 1.0, 2),
            with_interval(row.efficiency, 100.0, 0),
        ]
        for row in speed
    ]
    base = results.config.base_batch
    whole = next((row for row in results.of(BatchAnswer).batches if row.batch_size == base), None)
    on_cores = results.config.device == "cpu"
    if on_cores and whole is not None and whole.epoch is not None and speed:
        rows.insert(
            1,
            [
                Cell("bare module, all cores"), "1", count(base), count(base), count(results.config.cores),
                number(None if whole.samples_per_second is None else 1e3 * base / whole.samples_per_second),
                with_interval(whole.epoch), MISSING, MISSING,
            ],
        )  # fmt: skip
    columns = [
        text_column("Scaling"),
        Column("Ranks"),
        Column("Batch a rank"),
        Column("Batch in all"),
        Column("Threads a rank"),
        Column("Step", "ms"),
        Column("Epoch", "s"),
        Column("Speed-up"),
        Column("Efficiency", "%"),
    ]
    return table("Means of launches with 95% intervals; ratios of launches of the same round", columns, rows)


def speedup_plot(results: StudyResults) -> Drawing | None:
    """Draw speed-up by ranks against the ideal."""
    speed = results.of(SpeedupAnswer).speed
    lines: list[tuple[str, Points]] = []
    for scaling in ("weak", "strong"):
        rows = [row for row in speed if row.scaling == scaling and row.speedup is not None]
        lines.append((scaling, [(1.0, 1.0), *((float(r.world_size), r.speedup.mean) for r in rows if r.speedup)]))
    most = max((row.world_size for row in speed), default=1)
    if most == 1:
        return None
    spoken = "; ".join(f"{name} {', '.join(f'{fixed(y, 2)} at {x:.0f}' for x, y in line)}" for name, line in lines)
    sizes = sorted({row.world_size for row in speed})
    return line_plot(
        "Speed-up by ranks",
        [("ideal", [(1.0, 1.0), (float(most), float(most))]), *lines],
        label=f"Speed-up against the bare module on one rank: {spoken}",
        x_label="ranks",
        y_label="times as fast",
        x_ticks=[(float(n), str(n)) for n in sizes],
        y_from=0.0,
        dots=True,
    )


def _content(results: StudyResults) -> Content:
    return Content(
        (
            "T₁ is the bare module with as many threads as a rank has; DDP at one rank has a row of its own, and so "
            "has the bare module with all cores. Weak: the batch of a rank stays, so all ranks together have more. "
            "Strong: the batch of all ranks stays, so each has less. Speed-up compares images a second.",
        ),
        [
            Group(
                figures=figures(speedup=speedup_plot(results)),
                tables=[speed_table(results)] if results.of(SpeedupAnswer).speed else [],
            )
        ],
    )


QUESTION = Question(
    "speedup", "Speed-up", frozenset(("one device", "ranks")), SpeedupAnswer, _answer, _sentence, _content
)

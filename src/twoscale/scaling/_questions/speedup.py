"""How much faster are more devices?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from twoscale._page.charts import Drawing, line_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, fixed, joined, percent
from twoscale._page.tables import Cell, Column, Table, table, text_column
from twoscale.scaling._measure.records import EpochTime, RankGroup, Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import Arm
from twoscale.scaling._questions.batch import BatchAnswer
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, number, ranks_cell, with_interval
from twoscale.scaling._study.cells import RANKS, Measured
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.plan import strong_batch

__all__ = [
    "QUESTION",
    "GridRow",
    "Launches",
    "SpeedRow",
    "SpeedupAnswer",
    "grid_sentence",
    "grid_table",
    "labels_table",
    "speed_table",
    "times_of",
]

Launches = Mapping[tuple[Arm, RankGroup, int], Mapping[int, EpochTime]]
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
    hosts: int = 1

    @property
    def group(self) -> RankGroup:
        """The ranks and their hosts."""
        return RankGroup(self.world_size, self.hosts)


@dataclass(frozen=True)
class GridRow:
    """A batch size at a number of ranks, weak scaling: the bare module on one rank, DDP on more."""

    batch_size: int
    """Per rank."""
    world_size: int
    epoch: Summary
    """Seconds, one value per launch."""
    speedup: Summary | None
    """Against one rank at the same batch per rank, in images per second, launches of a round paired; None for one."""
    efficiency: Summary | None
    """Speed-up / ranks."""
    hosts: int = 1

    @property
    def group(self) -> RankGroup:
        """The ranks and their hosts."""
        return RankGroup(self.world_size, self.hosts)


@dataclass(frozen=True)
class SpeedupAnswer:
    """Numbers of ranks against one."""

    speed: tuple[SpeedRow, ...] = ()
    grid: tuple[GridRow, ...] = ()
    """Ascending batch sizes, and for each ascending numbers of ranks; empty in earlier records."""


def times_of(measured: Measured) -> Launches:
    """Return the steps that were timed at each number of ranks."""
    found: dict[tuple[Arm, RankGroup, int], dict[int, EpochTime]] = {}
    for record in measured.of(RANKS):
        for time in record.result:
            key = (time.arm, time.group, time.workload.batch_size)
            found.setdefault(key, {})[record.cell.repeat] = time
    return found


def _answer(measured: Measured) -> SpeedupAnswer:
    if "speedup" not in measured.config.sections:
        return SpeedupAnswer()
    times = times_of(measured)
    return SpeedupAnswer(_speed(measured.config, times), _grid(measured.config, times))


def _grid(config: StudyConfig, found: Launches) -> tuple[GridRow, ...]:
    rows = []
    for size in config.rank_batches:
        alone = found.get(("bare", RankGroup(1), size), {})
        for n in config.groups:
            launches = alone if n == RankGroup(1) else found.get(("ddp", n, size), {})
            if not launches:
                continue
            speedups = [
                time.samples_per_second / alone[repeat].samples_per_second
                for repeat, time in launches.items()
                if n.world_size > 1 and repeat in alone
            ]
            rows.append(
                GridRow(
                    batch_size=size,
                    world_size=n.world_size,
                    hosts=n.hosts,
                    epoch=summarize([time.epoch_seconds for time in launches.values()]),
                    speedup=summarize(speedups) if speedups else None,
                    efficiency=summarize([value / n.world_size for value in speedups]) if speedups else None,
                )
            )
    return tuple(rows)


def _speed(config: StudyConfig, found: Launches) -> tuple[SpeedRow, ...]:
    """Return the rows in order; ratios are taken within a round of launches."""
    base = found.get(("bare", RankGroup(1), config.base_batch), {})
    rows: list[SpeedRow] = []

    def add(scaling: Scaling, arm: Arm, n: RankGroup, batch: int) -> None:
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
                world_size=n.world_size,
                hosts=n.hosts,
                batch_size=batch,
                threads_per_rank=next(iter(launches.values())).threads_per_rank,
                step=summarize([time.step.median for time in launches.values()]),
                epoch=summarize([time.epoch_seconds for time in launches.values()]),
                speedup=summarize(speedups) if compared else None,
                efficiency=summarize([value / n.world_size for value in speedups]) if compared else None,
            )
        )

    add("bare", "bare", RankGroup(1), config.base_batch)
    add("ddp-alone", "ddp", RankGroup(1), config.base_batch)
    more = [n for n in config.groups if n.world_size > 1]
    for n in more:
        add("apart", "bare", n, config.base_batch)
    for n in more:
        add("weak", "ddp", n, config.base_batch)
    for n in more:
        add("strong", "ddp", n, strong_batch(config, n.world_size))
    return tuple(rows)


def _sentence(results: StudyResults) -> str | None:
    speed = results.of(SpeedupAnswer).speed

    def last(scaling: str) -> SpeedRow | None:
        return max((r for r in speed if r.scaling == scaling), key=lambda r: r.group, default=None)

    weak, strong, alone = last("weak"), last("strong"), last("ddp-alone")
    parts = [
        f"{fixed(row.speedup.mean, 2)} times as fast {what} (efficiency {_range(row.efficiency)})"
        for row, what in (
            (weak, "in weak scaling, with the batch per rank kept"),
            (strong, "in strong scaling, with the batch of all ranks kept"),
        )
        if row is not None and row.speedup is not None and row.efficiency is not None
    ]
    if parts and weak is not None:
        return f"Compared with the bare module on one rank, {weak.group} train {joined(parts)}."
    if alone is not None and alone.efficiency is not None:
        why = "one rank was asked for" if results.config.world_sizes[-1] == 1 else "more ranks gave no result"
        return (
            f"No speed-up can be given: {why}; DDP at one rank keeps {percent(alone.efficiency.mean, 0)} % of the "
            "bare module's speed."
        )
    if speed:
        return "No speed-up can be given: the bare module on one rank, the baseline, gave no result."
    return None


_WIDE = 0.5
"""An interval of efficiency that is wider says nothing."""


def _range(share: Summary) -> str:
    """Return a mean share of launches in percent, with its interval, or the launches where that says nothing."""
    interval = share.mean_interval
    if interval is not None and (interval.low < 0 or interval.high - interval.low > _WIDE):
        return (
            f"{percent(share.mean, 0)} %, single launches {percent(share.min, 0)} to {percent(share.max, 0)}, too far "
            "apart for an interval"
        )
    between = ", 1 launch" if interval is None else f", {percent(interval.low, 0)} to {percent(interval.high, 0)}"
    return f"{percent(share.mean, 0)} %{between}"


_SCALINGS = {
    "bare": "T₁: bare module",
    "ddp-alone": "DDP at one rank",
    "apart": "bare modules that never talk",
    "weak": "weak: batch per rank kept",
    "strong": "strong: batch of all ranks kept",
}


def speed_table(results: StudyResults) -> Table:
    """Return one row per way of scaling and number of ranks."""
    speed = results.of(SpeedupAnswer).speed
    rows: list[list[str | Cell]] = [
        [
            _SCALINGS[row.scaling],
            ranks_cell(row.group),
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
        Column("Batch per rank"),
        Column("Batch of all ranks"),
        Column("Threads per rank"),
        Column("Step", "ms"),
        Column("Epoch", "s"),
        Column("Speed-up"),
        Column("Efficiency", "%"),
    ]
    return table("Means of launches with 95% intervals; ratios are between launches of the same round", columns, rows)


def labels_table() -> Table:
    """Return how to tell strong from weak scaling, for numbers that were given the wrong label."""
    rows = [
        [
            "each rank has as large a batch as before; all together have more",
            "weak scaling",
            "“strong”, because more GPUs do the same step",
            "the rows called weak",
        ],
        [
            "all ranks together have as large a batch as before; each has less",
            "strong scaling",
            "“weak”, because each GPU has less to do",
            "the rows called strong",
        ],
        [
            "each rank has as large a batch, and the learning rate is the same",
            "weak scaling, at another accuracy",
            "“strong”, because an epoch takes fewer steps",
            "the rows called weak, and question 4 for the accuracy",
        ],
    ]
    columns = [
        text_column("When ranks are added"), text_column("It is"), text_column("It is mislabelled as"),
        text_column("Compare with"),
    ]  # fmt: skip
    return table("Which scaling is it?", columns, rows)


def grid_table(grid: Sequence[GridRow]) -> Table:
    """Return one row per batch size and number of ranks."""
    rows: list[list[str | Cell]] = [
        [
            count(row.batch_size),
            ranks_cell(row.group),
            with_interval(row.epoch),
            with_interval(row.speedup, 1.0, 2),
            with_interval(row.efficiency, 100.0, 0),
        ]
        for row in grid
    ]
    columns = [
        Column("Batch per rank"),
        Column("Ranks"),
        Column("Epoch", "s"),
        Column("Speed-up"),
        Column("Efficiency", "%"),
    ]
    return table("Batch per rank × ranks (weak scaling: the batch of a rank stays)", columns, rows)


def grid_sentence(grid: Sequence[GridRow]) -> str | None:
    """Return whether a larger batch per rank scales better, at the most ranks; None where that was not measured."""
    most = max((row.group for row in grid), default=RankGroup(1))
    rows = [(row.batch_size, row.efficiency) for row in grid if row.group == most and row.efficiency is not None]
    if most == RankGroup(1) or len(rows) < 2:
        return None
    (small, first), (large, last) = rows[0], rows[-1]
    assert first is not None
    assert last is not None
    ends = (
        f"At {most}, in weak scaling, the efficiency is {percent(first.mean, 0)} % at batch {count(small)} and "
        f"{percent(last.mean, 0)} % at batch {count(large)}"
    )
    one, other = first.mean_interval, last.mean_interval
    if one is None or other is None:
        return f"{ends}; one launch of each cannot show whether that is more than chance."
    if other.low > one.high:
        return f"{ends}: a larger batch per rank scales better, because each step computes more for the same gradients."
    if one.low > other.high:
        return f"{ends}: a larger batch per rank scales worse here."
    return f"{ends}: the launches do not show that the batch changes how well ranks scale."


def speedup_plot(results: StudyResults) -> Drawing | None:
    """Draw speed-up by ranks against the ideal."""
    speed = results.of(SpeedupAnswer).speed
    lines: list[tuple[str, Points]] = []
    for scaling in ("weak", "strong"):
        for several in (False, True):
            rows = [r for r in speed if r.scaling == scaling and r.speedup is not None and (r.hosts > 1) == several]
            name = f"{scaling}, several hosts" if several else scaling
            if rows:
                points = ((float(r.world_size), r.speedup.mean) for r in rows if r.speedup)
                lines.append((name, sorted([(1.0, 1.0), *points])))
    most = max((row.world_size for row in speed), default=1)
    if most == 1 or not lines:
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
    answer = results.of(SpeedupAnswer)
    tables = [speed_table(results), labels_table()] if answer.speed else []
    findings = []
    if len({row.batch_size for row in answer.grid}) > 1:
        tables.append(grid_table(answer.grid))
        sentence = grid_sentence(answer.grid)
        findings = [] if sentence is None else [sentence]
    return Content(
        (
            "T₁ is the bare module with as many threads as a rank has. DDP at one rank has a row of its own, and so "
            "has the bare module with all cores. Weak scaling keeps the batch of a rank, so that all ranks together "
            "have more. Strong scaling keeps the batch of all ranks, so that each has less. Speed-up compares images "
            "per second.",
            "A step here is one of a training loop: no barriers between steps, the wait for data counts, and the mean "
            "of a run's steps is taken. In section 3 all ranks begin each step together, and the median step counts; "
            "the first two columns of its table show both times.",
        ),
        [Group(findings=findings, figures=figures(speedup=speedup_plot(results)), tables=tables)],
    )


QUESTION = Question(
    "speedup", "Speed-up", frozenset(("one device", "ranks")), SpeedupAnswer, _answer, _sentence, _content, of_step=True
)

"""What would more devices bring?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twoscale._page.charts import Drawing, line_plot
from twoscale._page.document import Group
from twoscale._page.numbers import fixed, percent, signed
from twoscale._page.tables import Column, Table, table, text_column
from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import BandwidthRecord, RankGroup
from twoscale.scaling._questions import communication
from twoscale.scaling._questions.communication import ArmsAt, CommunicationAnswer
from twoscale.scaling._questions.link_model import CollectiveSample, Link, MeasuredStep, given_model, measured_step
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, milliseconds, number
from twoscale.scaling._questions.step_forecast import Forecast, forecast, held_out
from twoscale.scaling._study.cells import Measured
from twoscale.scaling._study.config import StudyConfig

__all__ = ["QUESTION", "TRUSTED", "ForecastAnswer", "forecast_table", "link_of", "measured_steps", "over"]

TRUSTED = 0.3
"""Largest error on held-out steps, and on what they wait, with which more ranks are still forecast."""
_LEAST_WAIT = 0.05
"""Of a step: errors of shorter waits are shares of this."""
_BEYOND = (2, 4, 8)
"""Forecasts are for so many times the most ranks that were measured."""
_NEAR = 4
"""Collectives from 1/4 of the smallest to 4 times the largest bucket are fitted: the line is for them."""


@dataclass(frozen=True)
class ForecastAnswer:
    """Steps on more ranks."""

    held_out: tuple[Forecast, ...] = ()
    """Measured steps, each forecast from the others."""
    forecasts: tuple[Forecast, ...] = ()
    """Over the link that was measured."""
    given_link: tuple[Forecast, ...] = ()
    """Over a link whose latency and rate were given."""
    refused: tuple[str, ...] = ()
    """Forecasts that no measurement covers, and why."""


def link_of(config: StudyConfig, group: RankGroup = RankGroup(1)) -> Link:  # noqa: B008
    """Return the link between ranks of a study."""
    if group.hosts > 1:
        each = group.ranks_per_host
        return Link("between hosts" + (f", {each} ranks on each" if each > 1 else ""), ranks_per_host=each)
    return Link("between this machine's GPUs" if config.device == "cuda" else "this machine's loopback")


def measured_steps(
    config: StudyConfig, arms: Sequence[ArmsAt], bandwidth: Sequence[BandwidthRecord]
) -> list[MeasuredStep]:
    """Return what a study's forecasts are made from: its arms, and all-reduces alone of like sizes."""
    cells = []
    for at in arms:
        sizes = [bucket.bytes for bucket in at.record.buckets]
        more = [
            CollectiveSample(row.op, row.bytes, row.seconds.median)
            for record in bandwidth
            if record.group == at.record.group
            for row in record.rows
            if sizes and min(sizes) / _NEAR <= row.bytes <= max(sizes) * _NEAR
        ]
        cells.append(measured_step(at.record, at.batch_size, link_of(config, at.record.group), more))
    # One rank broadcasts nothing, but its step shows what more ranks compute: they broadcast what others do.
    broadcasts = next((cell.broadcasts for cell in cells if cell.broadcasts), ())
    return [replace(cell, broadcasts=broadcasts) for cell in cells]


def over(steps: Sequence[MeasuredStep], link: Link) -> list[MeasuredStep]:
    """Return the steps from which those over a link are forecast.

    Over a link between hosts these are the steps with as many ranks on each host, those on one host too, since ranks
    that share a host slow each other's computing; else all steps on one host.
    """
    if link.ranks_per_host is None:
        return [step for step in steps if step.link.ranks_per_host is None]
    return [step for step in steps if (step.link.ranks_per_host or step.world_size) == link.ranks_per_host]


def _answer(measured: Measured) -> ForecastAnswer:
    if "forecast" not in measured.config.sections:
        return ForecastAnswer()
    found = communication.QUESTION.answer(measured)
    steps = measured_steps(measured.config, found.arms, found.bandwidth)
    links = dict.fromkeys(step.link for step in steps)
    # What more hosts bring comes first where there are several.
    parts = [
        _forecasts(measured.config, over(steps, link), link)
        for link in sorted(links, key=lambda one: (one.ranks_per_host is None, one.ranks_per_host or 0))
    ]
    return ForecastAnswer(
        tuple(one for part in parts for one in part.held_out),
        tuple(one for part in parts for one in part.forecasts),
        tuple(one for part in parts for one in part.given_link),
        tuple(one for part in parts for one in part.refused),
    )


def _forecasts(config: StudyConfig, steps: Sequence[MeasuredStep], link: Link | None = None) -> ForecastAnswer:
    link = link or link_of(config)
    held, refused = held_out(steps, link=link.name)
    lines = list(refused)
    most = max(step.world_size for step in steps)
    errors, waits = [abs(one.error) for one in held if one.error is not None], _wait_errors(held)
    found = []
    for factor in _BEYOND:
        asked = f"{link.group(factor * most)}, batch {config.base_batch} per rank (weak scaling), {link.name}"
        if not errors:
            lines.append(f"{asked}: no cell could be held out to check a forecast on; measure 2 ranks or more")
        elif max(errors) > TRUSTED:
            lines.append(
                f"{asked}: held-out cells were off by up to {max(errors):.0%}, more than {TRUSTED:.0%}; "
                "measure again on a quieter machine, or more cells"
            )
        elif max(waits, default=0.0) > TRUSTED:
            lines.append(
                f"{asked}: held-out cells waited for communication up to {max(waits):.0%} more or less than forecast, "
                f"beyond {TRUSTED:.0%}; measure again on a quieter machine, or more cells"
            )
        else:
            found.append(forecast(steps, factor * most, config.base_batch, link))
    given = () if link.ranks_per_host else _over_given_link(config, steps, most)
    return ForecastAnswer(held, tuple(found), given, tuple(lines))


def _wait_errors(held: Sequence[Forecast]) -> list[float]:
    """Return how far forecast waits were off: as a share of the measured wait, or of 5% of the step if that is more."""
    return [
        abs(one.exposed - one.measured_exposed) / max(one.measured_exposed, _LEAST_WAIT * one.measured)
        for one in held
        if one.measured_exposed is not None and one.measured is not None
    ]


def _over_given_link(config: StudyConfig, steps: Sequence[MeasuredStep], most: int) -> tuple[Forecast, ...]:
    if config.link is None:
        return ()
    link = Link("the given link", config.link.bytes_per_second)
    model = given_model(link.name, config.link.latency, config.link.bytes_per_second)
    sizes = sorted({*(n for n in config.world_sizes if n > 1), *(factor * most for factor in _BEYOND)})
    try:
        return tuple(forecast(steps, n, config.base_batch, link, model=model) for n in sizes)
    except ForecastError:  # the arms of the base batch failed
        return ()


def _sentence(results: StudyResults) -> str | None:
    answer = results.of(ForecastAnswer)
    errors = [abs(one.error) for one in answer.held_out if one.error is not None]
    refused = len(answer.refused)
    lines = f"{refused} forecast{'s were' if refused != 1 else ' was'} refused" if refused else ""
    if not errors:
        return f"No cell could be held out to check a forecast on; {lines}." if lines else None
    steps = f"Steps of {len(errors)} held-out cells were" if len(errors) > 1 else "The step of 1 held-out cell was"
    # Rounded up: no error is larger than the number shown.
    text = f"{steps} forecast from the others to within {math.ceil(100 * max(errors))} %"
    waits = [(one.exposed, one.measured_exposed) for one in answer.held_out if one.measured_exposed is not None]
    if waits:
        off = max(abs(expected - measured) for expected, measured in waits)
        text += f", what they wait for communication to within {milliseconds(off)}"
    if ahead := answer.forecasts[:1]:
        share = ahead[0].exposed / ahead[0].step
        text += (
            f"; in weak scaling, {ahead[0].link.group(ahead[0].world_size)} that compute as fast as these would wait "
            f"for communication {percent(share, 0)} % of a step"
        )
    return text + (f"; {lines}." if lines else ".")


def forecast_table(forecasts: Sequence[Forecast], caption: str) -> Table:
    """Return one row per forecast."""
    rows = [
        [
            f"{f.link.group(f.world_size)}, batch {f.batch_size}",
            number(f.compute * 1e3),
            number(f.communication * 1e3),
            number(f.exposed * 1e3),
            number(f.step * 1e3),
            number(None if f.measured is None else f.measured * 1e3),
            signed(None if f.error is None else 100 * f.error, 1),
            number(None if f.measured_exposed is None else f.measured_exposed * 1e3),
        ]
        for f in forecasts
    ]
    columns = [
        text_column("Cell"),
        Column("Compute", "ms"),
        Column("Communication", "ms"),
        Column("Exposed", "ms"),
        Column("Step, forecast", "ms"),
        Column("Step, measured", "ms"),
        Column("Error", "%"),
        Column("Exposed, measured", "ms"),
    ]
    return table(caption, columns, rows)


def forecast_plot(results: StudyResults) -> Drawing | None:
    """Draw the step's time by ranks, measured and forecast."""
    base, answer = results.config.base_batch, results.of(ForecastAnswer)
    measured = sorted((float(at.record.world_size), 1000 * at.record.ddp.median)
                      for at in results.of(CommunicationAnswer).arms if at.batch_size == base)  # fmt: skip
    if not measured or not (answer.forecasts or answer.held_out):
        return None
    ahead = sorted((float(f.world_size), 1000 * f.step) for f in [*answer.held_out, *answer.forecasts]
                   if f.batch_size == base)  # fmt: skip
    sizes = sorted({x for x, _ in [*measured, *ahead]})
    return line_plot(
        "Step time by ranks",
        [("measured", [(math.log2(x), y) for x, y in measured]), ("forecast", [(math.log2(x), y) for x, y in ahead])],
        label=f"A step of {base} images per rank: "
        + "; ".join(f"{x:.0f} ranks {fixed(y, 1)} ms" for x, y in [*measured, *ahead]),
        x_label="ranks, log axis",
        y_label="milliseconds",
        x_ticks=[(math.log2(x), f"{x:.0f}") for x in sizes],
        y_from=0.0,
        dots=True,
    )


def _content(results: StudyResults) -> Content:
    answer = results.of(ForecastAnswer)
    listed = []
    if answer.held_out:
        listed.append(forecast_table(answer.held_out, "Cells that were held out, forecast from the others"))
    if answer.forecasts:
        listed.append(
            forecast_table(
                answer.forecasts,
                "More ranks at the same batch per rank (weak scaling), each with cores of its own, over the same link",
            )
        )
    if answer.given_link and results.config.link is not None:
        given = results.config.link
        listed.append(
            forecast_table(
                answer.given_link,
                f"Over a link of {fixed(1e6 * given.latency, 0)} µs and {fixed(8e-6 * given.bytes_per_second, 0)} "
                "Mbit/s, as given and not measured: weak scaling, each rank with cores of its own",
            )
        )
    return Content(
        (
            "A line t = Aα + FS/B is fitted to the collectives timed alone, and the step is replayed bucket by bucket. "
            "What the nearest measured steps wait beyond their own replay is added: communication takes longer beside "
            "computing than alone. A step on more ranks waits at least as long as fewer ranks were measured to wait. "
            "The first table shows how far off such forecasts are for measured cells that were held out. A forecast is "
            "refused where no measurement covers it, or where held-out steps, or what they wait, are off by more than "
            f"{TRUSTED:.0%} (waits shorter than {_LEAST_WAIT:.0%} of a step count as that long).",
        ),
        [
            Group(
                findings=[f"Refused: {line}." for line in answer.refused],
                figures=figures(forecast=forecast_plot(results)),
                tables=listed,
            )
        ],
    )


QUESTION = Question(
    "forecast", "More devices", frozenset(("ranks", "arms")), ForecastAnswer, _answer, _sentence, _content, of_step=True
)

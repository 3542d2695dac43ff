"""Why scaling stops here: the growth of a step from one rank to many, divided among its causes by stated rules.

The growth is that of weak scaling: DDP's step on all ranks less the bare module's on one, launches of a round paired.
Its parts are

    data         data wait of bare modules on all ranks - data wait of one
    cores        bare modules on all ranks at once - bare module on one, without data wait: ranks that never talk slow
                 each other all the same, or one is late
    wrapper      arms B - D: DDP without communication - bare module
    buffers      arms: what goes away when buffers are not broadcast
    exposed      arms A - B, less buffers: what DDP waits for gradients

and exposed communication is divided further, by the collectives' times alone and the fitted line t = Aα + FS/B:

    latency      the share of the Aα in it
    last bucket  of what is left, up to the bytes' time of the last bucket: there is nothing to hide it behind
    bandwidth    the rest: more bytes than the backward pass can hide

A part below zero counts as zero. The largest is the cause. Where efficiency is 95% or more, or the growth is not above
zero in every round, there is no cause to name. Where more of the growth is unexplained than the largest part explains,
the verdict says so, and so it does where the parts, which other launches measured, add up to that much more than was
lost.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, percent
from twoscale._page.tables import Column, Table, table, text_column
from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import ArmsRecord, EpochTime, Summary
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions import communication
from twoscale.scaling._questions.communication import ArmsAt
from twoscale.scaling._questions.forecast import link_of, measured_steps
from twoscale.scaling._questions.link_model import Link, LinkModel, MeasuredStep, collective_seconds, fit
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import figures, number
from twoscale.scaling._questions.speedup import Launches, times_of
from twoscale.scaling._study.cells import Measured
from twoscale.scaling._study.config import StudyConfig

__all__ = [
    "QUESTION",
    "SCALES",
    "Cause",
    "Round",
    "Verdict",
    "VerdictAnswer",
    "causes_table",
    "decide",
    "latency_share",
]

SCALES = 0.95
"""Efficiency from which on there is nothing to explain."""

_WHY = {
    "latency": "Each message costs its fixed time however small it is. Fewer, larger collectives or less frequent "
    "steps would help, a faster link would not.",
    "bandwidth": "There are more bytes than the backward pass can hide. A faster link, fewer bytes (bf16 gradients, "
    "accumulation) or more computing a step would help.",
    "last bucket": "The last gradients are ready only when the backward pass ends, and nothing is left to hide their "
    "all-reduce behind. A smaller last bucket or more computing a step would help.",
    "buffers": "Buffers are broadcast before every forward pass, which waits for them. Broadcasting them at the start "
    "only, or never, would help.",
    "data": "Ranks wait for their batches. A faster or less shared source of data would help.",
    "cores": "Ranks slow each other's computing, or wait for the slowest. Cores, memory and power of their own would "
    "help, a faster network would not.",
    "wrapper": "DDP's own work, without any communication, takes the time. More computing a step would help.",
}
_NAMES = {"last bucket": "the last bucket", "wrapper": "the wrapper", "cores": "shared cores"}


@dataclass(frozen=True)
class Cause:
    """What part of a step's growth a cause has."""

    name: Literal["latency", "bandwidth", "last bucket", "buffers", "data", "cores", "wrapper"]
    seconds: float
    """Of a step."""
    share: float
    """Of the loss, or of the sum of all causes where that is more, 0..1."""


@dataclass(frozen=True)
class Verdict:
    """Why scaling stops here."""

    world_size: int
    batch_size: int
    loss: Summary
    """Seconds by which a step on all ranks is longer than one of the bare module on one; launches of a round paired."""
    efficiency: float
    """Of weak scaling: bare at one rank / DDP; mean of rounds."""
    causes: tuple[Cause, ...]
    """Largest first; together all of the loss that was explained."""
    unexplained: float
    """Seconds of the loss that no cause has; below 0 where causes overlap."""
    sentence: str


@dataclass(frozen=True)
class VerdictAnswer:
    """Why scaling stops here."""

    verdict: Verdict | None = None
    """None: not everything that it needs was measured."""


@dataclass(frozen=True)
class Round:
    """Launches of one round, at the same batch per rank."""

    alone: EpochTime
    """The bare module on one rank."""
    apart: EpochTime
    """Bare modules on all ranks, which never talk."""
    ddp: EpochTime
    """DDP on all ranks."""


def latency_share(record: ArmsRecord, model: LinkModel) -> float:
    """Return the fixed part of the step's all-reduces by the fitted line, 0..1."""
    rate = model.rates[1] if model.rates else None
    sizes = [bucket.bytes for bucket in record.buckets]
    total = sum(collective_seconds(model, "all_reduce", size, record.world_size, rate) for size in sizes)
    fixed = len(sizes) * collective_seconds(model, "all_reduce", 0, record.world_size, rate)
    return fixed / total if total > 0 else 0.0


def decide(rounds: Sequence[Round], many: ArmsRecord, model: LinkModel | None, batch_size: int) -> Verdict:
    """Name the cause.

    Args:
        rounds: at least one.
        many: arms at as many ranks, at the same batch.
        model: the link, fitted. None: nothing of exposed communication counts as latency.
        batch_size: per rank.
    """
    loss = summarize([one.ddp.step.median - one.alone.step.median for one in rounds])
    efficiency = statistics.fmean(one.alone.step.median / one.ddp.step.median for one in rounds)
    waits = statistics.fmean(one.apart.data_wait.median - one.alone.data_wait.median for one in rounds)
    slower = statistics.fmean(
        (one.apart.step.median - one.apart.data_wait.median) - (one.alone.step.median - one.alone.data_wait.median)
        for one in rounds
    )
    buffers = max(0.0, many.buffers.median) if many.buffers else 0.0
    exposed = max(0.0, many.exposed.median - buffers)
    fixed = latency_share(many, model) if model else 0.0
    gradients = [c.seconds.median for c in many.collectives_alone if c.op == "all_reduce"]
    last = (1 - fixed) * min(exposed, gradients[-1] if gradients else 0.0)
    parts = {
        "latency": fixed * exposed,
        "bandwidth": (1 - fixed) * exposed - last,
        "last bucket": last,
        "buffers": buffers,
        "data": max(0.0, waits),
        "cores": max(0.0, slower),
        "wrapper": max(0.0, many.wrapper_tax.median),
    }
    total = sum(parts.values())
    # What no cause explains has its share too; causes that overlap are shares of their sum.
    whole = max(total, loss.mean)
    causes = tuple(
        Cause(name, seconds, seconds / whole if whole > 0 else 0.0)  # type: ignore[arg-type]
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
    )
    n = many.world_size
    unexplained = loss.mean - total
    if efficiency > 2 - SCALES:
        sentence = (
            f"At {n} ranks a step was faster than on one, {efficiency:.0%} of its speed, which no scaling explains; "
            "measure again on a quieter machine, or more launches."
        )
    elif efficiency >= SCALES:
        sentence = f"Scaling does not stop at {n} ranks: a step keeps {efficiency:.0%} of its speed."
    elif loss.min <= 0:
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed, but not in every round of launches: there is "
            "no cause to name; measure again on a quieter machine, or more launches."
        )
    elif unexplained > causes[0].seconds:
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed, and the largest part of what is lost, "
            f"{unexplained / loss.mean:.0%}, has no measured cause: measure again on a quieter machine."
        )
    elif -unexplained > causes[0].seconds:
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed, but what its causes took in launches of their "
            f"own adds up to {total / loss.mean:.1f} times what is lost, so that there is no cause to name; measure "
            "again on a quieter machine."
        )
    else:
        first = causes[0]
        sentence = (
            f"At {n} ranks a step keeps {efficiency:.0%} of its speed. The largest part of what is lost, "
            f"{first.share:.0%}, goes to {_NAMES.get(first.name, first.name)}. {_WHY[first.name]}"
        )
    return Verdict(n, batch_size, loss, efficiency, causes, unexplained, sentence)


def _model(steps: Sequence[MeasuredStep], link: Link) -> LinkModel | None:
    try:
        return fit(steps, link.name)
    except ForecastError:
        return None


def _verdict(
    config: StudyConfig, times: Launches, arms: Sequence[ArmsAt], steps: Sequence[MeasuredStep]
) -> Verdict | None:
    base = config.base_batch
    alone = times.get(("bare", 1, base), {})
    # At the most ranks that everything is known of: a cell that failed there leaves fewer to be judged.
    for n in reversed([n for n in config.world_sizes if n > 1]):
        record = next((at.record for at in arms if at.record.world_size == n and at.batch_size == base), None)
        apart, ddp = times.get(("bare", n, base), {}), times.get(("ddp", n, base), {})
        rounds = [Round(alone[r], apart[r], ddp[r]) for r in alone if r in apart and r in ddp]
        if record is not None and rounds:
            return decide(rounds, record, _model(steps, link_of(config)), base)
    return None


def _answer(measured: Measured) -> VerdictAnswer:
    config, found = measured.config, communication.QUESTION.answer(measured)
    steps = measured_steps(config, found.arms, found.bandwidth)
    return VerdictAnswer(_verdict(config, times_of(measured), found.arms, steps))


def _sentence(results: StudyResults) -> str:
    verdict = results.of(VerdictAnswer).verdict
    if verdict is not None:
        return verdict.sentence
    if results.config.world_sizes[-1] == 1:
        why = "one rank has nothing to scale to; measure more with --world-sizes 1,2"
    elif {"communication", "forecast"}.isdisjoint(results.config.sections):
        why = "it needs the arms, which the sections communication and forecast measure"
    else:
        why = "it needs the steps of one rank and the steps and arms of more, and not all of them gave a result"
    return f"There is no verdict: {why}."


def causes_table(verdict: Verdict) -> Table:
    """Return one row per cause."""
    rows = [[cause.name, number(cause.seconds * 1e3), percent(cause.share, 0)] for cause in verdict.causes]
    unknown = percent(verdict.unexplained / verdict.loss.mean, 0) if verdict.unexplained > 0 else MISSING
    rows.append(["not explained", number(verdict.unexplained * 1e3), unknown])
    columns = [text_column("Cause"), Column("Of a step", "ms"), Column("Share", "%")]
    loss = verdict.loss
    spread = f"{number(loss.min * 1e3)} to {number(loss.max * 1e3)} ms in {loss.n} rounds" if loss.n > 1 else "1 round"
    return table(
        f"A step on {verdict.world_size} ranks is {number(loss.mean * 1e3)} ms longer than one on one ({spread})",
        columns,
        rows,
    )


def verdict_plot(results: StudyResults) -> Drawing | None:
    """Draw the causes."""
    verdict = results.of(VerdictAnswer).verdict
    if verdict is None:
        return None
    return dot_plot(
        "What a step loses",
        [cause.name for cause in verdict.causes],
        [Series("", tuple(1000 * cause.seconds for cause in verdict.causes))],
        label="Milliseconds of a step by cause: "
        + ", ".join(f"{cause.name} {percent(cause.share, 0)} %" for cause in verdict.causes),
        note=f"{verdict.world_size} ranks",
        x_label="milliseconds a step",
        limits=(0.0, math.inf),
        least_span=0.1,
    )


def _content(results: StudyResults) -> Content:
    verdict = results.of(VerdictAnswer).verdict
    if verdict is None:
        return Content((), ())
    return Content(
        (
            "The verdict divides what a step loses between one rank and all of them (weak scaling) among its causes, "
            "by the rules in docs/scaling.md.",
        ),
        [
            Group(
                "Why scaling stops here",
                figures=figures(verdict=verdict_plot(results)),
                tables=[causes_table(verdict)],
            )
        ],
    )


QUESTION = Question("summary", "Summary", frozenset(), VerdictAnswer, _answer, _sentence, _content)

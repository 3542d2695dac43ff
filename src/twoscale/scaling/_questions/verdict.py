"""Why scaling stops here: the verdict in a sentence, its table and its chart.

The largest cause (twoscale.scaling._questions.causes) is named. No cause is named where efficiency is 95% or more,
where the growth is not above zero in every round, or where more is unexplained, or explained twice, than the largest
part explains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twoscale._page.charts import Drawing, Series, dot_plot
from twoscale._page.document import Group
from twoscale._page.numbers import MISSING, count, fixed, percent
from twoscale._page.tables import Column, Table, table, text_column
from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import ArmsRecord, RankGroup, Summary
from twoscale.scaling._questions import communication
from twoscale.scaling._questions.causes import Cause, CauseName, Division, divide
from twoscale.scaling._questions.communication import ArmsAt, CommunicationAnswer
from twoscale.scaling._questions.forecast import link_of, measured_steps
from twoscale.scaling._questions.link_model import Link, LinkModel, MeasuredStep, fit
from twoscale.scaling._questions.question import Content, Question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.rounds import Round, busy_warning, counted_rounds
from twoscale.scaling._questions.shown import figures, milliseconds, number
from twoscale.scaling._questions.speedup import Launches, times_of
from twoscale.scaling._questions.what_if import what_if_table, what_ifs
from twoscale.scaling._study.cells import RANKS, Measured
from twoscale.scaling._study.config import StudyConfig

__all__ = ["QUESTION", "Verdict", "VerdictAnswer", "causes_table", "decide", "link_line"]

_SCALES = 0.95
"""At this efficiency or above there is nothing to explain."""
_NOMINAL = (10, 100, 1000)
"""Mbit/s of links that a measured rate may belong to."""

_WHY: dict[CauseName, str] = {
    "latency": "Each message costs its fixed time however small it is. Fewer, larger collectives or less frequent "
    "steps would help, a faster link would not.",
    "bandwidth": "There are more bytes than the backward pass can hide. A faster link, fewer bytes (bf16 gradients, "
    "accumulation) or more computation per step would help.",
    "last bucket": "The last gradients are ready only when the backward pass ends, and nothing is left to hide their "
    "all-reduce behind. A smaller last bucket or more computation per step would help.",
    "buffers": "Buffers are broadcast before every forward pass, which waits for them. Broadcasting them at the start "
    "only, or never, would help.",
    "data": "Ranks wait for their batches. A faster or less shared source of data would help.",
    "cores": "Ranks that run at once slow each other's computing. Cores, memory and power of their own would help, a "
    "faster network would not.",
    "wrapper": "DDP's own work, without any communication, takes the time. More computation per step would help.",
    "straggler": "All ranks wait for one that computes more slowly. A core of its own for that rank would help, a "
    "faster network would not.",
    "jitter": "Now one rank is late and now another, and every step waits for the latest. Fewer other processes on "
    "these cores would help.",
    "contention": "Computing and communication slow each other when they run at the same time. Cores left over for "
    "communication, or fewer bytes, would help.",
}
_NAMES = {"last bucket": "the last bucket", "wrapper": "the wrapper", "cores": "shared cores"}


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
    """Seconds of the loss that no cause explains; below 0 if causes overlap."""
    sentence: str
    straggler: str = ""
    """The slowest rank and its cores, e.g. "rank 1 on core 3"; empty where it is not known."""
    left_out: tuple[str, ...] = ()
    """Rounds that were left out, each with its load."""
    link: LinkModel | None = None
    """The line that was fitted to all-reduces alone."""
    hosts: int = 1

    @property
    def group(self) -> RankGroup:
        """The ranks and their hosts."""
        return RankGroup(self.world_size, self.hosts)


@dataclass(frozen=True)
class VerdictAnswer:
    """Why scaling stops here."""

    verdict: Verdict | None = None
    """None: not everything that it needs was measured."""


def _conclusion(n: RankGroup, found: Division) -> str:
    """Return the verdict in a sentence."""
    efficiency, loss, first, unexplained = found.efficiency, found.loss, found.causes[0], found.unexplained
    total = loss.mean - unexplained
    if efficiency > 2 - _SCALES:
        return (
            f"At {n}, in weak scaling, a step was faster than on one, {efficiency:.0%} of its speed, which no scaling "
            "explains; measure again on a quieter machine, or more launches."
        )
    if efficiency >= _SCALES:
        return f"Weak scaling does not stop at {n}: a step keeps {efficiency:.0%} of its speed."
    keeps = f"At {n}, in weak scaling, a step keeps {efficiency:.0%} of its speed"
    if loss.min <= 0:
        return (
            f"{keeps}, but not in every round of launches: there is no cause to name; measure again on a quieter "
            "machine, or more launches."
        )
    if unexplained > first.seconds:
        return (
            f"{keeps}, and the largest part of what is lost, {unexplained / loss.mean:.0%}, has no measured cause: "
            "measure again on a quieter machine."
        )
    if -unexplained > first.seconds:
        return (
            f"{keeps}, but what its causes took in launches of their own adds up to {total / loss.mean:.1f} times what "
            "is lost, so that there is no cause to name; measure again on a quieter machine."
        )
    name = f"a straggler, {found.straggler}" if first.name == "straggler" else _NAMES.get(first.name, first.name)
    return f"{keeps}. The largest part of what is lost, {first.share:.0%}, goes to {name}. {_WHY[first.name]}"


def decide(
    rounds: Sequence[Round], many: ArmsRecord, model: LinkModel | None, batch_size: int, *, cores: int = 1
) -> Verdict:
    """Name the cause.

    Args:
        rounds: at least one.
        many: arms at as many ranks, at the same batch.
        model: the link, fitted. None: nothing of exposed communication counts as latency.
        batch_size: per rank.
        cores: of the machine, all together.
    """
    rounds, left_out = counted_rounds(rounds, cores)
    found = divide(rounds, many, model)
    return Verdict(
        world_size=many.world_size,
        hosts=many.hosts,
        batch_size=batch_size,
        loss=found.loss,
        efficiency=found.efficiency,
        causes=found.causes,
        unexplained=found.unexplained,
        sentence=_conclusion(many.group, found) + busy_warning(rounds, cores),
        straggler=found.straggler,
        left_out=left_out,
        link=model,
    )


def _model(steps: Sequence[MeasuredStep], link: Link) -> LinkModel | None:
    try:
        return fit(steps, link.name)
    except ForecastError:
        return None


def _verdict(
    config: StudyConfig,
    times: Launches,
    loads: Mapping[int, float],
    arms: Sequence[ArmsAt],
    steps: Sequence[MeasuredStep],
) -> Verdict | None:
    base = config.base_batch
    alone = times.get(("bare", RankGroup(1), base), {})
    # At the most ranks that everything is known of: a cell that failed there leaves fewer to be judged.
    for n in reversed([n for n in config.groups if n.world_size > 1]):
        record = next((at.record for at in arms if at.record.group == n and at.batch_size == base), None)
        apart, ddp = times.get(("bare", n, base), {}), times.get(("ddp", n, base), {})
        silent = times.get(("silent", n, base), {})
        rounds = [
            Round(alone[r], apart[r], ddp[r], loads.get(r), r + 1, silent.get(r))
            for r in sorted(alone)
            if r in apart and r in ddp
        ]
        if record is not None and rounds:
            return decide(rounds, record, _model(steps, link_of(config, n)), base, cores=config.cores)
    return None


def _loads(measured: Measured) -> dict[int, float]:
    """Return the largest load at which a launch of each round began."""
    found: dict[int, float] = {}
    for record in measured.of(RANKS):
        if record.load is not None:
            found[record.cell.repeat] = max(record.load, found.get(record.cell.repeat, 0.0))
    return found


def _answer(measured: Measured) -> VerdictAnswer:
    config, found = measured.config, communication.QUESTION.answer(measured)
    steps = measured_steps(config, found.arms, found.bandwidth)
    return VerdictAnswer(_verdict(config, times_of(measured), _loads(measured), found.arms, steps))


def _sentence(results: StudyResults) -> str:
    verdict = results.of(VerdictAnswer).verdict
    if verdict is not None:
        return verdict.sentence
    if results.config.groups[-1] == RankGroup(1):
        why = "one rank has nothing to scale to; measure more with --world-sizes 1,2"
    elif {"communication", "forecast"}.isdisjoint(results.config.sections):
        why = "it needs the arms, which the sections communication and forecast measure"
    else:
        why = "it needs the steps of one rank and the steps and arms of more, and not all of them gave a result"
    return f"There is no verdict: {why}."


def causes_table(verdict: Verdict) -> Table:
    """Return one row per cause."""
    rows = [
        [
            f"{cause.name}: {verdict.straggler}" if cause.name == "straggler" and verdict.straggler else cause.name,
            number(cause.seconds * 1e3),
            percent(cause.share, 0),
        ]
        for cause in verdict.causes
    ]
    unknown = percent(verdict.unexplained / verdict.loss.mean, 0) if verdict.unexplained > 0 else MISSING
    rows.append(["not explained", number(verdict.unexplained * 1e3), unknown])
    columns = [text_column("Cause"), Column("Of a step", "ms"), Column("Share", "%")]
    loss = verdict.loss
    spread = f"{number(loss.min * 1e3)} to {number(loss.max * 1e3)} ms in {loss.n} rounds" if loss.n > 1 else "1 round"
    return table(
        f"A step on {verdict.group} is {number(loss.mean * 1e3)} ms longer than one on one ({spread})",
        columns,
        rows,
    )


def verdict_plot(results: StudyResults) -> Drawing | None:
    """Draw the causes."""
    verdict = results.of(VerdictAnswer).verdict
    if verdict is None:
        return None
    parts = [(str(cause.name), cause.seconds) for cause in verdict.causes]
    parts.append(("not explained", verdict.unexplained))
    return dot_plot(
        "What a step loses",
        [name for name, _ in parts],
        [Series("", tuple(1000 * seconds for _, seconds in parts))],
        label="Milliseconds of a step by cause: "
        + ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in parts),
        note=str(verdict.group),
        x_label="milliseconds per step",
        limits=(min(0.0, 1000 * verdict.unexplained), math.inf),
        least_span=0.1,
    )


def link_line(model: LinkModel) -> str:
    """Return what the fit found: the time of a message and the rate."""
    latency = f"{fixed(1e6 * model.latency, 0)} µs" if model.latency < 1e-3 else milliseconds(model.latency)
    text = f"All-reduces alone take {latency} per message"
    if model.fixed > 0:
        mbits = 8e-6 / model.fixed
        text += f", and their bytes pass at {count(round(mbits)) if mbits >= 1000 else number(mbits)} Mbit/s"
        # Of what a link carries, framing leaves 94 to 96 %; above a Gbit/s a loopback may be as fast by chance.
        nominal = next((rate for rate in _NOMINAL if 0.9 * rate <= mbits <= rate), None)
        if nominal is not None:
            text += f", probably a link of {count(nominal)} Mbit/s"
    return text + f" (fitted line within {percent(model.residual, 0)} %)."


def _content(results: StudyResults) -> Content:
    verdict = results.of(VerdictAnswer).verdict
    if verdict is None:
        return Content((), ())
    findings = [f"Left out: {one}." for one in verdict.left_out]
    if verdict.link is not None:
        findings.append(link_line(verdict.link))
    tables = [causes_table(verdict)]
    if rows := what_ifs(results.of(CommunicationAnswer).arms, verdict.group, verdict.batch_size, verdict.link):
        tables.append(what_if_table(rows))
    return Content(
        (
            "The verdict compares a step on all ranks with one on a single rank at the same batch per rank (weak "
            "scaling), and divides the time that it loses among causes, by the rules in docs/scaling.md.",
        ),
        [
            Group(
                "Why scaling stops here",
                figures=figures(verdict=verdict_plot(results)),
                findings=findings,
                tables=tables,
            )
        ],
    )


QUESTION = Question("summary", "Summary", frozenset(), VerdictAnswer, _answer, _sentence, _content)

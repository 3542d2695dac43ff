"""The study's page: its questions in order, each with one sentence, numbers and charts."""

from __future__ import annotations

from collections.abc import Callable

from twoscale._page.charts import Drawing
from twoscale._page.document import Figure, Group, Section, render_page
from twoscale._page.numbers import count
from twoscale.scaling._questions import figures, tables
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.sentences import most_ranks, verdict_sentence
from twoscale.scaling._study.config import SECTIONS

__all__ = ["render_study", "study_sections"]

_TITLES = {
    "batch": "1 Batch size",
    "speedup": "2 Speed-up",
    "communication": "3 Communication",
    "accuracy": "4 Accuracy at large batch",
    "sampler": "5 The epoch in the sampler",
    "wire": "6 What crosses the wire",
    "replicas": "7 Would gradients alone do?",
    "forecast": "8 More devices",
}


def study_sections(results: StudyResults) -> list[Section]:
    """Return the sections of a study's page, in order: the summary, the questions, how it was made."""
    makers: tuple[Callable[[StudyResults], Section], ...] = (
        _batch, _speedup, _communication, _accuracy, _sampler, _wire, _replicas, _forecast,
    )  # fmt: skip
    by_name = dict(zip(SECTIONS, makers, strict=True))
    return [_summary(results), *(by_name[name](results) for name in results.config.sections), _made(results)]


def render_study(results: StudyResults) -> str:
    """Return the self-contained page of a study."""
    config = results.config
    kinds = [f"{results.gpus.count(kind)} × {kind}" for kind in dict.fromkeys(results.gpus)]
    where = ", ".join(kinds) or ("GPUs" if config.device == "cuda" else "processor")
    sizes = ", ".join(map(str, config.world_sizes))
    return render_page(
        f"twoscale scale: {config.model} on {config.data}",
        f"Ranks: {sizes}; {where}; {results.environment.machine}, {results.environment.cores} cores",
        study_sections(results),
        results.environment,
        "study.json",
    )


def _figures(**drawings: Drawing | None) -> list[Figure]:
    return [Figure(name.replace("_", "-"), drawing) for name, drawing in drawings.items() if drawing is not None]


def _section(results: StudyResults, name: str, intro: tuple[str, ...], groups: list[Group]) -> Section:
    return Section(name, _TITLES[name], intro, groups, lead=results.sentences[name])


def _summary(results: StudyResults) -> Section:
    verdict = results.verdict
    findings = [
        f"{_TITLES[name]}{'' if _TITLES[name].endswith('?') else ':'} {results.sentences[name]}"
        for name in results.config.sections
    ]
    if len(set(results.gpus)) > 1:
        findings.append(
            f"The GPUs are of different kinds ({', '.join(results.gpus)}): all are compared with the first, and "
            "what others are slower counts as shared cores."
        )
    if results.failures:
        failed = len(results.failures)
        findings.append(
            f"{failed} cells failed; they are listed at the end." if failed > 1 else "1 cell failed; see the end."
        )
    if results.left_out:
        findings.append(
            f"Cells that there was no time for: {len(results.left_out)}. The same command with --resume measures them."
        )
    groups = []
    if verdict is not None:
        groups.append(
            Group(
                "Why scaling stops here",
                figures=_figures(verdict=figures.verdict_plot(results)),
                tables=[tables.causes_table(verdict)],
            )
        )
    return Section(
        "summary",
        "Summary",
        (
            "The verdict divides what a step loses between one rank and all of them (weak scaling) among its causes, "
            "by rules that are written in twoscale.scaling._questions.verdict and docs/scaling.md.",
        )
        if verdict is not None
        else (),
        groups,
        lead=verdict_sentence(results),
        findings=findings,
    )


def _batch(results: StudyResults) -> Section:
    listed = [tables.batch_table(results)] if results.batches else []
    if results.capacity is not None:
        listed.append(tables.capacity_table(results.capacity))
    return _section(
        results,
        "batch",
        (
            "Each launch is a fresh process that times every batch size in an order of its own: a fixed number of "
            "steps, after some that are not timed, as one run without barriers between steps; the median of three such "
            "runs counts. An epoch is the number of its steps times that.",
            "Arithmetic counts the multiplications and additions of convolutions and matrix products; the matrix rate "
            "is the best rate of large square matrix products measured on the same device.",
        ),
        [
            Group(
                figures=_figures(epoch_time=figures.epoch_plot(results), rate=figures.rate_plot(results)),
                tables=listed,
            )
        ],
    )


def _speedup(results: StudyResults) -> Section:
    return _section(
        results,
        "speedup",
        (
            "T₁ is the bare module with as many threads as a rank has; DDP at one rank has a row of its own, and so "
            "has the bare module with all cores. Weak: the batch of a rank stays, so all ranks together have more. "
            "Strong: the batch of all ranks stays, so each has less. Speed-up compares images a second.",
        ),
        [
            Group(
                figures=_figures(speedup=figures.speedup_plot(results)),
                tables=[tables.speed_table(results)] if results.speed else [],
            )
        ],
    )


def _communication(results: StudyResults) -> Section:
    at = most_ranks(results)
    notes = [
        f"{one.record.world_size} ranks, batch {one.batch_size}: {one.record.disagreement}."
        for one in results.arms
        if one.record.disagreement
    ]
    if results.arms and not notes and any(one.record.exposed_in_situ for one in results.arms):
        notes = ["Differencing and in-situ clocks agree within their intervals."]
    listed = []
    drawn = _figures(parts=figures.parts_plot(results.arms, results.config.base_batch))
    if results.arms:
        listed += [tables.arms_table(results.arms), tables.waits_table(results.arms)]
    if at is not None and at.record.collectives_in_situ:
        listed.append(tables.buckets_table(at))
    for record in results.bandwidth:
        listed.append(tables.bandwidth_table(record))
        if at is not None and record.world_size == at.record.world_size:
            drawn += _figures(bandwidth=figures.bandwidth_plot(record, at.record))
    return _section(
        results,
        "communication",
        (
            "Four arms run the same step: DDP as it is (A), DDP that sends nothing (B), the bare module (D), and the "
            "step's collectives on their own (R). A − B is communication that the step waits for, B − D is what the "
            "wrapper costs, and overlap is 1 − (A − B)/R. Below zero, communication costs more inside a step than "
            "alone.",
            "In situ, a clock on DDP's communication hook sees each bucket start and end inside the step. Bandwidth is "
            "counted as nccl-tests does: algbw is bytes by time, busbw what each rank's link carries.",
        ),
        [Group(findings=notes, figures=drawn, tables=listed)],
    )


def _accuracy(results: StudyResults) -> Section:
    config = results.config
    tuned = (
        "Learning rates were chosen among three on a tenth of the training images that the run did not see, with a "
        "seed of its own; those of the rows that only scale are the small batch's best."
        if config.tune
        else "Learning rates were not tuned: each row has the rate that it would begin with."
    )
    listed = [tables.accuracy_table(results, equal) for equal in ("epochs", "steps")] if results.accuracy else []
    return _section(
        results,
        "accuracy",
        (
            f"Batch {count(config.accuracy_batches[0])} against batch {count(config.accuracy_batches[1])}, the same "
            f"seeds ({config.seeds}). At equal epochs a large batch takes fewer steps; at equal steps it sees more "
            f"images. " + tuned,
        ),
        [Group(figures=_figures(accuracy=figures.accuracy_plot(results)), tables=listed)],
    )


def _sampler(results: StudyResults) -> Section:
    return _section(
        results,
        "sampler",
        (
            "DistributedSampler draws its order from its seed and the epoch that it is told. Each rank takes every "
            "n-th of it; where they do not divide evenly, the first images come a second time.",
        ),
        [
            Group(
                figures=_figures(orders=figures.orders_plot(results)),
                tables=[tables.orders_table(one) for one in results.shown_orders],
            )
        ],
    )


def _wire(results: StudyResults) -> Section:
    groups = [
        Group(
            one.model if len(results.ledgers) > 1 else "",
            findings=list(one.differences),
            figures=_figures(ledger=figures.ledger_plot(one)),
            tables=[tables.ledger_table(one)],
        )
        for one in results.ledgers
    ]
    return _section(
        results,
        "wire",
        (
            "Predicted from the model's tensors and PyTorch's rules for buckets, without running DDP; observed in "
            "PyTorch's own dispatcher, where every collective passes. Bytes are those of the tensor that a rank puts "
            "in.",
        ),
        groups,
    )


def _replicas(results: StudyResults) -> Section:
    groups = [
        Group(
            one.model if len(results.replicas) > 1 else "",
            figures=_figures(replicas=figures.replicas_plot(one)),
            tables=[tables.replicas_table(one)],
        )
        for one in results.replicas
    ]
    return _section(
        results,
        "replicas",
        (
            "Replicas begin from the same seed or from different ones, with or without DDP's initial broadcast, and "
            "with or without the broadcast of buffers before every forward pass; after each step, parameters and "
            "buffers of every rank are hashed. In the chart a row reads seeds, i for initial broadcast, b for buffers; "
            "buffers are those that the forward pass sees, and those after the step.",
        ),
        groups,
    )


def _forecast(results: StudyResults) -> Section:
    listed = []
    if results.held_out:
        listed.append(tables.forecast_table(results.held_out, "Cells that were held out, forecast from the others"))
    if results.forecasts:
        listed.append(
            tables.forecast_table(results.forecasts, "More ranks, each with cores of its own, over the same link")
        )
    return _section(
        results,
        "forecast",
        (
            "A line t = Aα + FS/B is fitted to the collectives timed alone; the step is then replayed bucket by "
            "bucket. Beside every forecast stands how far off the same model was on measured cells that it did not "
            "see. What no measurement covers is refused.",
        ),
        [
            Group(
                findings=[f"Refused: {line}." for line in results.refused],
                figures=_figures(forecast=figures.forecast_plot(results)),
                tables=listed,
            )
        ],
    )


def _made(results: StudyResults) -> Section:
    listed = [tables.options_table(results)]
    if results.failures:
        listed.insert(0, tables.failures_table(results))
    return Section(
        "making",
        "How it was made",
        (
            "Every cell ran in fresh processes, in rounds: each timed cell once in an order drawn by the study's seed, "
            "then again in another order. Measurements of one number of ranks share a launch, one after the other.",
        ),
        [Group(findings=[f"No time was left for: {line}." for line in results.left_out], tables=listed)],
    )

"""The study's page: its questions in order, each with one sentence, numbers and charts."""

from __future__ import annotations

from twoscale._page.document import Group, Section, render_page
from twoscale._page.numbers import MISSING, count, fixed
from twoscale._page.tables import Cell, Table, table, text_column
from twoscale.scaling._questions.batch import BatchAnswer
from twoscale.scaling._questions.registry import VERDICT, numbered_title, question
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.shown import number, plural

__all__ = ["render_study", "study_sections"]


def render_study(results: StudyResults) -> str:
    """Return the self-contained page of a study."""
    config = results.config
    kinds = [f"{results.gpus.count(kind)} × {kind}" for kind in dict.fromkeys(results.gpus)]
    where = ", ".join(kinds) or ("GPUs" if config.device == "cuda" else "processor")
    sizes = ", ".join(map(str, config.world_sizes))
    hosts = f" on each of {', '.join(map(str, config.hosts))} hosts" if config.hosts[-1] > 1 else ""
    return render_page(
        f"twoscale scale: {config.model} on {config.data}",
        f"Ranks: {sizes}{hosts}; {where}; {results.environment.machine}, {results.environment.cores} cores",
        study_sections(results),
        results.environment,
        "study.json",
    )


def study_sections(results: StudyResults) -> list[Section]:
    """Return the sections of a study's page, in order: the summary, the questions, how it was made."""
    return [_summary(results), *(_section(results, name) for name in results.config.sections), _made(results)]


def _section(results: StudyResults, name: str) -> Section:
    content = question(name).content(results)
    return Section(
        name,
        numbered_title(name),
        content.intro,
        content.groups,
        lead=results.sentences[name],
        findings=content.findings,
    )


def _summary(results: StudyResults) -> Section:
    findings = []
    for name in results.config.sections:
        title = numbered_title(name)
        findings.append(f"{title}{'' if title.endswith('?') else ':'} {results.sentences[name]}")
    if len(set(results.gpus)) > 1:
        findings.append(
            f"The GPUs are of different kinds ({', '.join(results.gpus)}): all are compared with the first, and "
            "what others are slower counts as shared cores."
        )
    findings += [
        f"Host {number} ({one.name}) differs from host 0 ({different}); every step waits for the slowest rank."
        for number, one in enumerate(results.hosts)
        if (different := results.hosts[0].machine.differences(one.machine, "there"))
    ]
    if results.failures:
        failed = len(results.failures)
        findings.append(
            f"{failed} cells failed; they are listed at the end." if failed > 1 else "1 cell failed; see the end."
        )
    if results.left_out:
        findings.append(
            f"{plural(len(results.left_out), 'cell')} left out for lack of time; the same command with --resume "
            "measures what is missing."
        )
    content = VERDICT.content(results)
    return Section(
        VERDICT.name,
        VERDICT.title,
        content.intro,
        content.groups,
        lead=VERDICT.sentence(results) or "",
        findings=findings,
    )


def _made(results: StudyResults) -> Section:
    listed = [options_table(results)]
    if results.failures:
        listed.insert(0, failures_table(results))
    return Section(
        "making",
        "How it was made",
        (
            "Every cell ran in fresh processes. Timed cells ran in rounds: each of them once in an order drawn from "
            "the study's seed, then again in another order. Measurements with the same number of ranks share a launch "
            "and run one after the other.",
        ),
        [Group(findings=[f"No time was left for: {line}." for line in results.left_out], tables=listed)],
    )


def failures_table(results: StudyResults) -> Table:
    """Return the cells that failed."""
    rows = [[Cell(one.what, one.message), one.status, one.name] for one in results.failures]
    return table("Cells that failed", [text_column("Cell"), text_column("Outcome"), text_column("File")], rows)


def options_table(results: StudyResults) -> Table:
    """Return the study's options and the machine."""
    peak = results.of(BatchAnswer).peak
    config, environment = results.config, results.environment
    values = {
        "Model": config.model + ("" if config.model_args is None else f" ({config.model_args})"),
        "Data": config.data,
        "Device": config.device,
        "Precision": config.precision + (", channels last" if config.channels_last else ""),
        "Matrix rate": MISSING
        if peak is None
        else f"{number(peak.flops_per_second / 1e9)} GFLOP/s, {peak.precision}, {peak.device}",
        "Launches of a timed cell": count(config.repeats),
        "Seeds of a training run": count(config.seeds),
        "Seed of the study": str(config.seed),
        "Threads per rank": count(config.threads_per_rank),
        "Cores": count(config.cores),
        "Processor": environment.machine,
        **{
            f"Host {number}": f"{one.name}: {one.machine.processor}, {one.machine.cores} cores"
            for number, one in enumerate(results.hosts)
        },
        "Python": environment.python,
        **environment.versions,
        "All cells together": f"{fixed(results.seconds, 0)} s",
        "Load as cells began": MISSING
        if results.loads is None
        else f"{fixed(results.loads[0], 1)} to {fixed(results.loads[1], 1)}",
    }
    return table("Options and machine", [text_column("What"), text_column("Value")], values.items())

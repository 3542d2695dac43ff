"""A scaling study from its first cell to its page.

DIR/cells/NAME.json   a cell's task and its outcome
DIR/study.json        the answers
DIR/report.html       the same as a page
DIR/traces/*.json     a step on a time axis, for Perfetto
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from twoscale._environment import require_posix
from twoscale._files import write_bytes, write_record, write_text
from twoscale.errors import ConfigurationError
from twoscale.models._references import is_reference
from twoscale.scaling._measure.hosts import Team
from twoscale.scaling._measure.records import Span
from twoscale.scaling._measure.traces import chrome_trace
from twoscale.scaling._questions.answers import answered, plain
from twoscale.scaling._questions.registry import DEFAULT_SECTIONS, QUESTIONS, SECTIONS, check_sections, needs_of
from twoscale.scaling._questions.report import render_study
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._study.cells import BREAKDOWN, Measured
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.progress import StudyProgress
from twoscale.scaling._study.run import measure

__all__ = ["CELLS", "REPORT", "STUDY", "run_study", "study_config"]

# A study's folder.
CELLS = "cells"
STUDY = "study.json"
REPORT = "report.html"
TRACES = "traces"


def study_config(
    device: Literal["cpu", "cuda"] | None = None, *, sections: tuple[str, ...] | None = None, **given: Any
) -> StudyConfig:
    """Return the study that this machine can do, where nothing else is given.

    On GPUs: ResNet-18, CIFAR-10, batches of 32 to 8,192, 1, 2 and 4 ranks as far as there are GPUs. On a processor one
    that two cores finish in a few minutes: the small CNN, digits, 1 and 2 ranks.

    Args:
        device: Default: cuda where there is a GPU.
        sections: names of the questions that are asked. Default: those that take minutes together.
        given: other fields of the configuration; None is as if not given.

    Raises:
        ConfigurationError: a GPU is asked for where there is none, more ranks than GPUs, or a number outside its range.
        UnknownNameError: there is no such section.
    """
    step = _own_step(given)
    if step:
        sections = _step_sections(sections)
        given = {**given, **step}
    asked = check_sections(DEFAULT_SECTIONS if sections is None else sections)
    return StudyConfig.for_this_machine(device, sections=asked, **given)


def _own_step(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a study of a step of the user's own is about; nothing if the model is no such step.

    Raises:
        ConfigurationError: options that such a study does not have, or the file cannot be imported.
        UnknownNameError: the file has no such function.
    """
    model = given.get("model")
    if model is None or not is_reference(model):
        return {}
    from twoscale.scaling._measure.own_step import batch_length, find_step

    step = find_step(model, given.get("model_args"))
    if step is None:
        return {}
    for name in ("data", "preprocessing", "batch_sizes", "base_batch", "grid_batches", "precision"):
        if given.get(name):
            option = "--base-batch" if name == "grid_batches" else f"--{name.replace('_', '-')}"
            raise ConfigurationError(f"{model} is a step with a loader of its own; leave {option} out")
    batch = next(iter(step.loader), None)
    if batch is None:
        raise ConfigurationError(f"the loader of {model} gives no batch; expected at least one")
    size = batch_length(batch)
    return {
        "data": "its loader",
        "own_step": True,
        "batch_sizes": (size,),
        "base_batch": size,
        "precision": "fp32",
        "channels_last": False,
    }


def _step_sections(sections: tuple[str, ...] | None) -> tuple[str, ...]:
    possible = tuple(one.name for one in QUESTIONS if one.of_step)
    if sections is None:
        return tuple(name for name in possible if name in DEFAULT_SECTIONS)
    if sections == SECTIONS:
        return possible
    if other := [name for name in check_sections(sections) if name not in possible]:
        raise ConfigurationError(
            f"{other[0]} cannot be asked about a step of your own; expected some of {', '.join(possible)}"
        )
    return sections


def run_study(
    config: StudyConfig,
    out: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    progress: StudyProgress | None = None,
    team: Team = Team(),  # noqa: B008
) -> StudyResults:
    """Run the cells that are not measured yet, and write the results and the page.

    Args:
        config: what to measure.
        out: folder; it is made.
        resume: go on in a folder that holds cells.
        minutes: start no cell that is expected to end later than this. Default: run all.
        progress: reports each cell. Default: nothing does.
        team: the hosts of a study on several. Default: this machine alone.

    Raises:
        ConfigurationError: the folder holds cells and ``resume`` is not asked for, ``minutes`` is not positive, or
            there are fewer hosts than the study needs.
        UnknownNameError: no such section, model or data set.
        DataError: the data set cannot be loaded.
        TwoscaleError: the folder holds cells of other options, of another machine or PyTorch, or damaged ones, another
            study is at work in it, or it cannot be written.
    """
    require_posix("measuring how training scales")
    needs = needs_of(check_sections(config.sections))
    measured = measure(config, needs, out / CELLS, resume=resume, minutes=minutes, progress=progress, team=team)
    results = answered(measured)
    write_record(out / STUDY, plain(results))
    write_text(out / REPORT, render_study(results))
    for name, spans in _traces(measured).items():
        (out / TRACES).mkdir(exist_ok=True)
        write_bytes(out / TRACES / f"{name}.json", chrome_trace(spans))
    return results


def _traces(measured: Measured) -> dict[str, tuple[Span, ...]]:
    """Return the steps that were measured, by the names of their files."""
    records = sorted((record.result for record in measured.of(BREAKDOWN)), key=lambda one: one.world_size)
    found = {"timeline": records[-1].timeline, "profile": records[0].profile} if records else {}
    return {name: spans for name, spans in found.items() if spans}

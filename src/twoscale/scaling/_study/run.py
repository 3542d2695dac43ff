"""A scaling study from its first cell to its page: cells run one after the other, each leaves a file.

    DIR/cells/NAME.json   what a cell was to do, and what became of it (``CellRecord``)
    DIR/study.json        the answers (``StudyResults``)
    DIR/report.html       the same as a page

A cell whose file is there is not measured again, whatever it holds: a failure is a result. To have one measured again,
remove its file.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from twoscale import data, models
from twoscale._environment import current_environment, load_average
from twoscale._files import held, read_record, write_record, write_text
from twoscale.errors import ConfigurationError, TwoscaleError, UnknownNameError
from twoscale.scaling._measure.capacity import find_largest_batch
from twoscale.scaling._measure.launch import launch
from twoscale.scaling._measure.records import Outcome, Workload, decode
from twoscale.scaling._questions.analysis import analyse
from twoscale.scaling._questions.page import render_study
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._study.cells import CellRecord, StudyCell, check_machine, check_same, first_cells, later_cells
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.machine import Machine
from twoscale.scaling._study.progress import Silent, Telling

__all__ = ["CELLS", "REPORT", "STUDY", "run_study"]

# A study's folder.
CELLS = "cells"
STUDY = "study.json"
REPORT = "report.html"

_SYNTHETIC = 2048
"""Images of the synthetic data set."""
_SHARE_OF_SEARCH = 0.25
"""Of the time that is left, for the search for the largest batch, whose number of trials is not known before."""
_NEAR = 4
"""The search for the largest batch begins with all images where they are at most so many times the largest asked."""


def run_study(
    config: StudyConfig,
    out: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    telling: Telling | None = None,
) -> StudyResults:
    """Measure what is not measured yet, and write the results and the page.

    Args:
        config: what to measure.
        out: folder; it is made.
        resume: go on in a folder that holds cells.
        minutes: start no cell that is expected to end later than this. Default: run all.
        telling: hears how it goes.

    Raises:
        ConfigurationError: the folder holds cells and ``resume`` is not asked for, or ``minutes`` is not positive.
        UnknownNameError: no such model or data set.
        DataError: the data set cannot be had.
        TwoscaleError: the folder holds cells of other options, of another machine or PyTorch, or damaged ones, another
            study is at work in it, or it cannot be written.
    """
    if minutes is not None and not minutes > 0:
        raise ConfigurationError(f"minutes is {minutes:g}; expected a positive number")
    if config.model not in models.names():
        raise UnknownNameError("model", config.model, models.names())
    folder = out / CELLS
    if not resume and any(folder.glob("*.json")):
        raise ConfigurationError(f"{out} holds a study already; continue it with --resume, or choose another --out")
    # Here, once, with its progress, and not in every cell.
    images = _SYNTHETIC if config.data == "synthetic" else len(data.load(config.data).train)
    with held(folder, "measuring"):  # two would disturb each other's times, and share cells
        here = Machine.here(config.device)
        for file in sorted(folder.glob("*.json")):  # all, before any time is spent
            check_machine(_read(file), here, str(file))
        runner = _Runner(config, folder, images, minutes, telling or Silent(), here)
        try:
            first = first_cells(config)
            runner.tell((*first, *later_cells(config, {})))  # as many as there will be
            outcomes: dict[str, Outcome] = {
                cell.kind: record.outcome for cell in first if (record := runner.run(cell)) is not None
            }
            later = later_cells(config, outcomes)
            runner.tell((*first, *later))
            for cell in later:
                runner.run(cell)
        finally:
            runner.telling.close()
        results = analyse(
            config, runner.records, runner.left_out, environment=current_environment(), gpus=_gpus(config)
        )
        write_record(out / STUDY, results)
        write_text(out / REPORT, render_study(results))
    return results


def _read(file: Path) -> CellRecord:
    try:
        return read_record(file, CellRecord)
    except TwoscaleError as error:
        raise TwoscaleError(f"{error}; remove the file to have that cell measured again") from error


def _gpus(config: StudyConfig) -> list[str]:
    """Return the names of the GPUs that ranks ran on."""
    if config.device == "cpu":
        return []
    import torch

    return [torch.cuda.get_device_name(rank) for rank in range(config.world_sizes[-1])]


def _epochs(cell: StudyCell) -> int:
    """Return the epochs of all training runs of a cell."""
    return sum(int(run["config"]["epochs"]) for run in cell.arguments["runs"])


class _Runner:
    """The cells that are done, and how to do one more."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        images: int,
        minutes: float | None,
        telling: Telling,
        here: Machine,
    ) -> None:
        self.config, self.folder, self.images, self.telling, self.here = config, folder, images, telling, here
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.records: list[CellRecord] = []
        self.left_out: list[StudyCell] = []
        self._taken: dict[str, list[float]] = {}
        """Kind to the seconds that its cells took."""
        self._each_epoch: float | None = None
        """Seconds of a training epoch in one process, as the search for learning rates showed."""
        self._planned: Sequence[StudyCell] = ()

    def tell(self, planned: Sequence[StudyCell]) -> None:
        """Say what there is to do."""
        self._planned = planned
        self.telling.plan(planned)

    def run(self, cell: StudyCell) -> CellRecord | None:
        """Do a cell, or take up what it left; None where there is no time for it."""
        file = self.folder / f"{cell.name}.json"
        if file.exists():
            record = _read(file)
            check_same(record, cell, str(file))
            self._keep(record, again=True)
            return record
        expected = self.expected(cell)
        if self.deadline is not None and time.monotonic() + (expected or 0.0) > self.deadline:
            self.left_out.append(cell)
            self.telling.left_out(cell)
            return None
        self.telling.begin(cell, self.left())
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        load = load_average()
        record = CellRecord(cell, self._measure(cell), started, load[0] if load else None, self.here)
        write_record(file, record)
        self._keep(record, again=False)
        return record

    def _keep(self, record: CellRecord, *, again: bool) -> None:
        self.records.append(record)
        self._taken.setdefault(record.cell.kind, []).append(record.outcome.seconds)
        if record.cell.kind == "tune" and record.outcome.ok:
            self._each_epoch = record.outcome.seconds * record.cell.world_size / _epochs(record.cell)
        self.telling.end(record, self.left(), again=again)

    def expected(self, cell: StudyCell) -> float | None:
        """Return the seconds that a cell is expected to take; None where none was done."""
        same = self._taken.get(cell.kind)
        if not same and cell.kind == "accuracy" and self._each_epoch is not None:
            return self._each_epoch * _epochs(cell) / cell.world_size
        every = [seconds for taken in self._taken.values() for seconds in taken]
        if same:
            return statistics.median(same)
        return statistics.median(every) if every else None

    def left(self) -> float | None:
        """Return the seconds that everything planned is expected to take still."""
        done = {record.cell.name for record in self.records} | {cell.name for cell in self.left_out}
        each = [self.expected(cell) for cell in self._planned if cell.name not in done]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def _measure(self, cell: StudyCell) -> Outcome:
        if cell.kind == "capacity":
            return self._capacity(cell)
        return launch(
            f"twoscale.scaling._measure.jobs:{cell.kind}",
            cell.arguments,
            world_size=cell.world_size,
            device=cell.device,
            threads_per_rank=cell.threads_per_rank,
            timeout=self.config.timeout,
        )

    def _capacity(self, cell: StudyCell) -> Outcome:
        start = time.monotonic()
        # More than every training image at once is no batch.
        asked = int(cell.arguments["start"])
        record = find_largest_batch(
            decode(cell.arguments["workload"], Workload),
            start=self.images if self.images <= _NEAR * asked else asked,
            limit=self.images,
            tolerance=self.config.tolerance,
            timeout=self.config.timeout,
            seconds=None if self.deadline is None else _SHARE_OF_SEARCH * (self.deadline - start),
            threads_per_rank=cell.threads_per_rank,
        )
        plain = msgspec.json.decode(msgspec.json.encode(record))
        seconds = time.monotonic() - start
        if record.largest is not None:
            return Outcome("ok", seconds, 1, cell.threads_per_rank, plain)
        last = record.trials[-1]
        values = {
            "status": last.status,
            "seconds": seconds,
            "world_size": 1,
            "threads_per_rank": cell.threads_per_rank,
            "message": f"not even a batch of {last.batch_size} fits: {last.message}",
        }
        return decode(values, Outcome)

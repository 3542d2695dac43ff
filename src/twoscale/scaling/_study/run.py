"""The cells of a study run one after the other, and each writes a file: NAME.json, a ``CellRecord``.

A cell whose file exists is not measured again, even if it failed: a failure is a result. To measure a cell again,
remove its file.
"""

from __future__ import annotations

import datetime
import shutil
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from twoscale import data, models
from twoscale._environment import current_environment, gpu_names, load_average
from twoscale._files import held
from twoscale.errors import ConfigurationError, TwoscaleError, UnknownNameError
from twoscale.models._references import is_reference
from twoscale.models._registry import model_options
from twoscale.scaling._measure.capacity import find_largest_batch
from twoscale.scaling._measure.hosts import Follower, Team
from twoscale.scaling._measure.launch import Host, launch
from twoscale.scaling._measure.records import CapacityRecord, Outcome, is_own
from twoscale.scaling._measure.tasks import CapacityTask, TrainingTask
from twoscale.scaling._study.cells import (
    KINDS,
    CellName,
    CellRecord,
    Measured,
    StudyCell,
    read_cell,
    same_cell,
    write_cell,
)
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.machine import Machine, StudyHost
from twoscale.scaling._study.plan import Need, first_cells, later_cells, verdict_cells
from twoscale.scaling._study.progress import NoProgress, StudyProgress

__all__ = ["measure"]

_SCRATCH = ".launches"
"""Folder of what the ranks of a launch exchange, among the cells' files."""
_SYNTHETIC = 2048
"""Images of the synthetic data set."""
_SHARE_OF_SEARCH = 0.25
"""Of the time that is left, for the search for the largest batch, whose number of trials is not known before."""
_NEAR = 4
"""The search for the largest batch begins with all images where they are at most so many times the largest asked."""


def measure(
    config: StudyConfig,
    needs: Collection[Need],
    folder: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    progress: StudyProgress | None = None,
    team: Team = Team(),  # noqa: B008
) -> Measured:
    """Measure the cells that are not measured yet.

    Args:
        config: of the study.
        needs: what its questions need measured.
        folder: of the cells' files; it is made.
        resume: go on in a folder that holds cells.
        minutes: start no cell that is expected to end later than this. Default: run all.
        progress: reports each cell. Default: nothing does.
        team: the hosts, as many as the study is of. Default: this machine alone.

    Raises:
        ConfigurationError: the folder holds cells and ``resume`` is not asked for, ``minutes`` is not positive, or
            there are fewer hosts than the study needs.
        UnknownNameError: no such model or data set.
        DataError: the data set cannot be loaded.
        TwoscaleError: the folder holds cells of other options, of another machine or PyTorch, or damaged ones, another
            study is at work in it, or it cannot be written.
    """
    if minutes is not None and not minutes > 0:
        raise ConfigurationError(f"minutes is {minutes:g}; expected a positive number")
    if config.hosts[-1] > 1 + len(team.followers):
        raise ConfigurationError(
            f"the study needs {config.hosts[-1]} hosts and has {1 + len(team.followers)}; start it on each of them"
        )
    if config.own_step:
        pass  # it was made once, for its batch
    elif is_reference(config.model):
        models.create(
            config.model, **model_options(config.model, 10, config.model_args)
        )  # refused here, once, and not in every cell
    elif config.model not in models.names():
        raise UnknownNameError("model", config.model, models.names())
    if not resume and any(folder.glob("*.json")):
        raise ConfigurationError(
            f"{folder.parent} holds a study already; continue it with --resume, or choose another --out"
        )
    images = _images(config)
    with held(folder, "measuring"):  # two would disturb each other's times, and share cells
        here = Machine.here(config.device)
        hosts = (StudyHost(team.name, here), *(_introduced(one, config.device) for one in team.followers))
        kept = []
        for file in sorted(folder.glob("*.json")):  # all, before any time is spent
            kept.append(read_cell(file))
            _check_machine(kept[-1], [one.machine for one in hosts], file)
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        (folder / _SCRATCH).mkdir()
        runner = _Runner(config, folder, images, minutes, progress or NoProgress(), here, team, hosts[1:])
        try:
            first = first_cells(config, needs)
            runner.remember(kept)
            runner.plan((*first, *later_cells(config, needs, {})))  # as many as there will be
            # With little time, run first the cells that the verdict needs: they depend on no other cell.
            early = verdict_cells(later_cells(config, needs, {})) if minutes is not None else ()
            for cell in early:
                runner.run(cell)
            outcomes: dict[CellName, Outcome[Any]] = {
                cell.kind: record.outcome for cell in first if (record := runner.run(cell)) is not None
            }
            later = later_cells(config, needs, outcomes)
            runner.plan((*first, *later))
            for cell in later:
                if cell not in early:
                    runner.run(cell)
        finally:
            runner.progress.close()
            shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    return Measured(
        config,
        tuple(runner.records),
        tuple(runner.left_out),
        environment=current_environment(),
        gpus=gpu_names()[: config.world_sizes[-1]] if config.device == "cuda" else (),
        hosts=hosts if team.followers else (),
    )


def _introduced(follower: Follower, device: Literal["cpu", "cuda"]) -> StudyHost:
    """Return a host that joined; its machine has no GPUs in a study of processors.

    Raises:
        ConfigurationError: it says something else than what it is.
    """
    try:
        machine = msgspec.json.decode(follower.about, type=Machine)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"{follower.title} does not say what machine it is ({error})") from error
    return StudyHost(follower.name, machine if device == "cuda" else replace(machine, gpus=()))


def _check_machine(record: CellRecord[Any, Any], now: Sequence[Machine], file: Path) -> None:
    """Check that a cell was measured where a study goes on: its times are compared with those that follow.

    Raises:
        TwoscaleError: it was measured elsewhere, or with another PyTorch.
    """
    if record.machine is None:
        return
    for before, here in zip((record.machine, *record.other_machines), now, strict=False):
        if different := before.differences(here):
            raise TwoscaleError(
                f"{file} was measured elsewhere ({different}), and the times cannot be compared; continue there, or "
                "choose another --out"
            )


def _epochs(cell: StudyCell[TrainingTask]) -> int:
    """Return the epochs of all training runs of a cell."""
    return sum(run.config.epochs or 0 for run in cell.arguments.runs)


def _images(config: StudyConfig) -> int:
    """Return the number of training images, which are loaded here, once, with their progress, and not in every cell.

    Raises:
        UnknownNameError: there is no such data set.
        DataError: it cannot be loaded, or the model does not take the user's own pictures.
    """
    if config.data == "synthetic" or config.own_step:
        return _SYNTHETIC
    dataset = data.load(config.data, preprocessing=config.preprocessing)
    if is_own(config.data):
        from twoscale.training._accuracy import check_takes, picture_options

        model = models.create(config.model, **model_options(config.model, len(dataset.classes), config.model_args))
        check_takes(model, dataset.train, dataset.mean, dataset.std, hint=picture_options(dataset))
    return len(dataset.train)


class _Runner:
    """The cells that are done, and how to do one more."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        images: int,
        minutes: float | None,
        progress: StudyProgress,
        here: Machine,
        team: Team = Team(),  # noqa: B008
        others: Sequence[StudyHost] = (),
    ) -> None:
        self.config, self.folder, self.images, self.progress = config, folder, images, progress
        self.team, self.machines = team, (here, *(one.machine for one in others))
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        # Here, where the next run finds and removes what a killed one left, and not in the system's folder.
        self.scratch = folder / _SCRATCH
        self.records: list[CellRecord[Any, Any]] = []
        self.left_out: list[StudyCell[Any]] = []
        self._taken: dict[str, list[float]] = {}
        """Kind to the seconds that its cells took."""
        self._each_epoch: float | None = None
        """Seconds of a training epoch in one process, as the search for learning rates showed."""
        self._planned: Sequence[StudyCell[Any]] = ()
        self._kept: set[str] = set()
        """Names of cells that an earlier run of this study measured."""

    def remember(self, kept: Sequence[CellRecord[Any, Any]]) -> None:
        """Take the times of cells that an earlier run measured, so that the time left is right from the start."""
        for record in kept:
            self._kept.add(record.cell.name)
            self._time(record)

    def plan(self, planned: Sequence[StudyCell[Any]]) -> None:
        """Set what there is to do."""
        self._planned = planned
        self.progress.plan(planned)

    def run(self, cell: StudyCell[Any]) -> CellRecord[Any, Any] | None:
        """Run a cell or read its file; None if there is no time for it."""
        file = self.folder / f"{cell.name}.json"
        if file.exists():
            record = read_cell(file)
            if not same_cell(record, cell):
                raise TwoscaleError(
                    f"{file} was measured with other options; continue with those it began with, or choose another "
                    "--out"
                )
            self._keep(record, again=True)
            return record
        expected = self.expected(cell)
        if self.deadline is not None and time.monotonic() + (expected or 0.0) > self.deadline:
            self.left_out.append(cell)
            self.progress.left_out(cell)
            return None
        if missing := self.team.missing(cell.hosts):
            # Not written: the study goes on there once the host is back.
            failed = Outcome[Any]("crash", 0.0, cell.world_size, cell.threads_per_rank, None, missing)
            record = self._record(cell, failed, started=datetime.datetime.now(datetime.UTC), load=None)
            self.records.append(record)
            self.progress.end(record, self.left(), again=False)
            return record
        self.progress.begin(cell, self.left())
        started = datetime.datetime.now(datetime.UTC)
        load = load_average()
        record = self._record(cell, self._measure(cell), started=started, load=load[0] if load else None)
        write_cell(file, record)
        self._keep(record, again=False)
        return record

    def _record(
        self, cell: StudyCell[Any], outcome: Outcome[Any], *, started: datetime.datetime, load: float | None
    ) -> CellRecord[Any, Any]:
        first, *others = self.machines[: cell.hosts]
        return CellRecord(cell, outcome, started.isoformat(timespec="seconds"), load, first, tuple(others))

    def _keep(self, record: CellRecord[Any, Any], *, again: bool) -> None:
        self.records.append(record)
        if record.cell.name not in self._kept:
            self._time(record)
        self.progress.end(record, self.left(), again=again)

    def _time(self, record: CellRecord[Any, Any]) -> None:
        """Note how long a cell took."""
        self._taken.setdefault(record.cell.kind, []).append(record.outcome.seconds)
        if record.cell.kind == "tune" and record.outcome.ok:
            self._each_epoch = record.outcome.seconds * record.cell.world_size / _epochs(record.cell)

    def expected(self, cell: StudyCell[Any]) -> float | None:
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
        done = self._kept | {record.cell.name for record in self.records} | {cell.name for cell in self.left_out}
        each = [self.expected(cell) for cell in self._planned if cell.name not in done]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def _measure(self, cell: StudyCell[Any]) -> Outcome[Any]:
        if cell.kind == "capacity":
            return self._capacity(cell)
        kind = KINDS[cell.kind]
        return launch(
            kind.target,
            cell.arguments,
            world_size=cell.world_size,
            device=cell.device,
            threads_per_rank=cell.threads_per_rank,
            timeout=self.config.timeout,
            hosts=(self.team.first if cell.hosts > 1 else Host(),),
            followers=self.team.others(cell.hosts),
            scratch=self.scratch,
            watch=lambda what: self.progress.within(cell, what),
        ).decoded(kind.result)

    def _capacity(self, cell: StudyCell[CapacityTask]) -> Outcome[CapacityRecord]:
        start = time.monotonic()
        # More than every training image at once is no batch.
        asked = cell.arguments.start
        record = find_largest_batch(
            cell.arguments.workload,
            start=self.images if self.images <= _NEAR * asked else asked,
            limit=self.images,
            tolerance=self.config.tolerance,
            timeout=self.config.timeout,
            seconds=None if self.deadline is None else _SHARE_OF_SEARCH * (self.deadline - start),
            threads_per_rank=cell.threads_per_rank,
            scratch=self.scratch,
        )
        seconds = time.monotonic() - start
        if record.largest is not None:
            return Outcome("ok", seconds, 1, cell.threads_per_rank, record)
        last = record.trials[-1]
        message = f"not even a batch of {last.batch_size} fits: {last.message}"
        return Outcome(last.status, seconds, 1, cell.threads_per_rank, None, message)

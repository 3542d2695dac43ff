"""The cells of a study: what each launch measures, its file, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec

from twoscale._environment import Environment
from twoscale._files import read_record, write_record
from twoscale.errors import TwoscaleError
from twoscale.scaling._measure.records import (
    BreakdownRecord,
    CapacityRecord,
    EpochTime,
    LoadingRecord,
    Outcome,
    RankGroup,
)
from twoscale.scaling._measure.tasks import (
    ArmsResult,
    ArmsTask,
    BatchesResult,
    BatchesTask,
    BreakdownTask,
    CapacityTask,
    LoadingTask,
    NoiseResult,
    NoiseTask,
    OptimizersResult,
    OptimizersTask,
    RanksTask,
    StrategiesResult,
    StrategiesTask,
    TrainedRun,
    TrainingTask,
    VariantsResult,
    VariantsTask,
    WireResult,
    WireTask,
)
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.machine import Machine, StudyHost

__all__ = [
    "ACCURACY",
    "ARMS",
    "BATCHES",
    "BREAKDOWN",
    "CAPACITY",
    "KINDS",
    "LOADING",
    "NOISE",
    "OPTIMIZERS",
    "RANKS",
    "STRATEGIES",
    "TUNE",
    "VARIANTS",
    "WIRE",
    "CellKind",
    "CellName",
    "CellRecord",
    "Measured",
    "StudyCell",
    "read_cell",
    "same_cell",
    "write_cell",
]

Task = TypeVar("Task")
Result = TypeVar("Result")

CellName = Literal[
    "capacity",
    "tune",
    "batches",
    "ranks",
    "arms",
    "wire",
    "strategies",
    "loading",
    "breakdown",
    "variants",
    "optimizers",
    "noise",
    "accuracy",
]


@dataclass(frozen=True)
class CellKind(Generic[Task, Result]):
    """A kind of cell: what its launches are given, and what they return."""

    name: CellName
    title: str
    task: type[Task]
    result: type[Result]
    target: str
    """The function that the ranks run; empty where the study's own process starts the launches."""
    shows_ranks: bool = False
    """Whether the number of ranks tells its cells apart."""
    shows_repeat: bool = False
    """Whether the number of the launch does."""


_JOBS = "twoscale.scaling._measure.jobs"

CAPACITY = CellKind("capacity", "largest batch", CapacityTask, CapacityRecord, "")
TUNE = CellKind("tune", "learning rates", TrainingTask, tuple[TrainedRun, ...], f"{_JOBS}:search_rates")
BATCHES = CellKind("batches", "batch sizes", BatchesTask, BatchesResult, f"{_JOBS}:time_batches", shows_repeat=True)
RANKS = CellKind(
    "ranks", "steps", RanksTask, tuple[EpochTime, ...], f"{_JOBS}:time_ranks", shows_ranks=True, shows_repeat=True
)
ARMS = CellKind("arms", "arms and bandwidth", ArmsTask, ArmsResult, f"{_JOBS}:run_arms", shows_ranks=True)
WIRE = CellKind("wire", "wire, replicas, sampler", WireTask, WireResult, f"{_JOBS}:write_wire", shows_ranks=True)
STRATEGIES = CellKind(
    "strategies", "strategies", StrategiesTask, StrategiesResult, f"{_JOBS}:compare_strategies", shows_ranks=True
)
LOADING = CellKind("loading", "data loading", LoadingTask, LoadingRecord, f"{_JOBS}:time_loading")
BREAKDOWN = CellKind(
    "breakdown", "parts of a step", BreakdownTask, BreakdownRecord, f"{_JOBS}:time_parts", shows_ranks=True
)
VARIANTS = CellKind("variants", "ways to run a step", VariantsTask, VariantsResult, f"{_JOBS}:run_variants")
OPTIMIZERS = CellKind("optimizers", "optimizers", OptimizersTask, OptimizersResult, f"{_JOBS}:run_optimizers")
NOISE = CellKind("noise", "batches and gradient noise", NoiseTask, NoiseResult, f"{_JOBS}:run_large_batch")
ACCURACY = CellKind(
    "accuracy", "accuracy", TrainingTask, tuple[TrainedRun, ...], f"{_JOBS}:train_runs", shows_repeat=True
)

KINDS: dict[str, CellKind[Any, Any]] = {
    kind.name: kind
    for kind in (
        CAPACITY,
        TUNE,
        BATCHES,
        RANKS,
        ARMS,
        WIRE,
        STRATEGIES,
        LOADING,
        BREAKDOWN,
        VARIANTS,
        OPTIMIZERS,
        NOISE,
        ACCURACY,
    )
}


@dataclass(frozen=True)
class StudyCell(Generic[Task]):
    """What one launch measures."""

    kind: CellName
    world_size: int
    repeat: int
    threads_per_rank: int
    device: Literal["cpu", "cuda"]
    arguments: Task
    """What the launch is given."""
    part: str = ""
    """Tells apart cells of one kind, number of ranks and repeat."""
    hosts: int = 1
    """That the ranks run on, an equal number on each."""

    @property
    def name(self) -> str:
        """Name of its file."""
        part = f"-{self.part}" if self.part else ""
        hosts = f"on{self.hosts}" if self.hosts > 1 else ""
        return f"{self.kind}{part}-{self.world_size}{hosts}-{self.repeat}"

    @property
    def title(self) -> str:
        """The cell in words."""
        kind = KINDS[self.kind]
        part = f" ({self.part})" if self.part else ""
        ranks = f", {RankGroup(self.world_size, self.hosts)}" if kind.shows_ranks else ""
        repeat = f", launch {self.repeat + 1}" if kind.shows_repeat else ""
        return f"{kind.title}{part}{ranks}{repeat}"


@dataclass(frozen=True)
class CellRecord(Generic[Task, Result]):
    """The file of a cell: its task and its outcome."""

    cell: StudyCell[Task]
    outcome: Outcome[Result]
    started: str
    """UTC, ISO 8601."""
    load: float | None
    """Processes that wanted a core in the minute before it began; None where the system does not count them."""
    machine: Machine | None = None
    """Where it was measured; None in files of earlier versions."""
    other_machines: tuple[Machine, ...] = ()
    """Those of the other hosts, in order."""

    @property
    def task(self) -> Task:
        """What its launch was given."""
        return self.cell.arguments

    @property
    def result(self) -> Result:
        """What its launch returned.

        Raises:
            TwoscaleError: it failed.
        """
        return self.outcome.value


def read_cell(file: Path) -> CellRecord[Any, Any]:
    """Read a cell's file.

    Raises:
        TwoscaleError: it cannot be read, or holds no cell.
    """
    try:
        # Twice: the kind says what types the rest has.
        kind = KINDS[read_record(file, CellRecord).cell.kind]
        record: CellRecord[Any, Any] = read_record(
            file,
            CellRecord[kind.task, kind.result],  # type: ignore[name-defined]
        )
        if record.outcome.ok and record.outcome.result is None:
            raise TwoscaleError(f"{file} does not hold a CellRecord record: there is no result")
    except TwoscaleError as error:
        raise TwoscaleError(f"{error}; remove the file to have that cell measured again") from error
    return record


def write_cell(file: Path, record: CellRecord[Any, Any]) -> None:
    """Write a cell's file, all of it or nothing."""
    write_record(file, record)


def same_cell(record: CellRecord[Any, Any], cell: StudyCell[Any]) -> bool:
    """Return whether a file holds the requested cell."""
    plain = msgspec.json.encode(cell)
    kind = KINDS[cell.kind]
    return bool(record.cell == msgspec.json.decode(plain, type=StudyCell[kind.task]))  # type: ignore[name-defined]


@dataclass(frozen=True)
class Measured:
    """Everything that a study measured."""

    config: StudyConfig
    records: tuple[CellRecord[Any, Any], ...]
    """Cells that were done, failed ones too."""
    left_out: tuple[StudyCell[Any], ...]
    """Cells that were skipped for lack of time."""
    environment: Environment
    """Of the machine."""
    gpus: tuple[str, ...] = ()
    """Names of those that ranks ran on, rank 0's first; empty on a processor."""
    hosts: tuple[StudyHost, ...] = ()
    """Of a study on several, in order; empty on one."""

    def of(self, kind: CellKind[Task, Result]) -> list[CellRecord[Task, Result]]:
        """Return the cells of a kind that have a result."""
        return [record for record in self.records if record.cell.kind == kind.name and record.outcome.ok]

"""The cells of a study: what each launch measures, and the order in which they run.

    capacity   the largest batch, each trial a launch
    tune       learning rates, on a part of the training images
    batches    steps of the bare module on one device with all cores, by batch size; the matrix rate
    ranks      steps at a number of ranks: the bare module (at more than one, replicas that never talk), DDP with weak
               and strong scaling
    arms       compute, communication and overlap at a number of ranks; bandwidth
    wire       ledger, replicas, sampler: nothing in it is timed
    accuracy   training runs at a small and a large batch

The first two decide what others do, and run first. The others run in rounds: every cell once in an order drawn by the
study's seed, then every cell that is repeated a second time in another order, and so on, so that a machine that gets
slower or faster does so for all. Training runs, whose time does not matter, come last.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from twoscale.errors import TwoscaleError
from twoscale.scaling._measure.records import CapacityRecord, Outcome, Workload, decode
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.machine import Machine

__all__ = ["COMPANION", "CellRecord", "StudyCell", "Way", "first_cells", "later_cells", "strong_batch", "ways"]

Kind = Literal["capacity", "tune", "batches", "ranks", "arms", "wire", "accuracy"]

COMPANION = "resnet20"
"""A small network with BatchNorm, for what a model without buffers cannot show."""
_NEEDS = {
    "capacity": {"batch"},
    "tune": {"accuracy"},
    "batches": {"batch", "speedup"},
    "ranks": {"speedup", "communication", "forecast"},
    "arms": {"communication", "forecast"},
    "wire": {"sampler", "wire", "replicas"},
    "accuracy": {"accuracy"},
}


@dataclass(frozen=True)
class StudyCell:
    """What one launch measures."""

    kind: Kind
    world_size: int
    repeat: int
    threads_per_rank: int
    device: Literal["cpu", "cuda"]
    arguments: dict[str, Any]
    """Of the function in ``twoscale.scaling._measure.jobs`` that has the kind's name; plain JSON values."""
    part: str = ""
    """Which, where a kind has several at one number of ranks."""

    @property
    def name(self) -> str:
        """Name of its file."""
        part = f"-{self.part}" if self.part else ""
        return f"{self.kind}{part}-{self.world_size}-{self.repeat}"


@dataclass(frozen=True)
class CellRecord:
    """A cell's file: what it was to do, and what became of it."""

    cell: StudyCell
    outcome: Outcome
    started: str
    """UTC, ISO 8601."""
    load: float | None
    """Processes that wanted a core in the minute before it began; None where the system does not say."""
    machine: Machine | None = None
    """Where it was measured; None in files of earlier versions."""


@dataclass(frozen=True)
class Way:
    """One way to train, to be compared with the small batch."""

    name: str
    title: str
    large: bool
    """Whether it has the large batch."""
    rates: tuple[float, ...]
    """Learning rates to choose from; the first where they are not tuned."""
    options: dict[str, Any]
    """Of the training run."""


def ways(config: StudyConfig) -> tuple[Way, ...]:
    """Return the ways to train that are compared, the small batch first.

    The base learning rate is for the small batch. The linear rule (Goyal et al. 2017) multiplies it with the batch's
    growth and warms up; LARS, LAMB and AdamW have rates of their own.
    """
    small, large = config.accuracy_batches
    base, lars, lamb, adamw = (0.1, 8.0, 0.01, 0.002) if config.device == "cuda" else (0.02, 16.0, 0.02, 0.004)
    # At so few images an epoch is a handful of steps: a warm-up of some steps at least.
    warm = {"warmup_epochs": max(1.0, config.epochs / 4), "warmup_steps": 5}

    def around(rate: float) -> tuple[float, ...]:
        return (rate, rate / 2, rate * 2)

    return (
        Way("small", f"SGD, batch {small}", False, around(base), {"optimizer": "sgd"}),
        Way("plain", f"SGD, batch {large}, nothing changed", True, (base,), {"optimizer": "sgd"}),
        Way("linear", f"SGD, batch {large}, linear scaling and warm-up", True, (base,),
            {"optimizer": "sgd", "base_batch": small, **warm}),
        Way("tuned", f"SGD, batch {large}, rate tuned, warm-up", True, (4 * base, 2 * base, 8 * base),
            {"optimizer": "sgd", **warm}),
        Way("lars", f"LARS, batch {large}, warm-up", True, around(lars), {"optimizer": "lars", **warm}),
        Way("lamb", f"LAMB, batch {large}, warm-up", True, around(lamb), {"optimizer": "lamb", **warm}),
        Way("adamw", f"AdamW, batch {large}, warm-up", True, around(adamw), {"optimizer": "adamw", **warm}),
    )  # fmt: skip


def _lanes(config: StudyConfig, runs: int) -> int:
    """Return how many processes share training runs whose time does not matter, each on a core or GPU of its own."""
    return min(runs, config.world_sizes[-1] if config.device == "cuda" else config.cores)


def _workload(config: StudyConfig, batch_size: int) -> Workload:
    return Workload(
        model=config.model,
        data=config.data,
        batch_size=batch_size,
        device=config.device,
        precision=config.precision,
        channels_last=config.channels_last,
        seed=config.seed,
    )


def strong_batch(config: StudyConfig, world_size: int) -> int:
    """Return the batch per rank at which all ranks together have the base batch of one."""
    return max(1, config.base_batch // world_size)


def _wanted(config: StudyConfig, kind: Kind) -> bool:
    return bool(_NEEDS[kind] & set(config.sections))


def _plain(**arguments: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(arguments))
    return plain


def first_cells(config: StudyConfig) -> tuple[StudyCell, ...]:
    """Return the cells on which others depend."""
    cells = []
    if _wanted(config, "capacity"):
        # Without the tolerance: with less time the search is coarser, and what it found is kept all the same.
        start = _plain(workload=_workload(config, 1), start=config.batch_sizes[-1])
        cells.append(StudyCell("capacity", 1, 0, config.cores, config.device, start))
    if _wanted(config, "tune") and config.tune:
        arguments = _plain(
            runs=[
                {"way": way.name, "rate": rate, "config": _run(config, way, rate, seed=config.seed + 1000)}
                for way in ways(config)
                if len(way.rates) > 1
                for rate in way.rates
            ]
        )
        lanes = _lanes(config, len(arguments["runs"]))
        cells.append(StudyCell("tune", lanes, 0, max(1, config.cores // lanes), config.device, arguments))
    return tuple(cells)


def _run(config: StudyConfig, way: Way, rate: float, *, seed: int, equal: str = "epochs") -> dict[str, Any]:
    """Return the configuration of a training run."""
    small, large = config.accuracy_batches
    longer = max(1, round(large / small)) if equal == "steps" else 1
    # Without compiling, which would take each run longer than its steps.
    on_gpus = {"crop": 4, "flip": "random", "weight_decay": 5e-4, "step": "cuda-graph"}
    gpu: dict[str, Any] = on_gpus if config.device == "cuda" else {}
    return {
        "model": config.model,
        "data": config.data,
        "device": config.device,
        "precision": config.precision,
        "channels_last": config.channels_last,
        "batch_size": large if way.large else small,
        "epochs": config.epochs * longer,
        "lr": rate,
        "seed": seed,
        "schedule": "cosine",
        **gpu,
        **way.options,
    }


def later_cells(config: StudyConfig, first: Mapping[str, Outcome]) -> tuple[StudyCell, ...]:
    """Return all other cells in the order in which they run.

    Args:
        config: of the study.
        first: outcomes of :func:`first_cells`, by kind; a failed one is as if its question had not been asked.
    """
    generator = random.Random(config.seed)
    ordered: list[StudyCell] = []
    for repeat in range(config.repeats):
        cells = _timed(config, _largest(first), repeat)
        if repeat == 0:
            cells += [*_arms(config), *_wire(config)]
        generator.shuffle(cells)
        ordered += cells
    return (*ordered, *_accuracy(config, _rates(config, first)))


def _largest(first: Mapping[str, Outcome]) -> int | None:
    """Return the largest batch that fits, where it was found."""
    outcome = first.get("capacity")
    if outcome is None or not outcome.ok:
        return None
    return outcome.record(CapacityRecord).largest


def _timed(config: StudyConfig, largest: int | None, repeat: int) -> list[StudyCell]:
    cells = []
    if _wanted(config, "batches"):
        # Without its section, of one device only what ranks are compared with.
        sizes = {*config.batch_sizes, *([largest] if largest else [])} if "batch" in config.sections else set[int]()
        fitting = sorted({config.base_batch, *(size for size in sizes if largest is None or size <= largest)})
        groups: Sequence[Sequence[int]] = [[size] for size in fitting] if config.separate else [fitting]
        for group in groups:
            arguments = _plain(
                workload=_workload(config, 1),
                batch_sizes=group,
                peak=repeat == 0 and group is groups[0],
                order_seed=config.seed + repeat,
            )
            part = f"b{group[0]}" if config.separate else ""
            cells.append(StudyCell("batches", 1, repeat, config.cores, config.device, arguments, part))
    if _wanted(config, "ranks"):
        for n in config.world_sizes:
            runs = [("bare", config.base_batch)]
            runs += [("ddp", size) for size in dict.fromkeys((config.base_batch, strong_batch(config, n)))]
            arguments = _plain(workload=_workload(config, 1), runs=runs, order_seed=config.seed + repeat)
            cells.append(StudyCell("ranks", n, repeat, config.threads_per_rank, config.device, arguments))
    return cells


def _arms(config: StudyConfig) -> list[StudyCell]:
    if not _wanted(config, "arms"):
        return []
    # Two batch sizes at each number of ranks: a forecast of one can then be made from the others.
    sizes = [config.base_batch, 2 * config.base_batch]
    return [
        StudyCell("arms", n, 0, config.threads_per_rank, config.device,
                  _plain(workload=_workload(config, 1), batch_sizes=sizes, bandwidth=n > 1))
        for n in config.world_sizes
    ]  # fmt: skip


def _wire(config: StudyConfig) -> list[StudyCell]:
    if not _wanted(config, "wire"):
        return []
    # Where there is one GPU, two processes on the processor show the same bytes and hashes.
    on_gpus = config.device == "cuda" and config.world_sizes[-1] > 1
    world_size = max(2, config.world_sizes[-1]) if on_gpus else 2
    device: Literal["cpu", "cuda"] = "cuda" if on_gpus else "cpu"
    workload = replace(_workload(config, 4), device=device, precision="fp32", channels_last=False, data="synthetic")
    parts = [name for name in ("sampler", "wire", "replicas") if name in config.sections]
    arguments = _plain(workload=workload, companion=COMPANION, parts=parts, data=config.data)
    return [StudyCell("wire", world_size, 0, 1, device, arguments)]


def _rates(config: StudyConfig, first: Mapping[str, Outcome]) -> dict[str, float]:
    """Return the learning rate of each way: the best that was tried, else the first."""
    rates = {way.name: way.rates[0] for way in ways(config)}
    outcome = first.get("tune")
    if outcome is not None and outcome.ok:
        best: dict[str, float] = {}
        for run in outcome.result:
            accuracy = run["accuracy"]
            if accuracy is not None and accuracy > best.get(run["way"], -1.0):
                best[run["way"]] = accuracy
                rates[run["way"]] = run["rate"]
        # What is only scaled is scaled from what was best at the small batch.
        rates["plain"] = rates["linear"] = rates["small"]
    return rates


def _accuracy(config: StudyConfig, rates: Mapping[str, float]) -> list[StudyCell]:
    if not _wanted(config, "accuracy"):
        return []
    runs: list[dict[str, Any]] = []
    for seed in range(config.seeds):
        for way in ways(config):
            for equal in ("epochs", "steps") if way.large else ("epochs",):
                run = _run(config, way, rates[way.name], seed=config.seed + seed, equal=equal)
                runs.append({"way": way.name, "equal": equal, "config": run})
    if config.separate or config.device == "cuda":
        # Minutes each on a GPU: a study that is killed loses no more than one.
        return [
            StudyCell("accuracy", 1, run["config"]["seed"] - config.seed, config.cores, config.device,
                      _plain(runs=[run]), f"{run['way']}-{run['equal']}")
            for run in runs
        ]  # fmt: skip
    lanes = _lanes(config, len(runs))
    return [StudyCell("accuracy", lanes, 0, max(1, config.cores // lanes), config.device, _plain(runs=runs))]


def check_machine(record: CellRecord, here: Machine, file: str) -> None:
    """Check that a cell was measured where a study goes on: its times are compared with those that follow.

    Raises:
        TwoscaleError: it was measured elsewhere, or with another PyTorch.
    """
    if record.machine is not None and (different := record.machine.differences(here)):
        raise TwoscaleError(
            f"{file} was measured elsewhere ({different}), and times of both do not compare; go on where it was, or "
            "choose another --out"
        )


def check_same(record: CellRecord, cell: StudyCell, file: str) -> None:
    """Check that a file holds the cell that is wanted.

    Raises:
        TwoscaleError: it holds another study's.
    """
    if record.cell != decode(_plain(cell=cell)["cell"], StudyCell):
        raise TwoscaleError(
            f"{file} was measured with other options; continue with those it began with, or choose another --out"
        )

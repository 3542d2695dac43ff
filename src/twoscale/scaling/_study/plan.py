"""Which cells a study measures, and the order in which they run.

    capacity   the largest batch, each trial a launch
    tune       learning rates, on a part of the training images
    batches    steps of the bare module on one device with all cores, by batch size; the matrix rate
    ranks      steps at a number of ranks: the bare module (at more than one, replicas that never talk), DDP with weak
               and strong scaling
    arms       compute, communication and overlap at a number of ranks; bandwidth
    wire       ledger, replicas, sampler: nothing in it is timed
    strategies ways to share a step among the most ranks of one host
    loading    a training loop by the number of workers that decode its batches
    breakdown  the parts of a step on one rank and on the most of one host
    variants   a step on one device, compiled or not, in several precisions and memory layouts
    optimizers training with every optimizer, and without BatchNorm
    noise      training by batch size, the noise of gradients, and remedies for a large batch
    accuracy   training runs at a small and a large batch

The first two decide what others do, and run first. The others run in rounds: every cell once in an order drawn by the
study's seed, then every cell that is repeated a second time in another order, and so on, so that a machine that gets
slower or faster affects all cells alike. Training runs, whose time does not matter, come last.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from twoscale.scaling._measure.records import CapacityRecord, Outcome, Workload, is_own
from twoscale.scaling._measure.tasks import (
    Arm,
    ArmsTask,
    BatchesTask,
    BreakdownTask,
    CapacityTask,
    Equal,
    LoadingTask,
    NoiseTask,
    OptimizersTask,
    RanksTask,
    StrategiesTask,
    TrainedRun,
    TrainingRun,
    TrainingTask,
    VariantsTask,
    WireTask,
)
from twoscale.scaling._study.cells import CellName, StudyCell
from twoscale.scaling._study.config import StudyConfig
from twoscale.training import TrainConfig

__all__ = ["COMPANION", "Need", "Way", "first_cells", "later_cells", "strong_batch", "verdict_cells", "ways"]

Need = Literal[
    "capacity",
    "batches",
    "one device",
    "ranks",
    "arms",
    "sampler",
    "wire",
    "replicas",
    "strategies",
    "loading",
    "breakdown",
    "variants",
    "optimizers",
    "noise",
    "accuracy",
]
"""What a question needs measured: a kind of cell, or a part of one."""

_WORKERS = (0, 1, 2, 4)
"""That decode pictures; more where there are more cores."""
_ARM_STEPS = 5
"""Most steps in each turn of an arm: rounds, not steps, make their intervals narrow."""
_NOISE_SEEDS = 8
"""Fewest runs of each batch and remedy: differences of a few percent must show."""
_NOISE_GROWTH = 4
"""The largest of these batches is so many times the large batch of the training runs that are compared."""
COMPANION = "resnet20"
"""A small network with BatchNorm, for what a model without buffers cannot show."""
_PARTS_OF_WIRE: tuple[Need, ...] = ("sampler", "wire", "replicas")
Outcomes = Mapping[CellName, Outcome[Any]]


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
        return (rate, rate / 2, rate * 2, rate / 4, rate * 4)

    return (
        Way("small", f"SGD, batch {small}", False, around(base), {"optimizer": "sgd"}),
        Way("plain", f"SGD, batch {large}, nothing changed", True, (base,), {"optimizer": "sgd"}),
        Way("linear", f"SGD, batch {large}, linear scaling and warm-up", True, (base,),
            {"optimizer": "sgd", "base_batch": small, **warm}),
        # From the smallest rate that the small batch may have to the highest that linear scaling may make of one.
        Way("tuned", f"SGD, batch {large}, rate tuned, warm-up", True,
            (4 * base, base, 2 * base, 8 * base, base / 2, base / 4, 16 * base),
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
        model_args=config.model_args,
        data=config.data,
        batch_size=batch_size,
        device=config.device,
        precision=config.precision,
        channels_last=config.channels_last,
        seed=config.seed,
        preprocessing=config.preprocessing,
        own_step=config.own_step,
    )


def strong_batch(config: StudyConfig, world_size: int) -> int:
    """Return the batch per rank at which all ranks together have the base batch of one."""
    return max(1, config.base_batch // world_size)


def first_cells(config: StudyConfig, needs: Collection[Need]) -> tuple[StudyCell[Any], ...]:
    """Return the cells on which others depend."""
    cells: list[StudyCell[Any]] = []
    if "capacity" in needs:
        # Without the tolerance: with less time the search is coarser, and what it found is kept all the same.
        task = CapacityTask(_workload(config, 1), start=config.batch_sizes[-1])
        cells.append(StudyCell("capacity", 1, 0, config.cores, config.device, task))
    if "accuracy" in needs and config.tune:
        runs = tuple(
            TrainingRun(way.name, _run(config, way, rate, seed=config.seed + 1000, equal=equal), equal)
            for way in ways(config)
            if len(way.rates) > 1
            for equal in _searched(config, way)
            for rate in way.rates
        )
        lanes = _lanes(config, len(runs))
        threads = max(1, config.cores // lanes)
        cells.append(StudyCell("tune", lanes, 0, threads, config.device, TrainingTask(runs)))
    return tuple(cells)


def _searched(config: StudyConfig, way: Way) -> tuple[Equal, ...]:
    """Return the lengths of runs that a learning rate is searched for.

    A rate that is best for short runs may diverge in longer ones. On a GPU, where the longer ones take minutes each,
    the short ones decide for both.
    """
    return ("epochs", "steps") if way.large and config.device == "cpu" else ("epochs",)


def _run(config: StudyConfig, way: Way, rate: float, *, seed: int, equal: Equal = "epochs") -> TrainConfig:
    """Return the configuration of a training run."""
    small, large = config.accuracy_batches
    longer = max(1, round(large / small)) if equal == "steps" else 1
    options: dict[str, Any] = {}
    if config.device == "cuda":
        # Without compiling, which would take each run longer than its steps.
        options = {"crop": 4, "flip": "random", "weight_decay": 5e-4, "step": "cuda-graph"}
    return TrainConfig(
        model=config.model,
        model_args=config.model_args,
        data=config.data,
        preprocessing=config.preprocessing,
        device=config.device,
        precision=config.precision,
        channels_last=config.channels_last,
        batch_size=large if way.large else small,
        epochs=config.epochs * longer,
        lr=rate,
        seed=seed,
        schedule="cosine",
        **options,
        **way.options,
    )


def later_cells(config: StudyConfig, needs: Collection[Need], first: Outcomes) -> tuple[StudyCell[Any], ...]:
    """Return all other cells in the order in which they run.

    Args:
        config: of the study.
        needs: what its questions need measured.
        first: outcomes of :func:`first_cells`, by kind; a failed one is as if its question had not been asked.
    """
    generator = random.Random(config.seed)
    ordered: list[StudyCell[Any]] = []
    for repeat in range(config.repeats):
        cells = _timed(config, needs, _largest(first), repeat)
        if repeat == 0:
            cells += [*_arms(config, needs), *_wire(config, needs), *_strategies(config, needs), *_parts(config, needs)]
        generator.shuffle(cells)
        ordered += cells
    return (*ordered, *_accuracy(config, needs, _rates(config, first)))


def verdict_cells(cells: Sequence[StudyCell[Any]]) -> tuple[StudyCell[Any], ...]:
    """Return the cells that the verdict needs: of the first round, the steps and the arms."""
    return tuple(cell for cell in cells if cell.kind in ("ranks", "arms") and cell.repeat == 0)


def _largest(first: Outcomes) -> int | None:
    """Return the largest batch that fits, where it was found."""
    outcome = first.get("capacity")
    if outcome is None or not outcome.ok:
        return None
    record: CapacityRecord = outcome.value
    return record.largest


def _timed(config: StudyConfig, needs: Collection[Need], largest: int | None, repeat: int) -> list[StudyCell[Any]]:
    cells: list[StudyCell[Any]] = []
    if "batches" in needs or "one device" in needs:
        # Otherwise, of one device only what ranks are compared with.
        sizes = {*config.batch_sizes, *([largest] if largest else [])} if "batches" in needs else set[int]()
        fitting = sorted({config.base_batch, *(size for size in sizes if largest is None or size <= largest)})
        groups: Sequence[Sequence[int]] = [[size] for size in fitting] if config.separate else [fitting]
        for group in groups:
            task = BatchesTask(
                workload=_workload(config, 1),
                batch_sizes=tuple(group),
                peak=repeat == 0 and group is groups[0],
                order_seed=config.seed + repeat,
                steps=config.steps,
            )
            part = f"b{group[0]}" if config.separate else ""
            cells.append(StudyCell("batches", 1, repeat, config.cores, config.device, task, part))
    if "ranks" in needs:
        for ranks in config.groups:
            n = ranks.world_size
            runs: list[tuple[Arm, int]] = [("bare", config.base_batch)]
            # The batch of a step of the user's own is its loader's.
            sizes_of_ddp = (config.base_batch, *(() if config.own_step else (strong_batch(config, n),)))
            runs += [("ddp", size) for size in dict.fromkeys(sizes_of_ddp)]
            if n > 1:
                runs.append(("silent", config.base_batch))
            for size in config.grid_batches:
                runs += [(arm, size) for arm in (("bare", "ddp") if n == 1 else ("ddp",)) if (arm, size) not in runs]
            steps = RanksTask(_workload(config, 1), tuple(runs), config.seed + repeat, config.steps)
            cells.append(
                StudyCell("ranks", n, repeat, config.threads_per_rank, config.device, steps, hosts=ranks.hosts)
            )
    return cells


def _arms(config: StudyConfig, needs: Collection[Need]) -> list[StudyCell[Any]]:
    if "arms" not in needs:
        return []
    # At least two batch sizes at each number of ranks: a forecast of one can then be made from the others.
    sizes = tuple(sorted({*config.rank_batches, *(() if config.own_step else (2 * config.base_batch,))}))
    turn = None if config.steps is None else min(config.steps, _ARM_STEPS)
    return [
        StudyCell("arms", n.world_size, 0, config.threads_per_rank, config.device,
                  ArmsTask(_workload(config, 1), sizes, bandwidth=n.world_size > 1, steps=turn), hosts=n.hosts)
        for n in config.groups
    ]  # fmt: skip


def _strategies(config: StudyConfig, needs: Collection[Need]) -> list[StudyCell[Any]]:
    if "strategies" not in needs or config.world_sizes[-1] == 1:
        return []
    turn = None if config.steps is None else min(config.steps, _ARM_STEPS)
    task = StrategiesTask(_workload(config, config.base_batch), turn, config.seeds)
    return [StudyCell("strategies", config.world_sizes[-1], 0, config.threads_per_rank, config.device, task)]


def _parts(config: StudyConfig, needs: Collection[Need]) -> list[StudyCell[Any]]:
    """Return the cells about what a step consists of and what it waits for."""
    cells: list[StudyCell[Any]] = []
    workload = _workload(config, config.base_batch)
    if "loading" in needs:
        cores = config.cores
        workers = tuple(sorted({*_WORKERS, *(1 << i for i in range(cores.bit_length()) if 1 << i <= min(cores, 32))}))
        loading = LoadingTask(workload, workers, config.steps)
        cells.append(StudyCell("loading", 1, 0, config.cores, config.device, loading))
    if "breakdown" in needs:
        for ranks in dict.fromkeys((1, config.world_sizes[-1])):
            task = BreakdownTask(workload, config.steps)
            cells.append(StudyCell("breakdown", ranks, 0, config.threads_per_rank, config.device, task))
    if "variants" in needs:
        variants = VariantsTask(workload, config.steps)
        cells.append(StudyCell("variants", 1, 0, config.cores, config.device, variants))
    if "optimizers" in needs:
        optimizers = OptimizersTask(workload, COMPANION, config.epochs, config.seeds)
        cells.append(StudyCell("optimizers", 1, 0, config.cores, config.device, optimizers))
    if "noise" in needs:
        noise = NoiseTask(workload, _noise_batches(config), config.epochs, max(_NOISE_SEEDS, config.seeds))
        cells.append(StudyCell("noise", 1, 0, config.cores, config.device, noise))
    return cells


def _noise_batches(config: StudyConfig) -> tuple[int, ...]:
    """Return the batch sizes of training runs, each four times the one before, from the small batch to beyond the
    large."""
    small, large = config.accuracy_batches
    return (small, *(small << i for i in range(2, (_NOISE_GROWTH * large // small).bit_length(), 2)))


def _wire(config: StudyConfig, needs: Collection[Need]) -> list[StudyCell[Any]]:
    parts = tuple(part for part in _PARTS_OF_WIRE if part in needs)
    if not parts:
        return []
    # Where there is one GPU, two processes on the processor show the same bytes and hashes.
    on_gpus = config.device == "cuda" and config.world_sizes[-1] > 1
    world_size = max(2, config.world_sizes[-1]) if on_gpus else 2
    device: Literal["cpu", "cuda"] = "cuda" if on_gpus else "cpu"
    workload = replace(_workload(config, 4), device=device, precision="fp32", channels_last=False)
    if not config.own_step and not is_own(config.data):  # a model of the user's own pictures takes those alone
        workload = replace(workload, data="synthetic")
    cells = [StudyCell("wire", world_size, 0, 1, device, WireTask(workload, COMPANION, parts, config.data))]
    if config.hosts[-1] > 1 and "wire" in parts:
        # What crosses between hosts; replicas and the sampler do not depend on where ranks run.
        task = WireTask(replace(workload, device=config.device), COMPANION, ("wire",), config.data)
        hosts = config.hosts[-1]
        cells.append(StudyCell("wire", hosts, 0, 1, config.device, task, hosts=hosts))
    return cells


def _rates(config: StudyConfig, first: Outcomes) -> dict[tuple[str, Equal], float]:
    """Return the learning rate of each way and length: the best that was tried, else the first."""
    equals: tuple[Equal, ...] = ("epochs", "steps")
    rates = {(way.name, equal): way.rates[0] for way in ways(config) for equal in equals}
    outcome = first.get("tune")
    if outcome is not None and outcome.ok:
        runs: tuple[TrainedRun, ...] = outcome.value
        best: dict[tuple[str, Equal], float] = {}
        for run in runs:
            # The search of earlier versions was for equal epochs only, and did not say so.
            key = run.way, run.equal or "epochs"
            if run.accuracy is not None and run.accuracy > best.get(key, -1.0):
                best[key] = run.accuracy
                rates[key] = run.config.lr
        for way in ways(config):
            if (way.name, "steps") not in best:
                rates[way.name, "steps"] = rates[way.name, "epochs"]
        # What is only scaled is scaled from what was best at the small batch.
        for name in ("plain", "linear"):
            for equal in equals:
                rates[name, equal] = rates["small", "epochs"]
    return rates


def _accuracy(
    config: StudyConfig, needs: Collection[Need], rates: Mapping[tuple[str, Equal], float]
) -> list[StudyCell[Any]]:
    if "accuracy" not in needs:
        return []
    equals: tuple[Equal, ...] = ("epochs", "steps")
    runs = [
        TrainingRun(way.name, _run(config, way, rates[way.name, equal], seed=config.seed + seed, equal=equal), equal)
        for seed in range(config.seeds)
        for way in ways(config)
        for equal in (equals if way.large else equals[:1])
    ]
    if config.separate or config.device == "cuda":
        # Each takes minutes on a GPU: a study that is killed loses at most one.
        return [
            StudyCell("accuracy", 1, run.config.seed - config.seed, config.cores, config.device,
                      TrainingTask((run,)), f"{run.way}-{run.equal}")
            for run in runs
        ]  # fmt: skip
    lanes = _lanes(config, len(runs))
    threads = max(1, config.cores // lanes)
    return [StudyCell("accuracy", lanes, 0, threads, config.device, TrainingTask(tuple(runs)))]

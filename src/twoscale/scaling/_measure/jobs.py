"""The functions that the ranks of a study's cells run: several measurements of this package in one launch.

Several measurements share a launch because starting Python and PyTorch takes longer than most of them. They run one
after the other in an order drawn for each launch; memory is freed between them. Each cell that is repeated is
repeated in a fresh launch.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist

from twoscale import training
from twoscale._files import write_bytes
from twoscale.data import Dataset, Split
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.agents import AT_WORK, FOLDER
from twoscale.scaling._measure.arms import measure_arms
from twoscale.scaling._measure.bandwidth import measure_bandwidth
from twoscale.scaling._measure.breakdown import break_down
from twoscale.scaling._measure.clocks import Loop
from twoscale.scaling._measure.comparison import compare, compare_data_parallel
from twoscale.scaling._measure.large_batch import measure_large_batch
from twoscale.scaling._measure.ledger import write_ledger
from twoscale.scaling._measure.loading import measure_loading
from twoscale.scaling._measure.optimizers import compare_optimizers
from twoscale.scaling._measure.peak import Precision, measure_peak
from twoscale.scaling._measure.records import (
    BreakdownRecord,
    EpochTime,
    LoadingRecord,
    OrderRow,
    SamplerRecord,
    Workload,
)
from twoscale.scaling._measure.replicas import hash_replicas, sampler_orders
from twoscale.scaling._measure.tasks import (
    Arm,
    ArmsResult,
    ArmsTask,
    BatchesResult,
    BatchesTask,
    BatchTrial,
    BreakdownTask,
    CurvePoint,
    LoadingTask,
    NoiseResult,
    NoiseTask,
    OptimizersResult,
    OptimizersTask,
    RanksTask,
    StrategiesResult,
    StrategiesTask,
    TrainedRun,
    TrainingRun,
    TrainingTask,
    VariantsResult,
    VariantsTask,
    WireResult,
    WireTask,
)
from twoscale.scaling._measure.variants import compare_variants
from twoscale.scaling._measure.workload import create_model, device_of, load_images, training_images

__all__ = [
    "compare_strategies",
    "run_arms",
    "run_large_batch",
    "run_optimizers",
    "run_variants",
    "search_rates",
    "time_batches",
    "time_loading",
    "time_parts",
    "time_ranks",
    "train_runs",
    "write_wire",
]

T = TypeVar("T")

_STEPS = {"cpu": (3, 30, 3_000), "cuda": (5, 60, 30_000)}
"""Fewest and most steps of a timed run, and the images that it should reach."""
_REPEATS = 3
"""Timed runs in a launch; their median counts."""
_LEAST_WARMUP = 2
"""DDP's first step sends everything at once, and its buckets are made anew before the second."""
_ARM_STEPS = 5
"""Steps in each turn of an arm."""
_LOADING_STEPS = 10
_BREAKDOWN_STEPS = 12
_VALIDATION = 10
"""One training image in this many is held out to choose learning rates."""
_SHOWN = 12
"""Images of the data set whose orders are written down."""


def _steps(device: str, batch_size: int) -> int:
    """Return how many steps a timed run has: fixed by the batch size, never by the clock."""
    least, most, images = _STEPS[device]
    return min(most, max(least, images // batch_size))


def _at_work(what: str) -> None:
    """Report what this launch is doing to the process that waits for it."""
    if dist.get_rank() == 0:
        write_bytes(Path(os.environ[FOLDER]) / AT_WORK, what.encode())


def _clear(device: torch.device) -> None:
    """Free memory, and measure its peak from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set (Linux)


def _loop(workload: Workload, arm: Arm, batch_size: int, steps: int | None) -> Loop:
    """Return a loop at a batch size, warmed up."""
    _at_work(f"{arm}, batch {batch_size}, warm-up")
    steps = steps or _steps(workload.device, batch_size)
    return Loop(replace(workload, batch_size=batch_size), arm, steps=steps, warmup=max(_LEAST_WARMUP, min(5, steps)))


def _time(workload: Workload, batch_size: int, steps: int | None) -> EpochTime:
    """Time the bare module at a batch size, alone in memory."""
    _clear(device_of(workload))
    loop = _loop(workload, "bare", batch_size, steps)
    for i in range(_REPEATS):
        _at_work(f"batch {batch_size}, run {i + 1} of {_REPEATS}")
        loop.run()
    return loop.time()


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Return ``items`` in another order; the same on every rank."""
    return random.Random(seed).sample(list(items), len(items))


def time_batches(task: BatchesTask) -> BatchesResult:
    """Time the bare module at several batch sizes; if one does not fit, the others are still timed."""
    workload = task.workload
    device = device_of(workload)
    rows = []
    for batch_size in _shuffled(task.batch_sizes, task.order_seed):
        record, message = None, ""
        try:
            record = _time(workload, batch_size, task.steps)
        except torch.OutOfMemoryError as error:
            message = " ".join(str(error).split())
        rows.append(BatchTrial(batch_size, record, message))
    _clear(device)
    peak = None
    if task.peak:
        # On a GPU PyTorch runs convolutions of float32 in TF32 by default.
        precision: Precision = (
            "bf16" if workload.precision == "bf16" else "tf32" if workload.device == "cuda" else "fp32"
        )
        peak = measure_peak(device, precision=precision, budget_seconds=3.0, repeats=5)
    return BatchesResult(tuple(sorted(rows, key=lambda row: row.batch_size)), peak)


def time_ranks(task: RanksTask) -> tuple[EpochTime, ...]:
    """Time the module, bare or in DDP, on the ranks of this launch.

    Every arm has one run in turn, then every arm another: what else the machine does falls on all of them.
    """
    _clear(device_of(task.workload))
    loops = {run: _loop(task.workload, *run, task.steps) for run in _shuffled(task.runs, task.order_seed)}
    order = list(loops)
    for i in range(_REPEATS):
        shift = i % len(order)
        for arm, size in order[shift:] + order[:shift]:
            _at_work(f"{arm}, batch {size}, run {i + 1} of {_REPEATS}")
            loops[arm, size].run()
    # Operations are counted once: in the bare module. Memory is that of all loops together, and says nothing.
    return tuple(loops[run].time(flops=run[0] == "bare", memory=False) for run in task.runs)


def run_arms(task: ArmsTask) -> ArmsResult:
    """Run the arms at several batch sizes, and collectives alone."""
    workload = task.workload
    device = device_of(workload)
    found = []
    for batch_size in task.batch_sizes:
        _clear(device)

        def report(part: str, batch_size: int = batch_size) -> None:
            _at_work(f"batch {batch_size}, {part}")

        found.append(
            measure_arms(replace(workload, batch_size=batch_size), steps=task.steps or _ARM_STEPS, watch=report)
        )
    bandwidth = None
    if task.bandwidth:
        _at_work("bandwidth")
        _clear(device)
        bandwidth = measure_bandwidth(device, repeats=10, budget_seconds=5.0)
    return ArmsResult(tuple(found), bandwidth)


def compare_strategies(task: StrategiesTask) -> StrategiesResult:
    """Compare ways to share a step among the ranks of this launch."""
    steps = task.steps or _ARM_STEPS
    found = compare(task.workload, steps=steps, seeds=task.seeds, watch=_at_work)
    if task.workload.device == "cpu":
        return found
    return (*found, compare_data_parallel(task.workload, found[0], steps=steps))


def time_loading(task: LoadingTask) -> LoadingRecord:
    """Time a training loop by the number of workers that decode its batches."""
    return measure_loading(task.workload, workers=task.workers, steps=task.steps or _LOADING_STEPS, watch=_at_work)


def time_parts(task: BreakdownTask) -> BreakdownRecord:
    """Time the parts of a step."""
    return break_down(task.workload, steps=task.steps or _BREAKDOWN_STEPS, watch=_at_work)


def run_variants(task: VariantsTask) -> VariantsResult:
    """Time a step on one device in several ways."""
    return compare_variants(task.workload, steps=task.steps or _ARM_STEPS, watch=_at_work)


def run_optimizers(task: OptimizersTask) -> OptimizersResult:
    """Train with every optimizer, and without BatchNorm."""
    return compare_optimizers(task.workload, task.companion, epochs=task.epochs, seeds=task.seeds, watch=_at_work)


def run_large_batch(task: NoiseTask) -> NoiseResult:
    """Train at several batch sizes, estimate the noise of gradients, and compare remedies."""
    return measure_large_batch(task.workload, task.batch_sizes, epochs=task.epochs, seeds=task.seeds, watch=_at_work)


def write_wire(task: WireTask) -> WireResult:
    """Write the ledger, hash replicas and record the sampler's orders; nothing is timed.

    Where the workload's model has no buffers, its companion, which has some, is measured too.
    """
    workloads = [task.workload]
    if not any(True for _ in create_model(task.workload).buffers()):
        workloads.append(
            replace(
                task.workload,
                model=task.companion,
                model_args=None,
                data="synthetic",
                preprocessing=None,
                own_step=False,
            )
        )
    orders, shown = _orders(task) if "sampler" in task.parts else ((), ())
    return WireResult(
        ledgers=tuple(write_ledger(one) for one in workloads) if "wire" in task.parts else (),
        replicas=tuple(hash_replicas(one, steps=4) for one in workloads) if "replicas" in task.parts else (),
        orders=orders,
        shown=shown,
    )


def _orders(task: WireTask) -> tuple[tuple[OrderRow, ...], tuple[SamplerRecord, ...]]:
    """Summarize the orders of a whole data set, which are too long to keep, and return those of a few images."""
    samples = len(training_images(replace(task.workload, data=task.data))[0])
    rows, shown = [], []
    for set_epoch in (False, True):
        whole = sampler_orders(samples, dist.get_world_size(), epochs=3, set_epoch=set_epoch)
        first = whole.orders[0]
        same = tuple(
            sum(a == b for mine, then in zip(order, first, strict=True) for a, b in zip(mine, then, strict=True))
            / sum(map(len, first))
            for order in whole.orders
        )
        rows.append(OrderRow(set_epoch, same, replace(whole, orders=())))
        shown.append(sampler_orders(_SHOWN, dist.get_world_size(), epochs=3, set_epoch=set_epoch))
    return tuple(rows), tuple(shown)


# ---------------------------------------------------------------- accuracy


_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def _leave_group() -> None:
    """Let this rank train by itself: without the process group and the environment variables of one."""
    dist.destroy_process_group()
    for name in _PLACE:
        os.environ.pop(name, None)


def _train(run: TrainingRun, dataset: Dataset) -> TrainedRun:
    """Train once; a run whose loss became infinite has a message instead of an accuracy."""
    config = replace(run.config, threads=torch.get_num_threads())
    try:
        record = training.train(config, dataset, progress=False).record
    except ConfigurationError as error:
        return TrainedRun(run.way, run.config, run.equal, message=str(error))
    return TrainedRun(
        run.way,
        run.config,
        run.equal,
        accuracy=record.test_accuracy,
        steps=record.mini_batches,
        seconds=record.seconds,
        loss=record.epochs[-1].loss if record.epochs else None,
        curve=tuple(CurvePoint(i, epoch.loss, epoch.accuracy) for i, epoch in enumerate(record.epochs, 1)),
    )


def _train_all(runs: Sequence[TrainingRun], dataset: Dataset) -> tuple[TrainedRun, ...]:
    """Train every run. Runs are assigned to the ranks of this launch by length, and each rank trains alone."""
    rank, size = dist.get_rank(), dist.get_world_size()
    order = sorted(range(len(runs)), key=lambda i: -(runs[i].config.epochs or 0))
    # Ranks end minutes apart, longer than a process group waits: they meet in the job's folder.
    folder = Path(os.environ[FOLDER])
    _leave_group()
    mine = {}
    for number, i in enumerate(order[rank::size], 1):
        if rank == 0:
            write_bytes(folder / AT_WORK, f"run {number} of {len(order[rank::size])}, {runs[i].way}".encode())
        mine[i] = _train(runs[i], dataset)
    write_bytes(folder / f"runs-{rank}.json", msgspec.json.encode(mine))
    if rank != 0:
        return ()
    while len(files := list(folder.glob("runs-*.json"))) < size:
        time.sleep(0.05)  # the launcher ends all ranks when one fails
    parts = [msgspec.json.decode(file.read_bytes(), type=dict[int, TrainedRun]) for file in files]
    found = {i: run for part in parts for i, run in part.items()}
    return tuple(found[i] for i in range(len(runs)))


def _images_of(task: TrainingTask) -> Dataset:
    config = task.runs[0].config
    return load_images(config.data, config.preprocessing)


def train_runs(task: TrainingTask) -> tuple[TrainedRun, ...]:
    """Train every run and test it."""
    return _train_all(task.runs, _images_of(task))


def search_rates(task: TrainingTask) -> tuple[TrainedRun, ...]:
    """Train every run on most of the training images and test it on the rest: the test set stays unseen."""
    dataset = _images_of(task)
    whole = dataset.train
    kept = torch.arange(len(whole)) % _VALIDATION != 0
    part = replace(
        dataset,
        train=Split(whole.images[kept.numpy()], whole.labels[kept.numpy()]),
        test=Split(whole.images[~kept.numpy()], whole.labels[~kept.numpy()]),
    )
    return _train_all(task.runs, part)

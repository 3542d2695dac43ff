"""Clocks for steps that run on several ranks at once.

A step starts when every rank is ready (barrier) and the device has nothing left to do (synchronize), and ends when
the device has nothing left to do again. Times are monotonic host seconds; what a step took is its slowest rank's.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from twoscale._environment import available_cores, machine_core_count, peak_resident_bytes
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.collectives import BucketClock
from twoscale.scaling._measure.records import EpochTime, Workload
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import Arm
from twoscale.scaling._measure.waits import WaitClock
from twoscale.scaling._measure.workload import (
    Batch,
    Step,
    batch_stream,
    create_model,
    device_of,
    epoch_samples,
    silent_ddp,
    training_step,
    wrap,
)

__all__ = ["FreeRun", "Loop", "Paced", "RankClock", "free_running", "paced", "peak_memory"]


class RankClock:
    """The processes that measure together, and their common moments.

    They exchange values through the default process group in host memory, never through a group that is being
    measured.

    Args:
        device: of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.hosts = int(os.environ.get("GROUP_WORLD_SIZE", "1"))  # set by torchrun
        self._token = torch.zeros(1)

    def synchronize(self) -> None:
        """Wait until this rank's device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def barrier(self) -> None:
        """Wait until every rank reaches this call."""
        # An all-reduce of one number: unlike dist.barrier() it leaves a GPU alone.
        dist.all_reduce(self._token)

    def start(self) -> float:
        """Wait for this device and for every rank, and return the time."""
        self.synchronize()
        self.barrier()
        return time.perf_counter()

    def stop(self) -> float:
        """Wait for this device and return the time."""
        self.synchronize()
        return time.perf_counter()

    def table(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return every rank's values, (ranks, values); all ranks must have equally many."""
        mine = torch.tensor(list(values), dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine)
        return torch.stack(rows).numpy()

    def agree(self, value: bool) -> bool:
        """Return rank 0's ``value`` on every rank."""
        token = torch.tensor([int(value)])
        dist.broadcast(token, 0)
        return bool(token.item())


@dataclass(frozen=True)
class Paced:
    """Steps that every rank began together, (ranks, steps) in seconds."""

    step: NDArray[np.float64]
    data: NDArray[np.float64]
    """Asking for the batch, before the step and outside its time."""
    wait: NDArray[np.float64] | None = None
    """In the barrier after the step; None where there was none."""

    @property
    def slowest(self) -> float:
        """Median over steps of the slowest rank's time."""
        return float(np.median(self.step.max(0)))

    @property
    def fastest(self) -> float:
        """Median over steps of the fastest rank's time."""
        return float(np.median(self.step.min(0)))

    @property
    def jitter(self) -> float:
        """Mean over steps of the slowest rank's time, less the slowest rank's mean time."""
        return float(self.step.max(0).mean() - self.step.mean(1).max())

    @property
    def slow_steps(self) -> float:
        """Mean over steps of the slowest rank's time, less their median."""
        return float(self.step.max(0).mean() - np.median(self.step.max(0)))

    @property
    def data_wait(self) -> float:
        """Median over steps of the longest that a rank asked for its batch."""
        return float(np.median(self.data.max(0)))

    @property
    def skew(self) -> float:
        """Median over steps of how much longer the first to reach the barrier waited than the last."""
        assert self.wait is not None
        return float(np.median(self.wait.max(0) - self.wait.min(0)))


def paced(
    ranks: RankClock, step: Step, source: Iterator[Batch], steps: int, *, settle: int = 1, barrier_after: bool = False
) -> Paced:
    """Time steps one by one, every rank starting each together.

    Args:
        ranks: that measure.
        step: what is timed.
        source: of batches, requested outside the time of the step; the wait has its own field.
        steps: timed, at least 1.
        settle: steps before those, not recorded.
        barrier_after: time a barrier after each step too.
    """
    durations, asked, waited = [], [], []
    for i in range(settle + steps):
        before = ranks.stop()
        batch = next(source)
        data = ranks.stop() - before
        start = ranks.start()
        step(batch)
        end = ranks.stop()
        if barrier_after:
            ranks.barrier()
        wait = time.perf_counter() - end
        if i >= settle:
            durations.append(end - start)
            asked.append(data)
            waited.append(wait)
    return Paced(ranks.table(durations), ranks.table(asked), ranks.table(waited) if barrier_after else None)


@dataclass(frozen=True)
class FreeRun:
    """Steps without a barrier between them."""

    rank_seconds: tuple[float, ...]
    """Seconds per step of each rank."""
    data_wait: float
    """Seconds per step spent waiting for batches by the rank that waited longest (on a GPU: by the host, which may be
    ahead of the device)."""
    rank_waits: tuple[float, ...] = ()
    """Seconds per step that each rank waited inside DDP; empty without a clock."""
    least_wait: float | None = None
    """Seconds per step that the rank which waited least waited inside DDP; None without a clock."""

    @property
    def step(self) -> float:
        """Seconds per step of the slowest rank."""
        return max(self.rank_seconds)


def free_running(
    ranks: RankClock, step: Step, source: Iterator[Batch], steps: int, *, waits: WaitClock | None = None
) -> FreeRun:
    """Time steps as a training loop runs them: one barrier before the first, nothing between.

    Args:
        ranks: that measure.
        step: what is timed, with the batch it needs.
        source: of batches.
        steps: at least 1.
        waits: of these steps. Default: nothing notes what they wait for.
    """
    waited = 0.0
    start = ranks.start()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        step(batch)
    elapsed = ranks.stop() - start
    table = ranks.table([elapsed, waited]) / steps
    rank_waits: tuple[float, ...] = ()
    least = None
    if waits is not None:
        seen = waits.take()[-steps:]
        # (ranks, steps, buffers and gradients)
        inside = ranks.table([seconds for one in seen for seconds in (one.buffers, one.gradients)])
        inside = inside.reshape(ranks.size, steps, 2)
        rank_waits = tuple(map(float, inside.sum(2).mean(1)))
        least = float(inside.min(0).sum(1).mean())
    return FreeRun(tuple(map(float, table[:, 0])), float(table[:, 1].max()), rank_waits, least)


def peak_memory(device: torch.device) -> int:
    """Return the most memory this rank has used, bytes: the peak of the GPU's allocator, or of the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = peak_resident_bytes()
    assert resident is not None, "only Windows does not count it, and there nothing is launched"
    return resident


def _cores_of(ranks: RankClock) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of the cores that each rank may run on."""
    mine = available_cores()
    count = int(ranks.table([max(mine[-1] + 1, machine_core_count())]).max())  # hosts may differ
    table = ranks.table([float(core in mine) for core in range(count)])
    return tuple(tuple(int(core) for core in np.flatnonzero(row)) for row in table)


class Loop:
    """A training loop whose steps are timed in runs, with one model of its own.

    Args:
        workload: what a rank does.
        arm: "bare": the module alone, T₁ of every comparison (and, at more ranks, replicas that never talk).
            "ddp": DistributedDataParallel as it is. "silent": DistributedDataParallel that sends nothing.
        steps: in each timed run, at least 1.
        warmup: steps before the first run, left out: compilation, autotuning, and DDP's first step, which sends
            everything at once. At least 0.

    Raises:
        ConfigurationError: fewer steps or warm-up than that.
    """

    def __init__(self, workload: Workload, arm: Arm, *, steps: int = 20, warmup: int = 5) -> None:
        if steps < 1 or warmup < 0:
            raise ConfigurationError(f"{steps} steps, {warmup} warm-up: expected at least 1 and 0")
        self._workload, self._arm, self._steps = workload, arm, steps
        self._ranks = RankClock(device_of(workload))
        model = create_model(workload)
        device = self._ranks.device
        self._waits = None if arm == "bare" else WaitClock(model, device)
        if arm == "ddp":
            model = wrap(model, workload.ddp)
        elif arm == "silent":
            model = silent_ddp(model, workload.ddp, BucketClock(device, communicate=False))
        self._step = training_step(workload, model, self._waits)
        self._source = batch_stream(workload, self._ranks.rank, self._ranks.size)
        self._runs: list[FreeRun] = []
        for batch in itertools.islice(self._source, warmup):
            self._step(batch)

    def run(self) -> None:
        """Time a run."""
        self._runs.append(free_running(self._ranks, self._step, self._source, self._steps, waits=self._waits))

    def time(self, *, flops: bool = True, memory: bool = True) -> EpochTime:
        """Return what the runs, at least one, took.

        Args:
            flops: count the step's floating-point operations.
            memory: report the most memory that this process has used; it belongs to this loop where no other ran.
        """
        workload, ranks, runs = self._workload, self._ranks, self._runs
        peak = int(ranks.table([peak_memory(ranks.device)]).max()) if memory else None
        samples = epoch_samples(workload, ranks.size)
        steps_per_epoch = math.ceil(samples / (workload.batch_size * ranks.size))
        median = statistics.median(run.step for run in runs)
        # One run, not a median of each: its parts add up to its step.
        middle = sorted(runs, key=lambda run: run.step)[(len(runs) - 1) // 2]
        operations = None
        if flops:
            from twoscale.scaling._measure.peak import step_flops

            # Proportional to the images: of a few, since another model beside this one may not fit at the whole batch.
            few = min(2, workload.batch_size)
            batch = next(self._source)
            if workload.own_step:
                operations = step_flops(create_model(workload), batch)
            else:
                part = batch[0][:few], batch[1][:few]
                operations = step_flops(create_model(workload), part) * workload.batch_size // few
        return EpochTime(
            arm=self._arm,
            workload=workload,
            world_size=ranks.size,
            threads_per_rank=torch.get_num_threads(),
            steps=self._steps,
            repeats=len(runs),
            step=summarize([run.step for run in runs]),
            data_wait=summarize([run.data_wait for run in runs]),
            samples_per_second=workload.batch_size * ranks.size / median,
            epoch_samples=samples,
            steps_per_epoch=steps_per_epoch,
            epoch_seconds=steps_per_epoch * median,
            peak_memory_bytes=peak,
            flops_per_step=operations,
            rank_seconds=tuple(statistics.median(run.rank_seconds[rank] for run in runs) for rank in range(ranks.size)),
            slowest_ranks=tuple(run.rank_seconds.index(run.step) for run in runs),
            rank_cores=_cores_of(ranks) if workload.device == "cpu" else (),
            rank_waits=middle.rank_waits,
            least_wait=middle.least_wait,
            hosts=ranks.hosts,
        )

"""The largest batch that fits in memory, found by trying: doubling, then bisection, each trial in fresh processes.

On a GPU the device's memory is the limit. A processor's has no clear end (the machine would swap, or end other
programs), so there it is a stated limit on each process's private memory (RLIMIT_DATA).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.launch import Host, launch
from twoscale.scaling._measure.records import CapacityRecord, CapacityTrial, Workload
from twoscale.scaling._measure.tasks import Arm, FitResult, FitTask

__all__ = ["default_memory_limit", "find_largest_batch", "run_trial", "search"]


def default_memory_limit(world_size: int) -> int:
    """Return half of this machine's memory, shared among ``world_size`` processes, in bytes.

    Less where the user's own limit of a process (``ulimit -d``) is less.
    """
    import resource

    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // world_size
    allowed = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return half if allowed == resource.RLIM_INFINITY else min(half, allowed)


def search(
    trial: Callable[[int], CapacityTrial], *, start: int, limit: int, tolerance: float, seconds: float | None = None
) -> tuple[int | None, tuple[CapacityTrial, ...], bool]:
    """Find the largest batch whose trial is "ok": doubling from ``start``, or halving where it fails, then bisection.

    Args:
        trial: runs one batch size.
        start: first batch size, at least 1.
        limit: no batch above this is tried.
        tolerance: bisection ends once the smallest failure is within this share above the largest success.
        seconds: of all trials together. The first runs in any case, another one only where it would end in time if it
            took as long as the longest before it. Default: without end.

    Returns:
        The largest that fitted, or None where none did; all trials as they ran; and whether the search came to its end.

    Raises:
        ConfigurationError: not 1 <= start <= limit, or a negative tolerance.
    """
    if not 1 <= start <= limit or tolerance < 0:
        raise ConfigurationError(
            f"start {start}, limit {limit}, tolerance {tolerance}: expected 1 <= start <= limit, tolerance at least 0"
        )
    trials: list[CapacityTrial] = []

    def fits(batch_size: int) -> bool:
        trials.append(trial(batch_size))
        return trials[-1].status == "ok"

    def in_time() -> bool:
        taken = [one.seconds for one in trials]
        return seconds is None or not taken or sum(taken) + max(taken) <= seconds

    good, bad, size = None, None, start
    while good is None or bad is None:
        if not in_time():
            return good, tuple(trials), False
        if not fits(size):
            bad = size
            size = size // 2
            if size == 0:
                break
        else:
            good = size
            if size == limit:
                break
            size = min(2 * size, limit)
    while good is not None and bad is not None and bad - good > max(1, int(good * tolerance)):
        if not in_time():
            return good, tuple(trials), False
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good, tuple(trials), True


def run_trial(task: FitTask) -> FitResult:
    """Train a few steps in the ranks of a launch."""
    from twoscale.scaling._measure.clocks import RankClock, peak_memory
    from twoscale.scaling._measure.workload import batch_stream, create_model, device_of, training_step, wrap

    workload = task.workload
    ranks = RankClock(device_of(workload))
    model = create_model(workload)
    step = training_step(workload, model if task.arm == "bare" else wrap(model, workload.ddp))
    # The first step makes the optimizer's state, DDP's second makes its buckets anew.
    for batch in itertools.islice(batch_stream(workload, ranks.rank, ranks.size), task.steps):
        step(batch)
    ranks.synchronize()
    return FitResult(int(ranks.table([peak_memory(ranks.device)]).max()))


def find_largest_batch(
    workload: Workload,
    *,
    world_size: int = 1,
    arm: Arm | None = None,
    memory_limit_bytes: int | None = None,
    start: int = 32,
    limit: int = 65536,
    tolerance: float = 0.05,
    steps: int = 3,
    timeout: float = 300.0,
    seconds: float | None = None,
    threads_per_rank: int | None = None,
    hosts: Sequence[Host] = (Host(),),
    scratch: Path | None = None,
) -> CapacityRecord:
    """Find the largest batch per rank that all ranks can train on.

    A trial that crashes or takes too long does not fit either; its record says what it was.

    Args:
        workload: its batch size does not matter.
        world_size: ranks.
        arm: Default: "bare" for one rank, else "ddp".
        memory_limit_bytes: of each process. Default: on a CPU, half the machine's memory shared among the ranks; on
            a GPU, what it has.
        start: first batch size tried.
        limit: largest batch size tried.
        tolerance: see :func:`search`.
        steps: of each trial, at least 3.
        timeout: of each trial, seconds.
        seconds: see :func:`search`.
        threads_per_rank: as for :func:`~twoscale.scaling._measure.launch.launch`.
        hosts: as for :func:`~twoscale.scaling._measure.launch.launch`.
        scratch: as for :func:`~twoscale.scaling._measure.launch.launch`.

    Raises:
        ConfigurationError: a number outside its range.
    """
    if memory_limit_bytes is None and workload.device == "cpu":
        memory_limit_bytes = default_memory_limit(world_size)
    arm = arm or ("bare" if world_size == 1 else "ddp")

    def trial(batch_size: int) -> CapacityTrial:
        outcome = launch(
            "twoscale.scaling._measure.capacity:run_trial",
            FitTask(dataclasses.replace(workload, batch_size=batch_size), arm, max(3, steps)),
            world_size=world_size,
            device=workload.device,
            threads_per_rank=threads_per_rank,
            timeout=timeout,
            memory_limit_bytes=memory_limit_bytes,
            hosts=hosts,
            scratch=scratch,
        ).decoded(FitResult)
        peak = outcome.value.peak_memory_bytes if outcome.ok else None
        return CapacityTrial(batch_size, outcome.status, outcome.seconds, peak, outcome.message)

    largest, trials, ended = search(trial, start=start, limit=limit, tolerance=tolerance, seconds=seconds)
    return CapacityRecord(
        workload=workload,
        world_size=world_size,
        memory_limit_bytes=memory_limit_bytes,
        largest=largest,
        reached_limit=largest == limit,
        trials=trials,
        ended=ended,
    )

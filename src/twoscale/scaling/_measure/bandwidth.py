"""Bandwidth of collectives with nothing else running, counted as nccl-tests counts it.

    algbw = S / t          S: the tensor (all_reduce, broadcast), the output (all_gather), the input (reduce_scatter)
    busbw = algbw · f      f: all_reduce 2(n-1)/n; all_gather, reduce_scatter (n-1)/n; broadcast 1

busbw is the rate that each rank's link carries. It is comparable between operations and numbers of ranks (nccl-tests,
``doc/PERFORMANCE.md``). At one rank nothing is sent, and busbw is None.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import RankClock
from twoscale.scaling._measure.collectives import collective
from twoscale.scaling._measure.records import BandwidthRecord, BandwidthRow, Op
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import BandwidthTask

__all__ = ["SIZES", "bus_factor", "measure_bandwidth", "run"]

SIZES = tuple(1 << i for i in range(10, 29))
"""1 KiB to 256 MiB by doubling."""
_WARMUP = 2


def bus_factor(op: Op, world_size: int) -> float | None:
    """Return busbw / algbw, or None at one rank.

    Raises:
        ConfigurationError: an operation without one.
    """
    n = world_size
    factors = {
        "all_reduce": 2 * (n - 1) / n,
        "all_gather": (n - 1) / n,
        "reduce_scatter": (n - 1) / n,
        "broadcast": 1.0,
    }
    if op not in factors:
        raise ConfigurationError(f"no bus factor for '{op}'; expected one of {', '.join(factors)}")
    return None if n == 1 else factors[op]


def measure_bandwidth(
    device: torch.device,
    *,
    ops: Sequence[Op] = ("all_reduce",),
    sizes: Sequence[int] = SIZES,
    repeats: int = 20,
    budget_seconds: float = 30.0,
) -> BandwidthRecord:
    """Time collectives in the ranks of this launch; runs start on all ranks together, and the slowest rank counts.

    Args:
        device: where the memory is.
        ops: operations.
        sizes: bytes, tried in ascending order.
        repeats: timed runs of each, after two that are not, at least 1; fewer (at least 3) where the budget asks.
        budget_seconds: for all of it; a size that is expected not to fit in what is left is left out, with all
            larger ones. Rank 0's clock decides for all.

    Raises:
        ConfigurationError: no repeats, or an unknown operation.
    """
    if repeats < 1:
        raise ConfigurationError(f"repeats is {repeats}; expected at least 1")
    ranks = RankClock(device)
    for op in ops:
        bus_factor(op, ranks.size)
    deadline = time.monotonic() + budget_seconds
    rows: list[BandwidthRow] = []
    left_out: list[int] = []
    slowest: dict[str, float] = {}
    """Operation to the time that its last size took, as rank 0 knows it."""
    previous = 0
    for size in sorted(set(sizes)):
        # A time grows at most with the size; the least that a size takes is its warm-up and three runs.
        growth = size / previous if previous else 1.0
        expected = sum(slowest.values()) * growth
        left = deadline - time.monotonic()
        if left_out or not ranks.agree(left > 0 and expected * (_WARMUP + min(3, repeats)) <= left):
            left_out.append(size)
            continue
        affordable = repeats if expected == 0 else int(left / expected / 2)
        count = int(ranks.table([max(min(3, repeats), min(repeats, affordable))])[0, 0])
        for op in ops:
            run, true_size = collective(op, size, device)
            for _ in range(_WARMUP):
                run()
            times = []
            for _ in range(count):
                start = ranks.start()
                run()
                times.append(ranks.stop() - start)
            summary = summarize([float(value) for value in ranks.table(times).max(0)])
            slowest[op] = summary.median
            factor = bus_factor(op, ranks.size)
            rows.append(
                BandwidthRow(
                    op=op,
                    bytes=true_size,
                    seconds=summary,
                    algbw=true_size / summary.median,
                    busbw=None if factor is None else true_size / summary.median * factor,
                    busbw_p95=None if factor is None else true_size / summary.p95 * factor,
                )
            )
        previous = size
    return BandwidthRecord(
        world_size=ranks.size,
        backend="nccl" if device.type == "cuda" else "gloo",
        rows=tuple(sorted(rows, key=lambda row: (list(ops).index(row.op), row.bytes))),
        left_out=tuple(left_out),
        hosts=ranks.hosts,
    )


def run(task: BandwidthTask) -> BandwidthRecord:
    """Call :func:`measure_bandwidth` in the ranks of a launch."""
    device = torch.device("cuda", torch.cuda.current_device()) if task.device == "cuda" else torch.device("cpu")
    return measure_bandwidth(
        device, ops=task.ops, sizes=task.sizes, repeats=task.repeats, budget_seconds=task.budget_seconds
    )

"""How fast the device multiplies matrices at best, measured, and what a training step asks of it.

Utilization is a step's floating-point operations per second divided by the measured rate of large square matrix
products, not by a data sheet's peak.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from twoscale._environment import gpu_name, processor_name
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import PeakRecord, PeakRow
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.workload import Batch, loss_of

Precision = Literal["fp32", "tf32", "bf16"]

__all__ = ["Precision", "measure_memory", "measure_peak", "step_flops"]

_CPU_SIZES = (512, 1024, 2048)
_MEMORY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Of each of three arrays: more than caches hold."""
_GPU_SIZES = (2048, 4096, 8192, 16384)


def step_flops(model: nn.Module, batch: Batch) -> int:
    """Count the floating-point operations of one forward and backward pass: a multiplication and an addition are two.

    As ``torch.utils.flop_counter`` counts: convolutions and matrix products, nothing else.

    Args:
        model: run once, in training mode; its buffers are updated, its gradients dropped.
        batch: that it takes.
    """
    with FlopCounterMode(display=False) as counter:
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure_peak(
    device: torch.device,
    *,
    precision: Precision = "fp32",
    sizes: Sequence[int] | None = None,
    repeats: int = 7,
    budget_seconds: float = 10.0,
) -> PeakRecord:
    """Time products of square matrices; the best size's median rate is the peak.

    Args:
        device: to measure.
        precision: fp32 with every bit, tf32 (GPUs only), or bf16.
        sizes: of the matrices. Default: 512 to 2,048 on a CPU, 2,048 to 16,384 on a GPU.
        repeats: timed products of each size, at least 1.
        budget_seconds: for all of it; sizes that no longer fit are left out, but for the first.

    Raises:
        ConfigurationError: tf32 on a CPU, or no repeats.
    """
    gpu = device.type == "cuda"
    if precision == "tf32" and not gpu:
        raise ConfigurationError("tf32 is for GPUs; use fp32 or bf16")
    if repeats < 1:
        raise ConfigurationError(f"repeats is {repeats}; expected at least 1")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    deadline = time.monotonic() + budget_seconds
    # On the device: drawing the largest matrices on a processor takes longer than all products.
    generator = torch.Generator(device).manual_seed(0)
    rows: list[PeakRow] = []

    def now() -> float:
        if gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with _tf32(precision == "tf32"):
        for size in sorted(sizes or (_GPU_SIZES if gpu else _CPU_SIZES)):
            expected = rows[-1].seconds.median * (size / rows[-1].size) ** 3 * (repeats + 1) if rows else 0.0
            if time.monotonic() + expected > deadline:
                break
            # Not zeros: a GPU draws less power for them, and clocks higher.
            a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
            out = torch.empty(size, size, device=device, dtype=dtype)
            torch.mm(a, b, out=out)
            times = []
            for _ in range(repeats):
                start = now()
                torch.mm(a, b, out=out)
                times.append(now() - start)
            summary = summarize(times)
            rows.append(PeakRow(size, summary, 2 * size**3 / summary.median))
    return PeakRecord(
        device=gpu_name(device) if gpu else processor_name(),
        precision=precision,
        threads=1 if gpu else torch.get_num_threads(),
        rows=tuple(rows),
        flops_per_second=max(row.flops_per_second for row in rows),
    )


def measure_memory(device: torch.device, *, size: int | None = None, repeats: int = 7) -> float:
    """Return the bytes per second of sums of two arrays into a third, reads and writes, the median of repeats.

    As the kernel "add" of STREAM (McCalpin 1995).

    Args:
        device: to measure.
        size: bytes of each array. Default: 64 MiB on a CPU, 1 GiB on a GPU.
        repeats: at least 1, after one that is not timed.
    """
    elements = max(1, (size or _MEMORY_BYTES[device.type]) // 4)
    a, b, out = (torch.ones(elements, device=device) for _ in range(3))
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.add(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 3 * 4 * elements / summarize(times[1:]).median

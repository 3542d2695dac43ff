"""The same step run in several ways on one device: eager, compiled, recorded; precisions; memory layouts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import RankClock, free_running
from twoscale.scaling._measure.records import VariantRecord, Workload
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.workload import Batch, Step, batch_stream, create_model, device_of, training_step
from twoscale.training._optimizers import SGD
from twoscale.training._step import Step as RecordedStep
from twoscale.training._step import reason_of

__all__ = ["VARIANTS", "Variant", "compare_variants"]

_WARMUP = 3
Made = tuple[nn.Module, Step]


@dataclass(frozen=True)
class Variant:
    """A way to run the step."""

    name: str
    make: Callable[[Workload], Made]
    gpu_only: bool = False


def _eager(name: str, *, gpu_only: bool = False, tf32: bool = False, **changed: Any) -> Variant:
    def make(workload: Workload) -> Made:
        workload = replace(workload, **changed)
        model = create_model(workload)
        step = training_step(workload, model)

        def in_tf32(batch: Batch) -> None:
            with _tf32():
                step(batch)

        return model, in_tf32 if tf32 else step

    return Variant(name, make, gpu_only)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _compiled(mode: str) -> Variant:
    def make(workload: Workload) -> Made:
        model = create_model(workload)
        compiled: Any = torch.compile(model, mode=mode)
        return model, training_step(workload, compiled)

    return Variant(f"torch.compile, {mode}", make)


def _recorded(workload: Workload) -> Made:
    """As ``twoscale train --step captured``: the step's operations are recorded once and replayed without autograd."""
    model = create_model(workload)
    step = RecordedStep(model, SGD(workload.momentum), "captured", lr=workload.lr)
    loss = torch.zeros((), device=device_of(workload))
    return model, lambda batch: step(*batch, loss)


VARIANTS: tuple[Variant, ...] = (
    _eager("eager"),
    _eager("channels_last", channels_last=True),
    _eager("tf32", tf32=True, gpu_only=True),
    _eager("bf16", precision="bf16"),
    _eager("bf16, channels_last", precision="bf16", channels_last=True),
    Variant("recorded and replayed", _recorded),
    _compiled("default"),
    _compiled("reduce-overhead"),
    _compiled("max-autotune"),
)
"""Every way, the eager one first; all but those that say otherwise are fp32."""


@dataclass
class _Running:
    step: Step | None = None
    first: float | None = None
    weights: torch.Tensor | None = None
    source: Iterator[Batch] | None = None
    message: str = ""


def _begin(variant: Variant, workload: Workload, ranks: RankClock) -> _Running:
    """Make a variant and take its first steps; a failure is a result."""
    channels_last = "channels_last" in variant.name
    source = batch_stream(replace(workload, channels_last=channels_last), ranks.rank, ranks.size)
    if variant.gpu_only and workload.device == "cpu":
        return _Running(message="on GPUs only")
    try:
        model, step = variant.make(workload)
        start = ranks.start()
        step(next(source))
        first = ranks.stop() - start
        for batch in itertools.islice(source, _WARMUP - 1):
            step(batch)
    except Exception as error:  # a missing C++ compiler, or what the compiler cannot do
        return _Running(message=reason_of(error))
    weights = torch.cat([one.detach().reshape(-1).double().cpu() for one in model.parameters()])
    return _Running(step, first, weights, source)


def compare_variants(
    workload: Workload,
    *,
    variants: Sequence[Variant] = VARIANTS,
    rounds: int = 6,
    steps: int = 5,
    watch: Callable[[str], None] | None = None,
) -> tuple[VariantRecord, ...]:
    """Time a step in every way, in turn, and compare the weights of the first steps.

    Args:
        workload: what a step does; precision and memory layout are the variants'.
        variants: the first is what others are compared with.
        rounds: runs of each.
        steps: of a run.
        watch: is called with what is measured now.

    Raises:
        ConfigurationError: less than one round or step.
    """
    if min(rounds, steps) < 1:
        raise ConfigurationError(f"{rounds} rounds, {steps} steps: expected at least 1 of each")
    ranks = RankClock(device_of(workload))
    workload = replace(workload, precision="fp32", channels_last=False)
    running = []
    for variant in variants:
        if watch is not None:
            watch(f"first steps, {variant.name}")
        running.append(_begin(variant, workload, ranks))
    taken: list[list[float]] = [[] for _ in variants]
    for number in range(rounds):
        if watch is not None:
            watch(f"round {number + 1} of {rounds}")
        shift = number % len(variants)
        for i in [*range(shift, len(variants)), *range(shift)]:
            one = running[i]
            if one.step is not None and one.source is not None:
                taken[i].append(free_running(ranks, one.step, one.source, steps).step)
    reference = running[0].weights
    records = []
    for variant, one, times in zip(variants, running, taken, strict=True):
        compared = bool(times and taken[0] and one is not running[0])
        records.append(
            VariantRecord(
                name=variant.name,
                step=summarize(times) if times else None,
                against_eager=summarize([a - b for a, b in zip(times, taken[0], strict=True)]) if compared else None,
                first=one.first,
                distance=None
                if one.weights is None or reference is None
                else float((one.weights - reference).norm() / reference.norm()),
                message=one.message,
            )
        )
    return tuple(records)

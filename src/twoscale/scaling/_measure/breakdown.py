"""Where a step goes: data, forward, backward, communication, update; by layer and operator; and a roofline.

Parts are timed by marks between them, without a profiler. Layers and operators are those of ``torch.profiler`` in a few
further steps: an operator of the backward pass belongs to the layer whose forward pass has its sequence number.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import RankClock
from twoscale.scaling._measure.collectives import BucketClock
from twoscale.scaling._measure.marks import Mark, mark, seconds_between
from twoscale.scaling._measure.peak import measure_memory, measure_peak
from twoscale.scaling._measure.records import (
    BreakdownRecord,
    LayerTime,
    OperatorTime,
    Roofline,
    Span,
    StepPart,
    Workload,
)
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.workload import (
    Batch,
    batch_stream,
    create_model,
    device_of,
    loss_of,
    training_step,
    wrap,
)

__all__ = ["break_down"]

_PROFILED = 3
_OPERATORS = 12
_SHORTEST = 5e-6
"""Seconds of the shortest operator in a trace."""
_BACKWARD = "autograd::engine::evaluate_function: "
_LAYER = "layer "


class _Marks:
    """Moments of a step on one rank.

    Args:
        module: the one inside DDP, or the bare one.
        device: of its parameters.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._moments: dict[str, Mark] = {}
        module.register_forward_pre_hook(lambda *_: self.note("inside"))
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _: self.note("ready")
                )

    def note(self, name: str) -> None:
        """Note this moment; the last of a name counts."""
        self._moments[name] = mark(self._device)

    def begin(self) -> None:
        """Begin a step."""
        self._moments = {}
        self.note("begin")

    def since_begin(self) -> list[float]:
        """Return the seconds from the step's begin to each moment; the device must be synchronized."""
        return [seconds_between(self._moments["begin"], self._moments[name]) for name in _MOMENTS]


_MOMENTS = ("begin", "forward", "inside", "backward", "ready", "update", "end")
_PARTS = ("data", "buffers", "forward", "backward", "wait", "update")
"""Between these moments."""


def break_down(
    workload: Workload,
    *,
    steps: int = 12,
    warmup: int = 3,
    layers: bool = True,
    watch: Callable[[str], None] | None = None,
) -> BreakdownRecord:
    """Time the parts of steps in the ranks of this launch; on a single rank, layers, operators and the roofline too.

    Args:
        workload: what a rank does.
        steps: timed, at least 1.
        warmup: steps before, at least 2: DDP's first step differs.
        layers: whether layers, operators and the roofline are measured on a single rank.
        watch: is called with what is measured now.

    Raises:
        ConfigurationError: fewer steps than that.
    """
    if steps < 1 or warmup < 2:
        raise ConfigurationError(f"{steps} steps, {warmup} warm-up: expected at least 1 and 2")
    ranks = RankClock(device_of(workload))
    device = ranks.device
    inner = create_model(workload)
    marks, clock = _Marks(inner, device), BucketClock(device)
    model = inner
    if ranks.size > 1:
        model = wrapped = wrap(inner, workload.ddp)
        wrapped.register_comm_hook(None, clock.hook)
    step = training_step(workload, model, at=marks.note)
    source = batch_stream(workload, ranks.rank, ranks.size)
    moments, buckets = [], []
    for number in range(warmup + steps):
        if watch is not None:
            watch(f"step {number + 1} of {warmup + steps}")
        ranks.start()
        clock.begin()
        marks.begin()
        step(next(source))
        marks.note("end")
        ranks.synchronize()
        if number >= warmup:
            moments.append(marks.since_begin())
            buckets.append(clock.step()[1])
    every = ranks.table([value for one in moments for value in one]).reshape(ranks.size, steps, len(_MOMENTS))
    whole = every[:, :, -1]
    slowest = whole.argmax(0)
    lengths = np.diff(every, axis=2)[slowest, np.arange(steps)]
    middle = int(np.argsort(whole.max(0))[(steps - 1) // 2])
    sizes = [size for size, _, _ in buckets[middle]]
    reduced = ranks.table([value for _, start, end in buckets[middle] for value in (start, end)])
    parts = tuple(StepPart(name, summarize(lengths[:, i].tolist())) for i, name in enumerate(_PARTS))
    found: dict[str, Any] = {}
    if ranks.size == 1:
        parts = _of_bare(parts, lengths)
        found = {} if not layers else _layers(workload, inner, step, source, device, watch)
    return BreakdownRecord(
        world_size=ranks.size,
        batch_size=workload.batch_size,
        threads=torch.get_num_threads(),
        step=summarize(whole.max(0).tolist()),
        parts=parts,
        timeline=tuple(_timeline(every[:, middle], reduced.reshape(ranks.size, len(sizes), 2), sizes)),
        **found,
    )


def _of_bare(parts: tuple[StepPart, ...], lengths: Any) -> tuple[StepPart, ...]:
    """Return the parts of a module without DDP: it broadcasts no buffers and waits for no gradients."""
    forward, backward = lengths[:, 1] + lengths[:, 2], lengths[:, 3] + lengths[:, 4]
    merged = {"forward": summarize(forward.tolist()), "backward": summarize(backward.tolist())}
    kept = [part for part in parts if part.name not in ("buffers", "wait")]
    return tuple(StepPart(part.name, merged.get(part.name, part.seconds)) for part in kept)


def _timeline(moments: Any, reduced: Any, sizes: list[int]) -> Iterator[Span]:
    """Give what each rank does in a step: (ranks, moments) and (ranks, buckets, start and end)."""
    for rank, mine in enumerate(moments):
        for i, name in enumerate(_PARTS):
            if mine[i + 1] > mine[i]:
                yield Span(name, rank, "step", float(mine[i]), float(mine[i + 1] - mine[i]))
        for i, (size, (start, end)) in enumerate(zip(sizes, reduced[rank], strict=True), 1):
            # The clock of buckets begins with that of the step.
            yield Span(f"all-reduce {i}, {size} bytes", rank, "communication", float(start), float(end - start))


# ---------------------------------------------------------------- layers


def _leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: one for name, one in model.named_modules() if name and not any(True for _ in one.children())}


def _layers(
    workload: Workload,
    model: nn.Module,
    step: Callable[[Batch], None],
    source: Iterator[Batch],
    device: torch.device,
    watch: Callable[[str], None] | None,
) -> dict[str, Any]:
    if watch is not None:
        watch("layers")
    leaves = _leaves(model)
    gpu = device.type == "cuda"
    counted = _count(model, leaves, next(source))
    with contextlib.ExitStack() as hooks:
        ranges: list[Any] = []

        def enter(_: nn.Module, __: Any, *, name: str) -> None:
            ranges.append(record_function(_LAYER + name))
            ranges[-1].__enter__()

        def leave(*_: Any) -> None:
            ranges.pop().__exit__(None, None, None)

        for name, leaf in leaves.items():
            hooks.callback(leaf.register_forward_pre_hook(functools.partial(enter, name=name)).remove)
            hooks.callback(leaf.register_forward_hook(leave).remove)
        batches = list(itertools.islice(source, _PROFILED + 1))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        with profile(activities=activities):  # the profiler's own start is slow
            step(batches.pop())
        with profile(activities=activities) as profiler:
            for batch in batches:
                with record_function("one step"):
                    step(batch)
            if gpu:
                torch.cuda.synchronize(device)
    events = list(profiler.events())

    def seconds(event: Any) -> float:
        return float(event.device_time_total if gpu else event.cpu_time_total) / 1e6 / _PROFILED

    forward, backward = dict.fromkeys(leaves, 0.0), dict.fromkeys(leaves, 0.0)
    of_sequence: dict[int, str] = {}
    for event in events:
        if event.name.startswith(_LAYER):
            forward[event.name.removeprefix(_LAYER)] += seconds(event)
        elif event.sequence_nr >= 0 and (layer := _layer_of(event)) is not None:
            of_sequence[event.sequence_nr] = layer
    for event in events:
        if event.name.startswith(_BACKWARD) and event.sequence_nr in of_sequence:
            backward[of_sequence[event.sequence_nr]] += seconds(event)
    precision: Any = "bf16" if workload.precision == "bf16" else "tf32" if gpu else "fp32"
    peak = measure_peak(device, precision=precision, budget_seconds=2.0, repeats=5)
    return {
        "layers": tuple(
            LayerTime(name, type(leaf).__name__, forward[name], backward[name], *counted[name])
            for name, leaf in leaves.items()
        ),
        "forward": _total(events, seconds, "forward"),
        "backward": _total(events, seconds, "backward"),
        "operators": _operators(profiler, gpu),
        "roofline": Roofline(peak.flops_per_second, measure_memory(device)),
        "profile": tuple(_spans(events)),
    }


def _layer_of(event: Any) -> str | None:
    """Return the layer whose forward pass an operator runs in."""
    while event is not None:
        if event.name.startswith(_LAYER):
            return str(event.name.removeprefix(_LAYER))
        event = event.cpu_parent
    return None


def _total(events: list[Any], seconds: Callable[[Any], float], part: str) -> float:
    """Return the seconds of the forward pass, with the loss, or of the backward pass."""
    if part == "backward":
        return sum(seconds(event) for event in events if event.name.startswith(_BACKWARD))
    top = [event for event in events if event.cpu_parent is not None and event.cpu_parent.name == "one step"]
    others = (_BACKWARD, "Optimizer", "aten::ones_like")  # the last begins the backward pass
    return sum(seconds(event) for event in top if not event.name.startswith(others))


def _count(model: nn.Module, leaves: dict[str, nn.Module], batch: Batch) -> dict[str, tuple[int, int]]:
    """Return (floating-point operations, bytes) of each layer's forward pass."""
    found = dict.fromkeys(leaves, (0, 0))
    before: list[int] = []
    with contextlib.ExitStack() as hooks, FlopCounterMode(display=False) as counter:

        def enter(*_: Any) -> None:
            before.append(counter.get_total_flops())

        def leave(leaf: nn.Module, inputs: Any, output: Any, *, name: str) -> None:
            moved = sum(map(_bytes, (*_tensors(inputs), *leaf.parameters(), *_tensors(output))))
            flops, so_far = found[name]
            found[name] = flops + counter.get_total_flops() - before.pop(), so_far + moved

        for name, leaf in leaves.items():
            hooks.callback(leaf.register_forward_pre_hook(enter).remove)
            hooks.callback(leaf.register_forward_hook(functools.partial(leave, name=name)).remove)
        with torch.no_grad():
            loss_of(model, batch)
    return found


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, list | tuple) else []


def _operators(profiler: Any, gpu: bool) -> tuple[OperatorTime, ...]:
    """Return the operators that take longest on their own."""
    rows = [
        OperatorTime(
            one.key,
            round(one.count / _PROFILED),
            float(one.self_device_time_total if gpu else one.self_cpu_time_total) / 1e6 / _PROFILED,
        )
        for one in profiler.key_averages()
        if one.key != "one step" and not one.key.startswith(_LAYER)
    ]
    return tuple(sorted(rows, key=lambda one: -one.seconds)[:_OPERATORS])


def _spans(events: list[Any]) -> Iterator[Span]:
    """Give the operators of the first profiled step, but for very short ones."""
    whole = next(event for event in events if event.name == "one step")
    start, end = whole.time_range.start, whole.time_range.end
    for event in events:
        first, last = event.time_range.start, event.time_range.end
        if start <= first and last <= end and last - first >= 1e6 * _SHORTEST:
            yield Span(event.name, 0, "operators", (first - start) / 1e6, (last - first) / 1e6)

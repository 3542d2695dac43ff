"""Where a step goes: its parts, its layers, and when each rank does what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoscale.scaling._measure.records.base import Summary

__all__ = ["BreakdownRecord", "Lane", "LayerTime", "OperatorTime", "Roofline", "Span", "StepPart"]

Lane = Literal["step", "communication", "operators"]


@dataclass(frozen=True)
class Span:
    """Something that a rank does in a step."""

    name: str
    rank: int
    lane: Lane
    start: float
    """Seconds from the start of the step, which all ranks begin together."""
    seconds: float


@dataclass(frozen=True)
class StepPart:
    """A part of a step; the parts of each step add up to it."""

    name: str
    """"data", "buffers", "forward", "backward", "wait" (for the last gradients) or "update"."""
    seconds: Summary
    """Of the slowest rank of each step."""


@dataclass(frozen=True)
class LayerTime:
    """A layer: a module without children. Seconds are of the profiled steps, which the profiler slows."""

    name: str
    kind: str
    """Its class."""
    forward: float
    backward: float
    flops: int
    """Of its forward pass; a multiplication and an addition are two."""
    bytes: int
    """Of its input, parameters and output: the least that a forward pass moves."""

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class OperatorTime:
    """All calls of an operator of PyTorch."""

    name: str
    calls: int
    """Per step."""
    seconds: float
    """Per step, without the operators that it calls."""


@dataclass(frozen=True)
class Roofline:
    """What the device can do at best, measured (Williams et al. 2009)."""

    flops_per_second: float
    """Of large matrix products."""
    bytes_per_second: float
    """Of large sums of two arrays into a third: reads and writes."""

    @property
    def ridge(self) -> float:
        """Floating-point operations per byte from which arithmetic is the limit, not memory."""
        return self.flops_per_second / self.bytes_per_second

    def attainable(self, intensity: float) -> float:
        """Return the largest number of operations per second at an arithmetic intensity."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)


@dataclass(frozen=True)
class BreakdownRecord:
    """Where the steps of a number of ranks go; layers, operators and roofline are those of one rank."""

    world_size: int
    batch_size: int
    threads: int
    step: Summary
    """Seconds of the slowest rank, its wait for data included."""
    parts: tuple[StepPart, ...]
    timeline: tuple[Span, ...]
    """Of the median step, every rank."""
    layers: tuple[LayerTime, ...] = ()
    forward: float = 0.0
    """Seconds of the profiled forward pass, loss included."""
    backward: float = 0.0
    operators: tuple[OperatorTime, ...] = ()
    """Those that take longest."""
    roofline: Roofline | None = None
    profile: tuple[Span, ...] = ()
    """Operators of a profiled step."""

    def part(self, name: str) -> float:
        """Return the median seconds of a part; 0 if there is none."""
        return next((one.seconds.median for one in self.parts if one.name == name), 0.0)

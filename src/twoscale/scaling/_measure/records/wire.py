"""What crosses the wire, how fast, and whether it keeps replicas alike."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale.scaling._measure.records.base import DdpOptions, Op, RankGroup, Summary

__all__ = [
    "BandwidthRecord",
    "BandwidthRow",
    "LedgerEntry",
    "LedgerRecord",
    "OrderRow",
    "ReplicaCase",
    "ReplicaStep",
    "ReplicasRecord",
    "SamplerRecord",
]


@dataclass(frozen=True)
class LedgerEntry:
    """One collective of a training step."""

    phase: str
    """"construction", "forward 1", "backward 1", "update 1", ..., counted in mini-batches."""
    op: Op
    what: str
    """E.g. "parameters and buffers", "gradients", "bucket indices"."""
    dtype: str
    bytes: int
    """Of the tensor that each rank puts in."""

    @property
    def step(self) -> int:
        """The mini-batch, from 1; 0 at construction."""
        last = self.phase.rpartition(" ")[2]
        return int(last) if last.isdecimal() else 0


@dataclass(frozen=True)
class LedgerRecord:
    """What DDP puts on the wire, predicted, and observed where it was."""

    model: str
    world_size: int
    options: DdpOptions
    mini_batches: int
    accumulation: int
    """Mini-batches an optimizer step is made of; all but the last run under ``no_sync``."""
    parameters: int
    parameter_tensors: int
    parameter_bytes: int
    buffer_bytes: int
    predicted: tuple[LedgerEntry, ...]
    observed: tuple[LedgerEntry, ...] | None
    differences: tuple[str, ...]
    """One line for each entry that is not as predicted."""
    sent_bytes: tuple[int, ...] | None
    """Per rank: payload that gloo's algorithms send to other ranks for all of it; None for other backends."""
    hosts: int = 1
    """That the ranks run on, an equal number on each."""
    crossing_bytes: tuple[int, ...] | None = None
    """Per host: the part of it that goes to other hosts; None for other backends and in earlier records."""

    @property
    def group(self) -> RankGroup:
        """The ranks and their hosts."""
        return RankGroup(self.world_size, self.hosts)

    @property
    def ok(self) -> bool:
        """Observed, and equal to the prediction entry by entry."""
        return self.observed is not None and not self.differences

    def total(self, phase: str, op: str | None = None) -> int:
        """Return the predicted bytes of a phase, of one operation or of all."""
        return sum(e.bytes for e in self.predicted if e.phase == phase and op in (None, e.op))


@dataclass(frozen=True)
class BandwidthRow:
    """One collective at one size. Sizes and factors are those of nccl-tests."""

    op: Op
    bytes: int
    """all_reduce, broadcast: the tensor; all_gather: the output; reduce_scatter: the input."""
    seconds: Summary
    """Of the slowest rank."""
    algbw: float
    """bytes / median seconds."""
    busbw: float | None
    """algbw times the operation's factor; None at one rank, where nothing is sent."""
    busbw_p95: float | None
    """From the 95th percentile of the times."""


@dataclass(frozen=True)
class BandwidthRecord:
    """Bandwidth of collectives with nothing else running."""

    world_size: int
    backend: str
    rows: tuple[BandwidthRow, ...]
    left_out: tuple[int, ...]
    """Sizes, all operations, that the time budget did not reach."""
    hosts: int = 1
    """That the ranks run on, an equal number on each."""

    @property
    def group(self) -> RankGroup:
        """The ranks and their hosts."""
        return RankGroup(self.world_size, self.hosts)


@dataclass(frozen=True)
class ReplicaStep:
    """The replicas after one step."""

    step: int
    """0 is before the first."""
    parameters: tuple[str, ...]
    """Hash per rank."""
    buffers: tuple[str, ...]
    """Hash per rank at the end of the step; empty strings where the model has none."""
    buffers_in_forward: tuple[str, ...]
    """Hash per rank as the forward pass begins, after any broadcast."""


@dataclass(frozen=True)
class ReplicaCase:
    """One way of starting and keeping replicas, and whether they stayed the same."""

    same_seed: bool
    initial_broadcast: bool
    buffers_broadcast: bool
    steps: tuple[ReplicaStep, ...]
    parameters_equal: bool
    """On all ranks after every step, the start included."""
    buffers_equal: bool | None
    """Likewise at the end of every step; None where the model has none."""
    buffers_equal_in_forward: bool | None
    """Likewise as every forward pass begins."""


@dataclass(frozen=True)
class ReplicasRecord:
    """Are gradients alone enough?"""

    model: str
    world_size: int
    cases: tuple[ReplicaCase, ...]


@dataclass(frozen=True)
class SamplerRecord:
    """Orders in which a sharded sampler visits a data set."""

    samples: int
    world_size: int
    epochs: int
    seed: int
    set_epoch: bool
    orders: tuple[tuple[tuple[int, ...], ...], ...]
    """[epoch][rank]: indices in order."""
    order_changes: bool
    """Whether no two epochs have the same order."""
    covers: bool
    """Whether the ranks together visit every sample in every epoch."""
    repeated: int
    """Samples visited more than once in an epoch: the padding that makes shards equal."""


@dataclass(frozen=True)
class OrderRow:
    """The sampler over a whole data set."""

    set_epoch: bool
    same_place: tuple[float, ...]
    """By epoch: share of places that hold the same image as in the first, 0..1."""
    record: SamplerRecord
    """Without its orders."""

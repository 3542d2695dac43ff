"""Collectives by name, their sizes, and clocks in DDP's communication hooks."""

# No `from __future__ import annotations` here: DDP compares a hook's annotations with types, not with strings.
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from twoscale.scaling._measure.marks import Mark, mark, seconds_between
from twoscale.scaling._measure.records import Op

__all__ = ["BucketClock", "average_at_once", "average_in_bf16", "collective"]


def collective(
    op: Op,
    size: int,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Callable[[], None], int]:
    """Make a collective that can be run repeatedly on its own memory.

    Args:
        op: name of the collective. Broadcasts are from rank 0.
        size: bytes wanted: of the tensor; of the output for all_gather, of the input for reduce_scatter, as
            nccl-tests counts. Rounded up to whole elements for each rank.
        device: where the memory is.
        group: its ranks. Default: all.
        dtype: of the elements.

    Returns:
        A function that runs it and waits for its end in the device's order, and its true size in bytes.
    """
    itemsize = torch.empty(0, dtype=dtype).element_size()
    world_size = dist.get_world_size(group)
    elements = max(1, -(-size // itemsize))
    if op in ("all_gather", "reduce_scatter"):
        elements = -(-elements // world_size) * world_size
    whole = torch.zeros(elements, dtype=dtype, device=device)
    if op == "all_reduce":
        return lambda: _ignore(dist.all_reduce(whole, group=group)), elements * itemsize
    if op == "broadcast":
        return lambda: _ignore(dist.broadcast(whole, group=group, group_src=0)), elements * itemsize
    part = torch.zeros(elements // world_size, dtype=dtype, device=device)
    if op == "all_gather":
        return lambda: _ignore(dist.all_gather_into_tensor(whole, part, group=group)), elements * itemsize
    return lambda: _ignore(dist.reduce_scatter_tensor(part, whole, group=group)), elements * itemsize


def _ignore(_: object) -> None:
    pass


def average_at_once(group: dist.ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP communication hook that averages a bucket before the backward pass goes on: nothing overlaps."""
    tensor = bucket.buffer().div_(dist.get_world_size(group))
    dist.all_reduce(tensor, group=group)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(tensor)
    return done


@dataclass
class _Bucket:
    bytes: int
    start: Mark
    end: Mark = None


@dataclass
class BucketClock:
    """A DDP communication hook that notes when each gradient bucket is ready and when it has been averaged.

    On a CPU a bucket starts as the hook is entered and ends as its future completes (host time); on a GPU it starts
    and ends with CUDA events on the streams that the collective waits for and completes on.

    Args:
        device: of the gradients.
        group: whose ranks average.
        communicate: False: note the start, leave the gradients as they are, and be done at once.
    """

    device: torch.device
    group: dist.ProcessGroup | None = None
    communicate: bool = True
    _begin: Mark = None
    _forward: Mark = None
    _buckets: list[_Bucket] = field(default_factory=list)

    def watch(self, module: nn.Module) -> None:
        """Note too when ``module``, the one inside DDP, begins its forward pass, after any broadcast of buffers."""

        def note(*_: object) -> None:
            self._forward = mark(self.device)

        module.register_forward_pre_hook(note)

    def begin(self) -> None:
        """Start a step."""
        self._begin, self._forward, self._buckets = mark(self.device), None, []

    def hook(self, _: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """What DDP calls for each bucket."""
        tensor = bucket.buffer()
        entry = _Bucket(tensor.numel() * tensor.element_size(), mark(self.device))
        self._buckets.append(entry)
        if not self.communicate:
            entry.end = entry.start
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(tensor)
            return done
        tensor.div_(dist.get_world_size(self.group))
        work = dist.all_reduce(tensor, group=self.group, async_op=True)
        assert work is not None

        def finish(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            # On a GPU the callback has a stream that waits for the collective.
            entry.end = mark(self.device)
            return future.value()[0]

        averaged: torch.futures.Future[torch.Tensor] = work.get_future().then(finish)
        return averaged

    def _since(self, moment: Mark) -> float:
        return seconds_between(self._begin, moment)

    def step(self) -> tuple[float, list[tuple[int, float, float]]]:
        """Return what the step that just ended did; the device must be synchronized.

        Returns:
            Seconds from the step's start to the inner module's forward pass (0 where not watched), and for each
            bucket, in the order they were started, its bytes and the seconds from the step's start to its own start
            and end.
        """
        forward = 0.0 if self._forward is None else self._since(self._forward)
        buckets = [(b.bytes, self._since(b.start), self._since(b.end)) for b in self._buckets]
        if self.device.type == "cuda":
            # NCCL runs them one after the other: a bucket that waits for the one before has not started.
            for i in range(1, len(buckets)):
                size, start, end = buckets[i]
                buckets[i] = size, max(start, buckets[i - 1][2]), end
        return forward, buckets


def average_in_bf16(group: dist.ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """PyTorch's hook of that kind; DDP refuses it by its name where the backend is gloo, which can do it."""
    assert group is None  # type: ignore[unreachable, unused-ignore]
    averaged: torch.futures.Future[torch.Tensor] = bf16_compress_hook(group, bucket)  # type: ignore[arg-type]
    return averaged

"""The processes of a run: their ranks, what they exchange, and the share of each.

torchrun sets the rank of a process in the environment. Without torchrun, or if it started only one process, nothing
here communicates.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from twoscale import errors
from twoscale._environment import gpu_count
from twoscale._launching.interfaces import choose_interface
from twoscale._launching.processes import die_with_parent, wait_for_group
from twoscale.errors import ConfigurationError, TwoscaleError

__all__ = ["Ranks", "process_group", "share_of"]

T = TypeVar("T")

_LOST = 3.0
"""Seconds that a process that lost another waits to be ended before it reports the loss itself."""


@dataclass(frozen=True)
class _Answer:
    """The leading process's result, for all processes."""

    result: bytes = b""
    error: tuple[str, str] | None = None
    """Name of the type in :mod:`twoscale.errors`, and message."""


@dataclass(frozen=True)
class Ranks:
    """This process and its rank among those that train together."""

    rank: int = 0
    size: int = 1
    backend: str | None = None
    """Backend of torch.distributed; None for a single process."""

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.sum_(torch.tensor(int(flag), device=device)))

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by those of the leading process."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def from_leader(self, function: Callable[[], T], kind: type[T]) -> T:
        """Call a function in the leading process only; return in all of them what it returned, or raise what it raised.

        Args:
            function: any.
            kind: type of what it returns, plain or a dataclass of plain values, which msgspec decodes.

        Raises:
            TwoscaleError: the function did.
        """
        if self.size == 1:
            return function()
        answer = _Answer()
        if self.leads:
            try:
                answer = _Answer(msgspec.msgpack.encode(function()))
            except TwoscaleError as error:
                answer = _Answer(error=(type(error).__name__, str(error)))
        answer = msgspec.msgpack.decode(self.gathered(msgspec.msgpack.encode(answer))[0], type=_Answer)
        if answer.error is not None:
            name, text = answer.error
            raise getattr(errors, name)(text)
        return msgspec.msgpack.decode(answer.result, type=kind)

    def gathered(self, value: bytes) -> list[bytes]:
        """Return every process's value. Values are bytes, since unpickling them would let other processes run code
        here."""
        if self.size == 1:
            return [value]
        device = torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else torch.device("cpu")
        length = torch.tensor([len(value)], device=device)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        padded = torch.zeros(max(1, *(int(one) for one in lengths)), dtype=torch.uint8, device=device)
        padded[: len(value)] = torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else padded[:0]
        values = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(values, padded)
        return [one[: int(n)].cpu().numpy().tobytes() for one, n in zip(values, lengths, strict=True)]


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the other processes that torchrun started, for the time of the block. An existing group is used.

    Args:
        device: "cuda": NCCL, each process on a GPU of its own. "cpu": gloo. "auto": cuda where there is a GPU.

    Raises:
        ConfigurationError: fewer GPUs than processes on this machine, the environment lacks the process's rank, or the
            first of several machines is not reached.
    """
    if dist.is_initialized():
        yield (
            Ranks(dist.get_rank(), dist.get_world_size(), dist.get_backend()) if dist.get_world_size() > 1 else Ranks()
        )
        return
    size = _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1
    if size == 1:
        yield Ranks()
        return
    local, here = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigurationError(
                f"RANK and WORLD_SIZE say that this is one of {size} processes, but {name} is not set; "
                "start it with torchrun, or unset them"
            )
    die_with_parent()
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if here > (gpus := gpu_count()):
            raise ConfigurationError(
                f"{here} processes on this machine need a GPU each, and it has {gpus}; start fewer, or use --device cpu"
            )
        torch.cuda.set_device(local)
        dist.init_process_group("nccl", device_id=torch.device("cuda", local), **_meeting())
    else:
        choose_interface()
        dist.init_process_group("gloo", **_meeting())
    try:
        yield Ranks(dist.get_rank(), size, dist.get_backend())
        # Only after success: to the others, a process that leaves looks like one that failed.
        wait_for_group(size)
        dist.destroy_process_group()
    except (TwoscaleError, KeyboardInterrupt):  # which all processes raise together
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            # Another process is gone. The launcher ends this one in a moment, and reports which process it was.
            time.sleep(_LOST)
        raise


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigurationError(
            f"{name} is {value!r} in the environment; expected a whole number, as torchrun sets it"
        )
    return int(value)


def _meeting() -> dict[str, Any]:
    """Return the arguments of ``init_process_group`` with which the processes exchange addresses.

    torchrun keeps its store when it restarts processes, and a quick process would find the addresses of the previous
    ones. So each attempt has its own prefix. With several machines, each torchrun counts attempts by itself, and the
    arguments are PyTorch's defaults.
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return {}
    store, rank, size = next(iter(rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": size}


def share_of(order: torch.Tensor, batch_size: int, ranks: Ranks) -> torch.Tensor:
    """Return the images that one process visits: every size-th image of each batch, starting at the rank.

    No image is padded or left out. Only if the last batch has fewer images than there are processes, a process without
    an image gets the first of that batch, which must not count.

    Args:
        order: (N,), the epoch's.
        batch_size: images of a batch, of all processes together, at least their number.
        ranks: the process.
    """
    if ranks.size == 1:
        return order
    full = len(order) // batch_size * batch_size
    mine = order[:full].view(-1, batch_size)[:, ranks.rank :: ranks.size].flatten()
    rest = order[full:]
    return torch.cat([mine, rest[ranks.rank :: ranks.size] if len(rest) > ranks.rank else rest[:1]])

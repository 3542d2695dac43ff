"""Ways to share a step among ranks: DDP's options and communication hooks, plain all-reduces, and sharding.

Each is a module, an optimizer and what is sent after the backward pass, with the ledger that its collectives should
have. The predictions follow PyTorch 2.13: ``nn/parallel/distributed.py`` (see ``ledger``),
``distributed/algorithms/ddp_comm_hooks/``, ``distributed/optim/zero_redundancy_optimizer.py`` and
``distributed/fsdp/_fully_shard/``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from twoscale.scaling._measure.collectives import average_at_once, average_in_bf16
from twoscale.scaling._measure.ledger import CollectiveLog, predict
from twoscale.scaling._measure.records import DdpOptions, LedgerEntry, Workload
from twoscale.scaling._measure.workload import wrap

__all__ = ["LEDGER_STEPS", "STRATEGIES", "Case", "Shared", "Strategy", "bytes_of"]

_MIB = 1 << 20
LEDGER_STEPS = 7
"""Steps whose collectives are predicted and observed: DDP's first three may differ from all later ones."""
_LOCAL_STEPS = 4
"""Steps between two averages of local SGD."""
_RANK = 2
"""Of the matrices that PowerSGD sends."""
_PLAIN_STEPS = 2
"""Steps before PowerSGD compresses: DDP makes its buckets anew before the second."""


# ---------------------------------------------------------------- how a step is shared


@dataclass
class Shared:
    """A module whose steps ranks share."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Callable[[], None] | None = None
    """Sends gradients after the backward pass, where the module does not."""
    after_update: Callable[[int], None] | None = None
    """Is called with the number of the step, from 1."""


@dataclass(frozen=True)
class Case:
    """What a prediction needs to know."""

    model: nn.Module
    """Not shared yet."""
    images: torch.Tensor
    """A batch that it takes."""
    world_size: int


@dataclass(frozen=True)
class Strategy:
    """A way to share a step among ranks."""

    name: str
    share: Callable[[nn.Module, Workload, CollectiveLog | None], Shared]
    predict: Callable[[Case], Iterable[LedgerEntry]]
    exact: bool = True
    """Whether its update is DDP's, up to the order of sums."""


def _sgd(model: nn.Module, workload: Workload) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ---------------------------------------------------------------- DistributedDataParallel


def _small_buckets(model: nn.Module) -> float:
    """Return a limit of buckets, MiB, that makes at least a few of them."""
    return min(1.0, sum(map(bytes_of, _trained(model))) / _MIB / 8)


def _one_bucket(model: nn.Module) -> float:
    return 2 * sum(map(bytes_of, _trained(model))) / _MIB


def _ddp(
    name: str,
    options: Callable[[nn.Module], DdpOptions] = lambda _: DdpOptions(),
    *,
    hook: Callable[..., Any] | None = None,
    compressed: torch.dtype | None = None,
    exact: bool = True,
    **others: Any,
) -> Strategy:
    def share(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> Shared:
        wrapped = wrap(model, options(model), **others)
        if hook is not None:
            wrapped.register_comm_hook(None, hook)
        return Shared(wrapped, _sgd(model, workload))

    def entries(case: Case) -> Iterator[LedgerEntry]:
        for entry in _predicted(case, options(case.model)):
            if compressed is not None and entry.what == "gradients":
                wide = torch.empty(0, dtype=getattr(torch, entry.dtype)).element_size()
                half = entry.bytes * torch.empty(0, dtype=compressed).element_size() // wide
                entry = replace(entry, dtype=str(compressed).removeprefix("torch."), bytes=half)
            yield entry

    return Strategy(name, share, entries, exact)


def _predicted(case: Case, options: DdpOptions) -> tuple[LedgerEntry, ...]:
    return predict(case.model, options, mini_batches=LEDGER_STEPS, images_nchw=case.images)


# ---------------------------------------------------------------- PowerSGD


class _Noted(dist.ProcessGroup):
    """The default group, whose all-reduces are noted also where PyTorch starts them from a thread of its own."""

    def __init__(self, log: CollectiveLog) -> None:
        inner: Any = dist.group.WORLD
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]
        self._inner, self._log, self._thread = inner, log, threading.get_ident()

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        """Note the collective, and start it."""
        # The thread of the step is in the log's context already.
        elsewhere = threading.get_ident() != self._thread
        with self._log if elsewhere else contextlib.nullcontext():
            return self._inner.allreduce(tensors, opts)

    def size(self) -> int:
        """Return the number of ranks."""
        return int(self._inner.size())

    def rank(self) -> int:
        """Return this rank."""
        return int(self._inner.rank())

    def getBackendName(self) -> str:
        """Return a name for error messages."""
        return "noted"


def _share_powersgd(model: nn.Module, workload: Workload, log: CollectiveLog | None) -> Shared:
    for name in ("default_hooks", "powerSGD_hook"):  # they report every bucket
        logging.getLogger(f"torch.distributed.algorithms.ddp_comm_hooks.{name}").setLevel(logging.ERROR)
    group = None if log is None else _Noted(log)
    state = PowerSGDState(group, matrix_approximation_rank=_RANK, start_powerSGD_iter=_PLAIN_STEPS)
    # In one bucket: the hook sends from callbacks, which gloo runs in any order, so that two buckets would be mixed up.
    wrapped = wrap(model, DdpOptions(bucket_cap_mb=_one_bucket(model)))
    wrapped.register_comm_hook(state, powerSGD_hook)
    return Shared(wrapped, _sgd(model, workload))


def _predict_powersgd(case: Case) -> Iterator[LedgerEntry]:
    """The gradient of (n, m) goes as P (n, r) and Q (m, r) where that is less than half of it (Vogels et al. 2019)."""
    plain = p_size = q_size = 0
    for parameter in _trained(case.model):
        n, m = parameter.shape[0], parameter[0].numel()
        rank = min(n, m, _RANK)
        if 2 * (n + m) * rank < n * m:
            p_size, q_size = p_size + n * rank, q_size + m * rank
        else:
            plain += n * m
    for entry in _predicted(case, DdpOptions(bucket_cap_mb=_one_bucket(case.model))):
        if entry.what == "gradients" and entry.step > _PLAIN_STEPS:
            size = next(case.model.parameters()).element_size()
            for what, count in (("small gradients", plain), ("P of gradients", p_size), ("Q of gradients", q_size)):
                yield replace(entry, what=what, bytes=count * size)
        else:
            yield entry


# ---------------------------------------------------------------- all-reduces of one's own


def _average(tensors: Sequence[torch.Tensor], *, flat: bool) -> None:
    """Average tensors over ranks, each on its own or all of a type in one piece."""
    size = dist.get_world_size()
    if not flat:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(size)
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        whole = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.all_reduce(whole)
        whole.div_(size)
        parts = torch.split(whole, [tensor.numel() for tensor in same])
        torch._foreach_copy_(same, [part.view_as(tensor) for part, tensor in zip(parts, same, strict=True)])


def _sums(phase: str, what: str, tensors: Sequence[torch.Tensor], *, flat: bool) -> Iterator[LedgerEntry]:
    if not flat:
        yield from (LedgerEntry(phase, "all_reduce", what, _dtype(one), bytes_of(one)) for one in tensors)
        return
    sizes: dict[str, int] = {}
    for one in tensors:
        sizes[_dtype(one)] = sizes.get(_dtype(one), 0) + bytes_of(one)
    yield from (LedgerEntry(phase, "all_reduce", what, dtype, size) for dtype, size in sizes.items())


def _plain(name: str, *, flat: bool) -> Strategy:
    """Gradients are averaged after the backward pass; replicas begin from the same seed, and nothing else is sent."""

    def share(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> Shared:
        parameters = _trained(model)

        def average() -> None:
            _average([p.grad for p in parameters if p.grad is not None], flat=flat)

        return Shared(model, _sgd(model, workload), average)

    def entries(case: Case) -> Iterator[LedgerEntry]:
        for i in range(1, LEDGER_STEPS + 1):
            yield from _sums(f"backward {i}", "gradients", _trained(case.model), flat=flat)

    return Strategy(name, share, entries)


def _share_local_sgd(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> Shared:
    parameters = _trained(model)

    def after_update(step: int) -> None:
        if step % _LOCAL_STEPS == 0:
            _average([parameter.detach() for parameter in parameters], flat=True)

    return Shared(model, _sgd(model, workload), after_update=after_update)


def _predict_local_sgd(case: Case) -> Iterator[LedgerEntry]:
    for i in range(_LOCAL_STEPS, LEDGER_STEPS + 1, _LOCAL_STEPS):
        yield from _sums(f"update {i}", "parameters", _trained(case.model), flat=True)


# ---------------------------------------------------------------- sharding


def _share_zero1(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> Shared:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    wrapped = wrap(model, DdpOptions())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=workload.lr, momentum=workload.momentum)
    return Shared(wrapped, optimizer)


def _predict_zero1(case: Case) -> Iterator[LedgerEntry]:
    """Every rank updates its parameters and broadcasts them one by one; the largest go to whom has least so far."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(case.world_size)]
    elements = [0] * case.world_size
    for parameter in sorted(case.model.parameters(), key=lambda p: p.numel(), reverse=True):
        rank = elements.index(min(elements))
        shares[rank].append(parameter)
        elements[rank] += parameter.numel()
    yield from _predicted(case, DdpOptions())
    for i in range(1, LEDGER_STEPS + 1):
        for parameter in itertools.chain(*shares):
            yield LedgerEntry(f"update {i}", "broadcast", "parameters", _dtype(parameter), bytes_of(parameter))


def _fsdp(name: str, *, reshard: bool) -> Strategy:
    """FSDP2: a group of parameters for each child of the module, and one for what the module itself holds."""

    def share(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> Shared:
        from torch.distributed.fsdp import fully_shard

        for child in model.children():
            if any(True for _ in child.parameters()):
                fully_shard(child, reshard_after_forward=reshard)
        fully_shard(model, reshard_after_forward=reshard)
        return Shared(model, _sgd(model, workload))

    def entries(case: Case) -> Iterator[LedgerEntry]:
        groups = _forward_order(case)
        for i in range(1, LEDGER_STEPS + 1):
            yield from (_gathered(f"forward {i}", group, case.world_size) for group in groups)
            # Backwards, each group gathers the one before it while it computes.
            backwards = groups[::-1]
            for number, group in enumerate(backwards):
                if reshard:
                    wanted = backwards[: number + 2] if number == 0 else backwards[number + 1 : number + 2]
                    yield from (_gathered(f"backward {i}", one, case.world_size) for one in wanted)
                size = case.world_size * _shard_bytes(group, case.world_size)
                yield LedgerEntry(f"backward {i}", "reduce_scatter", "gradients", _dtype(group[0]), size)

    return Strategy(name, share, entries)


def _forward_order(case: Case) -> list[list[nn.Parameter]]:
    """Return the parameters of the module's children in the order in which a forward pass reaches them."""
    seen: list[nn.Module] = []
    handles = [child.register_forward_pre_hook(lambda one, _: seen.append(one)) for child in case.model.children()]
    before = [buffer.clone() for buffer in case.model.buffers()]
    with torch.no_grad():
        case.model(case.images)
        for buffer, old in zip(case.model.buffers(), before, strict=True):
            buffer.copy_(old)
    for handle in handles:
        handle.remove()
    held = [list(child.parameters()) for child in dict.fromkeys(seen)]
    inside = {id(parameter) for group in held for parameter in group}
    own = [parameter for parameter in case.model.parameters() if id(parameter) not in inside]
    return [group for group in (own, *held) if group]


def _shard_bytes(group: Iterable[torch.Tensor], world_size: int) -> int:
    """Return the bytes of a rank's part of parameters, each cut along its first axis and padded to equal parts."""
    return sum(bytes_of(one) // one.shape[0] * math.ceil(one.shape[0] / world_size) for one in group)


def _gathered(phase: str, group: Sequence[torch.Tensor], world_size: int) -> LedgerEntry:
    return LedgerEntry(phase, "all_gather", "parameters", _dtype(group[0]), _shard_bytes(group, world_size))


# ---------------------------------------------------------------- all of them

DDP = _ddp("DDP")
STRATEGIES: tuple[Strategy, ...] = (
    DDP,
    _ddp("DDP, one bucket", lambda model: DdpOptions(bucket_cap_mb=_one_bucket(model))),
    _ddp("DDP, small buckets", lambda model: DdpOptions(bucket_cap_mb=_small_buckets(model))),
    _ddp(
        "DDP, small buckets, no overlap",
        lambda model: DdpOptions(bucket_cap_mb=_small_buckets(model)),
        hook=average_at_once,
    ),
    _ddp("DDP, gradient_as_bucket_view", gradient_as_bucket_view=True),
    _ddp("DDP, static_graph", lambda _: DdpOptions(static_graph=True)),
    _plain("one flat all-reduce", flat=True),
    _plain("one all-reduce per parameter", flat=False),
    _ddp("DDP, fp16 gradients", hook=fp16_compress_hook, compressed=torch.float16, exact=False),
    _ddp("DDP, bf16 gradients", hook=average_in_bf16, compressed=torch.bfloat16, exact=False),
    Strategy(f"DDP, PowerSGD of rank {_RANK}", _share_powersgd, _predict_powersgd, exact=False),
    Strategy(f"local SGD, average every {_LOCAL_STEPS} steps", _share_local_sgd, _predict_local_sgd, exact=False),
    Strategy("ZeRO-1", _share_zero1, _predict_zero1),
    _fsdp("FSDP2, parameters kept after forward", reshard=False),
    _fsdp("FSDP2", reshard=True),
)
"""Every strategy, DDP first."""

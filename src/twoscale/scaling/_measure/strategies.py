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
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from twoscale import data
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import Paced, RankClock, paced
from twoscale.scaling._measure.collectives import average_at_once, average_in_bf16
from twoscale.scaling._measure.ledger import CollectiveLog, predict, reconcile
from twoscale.scaling._measure.records import DdpOptions, HeldMemory, LedgerEntry, StrategyRecord, Workload
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.workload import Batch, batch_stream, create_model, device_of, load_images, wrap

__all__ = ["STRATEGIES", "Strategy", "compare"]

_MIB = 1 << 20
_LEDGER_STEPS = 7
_WARMUP = 3
_LOCAL_STEPS = 4
"""Steps between two averages of local SGD."""
_RANK = 2
"""Of the matrices that PowerSGD sends."""
_PLAIN_STEPS = 2
"""Steps before PowerSGD compresses: DDP makes its buckets anew before the second."""
_MOST_TESTED = 2_000
"""Test images."""


# ---------------------------------------------------------------- how a step is shared


@dataclass
class _Shared:
    """A module whose steps ranks share."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Callable[[], None] | None = None
    """Sends gradients after the backward pass, where the module does not."""
    after_update: Callable[[int], None] | None = None
    """Is called with the number of the step, from 1."""


@dataclass(frozen=True)
class _Case:
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
    share: Callable[[nn.Module, Workload, CollectiveLog | None], _Shared]
    predict: Callable[[_Case], Iterable[LedgerEntry]]
    exact: bool = True
    """Whether its update is DDP's, up to the order of sums."""


def _sgd(model: nn.Module, workload: Workload) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ---------------------------------------------------------------- DistributedDataParallel


def _small_buckets(model: nn.Module) -> float:
    """Return a limit of buckets, MiB, that makes at least a few of them."""
    return min(1.0, sum(map(_bytes, _trained(model))) / _MIB / 8)


def _one_bucket(model: nn.Module) -> float:
    return 2 * sum(map(_bytes, _trained(model))) / _MIB


def _ddp(
    name: str,
    options: Callable[[nn.Module], DdpOptions] = lambda _: DdpOptions(),
    *,
    hook: Callable[..., Any] | None = None,
    compressed: torch.dtype | None = None,
    exact: bool = True,
    **others: Any,
) -> Strategy:
    def share(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> _Shared:
        wrapped = wrap(model, options(model), **others)
        if hook is not None:
            wrapped.register_comm_hook(None, hook)
        return _Shared(wrapped, _sgd(model, workload))

    def entries(case: _Case) -> Iterator[LedgerEntry]:
        for entry in _predicted(case, options(case.model)):
            if compressed is not None and entry.what == "gradients":
                wide = torch.empty(0, dtype=getattr(torch, entry.dtype)).element_size()
                half = entry.bytes * torch.empty(0, dtype=compressed).element_size() // wide
                entry = replace(entry, dtype=str(compressed).removeprefix("torch."), bytes=half)
            yield entry

    return Strategy(name, share, entries, exact)


def _predicted(case: _Case, options: DdpOptions) -> tuple[LedgerEntry, ...]:
    return predict(case.model, options, mini_batches=_LEDGER_STEPS, images_nchw=case.images)


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


def _share_powersgd(model: nn.Module, workload: Workload, log: CollectiveLog | None) -> _Shared:
    for name in ("default_hooks", "powerSGD_hook"):  # they report every bucket
        logging.getLogger(f"torch.distributed.algorithms.ddp_comm_hooks.{name}").setLevel(logging.ERROR)
    group = None if log is None else _Noted(log)
    state = PowerSGDState(group, matrix_approximation_rank=_RANK, start_powerSGD_iter=_PLAIN_STEPS)
    # In one bucket: the hook sends from callbacks, which gloo runs in any order, so that two buckets would be mixed up.
    wrapped = wrap(model, DdpOptions(bucket_cap_mb=_one_bucket(model)))
    wrapped.register_comm_hook(state, powerSGD_hook)
    return _Shared(wrapped, _sgd(model, workload))


def _predict_powersgd(case: _Case) -> Iterator[LedgerEntry]:
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
        yield from (LedgerEntry(phase, "all_reduce", what, _dtype(one), _bytes(one)) for one in tensors)
        return
    sizes: dict[str, int] = {}
    for one in tensors:
        sizes[_dtype(one)] = sizes.get(_dtype(one), 0) + _bytes(one)
    yield from (LedgerEntry(phase, "all_reduce", what, dtype, size) for dtype, size in sizes.items())


def _plain(name: str, *, flat: bool) -> Strategy:
    """Gradients are averaged after the backward pass; replicas begin from the same seed, and nothing else is sent."""

    def share(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> _Shared:
        parameters = _trained(model)

        def average() -> None:
            _average([p.grad for p in parameters if p.grad is not None], flat=flat)

        return _Shared(model, _sgd(model, workload), average)

    def entries(case: _Case) -> Iterator[LedgerEntry]:
        for i in range(1, _LEDGER_STEPS + 1):
            yield from _sums(f"backward {i}", "gradients", _trained(case.model), flat=flat)

    return Strategy(name, share, entries)


def _share_local_sgd(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> _Shared:
    parameters = _trained(model)

    def after_update(step: int) -> None:
        if step % _LOCAL_STEPS == 0:
            _average([parameter.detach() for parameter in parameters], flat=True)

    return _Shared(model, _sgd(model, workload), after_update=after_update)


def _predict_local_sgd(case: _Case) -> Iterator[LedgerEntry]:
    for i in range(_LOCAL_STEPS, _LEDGER_STEPS + 1, _LOCAL_STEPS):
        yield from _sums(f"update {i}", "parameters", _trained(case.model), flat=True)


# ---------------------------------------------------------------- sharding


def _share_zero1(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> _Shared:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    wrapped = wrap(model, DdpOptions())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=workload.lr, momentum=workload.momentum)
    return _Shared(wrapped, optimizer)


def _predict_zero1(case: _Case) -> Iterator[LedgerEntry]:
    """Every rank updates its parameters and broadcasts them one by one; the largest go to whom has least so far."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(case.world_size)]
    elements = [0] * case.world_size
    for parameter in sorted(case.model.parameters(), key=lambda p: p.numel(), reverse=True):
        rank = elements.index(min(elements))
        shares[rank].append(parameter)
        elements[rank] += parameter.numel()
    yield from _predicted(case, DdpOptions())
    for i in range(1, _LEDGER_STEPS + 1):
        for parameter in itertools.chain(*shares):
            yield LedgerEntry(f"update {i}", "broadcast", "parameters", _dtype(parameter), _bytes(parameter))


def _fsdp(name: str, *, reshard: bool) -> Strategy:
    """FSDP2: a group of parameters for each child of the module, and one for what the module itself holds."""

    def share(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> _Shared:
        from torch.distributed.fsdp import fully_shard

        for child in model.children():
            if any(True for _ in child.parameters()):
                fully_shard(child, reshard_after_forward=reshard)
        fully_shard(model, reshard_after_forward=reshard)
        return _Shared(model, _sgd(model, workload))

    def entries(case: _Case) -> Iterator[LedgerEntry]:
        groups = _forward_order(case)
        for i in range(1, _LEDGER_STEPS + 1):
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


def _forward_order(case: _Case) -> list[list[nn.Parameter]]:
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
    return sum(_bytes(one) // one.shape[0] * math.ceil(one.shape[0] / world_size) for one in group)


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


# ---------------------------------------------------------------- measuring them


class _Run:
    """Steps of a strategy from the workload's initial weights."""

    def __init__(self, strategy: Strategy, workload: Workload, log: CollectiveLog | None = None) -> None:
        self._log = log
        self._at("construction")
        self._shared = strategy.share(create_model(workload), workload, log)
        self._precision = torch.autocast(workload.device, torch.bfloat16, enabled=workload.precision == "bf16")
        self._steps = 0

    def _at(self, phase: str) -> None:
        if self._log is not None:
            self._log.phase = phase

    def __call__(self, batch: Batch) -> None:
        """Take a step; gradients stay until the next."""
        images, labels = batch
        shared = self._shared
        self._steps += 1
        shared.optimizer.zero_grad(set_to_none=True)
        self._at(f"forward {self._steps}")
        with self._precision:
            loss = F.cross_entropy(shared.module(images), labels)
        self._at(f"backward {self._steps}")
        loss.backward()  # type: ignore[no-untyped-call]
        if shared.average is not None:
            shared.average()
        self._at(f"update {self._steps}")
        shared.optimizer.step()
        if shared.after_update is not None:
            shared.after_update(self._steps)

    def weights(self) -> torch.Tensor:
        """Return this rank's weights, whole, in one tensor of float64 on the host."""
        whole = [getattr(p, "full_tensor", p.detach)() for p in self._shared.module.parameters()]
        return torch.cat([one.detach().reshape(-1).double().cpu() for one in whole])

    def memory(self) -> HeldMemory:
        """Return what this rank holds after a step."""
        parameters = list(self._shared.module.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        inner = getattr(self._shared.optimizer, "optim", self._shared.optimizer)  # ZeRO's holds this rank's part
        state = [value for one in inner.state.values() for value in one.values() if isinstance(value, torch.Tensor)]
        buckets = 0
        if isinstance(self._shared.module, DistributedDataParallel):
            views = self._shared.module.gradient_as_bucket_view
            buckets = 0 if views else sum(map(_bytes, gradients))
        return HeldMemory(_storage(parameters), _storage(gradients), _storage(state), buckets)

    @torch.no_grad()
    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the share of images that are classified right."""
        self._shared.module.eval()
        right = sum(
            int((self._shared.module(part).argmax(1) == answers).sum().item())
            for part, answers in zip(torch.split(images, 256), torch.split(labels, 256), strict=True)
        )
        self._shared.module.train()
        return right / len(labels)


def _storage(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the memory behind tensors, each once; of sharded ones, of this rank's part."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in local if one.numel()}
    return sum(storages.values())


@dataclass(frozen=True)
class _Ledger:
    predicted: tuple[LedgerEntry, ...]
    observed: tuple[LedgerEntry, ...]
    differences: tuple[str, ...]
    memory: HeldMemory
    weights: torch.Tensor


def _write(strategy: Strategy, workload: Workload, ranks: RankClock) -> _Ledger:
    """Run a few steps of a strategy and compare their collectives with the prediction."""
    batches = list(itertools.islice(batch_stream(workload, ranks.rank, ranks.size), _LEDGER_STEPS))
    case = _Case(create_model(workload), batches[0][0][:2], ranks.size)
    # Phase by phase, as they come.
    predicted = sorted(strategy.predict(case), key=lambda entry: (entry.step, _PHASES.index(entry.phase.split()[0])))
    log = CollectiveLog()
    with log:
        run = _Run(strategy, workload, log)
        for batch in batches:
            run(batch)
    held = ranks.table([float(size) for size in _fields(run.memory())])
    most = held[int(held.sum(1).argmax())]
    memory = HeldMemory(*(int(size) for size in most))
    return _Ledger(tuple(predicted), tuple(log.entries), reconcile(predicted, log.entries), memory, run.weights())


_PHASES = ("construction", "forward", "backward", "update")


def _fields(memory: HeldMemory) -> tuple[int, int, int, int]:
    return memory.parameters, memory.gradients, memory.optimizer, memory.buckets


def _test_images(workload: Workload) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return test images, normalized, and their labels; None for synthetic images, which have nothing to learn."""
    if workload.data == "synthetic":
        return None
    dataset = load_images(workload.data, workload.preprocessing)
    test = dataset.test.head(_MOST_TESTED)
    device = device_of(workload)
    images = torch.from_numpy(test.images[:]).to(device)
    labels = torch.from_numpy(test.labels.astype("int64")).to(device)
    return data.normalize(images, dataset.mean, dataset.std), labels


def compare(
    workload: Workload,
    *,
    strategies: Sequence[Strategy] = STRATEGIES,
    rounds: int = 6,
    steps: int = 5,
    trained_steps: int = 60,
    seeds: int = 3,
    watch: Callable[[str], None] | None = None,
) -> tuple[StrategyRecord, ...]:
    """Compare strategies in the ranks of this launch: their ledgers, weights, memory, and time per step.

    Args:
        workload: what a rank does.
        strategies: the first is what others are compared with.
        rounds: times that every strategy has its turn.
        steps: timed in a turn, after one that is not.
        trained_steps: of the training runs whose accuracy is compared. 0: none.
        seeds: such runs of each strategy.
        watch: is called with what is measured now.

    Raises:
        ConfigurationError: a single rank, which shares nothing, or less than one round, step or seed.
    """
    ranks = RankClock(device_of(workload))
    if ranks.size == 1:
        raise ConfigurationError("strategies are compared on 1 rank; expected at least 2")
    if min(rounds, steps, seeds) < 1 or trained_steps < 0:
        raise ConfigurationError(f"{rounds} rounds, {steps} steps, {seeds} seeds: expected at least 1 of each")

    def report(what: str) -> None:
        if watch is not None:
            watch(what)

    ledgers = []
    for strategy in strategies:
        report(f"ledger of {strategy.name}")
        ledgers.append(_write(strategy, workload, ranks))
    accuracies = {
        strategy.name: _accuracies(strategy, workload, ranks, trained_steps, seeds, report)
        for number, strategy in enumerate(strategies)
        if number == 0 or not strategy.exact
    }
    times = _times(strategies, workload, ranks, rounds, steps, report)
    reference = ledgers[0].weights
    return tuple(
        StrategyRecord(
            name=strategy.name,
            world_size=ranks.size,
            batch_size=workload.batch_size,
            mini_batches=_LEDGER_STEPS,
            predicted=ledger.predicted,
            observed=ledger.observed,
            differences=ledger.differences,
            step=summarize([one.slowest for one in taken]),
            against_ddp=None
            if taken is times[0]
            else summarize([one.slowest - first.slowest for one, first in zip(taken, times[0], strict=True)]),
            memory=ledger.memory,
            distance=float((ledger.weights - reference).norm() / reference.norm()),
            accuracies=accuracies.get(strategy.name, ()),
            trained_steps=trained_steps if accuracies.get(strategy.name) else 0,
        )
        for strategy, ledger, taken in zip(strategies, ledgers, times, strict=True)
    )


def _accuracies(
    strategy: Strategy,
    workload: Workload,
    ranks: RankClock,
    trained_steps: int,
    seeds: int,
    report: Callable[[str], None],
) -> tuple[float, ...]:
    tested = _test_images(workload)
    if tested is None or not trained_steps:
        return ()
    found = []
    for seed in range(seeds):
        report(f"training with {strategy.name}, run {seed + 1} of {seeds}")
        # A rate at which a few dozen steps go far.
        seeded = replace(workload, seed=workload.seed + seed, lr=5 * workload.lr)
        run = _Run(strategy, seeded)
        for batch in itertools.islice(batch_stream(seeded, ranks.rank, ranks.size), trained_steps):
            run(batch)
        found.append(run.accuracy(*tested))
    return tuple(float(value) for value in ranks.table(found)[0])


def _times(
    strategies: Sequence[Strategy],
    workload: Workload,
    ranks: RankClock,
    rounds: int,
    steps: int,
    report: Callable[[str], None],
) -> list[list[Paced]]:
    """Time steps of every strategy in turn, in an order that rotates from round to round."""
    source = batch_stream(workload, ranks.rank, ranks.size)
    runs = [_Run(strategy, workload) for strategy in strategies]
    for run in runs:
        for batch in itertools.islice(source, _WARMUP):
            run(batch)
    taken: list[list[Paced]] = [[] for _ in runs]
    for number in range(rounds):
        report(f"round {number + 1} of {rounds}")
        shift = number % len(runs)
        for i in [*range(shift, len(runs)), *range(shift)]:
            taken[i].append(paced(ranks, runs[i], source, steps))
    return taken

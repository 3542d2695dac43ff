"""Strategies compared in the ranks of a launch: their ledgers, weights and memory, and the time of their steps.

``nn.DataParallel``, the way not to share a step, is compared too. It has one process for all GPUs of a host, so rank 0
takes its steps and the other ranks wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twoscale import data
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import Paced, RankClock, paced
from twoscale.scaling._measure.ledger import CollectiveLog, reconcile
from twoscale.scaling._measure.records import DATA_PARALLEL, HeldMemory, LedgerEntry, StrategyRecord, Workload
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.strategies import LEDGER_STEPS, STRATEGIES, Case, Shared, Strategy, bytes_of
from twoscale.scaling._measure.workload import Batch, Step, batch_stream, create_model, device_of, load_images

__all__ = ["compare", "compare_data_parallel"]

_WARMUP = 3
_MOST_TESTED = 2_000
"""Test images."""


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
            buckets = 0 if views else sum(map(bytes_of, gradients))
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
    batches = list(itertools.islice(batch_stream(workload, ranks.rank, ranks.size), LEDGER_STEPS))
    case = Case(create_model(workload), batches[0][0][:2], ranks.size)
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
            mini_batches=LEDGER_STEPS,
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


# ---------------------------------------------------------------- nn.DataParallel


def compare_data_parallel(
    workload: Workload, ddp: StrategyRecord, *, rounds: int = 6, steps: int = 5
) -> StrategyRecord:
    """Time steps of ``nn.DataParallel`` over the images of all ranks, and compare its weights with DDP's.

    On a processor it runs the module on the whole batch, and shares nothing.

    Args:
        workload: what a rank does; a step here takes as many images as all ranks together.
        ddp: DDP's record in the same ranks.
        rounds: timed runs.
        steps: of a run.
    """
    ranks = RankClock(device_of(workload))
    together = replace(workload, batch_size=ranks.size * workload.batch_size)
    run = _Run(_DATA_PARALLEL, together) if ranks.rank == 0 else None
    step: Step = _wait if run is None else run
    log = CollectiveLog()
    with log:
        for batch in itertools.islice(batch_stream(together, 0, 1), LEDGER_STEPS):
            step(batch)
    found = [0.0] * 5
    other = _Run(STRATEGIES[0], workload)
    for batch in itertools.islice(batch_stream(workload, ranks.rank, ranks.size), LEDGER_STEPS):
        other(batch)
    if run is not None:
        reference = other.weights()
        distance = float((run.weights() - reference).norm() / reference.norm())
        found = [distance, *(float(size) for size in _fields(run.memory()))]
    distance, *held = ranks.table(found)[0]
    source = batch_stream(together, 0, 1)
    taken = [paced(ranks, step, source, steps) for _ in range(rounds)]
    return replace(
        ddp,
        name=DATA_PARALLEL,
        predicted=(),
        observed=tuple(log.entries),
        differences=reconcile((), log.entries),
        step=summarize([one.slowest for one in taken]),
        against_ddp=None,
        memory=HeldMemory(*(int(size) for size in held)),
        distance=float(distance),
        accuracies=(),
        trained_steps=0,
    )


def _share_data_parallel(model: nn.Module, workload: Workload, _: CollectiveLog | None) -> Shared:
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)
    return Shared(nn.DataParallel(model), optimizer)


_DATA_PARALLEL = Strategy(DATA_PARALLEL, _share_data_parallel, lambda case: ())


def _wait(batch: Batch) -> None:
    """Wait for rank 0, at the end of its step."""

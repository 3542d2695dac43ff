"""Ways to share a step among ranks, compared."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale.scaling._measure.records.base import Summary
from twoscale.scaling._measure.records.wire import LedgerEntry

__all__ = ["DATA_PARALLEL", "HeldMemory", "StrategyRecord"]

DATA_PARALLEL = "nn.DataParallel"
"""Name of the strategy of one process for all GPUs of a host."""


@dataclass(frozen=True)
class HeldMemory:
    """Bytes that a rank holds for the model at the end of a step, before gradients are dropped.

    Activations, and parameters that are gathered for a forward or backward pass only, come on top.
    """

    parameters: int
    gradients: int
    optimizer: int
    """State of the optimizer."""
    buckets: int
    """DistributedDataParallel's copies of the gradients; 0 where the gradients are views of them."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.buckets


@dataclass(frozen=True)
class StrategyRecord:
    """A strategy: what it sends, how long its steps take, what it holds, and how its weights differ from DDP's."""

    name: str
    world_size: int
    batch_size: int
    """Per rank."""
    mini_batches: int
    """Steps of the ledger."""
    predicted: tuple[LedgerEntry, ...]
    observed: tuple[LedgerEntry, ...]
    differences: tuple[str, ...]
    """One line for each entry that is not as predicted."""
    step: Summary
    """Medians of rounds, of the slowest rank."""
    against_ddp: Summary | None
    """The same less DDP's of the same round; None for DDP itself."""
    memory: HeldMemory
    """Of the rank that holds most."""
    distance: float
    """‖w − w_DDP‖ / ‖w_DDP‖ of the weights after the ledger's steps, from the same weights and batches."""
    accuracies: tuple[float, ...] = ()
    """Of the test images after a short training run, 0..1, one per seed; only for DDP and strategies whose update is
    not DDP's, and where there are test images."""
    trained_steps: int = 0
    """Steps of these runs."""

    def sent(self, op: str | None = None) -> float:
        """Return the bytes that a rank sends per step in a ring, on average over ranks and the last steps.

        n ranks: all-reduce 2(n − 1)/n of the tensor, reduce-scatter (n − 1)/n, all-gather n − 1 times a rank's part,
        broadcast (n − 1)/n, as all but the root receive it once.

        Args:
            op: of one operation. Default: of all.
        """
        n = self.world_size
        factors = {"all_reduce": 2 * (n - 1) / n, "reduce_scatter": (n - 1) / n, "broadcast": (n - 1) / n}
        steps = self.later_steps
        return sum(
            factors.get(entry.op, n - 1) * entry.bytes
            for entry in self.observed
            if entry.step in steps and op in (None, entry.op)
        ) / len(steps)

    @property
    def later_steps(self) -> tuple[int, ...]:
        """The last four steps, which are like all later ones: DDP's first three may differ."""
        return tuple(range(max(1, self.mini_batches - 3), self.mini_batches + 1))

    @property
    def collectives(self) -> float:
        """Collectives of a later step, on average."""
        return sum(entry.step in self.later_steps for entry in self.observed) / len(self.later_steps)

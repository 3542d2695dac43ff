"""Optimizers and BatchNorm: time and accuracy of each epoch, with a learning rate chosen on held-out images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from twoscale import data
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import OptimizerRecord, Workload
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.trials import ImageSet, accuracy, image_sets, settle
from twoscale.scaling._measure.workload import create_model, device_of
from twoscale.training._optimizers import Muon

__all__ = ["compare_optimizers", "without_batch_norm"]

Make = Callable[[nn.Module, float], Sequence[torch.optim.Optimizer]]
_SEARCH_SEED = 1000
_NORMED_IMAGES = 384
"""Training images of the runs with and without BatchNorm, whose network computes a hundred times as much."""
_NORMED_BATCH = 16
_NORMED_SEEDS = 3


def _of(kind: Callable[..., torch.optim.Optimizer], **options: object) -> Make:
    return lambda model, lr: [kind(model.parameters(), lr=lr, **options)]


class _Muon(torch.optim.Optimizer):
    """The update rule of training, with the weight decay that torch.optim.Muon has unless asked otherwise."""

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})
        self._rule = Muon(weight_decay=0.1)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix."""
        (group,) = self.param_groups
        matrices = group["params"]
        for value in matrices:
            if not self.state[value]:
                self.state[value]["momentum"] = torch.zeros_like(value)
        state = [self.state[value]["momentum"] for value in matrices]
        self._rule.update(
            [value.detach() for value in matrices], [value.grad for value in matrices], state, group["lr"]
        )


def _muon(model: nn.Module, lr: float) -> Sequence[torch.optim.Optimizer]:
    """Muon for matrices (Jordan et al. 2024), and AdamW for everything else, as PyTorch's documentation advises."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    kinds: list[torch.optim.Optimizer] = [_Muon(matrices, lr=lr)] if matrices else []
    return [*kinds, *([torch.optim.AdamW(others, lr=lr / 10)] if others else [])]


_OPTIMIZERS: tuple[tuple[str, Make, float], ...] = (
    ("SGD", _of(torch.optim.SGD), 0.1),
    ("SGD, momentum", _of(torch.optim.SGD, momentum=0.9), 0.02),
    ("SGD, Nesterov", _of(torch.optim.SGD, momentum=0.9, nesterov=True), 0.02),
    ("Adagrad", _of(torch.optim.Adagrad), 0.01),
    ("Adadelta", _of(torch.optim.Adadelta), 1.0),
    ("Adam", _of(torch.optim.Adam), 0.002),
    ("AdamW", _of(torch.optim.AdamW), 0.002),
    ("Muon and AdamW", _muon, 0.02),
)
"""Name, what makes it, and the middle of the learning rates that are tried."""
_BATCH_NORM = ("SGD, Nesterov", _of(torch.optim.SGD, momentum=0.9, nesterov=True), 0.05)


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Return the model with an identity in the place of each BatchNorm; convolutions get no bias for it."""
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(model, name, nn.Identity())
        else:
            without_batch_norm(child)
    return model


@dataclass(frozen=True)
class _Run:
    accuracies: tuple[float, ...]
    """After each epoch, 0..1."""
    seconds: tuple[float, ...]
    """Of each epoch's training."""
    state_bytes: int


@dataclass(frozen=True)
class _Case:
    name: str
    workload: Workload
    make: Make
    middle: float
    """Of the learning rates that are tried."""
    without: bool = False
    """Whether BatchNorm is left out."""
    images: int | None = None
    """Training images. Default: all."""
    seeds: int | None = None
    """Most runs with the best learning rate."""

    def run(self, images: ImageSet, rate: float, seed: int, epochs: int) -> _Run:
        """Train from the initial weights of a seed."""
        seeded = replace(self.workload, seed=self.workload.seed + seed)
        images = images if self.images is None else images.head(self.images)
        model = create_model(seeded)
        if self.without:
            model = without_batch_norm(model)
        optimizers = self.make(model, rate)
        accuracies, seconds = _train(model, optimizers, images, seeded, epochs)
        return _Run(tuple(accuracies), tuple(seconds), _state_bytes(optimizers))


def _train(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], images: ImageSet, workload: Workload, epochs: int
) -> tuple[list[float], list[float]]:
    """Return the accuracy after each epoch, and the seconds of each epoch's training."""
    ranks_device = device_of(workload)
    accuracies, seconds = [], []
    pictures, labels = images.train
    for epoch in range(epochs):
        settle(ranks_device)
        start = time.perf_counter()
        order = torch.from_numpy(data.epoch_order(len(labels), seed=workload.seed, epoch=epoch)).to(ranks_device)
        for chosen in torch.split(order, workload.batch_size):
            F.cross_entropy(model(pictures[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        settle(ranks_device)
        seconds.append(time.perf_counter() - start)
        accuracies.append(accuracy(model, images.looked_at))
    return accuracies, seconds


def _state_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    values = [value for one in optimizers for state in one.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def compare_optimizers(
    workload: Workload,
    companion: str,
    *,
    epochs: int = 3,
    seeds: int = 3,
    names: Sequence[str] | None = None,
    watch: Callable[[str], None] | None = None,
) -> tuple[OptimizerRecord, ...]:
    """Train with every optimizer, and a model with BatchNorm with and without it.

    Args:
        workload: model, data and batch.
        companion: a model with BatchNorm, for a workload whose model has none.
        epochs: of every run.
        seeds: runs with the best learning rate.
        names: of optimizers. Default: all, and both models of BatchNorm.
        watch: is called with what is done now.

    Raises:
        ConfigurationError: less than one epoch or seed, images that have nothing to learn, or a
            companion without BatchNorm.
    """
    if min(epochs, seeds) < 1:
        raise ConfigurationError(f"{epochs} epochs, {seeds} seeds: expected at least 1 of each")
    search, final = image_sets(workload)
    normed = workload
    if not _has_batch_norm(create_model(workload)):
        batch_size = min(workload.batch_size, _NORMED_BATCH)
        normed = replace(workload, model=companion, model_args=None, batch_size=batch_size)
        if not _has_batch_norm(create_model(normed)):
            raise ConfigurationError(f"{companion} has no BatchNorm; expected a model with it to compare")
    cases = [
        _Case(name, workload, make, middle) for name, make, middle in _OPTIMIZERS if names is None or name in names
    ]
    if names is None:
        name, make, middle = _BATCH_NORM
        kept, runs_kept = (None, None) if normed is workload else (_NORMED_IMAGES, _NORMED_SEEDS)
        for end, without in ((", with BatchNorm", False), (", without BatchNorm", True)):
            cases.append(_Case(f"{name}{end}", normed, make, middle, without, kept, runs_kept))
    records = []
    for case in cases:
        if watch is not None:
            watch(f"{case.name}, {case.workload.model}")
        rates = (case.middle / 4, case.middle, 4 * case.middle)
        tried = tuple((rate, case.run(search, rate, _SEARCH_SEED, epochs).accuracies[-1]) for rate in rates)
        rate = max(tried, key=lambda pair: pair[1])[0]
        runs = [case.run(final, rate, seed, epochs) for seed in range(min(seeds, case.seeds or seeds))]
        records.append(
            OptimizerRecord(
                name=case.name,
                model=case.workload.model,
                rate=rate,
                tried=tried,
                accuracies=tuple(run.accuracies for run in runs),
                epoch_seconds=summarize([value for run in runs for value in run.seconds]),
                state_bytes=runs[0].state_bytes,
            )
        )
    return tuple(records)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())

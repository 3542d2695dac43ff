"""Learning rates of a run, update by update."""

from __future__ import annotations

import math

from twoscale.training._config import TrainConfig

__all__ = ["describe_schedule", "learning_rates", "warmup_updates"]


def warmup_updates(config: TrainConfig, per_epoch: int) -> int:
    """Return the number of updates over which the learning rate rises.

    The longer of ``warmup_epochs``, which at a large batch is a handful of updates, and ``warmup_steps``.
    """
    return max(math.ceil(config.warmup_epochs * per_epoch), config.warmup_steps)


def learning_rates(config: TrainConfig, total: int, per_epoch: int, updates: range) -> list[float] | None:
    """Return the learning rates of some updates of a run; None if it is always ``config.lr``.

    With ``base_batch`` the peak is lr · batch_size / base_batch (Goyal et al. 2017, the linear scaling rule). A
    warm-up of k updates goes in equal steps from lr, or without ``base_batch`` from 0, to the peak, which update k
    is the first to have (update 0 of a warm-up from 0 has one step already). After it, with p from 0 to 1 over the
    rest of the run: cosine has peak · (1 + cos πp)/2, linear peak · (1 − p); step has peak · decay to the number of
    milestones that the whole run has passed.

    Args:
        config: the schedule.
        total: updates of the run.
        per_epoch: updates of an epoch.
        updates: their numbers, counted from 0.
    """
    warmup = warmup_updates(config, per_epoch)
    peak = config.lr * (config.batch_size / config.base_batch if config.base_batch else 1.0)
    if config.schedule == "constant" and not warmup and peak == config.lr:
        return None

    def rate(done: int) -> float:
        if done < warmup:
            if config.base_batch:
                return config.lr + (peak - config.lr) * done / warmup
            return peak * (done + 1) / (warmup + 1)
        place = (done - warmup) / max(1, total - warmup)
        if config.schedule == "cosine":
            return peak * (1 + math.cos(math.pi * place)) / 2
        if config.schedule == "linear":
            return peak * (1 - place)
        if config.schedule == "step":
            return float(peak * config.decay ** sum(done >= where * total for where in config.milestones))
        return peak

    return [rate(done) for done in updates]


def describe_schedule(config: TrainConfig, per_epoch: int) -> str:
    """Return the learning rate in a few words."""
    peak = config.lr * (config.batch_size / config.base_batch if config.base_batch else 1.0)
    words = f"lr {config.lr:g}" if peak == config.lr else f"lr {config.lr:g} scaled to {peak:g}"
    if warmup := warmup_updates(config, per_epoch):
        words += f", {warmup:,} updates of warm-up"
    return words if config.schedule == "constant" else f"{words}, {config.schedule}"

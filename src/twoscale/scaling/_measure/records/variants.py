"""Ways to run a step on one device, and ways to update the weights."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale.scaling._measure.records.base import Summary

__all__ = ["OptimizerRecord", "VariantRecord"]


@dataclass(frozen=True)
class VariantRecord:
    """A way to run the same step: compiled or not, its precision and its memory layout."""

    name: str
    step: Summary | None
    """Seconds per step, one value per run; None where it cannot run here."""
    against_eager: Summary | None
    """The same less that of the eager step in the same round; None for the eager step itself."""
    first: float | None
    """Seconds of the first step, which compiles."""
    distance: float | None
    """‖w − w_eager‖ / ‖w_eager‖ of the weights after the first steps, from the same weights and batches."""
    message: str = ""
    """Why it cannot run."""


@dataclass(frozen=True)
class OptimizerRecord:
    """An optimizer, or a model without BatchNorm, trained for a few epochs with the best of a few learning rates."""

    name: str
    model: str
    rate: float
    """Best of those that were tried, on held-out training images."""
    tried: tuple[tuple[float, float], ...]
    """Each learning rate and its accuracy on held-out images, 0..1."""
    accuracies: tuple[tuple[float, ...], ...]
    """[seed][epoch]: of the test images, 0..1."""
    epoch_seconds: Summary
    """Of training alone, one value per epoch and seed."""
    state_bytes: int
    """Of the optimizer's state."""

    def final(self) -> tuple[float, ...]:
        """Return the accuracy of each seed after the last epoch."""
        return tuple(one[-1] for one in self.accuracies)

"""How large a batch may be: the noise of gradients, losses by batch, and remedies."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale.scaling._measure.records.base import Interval, Summary

__all__ = ["BatchRun", "GradientNoise", "LargeBatchRecord", "Remedied"]


@dataclass(frozen=True)
class GradientNoise:
    """The gradient noise scale at one moment of training, from gradients at two batch sizes.

    McCandlish et al. 2018, appendix A.1: the expected squared norm of a gradient of B images is ‖G‖² + tr(Σ)/B. G is
    the gradient over all images, and Σ the covariance of the gradients of single images. Norms at two batch sizes give
    both.
    """

    epoch: int
    """Epochs at the small batch that the weights have had; 0: initial weights."""
    small: int
    large: int
    """The two batch sizes, images."""
    draws: int
    squared_norm: float
    """Estimate of ‖G‖²; it may be negative where the draws do not tell it from zero."""
    trace: float
    """Estimate of tr(Σ)."""
    scale: float | None
    """tr(Σ)/‖G‖², images; None where ‖G‖² is not told from zero."""
    interval: Interval | None
    """Of the scale, from bootstrap samples of the draws; its end is infinite where ‖G‖² may be zero."""


@dataclass(frozen=True)
class BatchRun:
    """Training at a batch size with the small batch's learning rate, over several seeds."""

    batch_size: int
    equal: str
    """"epochs" or "steps": what it has in common with the small batch."""
    steps: int
    losses: tuple[float | None, ...]
    """Cross-entropy over all training images after the run, by seed; None where it became infinite."""
    accuracies: tuple[float | None, ...]
    """Of the test images, 0..1."""


@dataclass(frozen=True)
class Remedied:
    """A remedy at a larger batch and equal epochs."""

    batch_size: int
    name: str
    rate: float
    """Highest learning rate."""
    losses: tuple[float | None, ...]
    accuracies: tuple[float | None, ...]
    difference: Summary | None
    """Loss less that of nothing changed at the same seed; None where a run diverged."""

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "not shown"; "diverged" where a run did."""
        if self.difference is None:
            return "diverged"
        interval = self.difference.mean_interval
        if interval is None or interval.low <= 0 <= interval.high:
            return "not shown"
        return "better" if interval.high < 0 else "worse"


@dataclass(frozen=True)
class LargeBatchRecord:
    """All of it."""

    images: int
    """For training."""
    epochs: int
    """Of the small batch's run."""
    rate: float
    """Learning rate of the small batch, the best of those tried on held-out images."""
    tried: tuple[tuple[float, float], ...]
    """Each learning rate and its loss on held-out images."""
    noise: tuple[GradientNoise, ...]
    runs: tuple[BatchRun, ...]
    """By batch size, the smallest first, at equal epochs and at equal steps."""
    remedies: tuple[Remedied, ...]
    """By batch size; the first of each changes nothing."""

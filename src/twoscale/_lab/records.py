"""What results.json of the lab holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twoscale import _delegates as delegates
from twoscale._calibration.summaries import TensorSummary
from twoscale._environment import Environment
from twoscale._quantization.records import RangeRecord
from twoscale._verification.results import VerifyResult

__all__ = ["LabNetwork", "LabResults", "StageResult"]


@dataclass(frozen=True)
class StageResult:
    """One row of the lab's table."""

    network: str
    scheme: str
    """"float", "course" or "default"."""
    stage: str
    """"float", "weights", "activations", "bias-real" or "integer"."""
    title: str
    """For display, e.g. "weights int8, activations float"."""
    samples: int
    """Test images used."""
    top1: float
    """Fraction correct, 0..1."""
    agreement: float | None = None
    """Fraction of images with the float model's class, 0..1."""
    sqnr_db: float | None = None
    """Logit signal to quantization noise against the float model, dB."""
    mismatches: int | None = None
    """Differing integers between executors over all layers; None where only one computed it."""
    note: str = ""
    """One plain sentence, where the row has a lesson."""


@dataclass(frozen=True)
class LabNetwork:
    """Everything the lab found about one network."""

    name: str
    parameters: int
    train_loss: tuple[tuple[int, float], ...]
    """(mini-batches done, mean loss since the last entry)."""
    weights: tuple[TensorSummary, ...]
    activations: tuple[TensorSummary, ...]
    ranges: dict[str, tuple[RangeRecord, ...]]
    """Scheme to the ranges of its weights and activations."""
    stages: tuple[StageResult, ...]
    verify: dict[str, VerifyResult]
    """Scheme to the check of its integer network."""
    files: dict[str, str]
    """What ("checkpoint", "default", "course") to file name, relative to the results."""


@dataclass(frozen=True)
class LabResults:
    """results.json of ``twoscale lab``."""

    data: str
    seed: int
    train_samples: int
    test_samples: int
    calibration_samples: int
    recipe: dict[str, Any]
    """The training configuration as it ran."""
    networks: tuple[LabNetwork, ...]
    environment: Environment
    seconds: dict[str, float]
    """Stage to wall-clock seconds."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes in the order in which the stages name them; colours follow this order."""
        names = [stage.scheme for network in self.networks for stage in network.stages]
        names += [scheme for network in self.networks for scheme in (*network.ranges, *network.verify)]
        return tuple(dict.fromkeys(name for name in names if name != "float"))

    def __repr__(self) -> str:  # a dataclass's own would print every histogram
        accuracies = [
            f"{stage.network} {stage.scheme} {stage.top1:.2%}"
            for network in self.networks
            for stage in network.stages
            if stage.stage in {"float", "integer"}
        ]
        return f"LabResults({', '.join([self.data, *accuracies])})"

    def _repr_html_(self) -> str:
        stages = [stage for network in self.networks for stage in network.stages]
        html: str = delegates.call("stages_html", stages, self.data)
        return html

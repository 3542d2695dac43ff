"""Options of a training run that have no effect together with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twoscale.training._config import TrainConfig

__all__ = ["without_effect"]


def _optimizer(*names: str) -> Callable[[TrainConfig], str | None]:
    def missing(config: TrainConfig) -> str | None:
        return None if config.optimizer in names else f"it is for {' and '.join(names)}, not {config.optimizer}"

    return missing


def _step(config: TrainConfig) -> str | None:
    return None if config.schedule == "step" else f"it is for the schedule step, not {config.schedule}"


def _decayed(config: TrainConfig) -> str | None:
    return None if config.weight_decay else "weight_decay is 0"


def _cropped(config: TrainConfig) -> str | None:
    return None if config.crop else "crop is 0"


def _quantized(config: TrainConfig) -> str | None:
    return None if config.quantize else "there is no quantize"


_MISSING: dict[str, Callable[[TrainConfig], str | None]] = {
    "beta2": _optimizer("adamw", "lamb"),
    "epsilon": _optimizer("adamw", "lamb"),
    "normalize_filters": _optimizer("muon"),
    "trust_coefficient": _optimizer("lars"),
    "adapt_norm_and_bias": _optimizer("lars", "lamb"),
    "decay_norm_and_bias": _decayed,
    "decay": _step,
    "milestones": _step,
    "fill": _cropped,
    "edge_bits": _quantized,
}


def without_effect(config: TrainConfig, given: Iterable[str]) -> dict[str, str]:
    """Return the given fields that have no effect in a run, each with the reason.

    Args:
        config: of the run.
        given: names of the fields given.
    """
    reasons = {name: _MISSING[name](config) for name in given if name in _MISSING}
    return {name: reason for name, reason in reasons.items() if reason is not None}

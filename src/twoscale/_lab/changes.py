"""How stages differ from the float network, and whether the difference is significant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from twoscale._lab.records import LabNetwork, StageResult

__all__ = ["Change", "Measured", "bias_stage_of", "change", "float_stage", "stage_of"]


class Measured(Protocol):
    """An accuracy over test images."""

    @property
    def samples(self) -> int:
        """Test images."""
        ...

    @property
    def top1(self) -> float:
        """Fraction correct, 0..1."""
        ...

    @property
    def agreement(self) -> float | None:
        """Fraction with the float network's class, where known."""
        ...


@dataclass(frozen=True)
class Change:
    """How the top-1 of a stage differs from the float network's."""

    points: float
    """Percentage points; negative where the stage is worse."""
    images: int
    """The same in test images."""
    chance: float | None
    """Two standard errors of the paired difference, in points: chance alone seldom makes a larger one.

    An image changes the difference only where the two networks disagree about it, by one at most; so with a
    share d of disagreements among n images the standard error is at most sqrt(d / n).
    """

    @property
    def significant(self) -> bool:
        """Whether the difference is larger than chance; any difference, where chance is not known."""
        return abs(self.points) > (self.chance or 0.0) + 1e-9

    @property
    def lost(self) -> bool:
        """Whether accuracy was lost by more than chance."""
        return self.significant and self.points < 0


def change(stage: Measured, base: StageResult) -> Change:
    """Compare an accuracy with the float stage ``base`` of the same network."""
    chance = None
    if stage.agreement is not None and stage.samples:
        chance = 200 * math.sqrt(max(0.0, 1 - stage.agreement) / stage.samples)
    difference = stage.top1 - base.top1
    return Change(100 * difference, round(difference * stage.samples), chance)


def stage_of(network: LabNetwork, scheme: str, key: str) -> StageResult | None:
    """Return the row of a stage under a scheme, where there is one."""
    return next((one for one in network.stages if (one.scheme, one.stage) == (scheme, key)), None)


def bias_stage_of(network: LabNetwork, scheme: str, key: str) -> StageResult | None:
    """Return the row of a wrong bias under a scheme, where there is one."""
    return next((one for one in network.bias_stages if (one.scheme, one.stage) == (scheme, key)), None)


def float_stage(network: LabNetwork) -> StageResult | None:
    """Return the float row, where there is one."""
    return next((one for one in network.stages if one.stage == "float"), None)

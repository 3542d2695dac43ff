"""How roundings are learned."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from twoscale.errors import ConfigurationError

__all__ = ["LearnedRounding", "Reach"]


@dataclass(frozen=True)
class Reach:
    """How far Adam can move parameters in all iterations together. With more iterations, each is smaller."""

    weight: float
    """In steps of its scale."""
    bias: float
    """In steps of its accumulator times the root of the number of products in it."""
    scale: float
    """As a logarithm."""


@dataclass(frozen=True)
class LearnedRounding:
    """How long, and how fast, roundings are learned.

    Raises:
        ConfigurationError: a number outside its range.
    """

    iterations: int = 100
    """Of each block."""
    distillation: int = 1000
    """Iterations over the whole network, after the blocks."""
    batch_size: int = 32
    block_reach: Reach = Reach(2.0, 0.5, 0.1)
    network_reach: Reach = Reach(10.0, 0.1, 0.03)
    drop: float = 0.5
    """Share of a block's inputs that are the float network's, and of its activations that are not rounded."""
    vary: bool = True
    """Whether the whole network also learns from mirrored and shifted images, if the float network sees in them what it
    saw. What is to be computed, it says of each."""
    seed: int = 0
    """Decides the images of each iteration and what is dropped."""

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("distillation", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.drop < 1:
            raise ConfigurationError(f"drop is {self.drop}; expected at least 0 and less than 1")

    def scaled(self, effort: float) -> LearnedRounding:
        """Return the same with ``effort`` times as many iterations, and as much farther for the whole network.

        Raises:
            ConfigurationError: it is not a positive number.
        """
        if not (math.isfinite(effort) and effort > 0):
            raise ConfigurationError(f"effort is {effort:g}; expected a positive number such as 0.5 or 2")
        return dataclasses.replace(
            self,
            iterations=max(1, round(self.iterations * effort)),
            distillation=round(self.distillation * effort),
            network_reach=Reach(*(effort * far for far in dataclasses.astuple(self.network_reach))),
        )

"""The cost of fewer bits in each layer, and the best bits of all layers for a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError

__all__ = [
    "BitsChoice",
    "LayerSensitivity",
    "Option",
    "Sensitivity",
    "choice_of",
    "knapsack",
    "options_of",
    "packed_bytes",
]

_BUDGET_STEPS = 1 << 18
"""Larger budgets are divided into this many parts, and sizes of layers are rounded up to whole parts."""


@dataclass(frozen=True)
class LayerSensitivity:
    """The network with one layer at fewer bits."""

    layer: str
    kind: str
    """"weight" or "activation" (the layer's output)."""
    bits: int
    values: int
    """Weights, or values of the output for one image."""
    noise: float
    """Increase of the mean square error of the logits; below 0 if it decreased by chance."""
    sqnr_db: float | None
    """Logit SQNR of this network against the float network, dB."""
    agreement: float | None
    """Fraction of images with the float network's class, 0..1; None if the outputs are no classes."""
    top1: float | None
    """Fraction correct, 0..1; None without labels."""


@dataclass(frozen=True)
class Sensitivity:
    """The cost of fewer bits in every layer."""

    network: str
    scheme: str
    samples: int
    """Test images."""
    signal: float
    """Mean square of the float network's logits."""
    noise: float
    """Mean square error of the logits before any layer has fewer bits."""
    sqnr_db: float | None
    """Of the network before any layer has fewer bits."""
    agreement: float | None
    top1: float | None
    weights: tuple[tuple[str, int, int, int], ...]
    """(layer, weights, biases, bits) of every layer with weights, before any has fewer bits."""
    layers: tuple[LayerSensitivity, ...]

    @property
    def size_bytes(self) -> int:
        """Packed size before any layer has fewer bits."""
        return sum(packed_bytes(count, biases, bits) for _, count, biases, bits in self.weights)

    def choose(self, budget: float) -> BitsChoice:
        """Choose the bits of each layer's weights with the least predicted noise within a size.

        The model: the noise of layers adds up (values below 0 count as 0). The best choice under it is found by
        dynamic programming over the size (a multiple-choice knapsack): exactly up to 256 KiB, and for larger budgets
        with sizes rounded up to a 262,144th of the budget.

        Args:
            budget: in bytes, or as a fraction (up to 1) of the current size. Weights are packed at their bits; biases
                take 4 bytes each.

        Raises:
            ConfigurationError: not even the fewest bits fit, or the budget is not positive.
        """
        return _choose(self, budget)


@dataclass(frozen=True)
class BitsChoice:
    """Bits of every layer's weights within a budget, with the least predicted noise."""

    layer_weight_bits: tuple[tuple[str, int], ...]
    """(layer, bits), in the form of ``Scheme``."""
    size_bytes: int
    budget_bytes: int
    predicted_sqnr_db: float
    """Predicted noise of the logits, assuming that the noise of layers adds up."""
    target: str | None = None
    """Target of C for which it was chosen; None if only for a size. The sizes above are then of weights as stored."""
    flash_bytes: int | None = None
    """Of that target, for constants and code."""
    million_instructions: float | None = None
    """Of that target, for the multiply-adds of one image."""


@dataclass(frozen=True, order=True)
class Option:
    """A number of bits that a layer's weights may have."""

    bits: int
    size: int
    """Bytes."""
    noise: float


def packed_bytes(weights: int, biases: int, bits: int) -> int:
    """Return the bytes of a layer whose weights are packed without gaps, with int32 biases."""
    return -(-weights * bits // 8) + 4 * biases


def _choose(found: Sensitivity, budget: float) -> BitsChoice:
    if not budget > 0 or not math.isfinite(budget):
        raise ConfigurationError(f"the budget is {budget:g}; expected bytes, or a fraction of the size up to 1")
    budget_bytes = int(budget * found.size_bytes if budget <= 1 else budget)
    options = options_of(found)
    least = sum(min(option.size for option in choices) for choices in options)
    if least > budget_bytes:
        raise ConfigurationError(
            f"a budget of {budget_bytes:,} bytes is too small: with the fewest bits measured the network has "
            f"{least:,} bytes; allow that many, or measure fewer bits"
        )
    picks = knapsack(options, budget_bytes)
    return choice_of(found, [choices[i] for choices, i in zip(options, picks, strict=True)], budget_bytes)


def options_of(found: Sensitivity) -> list[list[Option]]:
    """Return the bits that each layer may have, the most first."""
    noise = {(s.layer, s.bits): max(s.noise, 0.0) for s in found.layers if s.kind == "weight"}
    return [
        sorted(
            [Option(bits, packed_bytes(count, biases, bits), 0.0)]
            + [
                Option(b, packed_bytes(count, biases, b), n)
                for (name, b), n in noise.items()
                if name == layer and b < bits
            ],
            reverse=True,
        )
        for layer, count, biases, bits in found.weights
    ]


def choice_of(found: Sensitivity, chosen: Sequence[Option], budget_bytes: int) -> BitsChoice:
    """Return the choice of one option for each layer."""
    total = found.noise + sum(option.noise for option in chosen)
    return BitsChoice(
        layer_weight_bits=tuple(
            (layer, option.bits) for (layer, *_), option in zip(found.weights, chosen, strict=True)
        ),
        size_bytes=sum(option.size for option in chosen),
        budget_bytes=budget_bytes,
        predicted_sqnr_db=10 * math.log10(found.signal / total) if total else math.inf,
    )


def knapsack(options: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """Choose one option for each layer so that the sizes fit the budget and the noise is least; return the
    indices.

    If only rounded sizes prevent the fewest bits from fitting, the fewest bits are chosen.
    """
    steps = min(budget, _BUDGET_STEPS)
    unit = budget / steps
    best = np.zeros(steps + 1)  # least noise with at most so many units
    taken: list[NDArray[np.int8]] = []
    costs = [[math.ceil(option.size / unit) for option in choices] for choices in options]
    for choices, sizes in zip(options, costs, strict=True):
        table = np.full((len(choices), best.size), np.inf)
        for i, (option, units) in enumerate(zip(choices, sizes, strict=True)):
            if units < best.size:
                table[i, units:] = best[: best.size - units] + option.noise
        taken.append(table.argmin(0).astype(np.int8))
        best = table.min(0)
    if math.isinf(best[-1]):
        return [min(range(len(choices)), key=lambda i, c=choices: c[i].size) for choices in options]  # type: ignore[misc]
    left = steps
    picks = []
    for sizes, choice in zip(reversed(costs), reversed(taken), strict=True):
        picks.append(int(choice[left]))
        left -= sizes[picks[-1]]
    return picks[::-1]

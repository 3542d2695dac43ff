"""The best bits of all layers for the flash and the time of a microcontroller.

Flash is that of the C that ``twoscale export`` would write, with code, biases and tables. Time is instructions of
multiply-adds: what the portable tile kernels take on a Cortex-M4 with ``-O2``, counted under QEMU for ResNet-8.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from twoscale._search.bits import BitsChoice, Option, Sensitivity, choice_of, knapsack, options_of
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from twoscale._ir import layers as n
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["TARGETS", "choose_for_target"]

TARGETS = ("portable", "small-ram")
"""Targets whose C stores weights of few bits in fewer bytes."""

_INSTRUCTIONS = {8: 2.64, 4: 2.62, 2: 2.86}
"""Per multiply-add, by the bits of a stored weight."""
_ROUNDS = 8
"""How often the budget of weights is corrected for code that the choice needs."""
_STEPS = 20
"""Bisections of the price of time."""


def choose_for_target(
    found: Sensitivity,
    network: IntegerNetwork,
    *,
    target: str = "portable",
    flash: int | None = None,
    million_instructions: float | None = None,
) -> BitsChoice:
    """Choose the bits of each layer's weights with the least predicted noise within the flash and time of a target.

    Noise adds up as in ``Sensitivity.choose``. Time joins it with a price, the lowest with which the choice keeps the
    time budget; with a time budget the choice is therefore good, but not always the best.

    Args:
        found: the noise of each layer.
        network: with the bits of ``found`` before any layer has fewer.
        target: one of ``TARGETS``.
        flash: most bytes of constants and code; None means any number.
        million_instructions: most instructions of multiply-adds for one image; None means any number.

    Raises:
        ConfigurationError: no bits that were measured fit; says what the fewest take.
    """
    from twoscale._codegen.c import sizes_of
    from twoscale._codegen.c.common.packing import storage_bits, stored_bytes
    from twoscale._ir.layers import Accumulating

    layers = {layer.name: layer for layer in network if isinstance(layer, Accumulating)}
    sizes = {layer.name: layer for layer in sizes_of(network, target).layers}

    def stored(name: str, bits: int) -> int:
        return storage_bits(_narrowed(layers[name], bits).weight)

    plain = options_of(found)
    options, times = [], []
    for (name, *_), choices in zip(found.weights, plain, strict=True):
        shape = layers[name].weight.shape
        shown = [stored(name, option.bits) for option in choices]
        options.append(
            [
                dataclasses.replace(option, size=stored_bytes(shape, held))
                for option, held in zip(choices, shown, strict=True)
            ]
        )
        times.append([sizes[name].macs * _INSTRUCTIONS[held] / 1e6 for held in shown])

    def flash_of(picks: list[int]) -> int:
        bits = {name: choices[i].bits for (name, *_), choices, i in zip(found.weights, options, picks, strict=True)}
        changed = tuple(
            _narrowed(layers[layer.name], bits[layer.name]) if layer.name in layers else layer for layer in network
        )
        return sizes_of(dataclasses.replace(network, layers=changed), target).flash_bytes

    def time_of(picks: list[int]) -> float:
        return sum(row[i] for row, i in zip(times, picks, strict=True))

    limit = math.inf if million_instructions is None else million_instructions
    budget = sum(max(option.size for option in choices) for choices in options)
    for _ in range(_ROUNDS):
        picks = _within(options, times, budget, limit)
        taken = flash_of(picks)
        if flash is None or taken <= flash:
            chosen = [choices[i] for choices, i in zip(options, picks, strict=True)]
            result = choice_of(found, chosen, budget)
            return dataclasses.replace(
                result, target=target, flash_bytes=taken, million_instructions=round(time_of(picks), 3)
            )
        now = sum(choices[i].size for choices, i in zip(options, picks, strict=True))
        budget = min(budget, now) - (taken - flash)
        least = sum(min(option.size for option in choices) for choices in options)
        if now == least:
            break
        budget = max(budget, least)
    raise ConfigurationError(
        f"{flash:,} bytes of flash are too few: with the fewest bits measured, {network.name} takes {taken:,} with "
        f"target {target}; allow that many, or measure fewer bits"
    )


def _within(options: list[list[Option]], times: list[list[float]], budget: int, limit: float) -> list[int]:
    """Return the choice with the least noise whose sizes fit the budget and whose times fit the limit."""

    def at(price: float) -> tuple[list[int], float]:
        priced = [
            [
                dataclasses.replace(option, noise=option.noise + price * time)
                for option, time in zip(choices, row, strict=True)
            ]
            for choices, row in zip(options, times, strict=True)
        ]
        picks = knapsack(priced, budget)
        return picks, sum(row[i] for row, i in zip(times, picks, strict=True))

    picks, time = at(0.0)
    if time <= limit:
        return picks
    low, high = -30.0, 30.0  # powers of 2
    best, least = at(2.0**high)
    if least > limit:
        raise ConfigurationError(
            f"{limit:g} million instructions are too few: the bits that fit the flash take at least {least:.3g} "
            "million; allow that many, or more flash"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        picks, time = at(2.0**middle)
        if time <= limit:
            best, high = picks, middle
        else:
            low = middle
    return best


def _narrowed(layer: n.Accumulating, bits: int) -> n.Accumulating:
    """Return a layer with its weights clamped to what ``bits`` hold, which decides how C stores them."""
    limit = 2 ** (bits - 1) - 1
    return dataclasses.replace(layer, weight=np.clip(layer.weight, -limit, limit).astype(np.int8))

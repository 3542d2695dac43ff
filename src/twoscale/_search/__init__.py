"""Searching for better networks: what each layer at fewer bits costs, and which bits make the best of a size."""

from __future__ import annotations

from twoscale._search.sensitivity import (
    BitsChoice,
    LayerSensitivity,
    MeasuredChoice,
    Sensitivity,
    choose_bits,
    measure,
    sensitivity,
)

__all__ = [
    "BitsChoice",
    "LayerSensitivity",
    "MeasuredChoice",
    "Sensitivity",
    "choose_bits",
    "measure",
    "sensitivity",
]

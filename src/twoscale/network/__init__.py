"""The integer network: layers, bounds, and its saved form."""

from __future__ import annotations

from twoscale.network.network import AccumulatorBound, IntegerNetwork

__all__ = ["AccumulatorBound", "IntegerNetwork"]

"""The integer network: layers, bounds, and its saved form."""

from __future__ import annotations

from twoscale.network.network import AccumulatorBound, IntegerNetwork
from twoscale.network.onnx_file import load

__all__ = ["AccumulatorBound", "IntegerNetwork", "load"]

"""`.tflite` file → IntegerNetwork, with TensorFlow Lite's own arithmetic."""

from __future__ import annotations

from pathlib import Path

from twoscale._frontends.tflite import read
from twoscale._frontends.tflite.opening import read_bytes
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.memory_estimate import refuse_beyond_memory
from twoscale.errors import NetworkFileError

__all__ = ["load"]


def load(path: Path) -> IntegerNetwork:
    """Read a network; see twoscale._formats.load."""
    network = read(path, read_bytes(path)).network
    refuse_beyond_memory(str(path), network.layers, NetworkFileError)
    return network

"""`.tflite` file → IntegerNetwork, with TensorFlow Lite's own arithmetic."""

from __future__ import annotations

from pathlib import Path

from twoscale._frontends.tflite import read
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.memory_estimate import refuse_beyond_memory
from twoscale.errors import NetworkFileError

__all__ = ["load"]

_LARGEST = (1 << 31) - 1
"""Bytes of a file: its offsets have 32 bits."""


def load(path: Path) -> IntegerNetwork:
    """Read a network; see twoscale._formats.load."""
    try:
        if path.stat().st_size > _LARGEST:
            raise NetworkFileError(f"{path} is larger than 2 GiB, which no TensorFlow Lite file can be")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NetworkFileError(f"there is no file {path}; expected a TensorFlow Lite file") from error
    except OSError as error:
        raise NetworkFileError(f"cannot read {path}: {error.strerror or error}") from error
    network = read(path, data).network
    refuse_beyond_memory(str(path), network.layers, NetworkFileError)
    return network

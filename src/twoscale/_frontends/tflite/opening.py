"""Opens `.tflite` files, which may be damaged, missing or too large."""

from __future__ import annotations

import struct
from pathlib import Path

from twoscale._frontends.tflite.flatbuffer import Damage
from twoscale._frontends.tflite.model import Model, parse
from twoscale._frontends.tflite.shapes import with_shapes
from twoscale.errors import NetworkFileError

__all__ = ["DAMAGE", "one_line", "parsed", "read_bytes"]

DAMAGE = (Damage, ValueError, IndexError, TypeError, ArithmeticError, KeyError, AttributeError, struct.error)
"""What reading a damaged file raises."""

_LARGEST = (1 << 31) - 1
"""Bytes of a file: its offsets have 32 bits."""


def read_bytes(path: Path) -> bytes:
    """Return what is in a file.

    Raises:
        NetworkFileError: it is missing, or larger than any TensorFlow Lite file.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise NetworkFileError(f"{path} is larger than 2 GiB, which no TensorFlow Lite file can be")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NetworkFileError(f"there is no file {path}; expected a TensorFlow Lite file") from error
    except OSError as error:
        raise NetworkFileError(f"cannot read {path}: {error.strerror or error}") from error


def parsed(path: Path, data: bytes) -> Model:
    """Return the model in the bytes of a file, with its shape arithmetic computed.

    Raises:
        NetworkFileError: they are no TensorFlow Lite file, or a damaged one.
    """
    try:
        return with_shapes(parse(data))
    except DAMAGE as error:
        raise NetworkFileError(f"{path} is no TensorFlow Lite file that can be read: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Reads flatbuffers from anywhere: every offset and length is checked against the file before it is followed.

The package flatbuffers trusts offsets, and Python's negative indices would hide some that are wrong. Format:
https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["EMPTY", "Damage", "Table", "root"]

_SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4}


class Damage(ValueError):
    """An offset, a length or a text is wrong; the message tells which."""


def root(data: bytes, identifier: bytes) -> Table:
    """Return the root table of a file.

    Raises:
        Damage: it has another identifier, or the table is outside the file.
    """
    if data[4:8] != identifier:
        raise Damage(f"it does not have the identifier {identifier.decode()}")
    return Table(data, _number(data, 0, "I"))


def _number(data: bytes, at: int, kind: str) -> int:
    if not 0 <= at <= len(data) - _SIZES[kind]:
        raise Damage(f"an offset leads to byte {at}, and the file has {len(data)}")
    value: int = struct.unpack_from(f"<{kind}", data, at)[0]
    return value


class Table:
    """One table; its fields are numbered as in the schema. A field that is not in the file has its default.

    Raises:
        Damage: an offset leads out of the file, also from the methods.
    """

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._slots = at - _number(data, at, "i")
        self._size = _number(data, self._slots, "H")

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        if slot + 2 > self._size:
            return None
        offset = _number(self._data, self._slots + slot, "H")
        return self._at + offset if offset else None

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """Return an integer; ``kind`` is a letter of the module struct."""
        at = self._field(field)
        return default if at is None else _number(self._data, at, kind)

    def real(self, field: int, default: float = 0.0) -> float:
        """Return a float32."""
        at = self._field(field)
        return default if at is None else float(_number(self._data, at, "f"))

    def table(self, field: int) -> Table | None:
        """Return a table, if it is there."""
        at = self._field(field)
        return None if at is None else Table(self._data, at + _number(self._data, at, "I"))

    def _vector(self, field: int, item: int) -> tuple[int, int]:
        """Return where a vector's items begin and how many there are."""
        at = self._field(field)
        if at is None:
            return 0, 0
        start = at + _number(self._data, at, "I")
        count = _number(self._data, start, "I")
        if start + 4 + count * item > len(self._data):
            raise Damage(f"a vector of {count} items at byte {start} reaches beyond the file's {len(self._data)} bytes")
        return start + 4, count

    def array(self, field: int, kind: str) -> NDArray[np.generic]:
        """Return a vector of numbers; ``kind`` is a letter of the module struct. It shares the file's memory."""
        start, count = self._vector(field, _SIZES[kind])
        return np.frombuffer(self._data, np.dtype(f"<{kind}"), count, start)

    def bytes(self, field: int) -> memoryview:
        """Return a vector of bytes, which shares the file's memory."""
        start, count = self._vector(field, 1)
        return memoryview(self._data)[start : start + count]

    def text(self, field: int) -> str:
        """Return a string, empty if it is not there."""
        return str(self.bytes(field), "utf-8", "replace")

    def tables(self, field: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        start, count = self._vector(field, 4)
        for at in range(start, start + 4 * count, 4):
            yield Table(self._data, at + _number(self._data, at, "I"))


EMPTY = Table(bytes([4, 0, 4, 0, 4, 0, 0, 0]), 4)
"""Options that are left out: every field has its default."""

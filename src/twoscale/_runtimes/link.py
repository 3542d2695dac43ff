"""Frames between a computer and a board: see _codegen/c/templates/link.c.jinja, the board's side.

What a board sends is not trusted: a frame that is not expected is skipped before it is read, and every wait ends.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from twoscale._runtimes.ports import Port

__all__ = ["Frame", "Limits", "Link", "MissingAnswerError"]

_MAGIC = b"\x54\x53"
_HEAD = struct.Struct("<cBI")
_CRC_BYTES = 4


@dataclass(frozen=True)
class Limits:
    """How long and how often to wait for a board."""

    silence_seconds: float = 30.0
    """Without a byte while it computes a layer."""
    gap_seconds: float = 2.0
    """Without a byte inside a frame."""
    request_seconds: float = 600.0
    """For all answers to one request."""
    attempts: int = 3
    """Requests for the same answer."""
    noise_bytes: int = 1 << 20
    """Bytes outside of frames in the answers to one request."""


class Frame(NamedTuple):
    """One message of a board."""

    kind: bytes
    content: bytes


class MissingAnswerError(Exception):
    """An answer is damaged or does not come; the request may be repeated. The message says what is missing."""


class Link:
    """Sends requests over a port, and reads the frames of the answers."""

    def __init__(self, port: Port, limits: Limits) -> None:
        self._port = port
        self._limits = limits
        self._number = 0
        self._arrived = bytearray()
        self._end = 0.0
        self._noise = 0

    def send(self, kind: bytes, content: bytes) -> None:
        """Send a request. Frames that answer an earlier one are skipped from now on."""
        self._number = (self._number + 1) % 256
        self._end = time.monotonic() + self._limits.request_seconds
        self._noise = 0
        body = _HEAD.pack(kind, self._number, len(content)) + content
        frame = _MAGIC + body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")
        self._port.write(frame, self._limits.silence_seconds + len(frame) / 100)  # 1,200 baud is 120 bytes a second

    def receive(self, fits: Callable[[bytes, int], bool]) -> Frame:
        """Return the next frame that answers the request.

        Args:
            fits: whether a frame of some kind and length is expected; others are skipped.

        Raises:
            MissingAnswerError: none comes.
            ExecutorError: the port is closed.
        """
        while True:
            start = self._find(fits)
            kind, _, length = _HEAD.unpack_from(self._arrived, start)
            end = start + _HEAD.size + length
            try:
                self._fill(end + _CRC_BYTES, self._limits.gap_seconds)
            except MissingAnswerError:
                self._skip(1)  # it may not have been the beginning of a frame
                if _MAGIC in self._arrived:
                    continue
                raise
            body, checksum = bytes(self._arrived[start:end]), bytes(self._arrived[end : end + _CRC_BYTES])
            if zlib.crc32(body).to_bytes(_CRC_BYTES, "little") != checksum:
                self._skip(1)
                continue
            del self._arrived[: end + _CRC_BYTES]
            if kind == b"E":
                raise MissingAnswerError("the request arrived damaged")
            return Frame(kind, body[_HEAD.size :])

    def _find(self, fits: Callable[[bytes, int], bool]) -> int:
        """Drop bytes until the buffer begins with an expected frame; return where its head begins."""
        while True:
            self._fill(len(_MAGIC) + _HEAD.size, self._limits.silence_seconds)
            at = self._arrived.find(_MAGIC)
            if at != 0:
                self._skip(at if at > 0 else len(self._arrived) - 1)
                continue
            kind, number, length = _HEAD.unpack_from(self._arrived, len(_MAGIC))
            if (kind == b"E" and length == 0) or (number == self._number and fits(kind, length)):
                return len(_MAGIC)
            self._skip(1)

    def _fill(self, size: int, seconds: float) -> None:
        """Wait until the buffer has that many bytes."""
        while len(self._arrived) < size:
            left = self._end - time.monotonic()
            if left <= 0:
                raise MissingAnswerError(f"its answer took more than {self._limits.request_seconds:g} seconds")
            data = self._port.read(min(seconds, left))
            if not data and seconds < left:
                raise MissingAnswerError(f"it sent nothing for {seconds:g} seconds")
            self._arrived += data

    def _skip(self, count: int) -> None:
        del self._arrived[:count]
        self._noise += count
        if self._noise > self._limits.noise_bytes:
            raise MissingAnswerError(f"it sent {self._noise:,} bytes that answer nothing")

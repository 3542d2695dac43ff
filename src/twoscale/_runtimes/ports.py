"""Ports to boards: bytes over TCP or a serial port, with a time limit for every wait."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from typing import Protocol

from twoscale.errors import ConfigurationError, ExecutorError

__all__ = ["PREFIX", "Port", "open_port"]

PREFIX = "remote:"
"""Of the name of an executor on a board; the board's address follows."""

_CONNECT_SECONDS = 10
_CHUNK = 1 << 16
_BAUD = 115_200


class Port(Protocol):
    """A stream of bytes to a board and back."""

    def read(self, seconds: float) -> bytes:
        """Return bytes that have arrived, waiting for the first; empty if none arrives in time.

        Raises:
            ExecutorError: the port is closed.
        """
        ...

    def write(self, data: bytes, seconds: float) -> None:
        """Send bytes.

        Raises:
            ExecutorError: the port is closed, or takes no bytes for so long.
        """
        ...

    def close(self) -> None:
        """Close the port; again does nothing."""
        ...


def open_port(address: str) -> Port:
    """Open "HOST:PORT" for TCP, or a serial port such as "/dev/ttyACM0" or "/dev/ttyACM0@921600".

    Raises:
        ConfigurationError: the address has neither form.
        ExecutorError: it cannot be opened.
    """
    tcp = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^/:@\s]+)):(\d{1,5})", address)
    if tcp is not None and 0 < int(tcp[3]) < 1 << 16:
        return _Tcp(address, tcp[1] or tcp[2], int(tcp[3]))
    serial = re.fullmatch(r"(/.+?|COM\d+)(?:@(\d+))?", address)
    if serial is None:
        raise ConfigurationError(
            f"the board's address is {address}; expected remote:HOST:PORT, or a serial port such as "
            f"remote:/dev/ttyACM0 or remote:/dev/ttyACM0@{_BAUD}"
        )
    return _Serial(serial[1], int(serial[2] or _BAUD))


class _Tcp:
    def __init__(self, address: str, host: str, port: int) -> None:
        self.address = address
        try:
            self._socket = socket.create_connection((host, port), _CONNECT_SECONDS)
        except OSError as error:
            raise ExecutorError(f"cannot connect to the board at {address}: {error}") from None

    def read(self, seconds: float) -> bytes:
        self._socket.settimeout(max(seconds, 1e-3))
        try:
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            return b""
        except OSError as error:
            raise _lost(self.address, error) from None
        if not data:
            raise _lost(self.address, "it closed the connection")
        return data

    def write(self, data: bytes, seconds: float) -> None:
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise _lost(self.address, error) from None

    def close(self) -> None:
        self._socket.close()


class _Serial:
    """A serial port in raw mode, 8 data bits, no parity, 1 stop bit, no flow control."""

    def __init__(self, path: str, baud: int) -> None:
        try:
            import termios
            import tty
        except ImportError:
            raise ExecutorError(f"serial ports such as {path} work on Linux and macOS; use remote:HOST:PORT") from None
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise ConfigurationError(f"the serial port's speed is {baud}; expected one such as {_BAUD} or 921600")
        self.address = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise ExecutorError(f"cannot open the serial port {path}: {error.strerror}") from None
        try:
            tty.setraw(self._file)
            settings = termios.tcgetattr(self._file)
            settings[2] |= termios.CLOCAL | termios.CREAD
            settings[4:6] = [speed, speed]
            termios.tcsetattr(self._file, termios.TCSANOW, settings)
        except (OSError, termios.error) as error:
            self.close()
            raise ExecutorError(f"{path} is no serial port: {error}") from None

    def read(self, seconds: float) -> bytes:
        try:
            if not select.select([self._file], [], [], max(seconds, 0))[0]:
                return b""
            data = os.read(self._file, _CHUNK)
        except OSError as error:
            raise _lost(self.address, error) from None
        if not data:
            raise _lost(self.address, "it was unplugged")
        return data

    def write(self, data: bytes, seconds: float) -> None:
        end = time.monotonic() + seconds
        try:
            while data:
                if not select.select([], [self._file], [], max(0.0, end - time.monotonic()))[1]:
                    raise _lost(self.address, "it takes no bytes")
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise _lost(self.address, error) from None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def _lost(address: str, reason: object) -> ExecutorError:
    return ExecutorError(f"lost the board at {address}: {reason}")

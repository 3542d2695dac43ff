"""How the command ends: exit codes, one-line errors, Ctrl-C and closed outputs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn, TextIO

from twoscale._text import printable

__all__ = [
    "BROKEN_PIPE",
    "INTERRUPTED",
    "KEPT",
    "drop_output",
    "ending_at_once",
    "fail",
    "open_standard_streams",
    "say",
    "write_error",
]

INTERRUPTED = 130
"""Exit code after Ctrl-C, 128 + SIGINT."""
BROKEN_PIPE = 141
"""Exit code when the reader of standard output has closed it, 128 + SIGPIPE."""
KEPT = "interrupted; finished files are kept, none is half written"

_LEAVE_TIME = 5.0
"""Seconds that a rank other than 0 waits before it reports an error. torchrun ends all ranks when the first one exits,
so an error that all ranks share is reported once, by rank 0. After the wait the error is known to be this rank's."""


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once: importing torch swallows KeyboardInterrupt, or crashes on it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        say(KEPT)
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def drop_output() -> None:
    """Discard what is left for a closed standard output, so that Python does not try to write it again at exit."""
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stream of a test, which has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def write_error(line: str) -> None:
    """Write a line to standard error, if it takes one: the exit code must not depend on that."""
    try:
        sys.stderr.write(f"{printable(line)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # full, or closed
        _discard(sys.stderr)


def open_standard_streams() -> None:
    """Open the null device for each standard stream that the caller closed.

    Python leaves ``sys.stdout`` as None then, and the next file that is opened would get the stream's number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def say(message: str) -> None:
    """Write a line to standard error; under torchrun only rank 0 does."""
    from twoscale._launching.torchrun import leads

    if leads():
        write_error(f"twoscale: {message}")


def fail(message: str) -> NoReturn:
    """Write an error to standard error and exit with code 2."""
    from twoscale._launching.torchrun import leads

    if not leads():
        time.sleep(_LEAVE_TIME)
        message = f"process {os.environ['RANK']}: {message}"
    write_error(f"twoscale: error: {message}")
    sys.exit(2)

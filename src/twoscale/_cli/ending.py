"""How the command ends: exit codes, the one line of an error, Ctrl-C, and outputs that nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

__all__ = ["BROKEN_PIPE", "INTERRUPTED", "KEPT", "drop_output", "ending_at_once", "fail", "say"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, 128 + SIGINT."""
BROKEN_PIPE = 141
"""Exit code when the reader of the output left, 128 + SIGPIPE."""
KEPT = "interrupted; finished files are kept, none is half written"

_LEAVE_TIME = 5.0
"""Seconds that a process which does not speak leaves to the one that does: torchrun ends all with the first. After that
the error was its own."""


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process in this block without an exception: importing torch loses one, or crashes of it."""
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
    """Send to nowhere what is left for an output that takes no more, so that Python does not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
    from twoscale._launching.torchrun import speaks

    if speaks():
        sys.stderr.write(f"twoscale: {message}\n")


def fail(message: str) -> NoReturn:
    from twoscale._launching.torchrun import speaks

    if not speaks():
        time.sleep(_LEAVE_TIME)
        message = f"process {os.environ['RANK']}: {message}"
    sys.stderr.write(f"twoscale: error: {message}\n")
    sys.exit(2)

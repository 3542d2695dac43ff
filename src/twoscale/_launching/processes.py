"""How a process of a launch begins and ends: with its parent, on cores of its own, and at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from twoscale._environment import available_cores

__all__ = ["PARENT", "die_with_parent", "leave", "pin", "wait_until"]

PARENT = "TWOSCALE_PARENT"
"""Environment variable in which a process finds the id of the one that started it."""

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_PATIENCE = 60.0
"""Seconds that a process that is done waits for the others of its group."""


def pin(index: int, count: int, threads: int) -> tuple[int, ...] | None:
    """Keep this process, and all threads it starts later, on ``threads`` cores that no other of ``count`` shares.

    Args:
        index: which of the processes this is, 0..count - 1.
        count: processes on this machine.
        threads: cores for each.

    Returns:
        The cores, or None where there are not enough for all, or where the system cannot pin; nothing is done then.
    """
    cores = available_cores()
    if count * threads > len(cores) or not hasattr(os, "sched_setaffinity"):
        return None
    mine = cores[index * threads : (index + 1) * threads]
    os.sched_setaffinity(0, mine)
    return mine


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent is gone, however that ended (Linux; else nothing).

    The parent is the process that :data:`PARENT` names, which is not passed on to children. By the time this process
    runs it may be gone, and the process that adopted this one would be taken for the parent: this process ends then.
    Without the variable nothing is known, and whatever process is the parent now is taken for it.
    """
    named = os.environ.pop(PARENT, None)
    if not sys.platform.startswith("linux"):
        return
    parent = int(named) if named is not None and named.isdecimal() else os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask every 10 ms until it is so, for a minute at most: a launcher ends those that wait for one that failed."""
    deadline = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def leave(code: int) -> NoReturn:
    """End this process of a group at once, without taking down its interpreter.

    An interpreter that is taken down may free Python objects that gloo's threads hold, which aborts the process
    ("terminate called without an active exception"), and its exit code is lost. The system closes what is open.

    To the others, a process that leaves looks like one that failed, while their threads may still be at work. A process
    that is done therefore first waits until the others are (:func:`wait_until`), by a way that does not need the
    connections between them.

    Args:
        code: exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code)

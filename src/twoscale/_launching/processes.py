"""Start and end of a process in a launch: it ends with its parent, has its own cores, and can exit at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from twoscale._environment import available_cores

__all__ = ["PARENT", "die_with_parent", "leave", "lost_peer", "pin", "wait_for_group", "wait_until"]

PARENT = "TWOSCALE_PARENT"
"""Environment variable with the id of the process that started this one."""

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_PATIENCE = 60.0
"""Seconds that a finished process waits for the others of its group."""
_LOST = re.compile(
    r"connection reset by peer|connection closed by peer|broken pipe|socket closed|remote process exited|"
    r"connection timed out|timed out waiting \d+ms",
    re.IGNORECASE,
)
"""What gloo and NCCL say when the process at the other end has gone."""
_DONE = "twoscale: done"
"""Key of a process group's count of processes that are done."""


def pin(index: int, count: int, threads: int) -> tuple[int, ...] | None:
    """Pin this process, and all threads that it starts later, to ``threads`` cores that no other of the ``count``
    processes uses.

    Args:
        index: of this process, 0..count - 1.
        count: processes on this machine.
        threads: cores for each.

    Returns:
        The cores; None, and no change, if there are not enough for all or if the system cannot pin.
    """
    cores = available_cores()
    if count * threads > len(cores) or not hasattr(os, "sched_setaffinity"):
        return None
    mine = cores[index * threads : (index + 1) * threads]
    os.sched_setaffinity(0, mine)
    return mine


def die_with_parent() -> None:
    """Let the kernel kill this process as soon as its parent has ended in any way (on Linux; elsewhere, do nothing).

    The parent is the process in :data:`PARENT`, which is not passed on to children. If it has already ended, another
    process has adopted this one, and this process exits. Without the variable, the current parent is assumed to be the
    right one.
    """
    named = os.environ.pop(PARENT, None)
    if not sys.platform.startswith("linux"):
        return
    parent = int(named) if named is not None and named.isdecimal() else os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def lost_peer(error: BaseException) -> str | None:
    """Return how the connection to a process on another machine was lost, if that is what an error of this process of
    several machines says; else None."""
    if not isinstance(error, RuntimeError) or int(os.environ.get("GROUP_WORLD_SIZE", "1")) < 2:
        return None
    found = _LOST.search(str(error))
    return None if found is None else found[0].lower()


def wait_until(condition: Callable[[], bool]) -> None:
    """Check a condition every 10 ms until it holds, for at most a minute. A launcher ends processes that wait for one
    that failed."""
    deadline = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_for_group(size: int) -> None:
    """Wait until all processes of the default process group have come here. Its store is used, which needs no
    connection between them.

    Args:
        size: of the group.
    """
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()
    with contextlib.suppress(RuntimeError):  # the process that held the store is done and has left
        store.add(_DONE, 1)
        wait_until(lambda: int(store.add(_DONE, 0)) >= size)


def leave(code: int) -> NoReturn:
    """End this process of a group at once, without finalizing its interpreter.

    Finalizing may free Python objects that gloo's threads hold, which aborts the process
    ("terminate called without an active exception"), and its exit code is lost. The system closes what is open.

    To the others, a process that leaves looks like one that failed, and their threads may still be working. A finished
    process therefore first waits until the others are finished (:func:`wait_until`), without using the connections
    between them.

    Args:
        code: exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code)

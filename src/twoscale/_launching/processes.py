"""Processes that do not outlive what started them, and cores of their own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from twoscale._environment import available_cores

__all__ = ["die_with", "pin"]

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


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


def die_with(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent is gone, however that ended (Linux; else nothing).

    Args:
        parent: the process that started this one. Where it is gone already, this process ends here.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

"""Ranks that are forked from a process that has imported PyTorch, in the place of torchrun and fresh processes.

Starting a rank takes seconds of processor time, nearly all of them for imports. A test whose subject is not the start
itself takes :func:`forked_ranks` around ``launch``; with ``--sweep all`` it changes nothing, and ranks start as they do
outside tests. What is left of a launch is the product's own: the job's folder, the outcome, logs, time-outs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import IO, Any
from unittest import mock

from tests import sweep
from twoscale._launching.processes import PARENT
from twoscale.scaling._measure import agents

__all__ = ["forked_ranks"]

_PRELOADED = ["tests.scaling.workers", "torch._dynamo", "torch.distributed.optim"]
_AHEAD = ("chrt", "--rr", "1")
"""Command that gives another one real-time priority."""


def _rank(folder: str, environment: dict[str, str], log: str, ahead: bool) -> None:
    """Be a rank."""
    from twoscale.scaling._measure import rank

    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if ahead:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    sys.argv = ["rank", folder]
    rank.main()


class _Ranks:
    """The forked ranks of a launch, as one process: what ``Agents`` needs of a ``Popen``."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: str) -> None:
        size = next((int(word.partition("=")[2]) for word in command if word.startswith("--nproc-per-node=")), 1)
        port = str(agents.free_port("127.0.0.1"))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._processes: list[BaseProcess] = []
        for rank in range(size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            environment = {
                **{name: value for name, value in env.items() if name != PARENT},
                **{name: str(number) for name, number in place.items()},
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            ahead = tuple(command[: len(_AHEAD)]) == _AHEAD
            process = context.Process(target=_rank, args=(command[-1], environment, log, ahead))
            process.start()
            self._processes.append(process)

    @property
    def returncode(self) -> int | None:
        """The exit code of the first that failed, 0, or None while one runs; when one fails, all are ended."""
        codes = [process.exitcode for process in self._processes]
        failed = [code for code in codes if code]
        if failed and None in codes:
            self.terminate()
        return None if None in codes else (failed or [0])[0]

    def poll(self) -> int | None:
        """Return the exit code, None while ranks run."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of all."""
        deadline = time.monotonic() + (3600 if timeout is None else timeout)
        while (code := self.returncode) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("ranks", timeout or 0)
            self._processes[0].join(0.01)
            time.sleep(0.005)
        return code

    def terminate(self) -> None:
        """End all."""
        for process in self._processes:
            process.terminate()

    def kill(self) -> None:
        """Kill all."""
        for process in self._processes:
            process.kill()


def _start(command: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], **options: Any) -> Any:
    inside = " ".join(command)
    # A rank, or the ranks of one host; a host behind another command ("ip netns exec") is not this process's.
    if re.match(rf"({' '.join(_AHEAD)} )?{re.escape(sys.executable)} -m ", inside) and "--nnodes=2" not in command:
        return _Ranks(command, env, stdout.name)
    return subprocess.Popen(command, env=env, stdout=stdout, **options)


@contextlib.contextmanager
def forked_ranks() -> Iterator[None]:
    """Let ``launch`` fork its ranks on this machine, except where sweeps run whole."""
    if sweep.whole() or not hasattr(os, "sched_setscheduler"):
        yield
        return
    forking = types.SimpleNamespace(**{**vars(subprocess), "Popen": _start})
    with mock.patch.object(agents, "subprocess", forking):
        yield

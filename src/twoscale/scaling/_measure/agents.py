"""The processes of one machine in a launch: torchrun's agents, or a rank that is alone, and what they leave.

They share a folder with a job, what its ranks write, and their logs. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from twoscale._launching import torchrun
from twoscale.errors import ConfigurationError

__all__ = [
    "AT_WORK",
    "DONE",
    "FAILURE",
    "FOLDER",
    "JOB",
    "PID",
    "RESULT",
    "Agents",
    "Ending",
    "Failure",
    "Host",
    "Job",
    "Meeting",
    "free_port",
    "function_of",
]

# A job's folder.
JOB = "job.json"
RESULT = "result.json"
FAILURE = "failure-{}.json"
PID = "rank-{}.pid"
DONE = "rank-{}.done"
AT_WORK = "at-work.txt"
"""What rank 0 is doing, in a few words."""
_LOG = "log-{}.txt"
FOLDER = "TWOSCALE_JOB"
"""Environment variable in which a rank finds the folder, for files that its ranks share and nobody keeps."""

_TAIL_LINES = 30
_TORCHRUN = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic", re.MULTILINE)
_GRACE = 2.0
"""Seconds that a launcher has to end its ranks before it is killed, and they with it."""


@dataclass(frozen=True)
class Host:
    """Where some of the ranks run: this machine, as it is seen through ``prefix``.

    For example a network namespace: ``Host(("ip", "netns", "exec", "left"), "10.0.0.1", "veth0")``.
    """

    prefix: tuple[str, ...] = ()
    """Command that starts another one there."""
    address: str = "127.0.0.1"
    """Of this host, as the others reach it."""
    interface: str | None = None
    """The network interface with that address; "" lets gloo and NCCL choose. Default: the loopback's."""


@dataclass(frozen=True)
class Meeting:
    """The ranks of a launch, and where they meet."""

    world_size: int
    hosts: int
    """An equal number of ranks on each."""
    host: int
    """The first host on this machine, 0..hosts - 1."""
    address: str
    """Of host 0."""
    port: int
    """0 for any, where there is one host."""

    @property
    def ranks_per_host(self) -> int:
        """Ranks on each host."""
        return self.world_size // self.hosts


@dataclass(frozen=True)
class Job:
    """The job that every rank of a launch reads."""

    target: str
    task: Any
    """Plain JSON values of the target's only argument, which it annotates with its type."""
    device: Literal["cpu", "cuda"]
    threads_per_rank: int
    pin: bool
    memory_limit_bytes: int | None
    first_rank: int = 0
    """Of this machine, whose ranks share its cores."""
    ranks: int = 1
    """On this machine."""


@dataclass(frozen=True)
class Failure:
    """The record of a rank that failed."""

    status: Literal["out-of-memory", "crash"]
    message: str
    time: float
    """Seconds since the epoch: the first failure is the cause of the others."""


def function_of(target: str) -> Callable[[Any], object]:
    """Find the function named "module:function".

    Raises:
        ConfigurationError: there is no such module or function.
    """
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"no function '{target}' ({error}); expected 'module:function'") from error
    if not callable(function):
        raise ConfigurationError(f"'{target}' is no function; expected 'module:function'")
    found: Callable[[Any], object] = function
    return found


def free_port(address: str) -> int:
    """Return a port that is free at an address of this machine."""
    with socket.socket() as probe:
        # Only addresses of this namespace can be bound; others get a port that is free here.
        with contextlib.suppress(OSError):
            probe.bind((address, 0))
            return int(probe.getsockname()[1])
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Ending:
    """How the processes of one machine ended."""

    codes: tuple[int, ...]
    """Exit codes of the agents, or of the rank that was alone."""
    exits: dict[int, int]
    """Exit codes of ranks that failed, as far as they are known."""
    failures: dict[int, Failure]
    """What failed ranks wrote."""
    out_of_memory: bool
    """Whether the kernel killed a process meanwhile, because memory ran out."""
    log_tail: str

    @property
    def ok(self) -> bool:
        """Whether every process ended well."""
        return not any(self.codes)

    def cause(self) -> tuple[Literal["out-of-memory", "crash"], str, float]:
        """Return why there is no result, one line, and when it happened (infinity where that is not known)."""
        if self.out_of_memory:
            return "out-of-memory", "the kernel killed a process because memory ran out", 0.0
        # Ranks that lost a peer complain too: one that was killed, or else the first to complain, is the cause.
        killed = {rank: -code for rank, code in self.exits.items() if code < 0 and -code != signal.SIGTERM}
        if self.failures:
            rank, failure = min(
                self.failures.items(), key=lambda item: (item[1].status != "out-of-memory", item[1].time)
            )
            if failure.status == "out-of-memory" or not killed:
                return failure.status, f"rank {rank}: {failure.message}", failure.time
        for rank, number in killed.items():
            return "crash", f"rank {rank}: killed by {signal.Signals(number).name}", 0.0
        for rank, code in self.exits.items():
            return "crash", f"rank {rank}: exit code {code}", math.inf
        return "crash", "the launcher ended without a result", math.inf


class Agents:
    """The processes of this machine in a launch, from their start.

    Args:
        folder: empty; it outlives them.
        job: of every rank.
        hosts: of this machine, in order.
        meeting: of all ranks.
        environment: variables on top of this process's.
    """

    def __init__(
        self, folder: Path, job: Job, hosts: Sequence[Host], meeting: Meeting, environment: Mapping[str, str]
    ) -> None:
        self._folder, self._kills_before, self._alone = folder, _oom_kills(), meeting.world_size == 1
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / JOB).write_bytes(msgspec.json.encode(job))
        try:
            for node, (host, command) in enumerate(zip(hosts, _commands(hosts, meeting, folder), strict=True)):
                with (folder / _LOG.format(node)).open("wb") as log:
                    # A session of its own: the terminal's Ctrl-C reaches only this process, which ends the others.
                    self.processes.append(
                        subprocess.Popen(
                            command,
                            env={
                                **torchrun.environment(job.threads_per_rank, host.interface),
                                **(_place_of_one(host.address) if self._alone else {}),
                                **environment,
                            },
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
        except BaseException:
            self.end()
            raise

    @property
    def running(self) -> bool:
        """Whether a process still runs."""
        return any(process.poll() is None for process in self.processes)

    @property
    def failed(self) -> bool:
        """Whether a process has failed."""
        return any(process.poll() for process in self.processes)

    def wait(self, seconds: float) -> None:
        """Wait for the end of the first process, for at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.processes[0].wait(max(0.0, seconds))

    def end(self) -> None:
        """End every process and wait until they are gone."""
        torchrun.end(self.processes, _GRACE)
        # Where the kernel does not end a killed agent's ranks, do it by the numbers they left.
        for file in self._folder.glob(PID.format("*")):
            pid = file.read_text()
            if pid:
                _signal(int(pid), signal.SIGKILL)

    def ending(self) -> Ending:
        """Return how the processes ended, once they have."""
        codes = tuple(process.returncode for process in self.processes)
        logs = "".join(log.read_text(errors="replace") for log in self._folder.glob(_LOG.format("*")))
        exits = {int(rank): int(code) for rank, code in re.findall(r"rank\s*: (\d+).*\n\s*exitcode\s*: (-?\d+)", logs)}
        if self._alone and codes[0]:
            exits[0] = codes[0]
        failures = {
            int(file.stem.rpartition("-")[2]): msgspec.json.decode(file.read_bytes(), type=Failure)
            for file in self._folder.glob(FAILURE.format("*"))
        }
        return Ending(codes, exits, failures, _oom_kills() > self._kills_before, _tail(self._folder))


def _commands(hosts: Sequence[Host], meeting: Meeting, folder: Path) -> Iterator[list[str]]:
    """Give the command of each host's agent, or of a rank that is alone and needs none."""
    if meeting.world_size == 1:
        # torchrun would import PyTorch once more, for seconds, and have nothing to coordinate.
        yield [*hosts[0].prefix, sys.executable, "-m", "twoscale.scaling._measure.rank", str(folder)]
        return
    for node, host in enumerate(hosts, meeting.host):
        arguments = [
            *torchrun.meeting(meeting.address, port=meeting.port, host=node, hosts=meeting.hosts),
            f"--local-addr={host.address}",
            f"--nproc-per-node={meeting.ranks_per_host}",
            f"--log-dir={folder}",
            "--module",
            "twoscale.scaling._measure.rank",
            str(folder),
        ]
        yield [*host.prefix, *torchrun.command(arguments)]


def _place_of_one(address: str) -> dict[str, str]:
    """Return the variables that torchrun sets, for a rank that has no other."""
    port = str(free_port(address))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return dict(zip(names, ("0", "1", "0", "1", address, port), strict=True))


def _oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, on the whole machine (Linux; else 0)."""
    try:
        found = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _tail(folder: Path) -> str:
    lines: list[str] = []
    for log in sorted(folder.glob(_LOG.format("*"))):
        text = log.read_text(errors="replace")
        # torchrun's own report of a failed rank adds nothing to the rank's own report.
        before = _TORCHRUN.split(text, maxsplit=1)[0].strip()
        lines += (before or text).splitlines()
    return "\n".join(lines[-_TAIL_LINES:])

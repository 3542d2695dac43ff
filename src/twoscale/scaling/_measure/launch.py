"""Fresh processes for one measurement, started by PyTorch's own launcher where there are several.

:func:`launch` starts a number of ranks, waits, and returns the result of the function on rank 0, or the reason for a
failure: out of memory, a crash and a time-out are outcomes, not exceptions. No process that it starts outlives it.
Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from twoscale._environment import core_count
from twoscale._launching import torchrun
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import Outcome

__all__ = ["Failure", "Host", "Job", "function_of", "launch"]

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
_LOOK = 0.5
"""Seconds between checks of what rank 0 is doing."""
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
    """The network interface with that address. Default: the loopback's."""


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


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        # Only addresses of this namespace can be bound; others get a port that is free here.
        with contextlib.suppress(OSError):
            probe.bind((address, 0))
            return int(probe.getsockname()[1])
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _commands(hosts: Sequence[Host], world_size: int, folder: Path) -> Iterator[list[str]]:
    """Give the command of each host's agent, or of a rank that is alone and needs none."""
    port = _free_port(hosts[0].address) if len(hosts) > 1 else 0
    if world_size == 1:
        # torchrun would import PyTorch once more, for seconds, and have nothing to coordinate.
        yield [*hosts[0].prefix, sys.executable, "-m", "twoscale.scaling._measure.rank", str(folder)]
        return
    for node, host in enumerate(hosts):
        arguments = [
            *torchrun.meeting(hosts[0].address, port=port, host=node, hosts=len(hosts)),
            f"--local-addr={host.address}",
            f"--nproc-per-node={world_size // len(hosts)}",
            f"--log-dir={folder}",
            "--module",
            "twoscale.scaling._measure.rank",
            str(folder),
        ]
        yield [*host.prefix, *torchrun.command(arguments)]


def _alone(address: str) -> dict[str, str]:
    """Return the variables that torchrun sets, for a rank that has no other."""
    port = str(_free_port(address))
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


def _end(agents: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """End every process of a launch and wait until they are gone."""
    torchrun.end(agents, _GRACE)
    # Where the kernel does not end a killed agent's ranks, do it by the numbers they left.
    for file in folder.glob(PID.format("*")):
        pid = file.read_text()
        if pid:
            _signal(int(pid), signal.SIGKILL)


def _tail(folder: Path) -> str:
    lines: list[str] = []
    for log in sorted(folder.glob(_LOG.format("*"))):
        text = log.read_text(errors="replace")
        # torchrun's own report of a failed rank adds nothing to the rank's own report.
        before = _TORCHRUN.split(text, maxsplit=1)[0].strip()
        lines += (before or text).splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def _failure(folder: Path, kills_before: int, alone: int | None) -> tuple[Literal["out-of-memory", "crash"], str]:
    """Return why a launch has no result, from the files of its processes and the exit code of a rank that was alone."""
    if _oom_kills() > kills_before:
        return "out-of-memory", "the kernel killed a process because memory ran out"
    logs = "".join(log.read_text(errors="replace") for log in folder.glob(_LOG.format("*")))
    exits = {int(rank): int(code) for rank, code in re.findall(r"rank\s*: (\d+).*\n\s*exitcode\s*: (-?\d+)", logs)}
    if alone:
        exits[0] = alone
    # Ranks that lost a peer complain too: one that was killed, or else the first to complain, is the cause.
    killed = {rank: -code for rank, code in exits.items() if code < 0 and -code != signal.SIGTERM}
    failures = [
        (msgspec.json.decode(file.read_bytes(), type=Failure), file.stem.rpartition("-")[2])
        for file in folder.glob(FAILURE.format("*"))
    ]
    if failures:
        failure, rank = min(failures, key=lambda item: (item[0].status != "out-of-memory", item[0].time))
        if failure.status == "out-of-memory" or not killed:
            return failure.status, f"rank {rank}: {failure.message}"
    for rank_number, number in killed.items():
        return "crash", f"rank {rank_number}: killed by {signal.Signals(number).name}"
    for rank_number, code in exits.items():
        return "crash", f"rank {rank_number}: exit code {code}"
    return "crash", "the launcher ended without a result"


def _wait(agent: subprocess.Popen[bytes], deadline: float, folder: Path, watch: Callable[[str], None] | None) -> None:
    """Wait for the end of a process, and report what rank 0 does meanwhile.

    Raises:
        subprocess.TimeoutExpired: it did not end in time.
    """
    reported = ""
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            agent.wait(left if watch is None else min(left, _LOOK))
            return
        except subprocess.TimeoutExpired:
            if watch is None or time.monotonic() >= deadline:
                raise
        with contextlib.suppress(OSError):
            text = (folder / AT_WORK).read_text(errors="replace")
            if text and text != reported:
                reported = text
                watch(text)


def launch(
    target: str,
    task: object = None,
    *,
    world_size: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    threads_per_rank: int | None = None,
    pin: bool = True,
    timeout: float = 600.0,
    memory_limit_bytes: int | None = None,
    hosts: Sequence[Host] = (Host(),),
    environment: Mapping[str, str] | None = None,
    scratch: Path | None = None,
    watch: Callable[[str], None] | None = None,
) -> Outcome[Any]:
    """Run a function in ``world_size`` fresh processes with a process group, and return what rank 0 returned.

    Args:
        target: "module:function"; called in every rank with ``task``, returns a record or plain JSON values.
        task: the function's only argument, decoded in each rank to the type that the function annotates it with.
        world_size: ranks, at least 1.
        device: "cpu": gloo. "cuda": NCCL, with gloo beside it for host memory, rank r on GPU r.
        threads_per_rank: of the processor. Default: an equal share of the cores, at least 1.
        pin: keep each rank, and gloo's threads with it, on cores of its own, where there are enough.
        timeout: seconds, start-up included.
        memory_limit_bytes: of each process's private memory (RLIMIT_DATA), where the system has such limits.
        hosts: where ranks run, an equal number on each.
        environment: variables on top of this process's.
        watch: is called with what rank 0 is doing, each time that it reports something else.
        scratch: an existing folder for what the ranks exchange, which is removed at the end. Default: the system's.

    Returns:
        The outcome; its result is plain JSON values, which ``decoded`` turns into a record. A failure of the processes
        is an outcome too.

    Raises:
        ConfigurationError: no such function, or a number outside its range.
    """
    if world_size < 1 or world_size % len(hosts):
        raise ConfigurationError(f"world_size is {world_size}; expected a positive multiple of {len(hosts)} host(s)")
    if threads_per_rank is not None and threads_per_rank < 1:
        raise ConfigurationError(f"threads_per_rank is {threads_per_rank}; expected at least 1")
    if not timeout > 0:
        raise ConfigurationError(f"timeout is {timeout}; expected a positive number of seconds")
    threads = threads_per_rank or max(1, core_count() // world_size)
    job = Job(target, {} if task is None else task, device, threads, pin, memory_limit_bytes)
    kills_before = _oom_kills()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="twoscale-", dir=scratch) as name:
        folder = Path(name).absolute()
        (folder / JOB).write_bytes(msgspec.json.encode(job))
        agents: list[subprocess.Popen[bytes]] = []
        timed_out = False
        try:
            for node, (host, command) in enumerate(zip(hosts, _commands(hosts, world_size, folder), strict=True)):
                with (folder / _LOG.format(node)).open("wb") as log:
                    # A session of its own: the terminal's Ctrl-C reaches only this process, which ends the others.
                    agents.append(
                        subprocess.Popen(
                            command,
                            env={
                                **torchrun.environment(threads, host.interface),
                                **(_alone(host.address) if world_size == 1 else {}),
                                **(environment or {}),
                            },
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            for agent in agents:
                _wait(agent, start + timeout, folder, watch)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(agents, folder)
        seconds = time.monotonic() - start
        result = folder / RESULT
        if not timed_out and result.exists() and all(agent.returncode == 0 for agent in agents):
            return Outcome("ok", seconds, world_size, threads, msgspec.json.decode(result.read_bytes()))
        if timed_out:
            message = f"no result after {timeout:g} s; every process was ended"
            return Outcome("time-out", seconds, world_size, threads, None, message, _tail(folder))
        status, message = _failure(folder, kills_before, agents[0].returncode if world_size == 1 else None)
        return Outcome(status, seconds, world_size, threads, None, message, _tail(folder))

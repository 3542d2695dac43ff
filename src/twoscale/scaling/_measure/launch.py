"""Fresh processes for one measurement, started by PyTorch's own launcher where there are several.

:func:`launch` starts a number of ranks, on this machine and on the hosts that serve it, waits, and returns the result
of the function on rank 0, or the reason for a failure: out of memory, a crash and a time-out are outcomes, not
exceptions. No process that it starts outlives it. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from twoscale._environment import core_count
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.agents import AT_WORK, RESULT, Agents, Ending, Host, Job, Meeting, free_port, function_of
from twoscale.scaling._measure.hosts import Follower, Part, Stop
from twoscale.scaling._measure.records import Outcome

__all__ = ["Host", "function_of", "launch"]

_LOOK = 0.5
"""Seconds between checks of what rank 0 is doing."""
_LOOK_AROUND = 0.05
"""Seconds between checks of several agents and hosts."""
_AFTERMATH = 10.0
"""Seconds that other hosts have to notice a failure by themselves: one of them may know its cause."""


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
    followers: Sequence[Follower] = (),
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
        hosts: of this machine, whose cores they share.
        followers: further hosts, other machines. Each host has an equal number of ranks.
        environment: variables on top of this process's, on this machine.
        watch: is called with what rank 0 is doing, each time that it reports something else.
        scratch: an existing folder for what the ranks exchange, which is removed at the end. Default: the system's.
            Where PYTHONDONTWRITEBYTECODE is set, launches with the same folder share compiled modules in it.

    Returns:
        The outcome; its result is plain JSON values, which ``decoded`` turns into a record. A failure of the processes
        is an outcome too.

    Raises:
        ConfigurationError: no such function, or a number outside its range.
    """
    count = len(hosts) + len(followers)
    if world_size < 1 or world_size % count:
        raise ConfigurationError(f"world_size is {world_size}; expected a positive multiple of {count} host(s)")
    if threads_per_rank is not None and threads_per_rank < 1:
        raise ConfigurationError(f"threads_per_rank is {threads_per_rank}; expected at least 1")
    if not timeout > 0:
        raise ConfigurationError(f"timeout is {timeout}; expected a positive number of seconds")
    per_host = world_size // count
    threads = threads_per_rank or max(1, core_count() // (per_host * len(hosts)))
    plain = msgspec.to_builtins({} if task is None else task)
    job = Job(target, plain, device, threads, pin, memory_limit_bytes, first_rank=0, ranks=per_host * len(hosts))
    address = hosts[0].address
    meeting = Meeting(world_size, count, 0, address, free_port(address) if count > 1 else 0)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="twoscale-", dir=scratch) as name:
        folder = Path(name).absolute()
        agents = Agents(folder, job, hosts, meeting, {**_bytecode(scratch), **(environment or {})})
        reports: dict[int, Ending] = {}
        try:
            for i, one in enumerate(followers, len(hosts)):
                here = replace(job, first_rank=i * per_host, ranks=per_host)
                one.send(Part(here, replace(meeting, host=i)))
            timed_out = _wait(agents, followers, reports, start + timeout, folder, watch)
        finally:
            for one in followers:
                if one.host not in reports:
                    one.send(Stop())
            agents.end()
            for one in followers:
                if one.host not in reports and (report := one.last_report()) is not None:
                    reports[one.host] = report
        seconds = time.monotonic() - start
        result, ending = folder / RESULT, agents.ending()
        lost = next((one for one in followers if one.lost), None)
        if timed_out:
            message = f"no result after {timeout:g} s; every process was ended"
            return Outcome("time-out", seconds, world_size, threads, None, message, _tail(ending, followers, reports))
        if lost is None and result.exists() and ending.ok and all(report.ok for report in reports.values()):
            return Outcome("ok", seconds, world_size, threads, msgspec.json.decode(result.read_bytes()))
        if lost is not None:
            status: Literal["out-of-memory", "crash"] = "crash"
            message = f"{lost.title} is lost: {lost.lost}"
        else:
            status, message = _cause(ending, followers, reports)
        return Outcome(status, seconds, world_size, threads, None, message, _tail(ending, followers, reports))


def _bytecode(scratch: Path | None) -> dict[str, str]:
    """Return the variables that let launches share compiled modules where Python writes none beside the modules.

    Ranks that compile PyTorch's modules from source start seconds later, and a study starts dozens of ranks.
    """
    if scratch is None or not sys.dont_write_bytecode:
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(scratch.absolute() / "bytecode")}


def _wait(
    agents: Agents,
    followers: Sequence[Follower],
    reports: dict[int, Ending],
    deadline: float,
    folder: Path,
    watch: Callable[[str], None] | None,
) -> bool:
    """Wait until every process has ended, or some failed and the others had time to notice; collect the reports of
    other hosts, and report what rank 0 does meanwhile.

    Returns:
        Whether the time was over.
    """
    reported, failed = "", False
    look = _LOOK_AROUND if followers or len(agents.processes) > 1 else _LOOK
    while True:
        agents.wait(min(look, deadline - time.monotonic()))
        for one in followers:
            if one.host not in reports and (report := one.report(0.0 if agents.running else look)) is not None:
                reports[one.host] = report
        if any(one.lost for one in followers):
            return False
        if not agents.running and len(reports) == len(followers):
            return False
        if not failed and (agents.failed or not all(report.ok for report in reports.values())):
            failed, deadline = True, min(deadline, time.monotonic() + _AFTERMATH)
        if time.monotonic() >= deadline:
            return not failed
        if watch is not None:
            with contextlib.suppress(OSError):
                text = (folder / AT_WORK).read_text(errors="replace")
                if text and text != reported:
                    reported = text
                    watch(text)


def _cause(
    ending: Ending, followers: Sequence[Follower], reports: Mapping[int, Ending]
) -> tuple[Literal["out-of-memory", "crash"], str]:
    """Return why a launch has no result; the first failure of all hosts is the cause of the others."""
    status, message, moment = ending.cause()
    if ending.ok:
        moment = float("inf")
    for one in followers:
        if one.host in reports and not reports[one.host].ok:
            other, what, when = reports[one.host].cause()
            if (other != "out-of-memory", when) < (status != "out-of-memory", moment):
                status, message, moment = other, f"{one.title}, {what}", when
    return status, message


def _tail(ending: Ending, followers: Sequence[Follower], reports: Mapping[int, Ending]) -> str:
    """Return the ends of the logs of all hosts."""
    parts = [ending.log_tail]
    for one in followers:
        if one.host in reports and reports[one.host].log_tail:
            parts.append(f"{one.title}:\n{reports[one.host].log_tail}")
    return "\n".join(part for part in parts if part)

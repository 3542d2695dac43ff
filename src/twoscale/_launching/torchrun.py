"""torchrun: its command, the environment of its ranks, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence

from twoscale._environment import require_posix
from twoscale._launching.processes import PARENT

__all__ = ["RENDEZVOUS", "command", "end", "environment", "launch", "leads", "meeting", "restarted", "run"]

RENDEZVOUS = "twoscale"
"""The name under which torchrun finds :mod:`twoscale._launching.rendezvous`."""

_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BY_TORCHRUN = ("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_", "TORCHELASTIC_", "PET_")
"""Beginnings of more variables that torchrun sets, or reads as defaults of its options."""
_GRACE = 40.0
"""Seconds after Ctrl-C in which ranks may save their work. torchrun itself gives them 30."""


def command(arguments: Iterable[str], *, quiet: bool = False) -> list[str]:
    """Return the command that starts torchrun with ``arguments`` and ends with this process.

    Args:
        arguments: of torchrun.
        quiet: print one line instead of torchrun's own report of failed ranks.
    """
    report = "quiet" if quiet else "report"
    return [sys.executable, "-m", "twoscale._launching.agent", report, *arguments]


def meeting(address: str = "127.0.0.1", *, port: int = 0, host: int = 0, hosts: int = 1) -> list[str]:
    """Return torchrun's arguments for the rendezvous of ranks: a store that listens on one address only.

    Args:
        address: of the first host, as the others reach it.
        port: 0 for any free port, if there is only one host.
        host: index of the one that torchrun runs on, 0..hosts - 1.
        hosts: number of hosts.
    """
    return [
        f"--nnodes={hosts}",
        f"--rdzv-backend={RENDEZVOUS}",
        f"--rdzv-endpoint={address}:{port}",
        f"--rdzv-conf=rank={host}",
        f"--rdzv-id={uuid.uuid4()}",
    ]


def environment(threads: int | None = None, interface: str | None = None) -> dict[str, str]:
    """Return the environment of a process that :func:`command` starts, or of a rank without torchrun.

    It is this process's environment without the variables of a rank, plus those that ranks need.

    Args:
        threads: of each rank. Default: the ranks choose, instead of torchrun's 1.
        interface: network interface that gloo and NCCL use; "" lets them choose. Default: the loopback interface.
    """
    interface = _loopback() if interface is None else interface
    added = {"PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    added["PYTHONSAFEPATH"] = "1"  # a torch.py in the current folder must not be imported instead of PyTorch
    if threads is not None:
        added |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if interface:
        added |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    return {name: value for name, value in kept.items() if not name.startswith(_BY_TORCHRUN)} | added


def end(agents: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Ask agents to end their ranks and themselves, wait, and kill those that do not."""
    for agent in agents:
        if agent.poll() is None:
            agent.terminate()
    deadline = time.monotonic() + grace
    for agent in agents:
        try:
            agent.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


def restarted() -> int:
    """Return how often torchrun restarted this process because one of its group failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch() -> str:
    """Return a name of this launch that is the same after a restart; "" without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return ""
    # torchrun calls every run of several machines "none" unless --rdzv-id names it.
    return f"{socket.gethostname()} {os.getppid()}" if run in ("", "none") else run


def leads() -> bool:
    """Return whether this process is the one of its group that prints and writes: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def run(processes: int, max_restarts: int, module: str, arguments: Sequence[str]) -> int:
    """Run a module in a number of ranks on this machine, with the output streams of this process.

    Ctrl-C reaches the ranks once, through torchrun. A second Ctrl-C ends them at once.

    Returns:
        The exit code: 0, that of the ranks, or 128 + the signal that ended one.

    Raises:
        KeyboardInterrupt: Ctrl-C before there were any ranks.
    """
    words = [
        *meeting(),
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={processes}",
        f"--max-restarts={max_restarts}",
    ]
    require_posix("running several processes")
    # A separate session, so that the terminal's Ctrl-C reaches only this process, which passes it on.
    agent = subprocess.Popen(
        command([*words, "--module", module, *arguments], quiet=True),
        env=environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        try:
            code = agent.wait()
        except KeyboardInterrupt:
            agent.send_signal(signal.SIGINT)
            if agent.wait(_GRACE) < 0:  # it ended before it could pass Ctrl-C on
                raise
            return agent.returncode
    except subprocess.TimeoutExpired:
        return 128 + signal.SIGINT
    finally:
        end([agent], grace=2.0)
    if code < 0:
        sys.stderr.write(f"twoscale: torchrun was ended by {signal.Signals(-code).name}, and its processes with it\n")
        return 128 - code
    return code


def _loopback() -> str | None:
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), None)

"""torchrun's command, its ranks' environment, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from twoscale._environment import require_posix

__all__ = ["command", "end", "environment", "launch", "restarted", "run", "speaks"]

_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_GRACE = 40.0
"""Seconds after Ctrl-C in which ranks may save what they have; torchrun itself gives them 30."""


def command(arguments: Iterable[str], *, quiet: bool = False) -> list[str]:
    """Return the command that starts torchrun with ``arguments`` and ends with this process.

    Args:
        arguments: torchrun's.
        quiet: one line instead of torchrun's own report of ranks that failed.
    """
    report = "quiet" if quiet else "report"
    return [sys.executable, "-m", "twoscale._launching.agent", str(os.getpid()), report, *arguments]


def environment(threads: int | None = None, interface: str | None = None) -> dict[str, str]:
    """Return this process's variables without those of a rank, and with those that ranks need.

    Args:
        threads: of each rank. Default: left to the ranks, which torchrun would set to 1.
        interface: network interface that gloo uses. Default: the loopback's.
    """
    interface = interface or _loopback()
    named = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {
        **{name: value for name, value in os.environ.items() if name not in _OF_A_RANK},
        **named,
        "PYTHONUNBUFFERED": "1",
        **({"GLOO_SOCKET_IFNAME": interface} if interface else {}),
    }


def end(agents: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Ask agents to end their ranks and themselves, wait, and kill those that did not."""
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
    """Return how often torchrun started this process again, after one of the group had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch() -> str:
    """Return a name of what started this process that stays the same when it starts it again; without torchrun none."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return ""
    # torchrun calls every run of several machines "none" unless it is told otherwise.
    return f"{socket.gethostname()} {os.getppid()}" if run in ("", "none") else run


def speaks() -> bool:
    """Return whether this process is the one of its group that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def run(processes: int, max_restarts: int, module: str, arguments: Sequence[str]) -> int:
    """Run a module in a number of ranks on this machine, what they print going where this process's goes.

    Ctrl-C reaches the ranks once, through torchrun; a second one ends them at once.

    Returns:
        The exit code: 0, or that of the ranks.

    Raises:
        KeyboardInterrupt: Ctrl-C before there were any.
    """
    words = [
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={processes}",
        f"--max-restarts={max_restarts}",
    ]
    require_posix("running several processes")
    # A session of its own: the terminal's Ctrl-C reaches only this process, which passes it on.
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
            if agent.wait(_GRACE) < 0:  # nobody has heard of it, or said so
                raise
            return agent.returncode
    except subprocess.TimeoutExpired:
        return 128 + signal.SIGINT
    finally:
        end([agent], grace=2.0)
    if code < 0:
        sys.stderr.write(f"twoscale: torchrun was ended by {signal.Signals(-code).name}, and its processes with it\n")
        return 1
    return code


def _loopback() -> str | None:
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), None)

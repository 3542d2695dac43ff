"""A link with a long round trip between two network namespaces that only one test uses.

Each namespace has a TUN interface, and a process hands every packet from one to the other after a delay; the rate is
not limited. Where the kernel has no netem, this is a link of known latency. Needs root, ip (iproute2) and /dev/net/tun.

    python -m tests.scaling.far_link NAME SECONDS    forward packets each way after SECONDS; prints "ready"
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from twoscale.scaling._measure.launch import Host

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 60_000
"""Large packets: the process that forwards them needs little of the cores that it shares with the ranks."""
SIDES = ("a", "b")


def _device(name: str) -> int:
    """Make a TUN interface and return the file that its packets are read from and written to."""
    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return file


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


def _forward(name: str, seconds: float) -> None:
    """Hand packets over until this process is killed, which removes the interfaces."""
    files = [_device(f"{name}-{side}") for side in SIDES]
    for side, address in zip(SIDES, ("10.232.0.1/30", "10.232.0.2/30"), strict=True):
        space = interface = f"{name}-{side}"
        _run("ip", "link", "set", interface, "netns", space)
        _run("ip", "-n", space, "link", "set", "lo", "up")
        _run("ip", "-n", space, "link", "set", interface, "mtu", str(MTU), "txqueuelen", "10000", "up")
        _run("ip", "-n", space, "addr", "add", address, "dev", interface)
    print("ready", flush=True)
    waiting: deque[tuple[float, int, bytes]] = deque()  # in the order in which they are due
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for file in select.select(files, [], [], timeout)[0]:
            with contextlib.suppress(BlockingIOError):
                packet = os.read(file, MTU)
                waiting.append((time.monotonic() + seconds, files[file == files[0]], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, other, packet = waiting.popleft()
            os.write(other, packet)


@contextlib.contextmanager
def far_link(name: str, round_trip: float, ahead: tuple[str, ...]) -> Iterator[tuple[Host, Host]]:
    """Make two namespaces with a round trip between them and give them as hosts of ranks, or skip the test.

    Args:
        name: of at most 13 characters, that nothing else on this machine has.
        round_trip: seconds.
        ahead: the command that puts a process ahead of others.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None or not TUN.exists():
        pytest.skip("making a link between namespaces needs root, 'ip' (iproute2) and /dev/net/tun")
    spaces = [f"{name}-{side}" for side in SIDES]
    process = None
    try:
        for space in spaces:
            made = subprocess.run(["ip", "netns", "add", space], capture_output=True, text=True)
            if made.returncode != 0:
                pytest.skip(f"the kernel refused a network namespace: {made.stderr.strip()}")
        command = [*ahead, sys.executable, "-m", "tests.scaling.far_link", name, str(round_trip / 2)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "no packets are forwarded"
        first, second = (
            Host(("ip", "netns", "exec", space, *ahead), address, space)
            for space, address in zip(spaces, ("10.232.0.1", "10.232.0.2"), strict=True)
        )
        yield first, second
    finally:
        if process is not None:
            process.kill()
            process.communicate()
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


if __name__ == "__main__":
    _forward(sys.argv[1], float(sys.argv[2]))

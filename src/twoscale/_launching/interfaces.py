"""The network interface that leads to another machine. gloo takes one by name only, and else the host name's address,
which is a loopback address on many systems: then it connects to itself, and waits."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from pathlib import Path

from twoscale.errors import ConfigurationError

__all__ = ["INTERFACE", "choose_interface", "interface_of", "reachable", "route_to"]

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable with the name of gloo's network interface."""

_SIOCGIFADDR = 0x8915  # <linux/sockios.h>


def choose_interface() -> None:
    """Set gloo's interface to the one that leads to the first machine of a launch on several, unless one is set.

    torchrun sets MASTER_ADDR and GROUP_WORLD_SIZE. On systems other than Linux nothing is set.

    Raises:
        ConfigurationError: the first machine cannot be found, or only by a loopback address.
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" or INTERFACE in os.environ:
        return
    name = interface_of(reachable(os.environ.get("MASTER_ADDR", "")))
    if name is not None:
        os.environ[INTERFACE] = name


def reachable(first: str) -> str:
    """Return this machine's own address on the way to the first machine of a launch on several.

    Raises:
        ConfigurationError: the first machine cannot be found, or only by a loopback address.
    """
    address = route_to(first)
    if ipaddress.ip_address(address).is_loopback:
        raise ConfigurationError(
            f"MASTER_ADDR is {first!r}, on this machine a loopback address ({address}), which the other machines do "
            f"not reach; give torchrun's --master-addr an address of the network, or set {INTERFACE} to its interface"
        )
    return address


def route_to(host: str) -> str:
    """Return this machine's own address on the way to a host. Nothing is sent.

    Raises:
        ConfigurationError: there is no such host, or no way to it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # of a datagram socket: it only chooses the route
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError as error:
        raise ConfigurationError(
            f"MASTER_ADDR is {host!r}, to which this machine finds no way ({error.strerror or error}); expected the "
            "name or address of the machine with --node-rank 0"
        ) from error


def interface_of(address: str) -> str | None:
    """Return the name of this machine's interface with an address; None if there is none, or on another system."""
    wanted = ipaddress.ip_address(address)
    if wanted.version == 6:
        with contextlib.suppress(OSError):
            for line in Path("/proc/net/if_inet6").read_text().splitlines():
                number, *_, name = line.split()
                if int(number, 16) == int(wanted):
                    return name
        return None
    try:
        import fcntl  # absent on Windows

        names = [name for _, name in socket.if_nameindex()]
    except (ImportError, OSError):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in names:
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if found[20:24] == wanted.packed:
                    return name
    return None

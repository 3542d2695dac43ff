"""Several hosts that share one command: the first host leads, and each of the others serves it over one TCP connection.

A message is its length in four bytes, then that many bytes of JSON. Nothing is unpickled or encrypted. A shared token
keeps other launches out; it is random under torchrun, the job's number under Slurm, and empty for hosts that are named
by hand.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from twoscale._launching.interfaces import INTERFACE, interface_of, reachable
from twoscale.errors import ConfigurationError, TwoscaleError

__all__ = ["Connection", "ConnectionLost", "Joined", "Place", "find_place", "gather", "interface_for", "join"]

_LENGTH = 4
_LARGEST = 64 << 20
"""Bytes of a message."""
_GREETING = 1 << 16
"""Bytes of the first message, which anybody may send."""
_GREETING_TIME = 10.0
_RETRY = 0.2
_PORTS = range(20_000, 30_000)
"""Of studies under Slurm: the job's number chooses one."""
_SILENCE = (15, 5, 3)
"""Seconds without a message after which the other host is asked whether it lives, seconds between questions, number."""


class ConnectionLost(TwoscaleError):
    """The other host has closed the connection, or does not answer."""


@dataclass(frozen=True)
class Place:
    """This process among the hosts of a launch."""

    hosts: int
    """At least 2."""
    host: int
    """0..hosts - 1; host 0 leads."""
    address: str
    """Of host 0, as the others reach it."""
    port: int
    """On which host 0 listens; 0 for any, which ``publish`` then tells the others."""
    token: str = ""
    publish: Callable[[int], None] | None = None


def find_place(hosts: int | None = None, host: int | None = None, address: str | None = None) -> Place | None:
    """Return this process's place among several hosts; None where there is one host.

    Args:
        hosts: number of hosts. Default: what torchrun or Slurm's srun says.
        host: index of this one.
        address: HOST:PORT of the first one.

    Raises:
        ConfigurationError: some of the three are missing or out of range, several processes were started on this host,
            or the others cannot reach the first host.
    """
    if hosts is not None or host is not None or address is not None:
        return _named(hosts, host, address)
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _of_torchrun()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _of_slurm()
    return None


def _named(hosts: int | None, host: int | None, address: str | None) -> Place | None:
    if hosts == 1 and host in (None, 0):
        return None
    if hosts is None or host is None or address is None:
        raise ConfigurationError(
            "--hosts, --host and --address are given together, for example --hosts 2 --host 0 --address 10.0.0.1:29400"
        )
    if hosts < 1 or not 0 <= host < hosts:
        raise ConfigurationError(f"--host is {host} and --hosts {hosts}; expected 0 to {max(0, hosts - 1)}")
    found = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d{1,5})", address)
    if found is None or not 1 <= int(found[2]) <= 65_535:
        raise ConfigurationError(
            f"--address is {address}; expected the first host's address and a port, for example 10.0.0.1:29400"
        )
    return Place(hosts, host, found[1], int(found[2]))


def _of_torchrun() -> Place:
    """Return the place that torchrun gave this process; its store carries the port and a random token."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > 1:
        raise ConfigurationError(
            f"torchrun started {here} processes on this host, but a study needs one and starts its ranks by itself; "
            "use --nproc-per-node=1"
        )
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    host, first = int(os.environ["RANK"]), os.environ.get("MASTER_ADDR", "")
    address = reachable(first) if host == 0 else first
    store, _, hosts = next(iter(rendezvous("env://")))
    store = PrefixStore(f"twoscale hosts {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if host:
        address, port, token = store.get("place").decode().split()
        return Place(hosts, host, address, int(port), token)
    token = secrets.token_hex(16)
    return Place(hosts, 0, address, 0, token, lambda port: store.set("place", f"{address} {port} {token}"))


def _of_slurm() -> Place:
    """Return the place that srun gave this process."""
    hosts, nodes = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if hosts != nodes:
        raise ConfigurationError(
            f"srun started {hosts} processes on {nodes} node(s), but a study needs one per node and starts its ranks "
            "by itself; use --ntasks-per-node=1"
        )
    job, step = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_STEP_ID", "0")
    first = first_node(os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"])
    host = int(os.environ["SLURM_PROCID"])
    port = _PORTS[(int(job) * 31 + int(step)) % len(_PORTS)]
    return Place(hosts, host, reachable(first) if host == 0 else first, port, f"{job}.{step}")


def first_node(nodes: str) -> str:
    """Return the first of Slurm's list of nodes: "a[07-09,12],b1" is a07."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?", nodes)
    if found is None:
        raise ConfigurationError(f"the list of nodes is {nodes!r}; expected names with commas, as Slurm sets it")
    return found[1] + (found[2] or "") + (found[3] or "")


def interface_for(address: str) -> str:
    """Return the network interface with an address, for gloo and NCCL; "" lets them choose."""
    return os.environ.get(INTERFACE) or interface_of(address) or ""


# ---------------------------------------------------------------- the connection


class Connection:
    """Messages to and from one host.

    Args:
        connected: an open TCP connection, which this object closes.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        for name, value in zip(names, _SILENCE, strict=True):
            if hasattr(socket, name):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def address(self) -> str:
        """This host's own address."""
        return str(self._socket.getsockname()[0])

    @property
    def peer(self) -> str:
        """The other host's address."""
        return str(self._socket.getpeername()[0])

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            ConnectionLost: the other host is gone.
        """
        try:
            self._socket.settimeout(None)
            self._socket.sendall(len(message).to_bytes(_LENGTH, "big") + message)
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from error

    def waiting(self, seconds: float) -> bool:
        """Wait for at most so long, and return whether a message has begun to arrive, or the connection has ended."""
        return bool(select.select([self._socket], [], [], max(0.0, seconds))[0])

    def receive(self, *, limit: int = _LARGEST, timeout: float | None = None) -> bytes:
        """Return the next message.

        Args:
            limit: bytes that it may have.
            timeout: seconds for all of it.

        Raises:
            ConnectionLost: the other host is gone, is too slow, or sends something else.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        size = int.from_bytes(self._exactly(_LENGTH, deadline), "big")
        if size > limit:
            raise ConnectionLost(f"a message of {size} bytes came; expected at most {limit}")
        return self._exactly(size, deadline)

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                part = self._socket.recv(min(size - len(parts), 1 << 20))
            except OSError as error:
                raise ConnectionLost(error.strerror or str(error)) from error
            if not part:
                raise ConnectionLost("it closed the connection")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


@dataclass(frozen=True)
class _Greeting:
    """The first message of a host that joins."""

    token: str
    version: str
    hosts: int
    host: int
    name: str
    about: msgspec.Raw


@dataclass(frozen=True)
class _Answer:
    """The answer to it."""

    refused: str = ""
    """Why the host cannot take part; empty where it can."""


@dataclass(frozen=True)
class Joined:
    """A host that has joined."""

    host: int
    name: str
    """Its host name."""
    about: bytes
    """What it says of itself, JSON."""
    connection: Connection


def gather(place: Place, version: str, patience: float) -> tuple[Joined, ...]:
    """Wait at host 0 until all other hosts have joined, and return them in order.

    Args:
        place: of host 0.
        version: of this program, which all hosts must have.
        patience: seconds.

    Raises:
        ConfigurationError: this host cannot listen at the address, or not all others joined in time.
    """
    family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
    try:
        listener = socket.create_server((place.address, place.port), family=family, backlog=place.hosts)
    except OSError as error:
        raise ConfigurationError(
            f"this host cannot listen at {place.address}:{place.port} ({error.strerror or error}); expected an address "
            "of the first host, and a free port"
        ) from error
    joined: dict[int, Joined] = {}
    with listener:
        if place.publish is not None:
            place.publish(listener.getsockname()[1])
        deadline = time.monotonic() + patience
        while len(joined) < place.hosts - 1:
            listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                connected, _ = listener.accept()
            except TimeoutError:
                missing = ", ".join(str(host) for host in range(1, place.hosts) if host not in joined)
                for one in joined.values():
                    one.connection.close()
                raise ConfigurationError(
                    f"no connection from host {missing} within {patience:g} s; start the same command on each host, "
                    f"and let the others reach {place.address}:{listener.getsockname()[1]}"
                ) from None
            admitted = _admit(Connection(connected), place, version, joined)
            if admitted is not None:
                joined[admitted.host] = admitted
    return tuple(joined[host] for host in sorted(joined))


def _admit(connection: Connection, place: Place, version: str, joined: dict[int, Joined]) -> Joined | None:
    """Return the host at the other end of a new connection; None, and close it, if it is none of this launch."""
    try:
        message = connection.receive(limit=_GREETING, timeout=_GREETING_TIME)
        greeting = msgspec.json.decode(message, type=_Greeting)
        if not secrets.compare_digest(greeting.token.encode(), place.token.encode()):
            raise ConnectionLost("another token")
        refused = ""
        if greeting.version != version:
            refused = f"host {greeting.host} runs twoscale {greeting.version} and host 0 runs {version}; install one"
        elif greeting.hosts != place.hosts or not 0 < greeting.host < place.hosts:
            refused = f"this is host {greeting.host} of {greeting.hosts}, and host 0 expects {place.hosts} hosts"
        elif greeting.host in joined:
            refused = f"there are two hosts {greeting.host}; give each host its own --host"
        connection.send(msgspec.json.encode(_Answer(refused)))
        if not refused:
            return Joined(greeting.host, greeting.name, bytes(greeting.about), connection)
    except (ConnectionLost, msgspec.MsgspecError, UnicodeError):
        pass
    connection.close()
    return None


def join(place: Place, version: str, about: bytes, patience: float) -> Connection:
    """Connect to host 0, for which it may have to be waited.

    Args:
        place: of this host.
        version: of this program.
        about: what this host says of itself, JSON.
        patience: seconds.

    Raises:
        ConfigurationError: host 0 was not reached in time, or refuses this host.
    """
    deadline = time.monotonic() + patience
    where = f"{place.address}:{place.port}"
    while True:
        try:
            left = max(0.001, deadline - time.monotonic())
            connection = Connection(socket.create_connection((place.address, place.port), timeout=min(left, 5.0)))
            break
        except OSError as error:
            if time.monotonic() + _RETRY >= deadline:
                raise ConfigurationError(
                    f"host 0 was not reached at {where} within {patience:g} s ({error.strerror or error}); start the "
                    "same command there, or give its address in --address"
                ) from error
            time.sleep(_RETRY)
    greeting = _Greeting(place.token, version, place.hosts, place.host, socket.gethostname(), msgspec.Raw(about))
    try:
        connection.send(msgspec.json.encode(greeting))
        answer = msgspec.json.decode(connection.receive(limit=_GREETING, timeout=patience), type=_Answer)
    except (ConnectionLost, msgspec.MsgspecError) as error:
        connection.close()
        raise ConfigurationError(f"what listens at {where} is no study that waits for this host ({error})") from error
    if answer.refused:
        connection.close()
        raise ConfigurationError(answer.refused)
    return connection

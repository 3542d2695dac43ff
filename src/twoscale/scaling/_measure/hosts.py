"""The hosts of a study: host 0 leads it, and the others run their part of each launch that spans hosts.

    leader to host     Part: run these ranks.   Stop: end them.   End: the study is over.
    host to leader     Ending: how they ended.

A host that serves calls functions of this package only. What host 0 sends can name a model, though, and a model can be
a file of the serving host or a module that is installed there.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from twoscale._environment import VERSION
from twoscale._launching.hosts import Connection, ConnectionLost, Place, gather, interface_for, join
from twoscale.scaling._measure.agents import Agents, Ending, Host, Job, Meeting

__all__ = ["PATIENCE", "End", "Follower", "Part", "Stop", "Team", "join_study", "lead", "serve"]

PATIENCE = 300.0
"""Seconds in which all hosts have to join."""
_LOOK = 0.1
_REPORT = 15.0
"""Seconds that a host has to report after its ranks were ended."""
_OWN = "twoscale.scaling."


class Part(msgspec.Struct, frozen=True, tag=True):
    """A host's part of a launch."""

    job: Job
    meeting: Meeting


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the ranks that run, and report how they ended."""


class End(msgspec.Struct, frozen=True, tag=True):
    """The study is over."""

    code: int
    """Exit code of every host."""


_Order = Part | Stop | End


# ---------------------------------------------------------------- host 0


@dataclass
class Follower:
    """A host that serves, as host 0 sees it."""

    host: int
    name: str
    about: bytes
    """What it said of itself, JSON."""
    connection: Connection
    lost: str = ""
    """Why it takes no more part; empty as long as it does."""

    @property
    def title(self) -> str:
        """The host in words."""
        return f"host {self.host} ({self.name})"

    def send(self, order: _Order) -> None:
        """Send an order, if the host is still there."""
        if not self.lost:
            try:
                self.connection.send(msgspec.json.encode(order))
            except ConnectionLost as error:
                self._lose(error)

    def report(self, seconds: float = 0.0) -> Ending | None:
        """Wait for at most so long, and return the report of a part; None where there is none yet, or no host."""
        if self.lost or not self.connection.waiting(seconds):
            return None
        try:
            return msgspec.json.decode(self.connection.receive(timeout=_REPORT), type=Ending)
        except (ConnectionLost, msgspec.MsgspecError) as error:
            self._lose(error)
            return None

    def last_report(self) -> Ending | None:
        """Return the report of a part that was stopped; a host without one is lost."""
        found = self.report(_REPORT)
        if found is None and not self.lost:
            self._lose(ConnectionLost(f"no report within {_REPORT:g} s"))
        return found

    def _lose(self, error: Exception) -> None:
        self.lost = str(error)
        self.connection.close()


@dataclass(frozen=True)
class Team:
    """The hosts of a study; without followers, this machine alone."""

    first: Host = field(default_factory=Host)
    """This machine as the others reach it."""
    name: str = ""
    """Its host name."""
    followers: tuple[Follower, ...] = ()

    def others(self, hosts: int) -> tuple[Follower, ...]:
        """Return the hosts besides this one that a launch over so many hosts takes."""
        return self.followers[: hosts - 1]

    def missing(self, hosts: int) -> str:
        """Return which of so many hosts is lost, and why; empty where none is."""
        return "; ".join(f"{one.title} is lost: {one.lost}" for one in self.others(hosts) if one.lost)


@contextlib.contextmanager
def lead(place: Place) -> Iterator[Team]:
    """Gather all hosts, and let them end with the block.

    Raises:
        ConfigurationError: this host cannot listen at its address, or not all hosts joined in time.
    """
    joined = gather(place, VERSION, PATIENCE)
    followers = tuple(Follower(one.host, one.name, one.about, one.connection) for one in joined)
    address = joined[0].connection.address
    code = 1
    try:
        yield Team(Host(address=address, interface=interface_for(address)), socket.gethostname(), followers)
        code = 0
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        for one in followers:
            one.send(End(code))
            one.connection.close()


# ---------------------------------------------------------------- the other hosts


def join_study(place: Place, about: bytes) -> Connection:
    """Join the study of host 0.

    Raises:
        ConfigurationError: it was not reached, or refuses this host.
    """
    return join(place, VERSION, about, PATIENCE)


def serve(connection: Connection) -> int:
    """Run this host's part of each launch until the study is over.

    Returns:
        The study's exit code.

    Raises:
        ConnectionLost: host 0 is gone; nothing that this host started is left.
    """
    while True:
        order = _receive(connection)
        if isinstance(order, End):
            return order.code
        if isinstance(order, Part):
            ending = _run(connection, order)
            if isinstance(ending, End):
                return ending.code
            connection.send(msgspec.json.encode(ending))


def _receive(connection: Connection) -> _Order:
    try:
        return msgspec.json.decode(connection.receive(), type=_Order)  # type: ignore[no-any-return]
    except msgspec.MsgspecError as error:
        raise ConnectionLost(f"it sent something else than an order ({error})") from error


def _run(connection: Connection, part: Part) -> Ending | End:
    """Run a part to its end, or until host 0 stops it."""
    if not part.job.target.startswith(_OWN):
        raise ConnectionLost(f"it asks for {part.job.target!r}, which is no measurement of this library")
    address = connection.address
    host = Host(address=address, interface=interface_for(address))
    over: End | None = None
    with tempfile.TemporaryDirectory(prefix="twoscale-") as name:
        agents = Agents(Path(name), part.job, (host,), part.meeting, {})
        try:
            while agents.running:
                if not connection.waiting(_LOOK):
                    continue
                order = _receive(connection)
                if isinstance(order, End):
                    over = order
                if not isinstance(order, Part):
                    break
        finally:
            agents.end()
        return over or agents.ending()

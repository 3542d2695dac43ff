"""The rendezvous of a launch: a store that listens on one address and never unpickles its content.

torchrun's own rendezvous of one machine (``--standalone``, the backend c10d) listens on every interface and unpickles
the content of its store, so that anybody who reaches the port can run code. This one binds to a given address, and
ranks and sizes come from the command line.
"""

from __future__ import annotations

import datetime
import socket

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from twoscale._launching.torchrun import RENDEZVOUS

__all__ = ["register"]

_TIMEOUT = datetime.timedelta(seconds=600)
"""Time that a host waits for the store of the first host."""


def register() -> None:
    """Register this rendezvous with torchrun, under the name for ``--rdzv-backend``."""
    rendezvous_handler_registry.register(RENDEZVOUS, _create)


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    address, _, port = parameters.endpoint.rpartition(":")
    return _Handler(address, int(port), int(parameters.get("rank", "0")), parameters.max_nodes, parameters.run_id)


class _Handler(RendezvousHandler):
    """Meets in a TCPStore of the host of rank 0, bound to one address.

    Args:
        address: of the host of rank 0, as the others reach it.
        port: 0 for any free port, if there is only one host.
        rank: of this host, 0..hosts - 1.
        hosts: number of hosts.
        run_id: name of the launch.
    """

    def __init__(self, address: str, port: int, rank: int, hosts: int, run_id: str) -> None:
        self._address, self._port = address, port
        self._rank, self._hosts, self._run_id = rank, hosts, run_id
        self._store: TCPStore | None = None

    @property
    def use_agent_store(self) -> bool:
        """Ranks connect to this store instead of opening one of their own."""
        return True

    def get_backend(self) -> str:
        """Return the name of this rendezvous."""
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        """Open the store, or connect to it. After a restart it is the same store."""
        store = self._store = self._store or self._open()
        # Not the run's id, which each host's command makes for itself. The store belongs to this launch alone.
        prefixed: Store = PrefixStore(RENDEZVOUS, store)
        return RendezvousInfo(prefixed, self._rank, self._hosts, RendezvousStoreInfo(self._address, store.port))

    def _open(self) -> TCPStore:
        if self._rank:
            return TCPStore(self._address, self._port, is_master=False, timeout=_TIMEOUT)
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        listener = socket.create_server((self._address, self._port), family=family)
        port = listener.getsockname()[1]
        return TCPStore(
            self._address,
            port,
            is_master=True,
            timeout=_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),  # the store closes it
        )

    def is_closed(self) -> bool:
        """Return False: it is open as long as its process runs."""
        return False

    def set_closed(self) -> None:
        """Do nothing. It ends with its process."""

    def num_nodes_waiting(self) -> int:
        """Return 0: hosts neither join nor leave."""
        return 0

    def get_run_id(self) -> str:
        """Return the name of the launch."""
        return self._run_id

    def shutdown(self) -> bool:
        """Return whether it was shut down. The store closes with its process."""
        return True

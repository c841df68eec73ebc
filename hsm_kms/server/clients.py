"""Find which processes are connected to the KMS socket, and record changes.

gRPC accepts connections in its C core and tells a handler nothing of the peer but
"unix:". The kernel knows the peer of each connection, and the connections are
descriptors of this process. So they are looked at once a second, and before a request
is recorded: its connection is still open then. Which of several connections a request
came through, nobody tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from hsm_kms.audit.events import Client

if TYPE_CHECKING:
    from hsm_kms.audit.events import Event
    from hsm_kms.audit.port import Audit
    from hsm_kms.errors import AuditError

SECONDS: Final = 1.0
LEAST_SECONDS: Final = 0.1  # between two looks, however many requests come

_CREDENTIALS: Final = struct.Struct("3i")  # see SO_PEERCRED in unix(7)


class Peer(NamedTuple):
    """Name a process by its process, user and group ID."""

    pid: int
    uid: int
    gid: int


class Clients:
    """Record each process that connects to a socket, and that it has left.

    This is the `Audit` of the services: what they record comes after their clients.

    Args:
        path: The path to which the socket was bound.
        audit: Takes the records.
    """

    def __init__(self, path: Path, audit: Audit) -> None:
        self._path = os.fsencode(path)
        self._audit = audit
        self._programs: dict[Peer, str | None] = {}
        self._looked = 0.0

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            if self._audit.enabled:
                self.look()
            else:
                self._programs.clear()  # they are recorded when it is turned on
            await asyncio.sleep(SECONDS)

    @property
    def enabled(self) -> bool:
        """See `Audit.enabled`."""
        return self._audit.enabled

    @property
    def fault(self) -> AuditError | None:
        """See `Audit.fault`."""
        return self._audit.fault

    def record(self, event: Event) -> None:
        """See `Audit.record`."""
        self._look_now_and_then()
        self._audit.record(event)

    async def wrote(self, event: Event) -> None:
        """See `Audit.wrote`."""
        self._look_now_and_then()
        await self._audit.wrote(event)

    def _look_now_and_then(self) -> None:
        if self.enabled and time.monotonic() - self._looked >= LEAST_SECONDS:
            self.look()

    def look(self) -> None:
        """Record what has changed; if no descriptor is free, the next look does."""
        self._looked = time.monotonic()
        try:
            peers = peers_of(self._path)
        except OSError:
            return
        for peer in self._programs.keys() - peers:
            self._record("gone", peer, self._programs.pop(peer))
        for peer in peers - self._programs.keys():
            self._programs[peer] = _program(peer.pid)
            self._record("connected", peer, self._programs[peer])

    def _record(
        self, state: Literal["connected", "gone"], peer: Peer, program: str | None
    ) -> None:
        self._audit.record(
            Client(
                state=state,
                client_pid=peer.pid,
                client_uid=peer.uid,
                client_gid=peer.gid,
                program=program,
            )
        )


def peers_of(path: bytes) -> set[Peer]:
    """Return the peers of this process's connections that were accepted on a socket.

    Args:
        path: The path to which the socket was bound.

    Raises:
        OSError: No descriptor is free to look with.
    """
    peers = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, and fast
        peer = _peer_of(int(name), path)
        if peer is not None:
            peers.add(peer)
    return peers


def _peer_of(descriptor: int, path: bytes) -> Peer | None:
    try:
        # A copy: the socket object would close a descriptor that is gRPC's.
        copy = os.dup(descriptor)
    except OSError as error:
        if error.errno == errno.EBADF:  # another thread has closed it
            return None
        raise
    try:
        opened = socket.socket(fileno=copy)
    except OSError:  # no socket
        os.close(copy)
        return None
    with opened as found, contextlib.suppress(OSError):  # a socket without a name
        if found.family != socket.AF_UNIX or found.getsockname() != os.fsdecode(path):
            return None
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        told = found.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        return Peer(*_CREDENTIALS.unpack(told))
    return None


def _program(pid: int) -> str | None:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:  # it has ended, or is hidden from this user
        return None
    return "".join(c if c.isprintable() else "?" for c in name)

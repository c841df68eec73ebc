"""Name where to listen for HTTP: a TCP port, or the admin socket."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hsm_kms.config.formats import MAX_SOCKET_PATH_BYTES

if TYPE_CHECKING:
    from pathlib import Path


class Address(Protocol):
    """Name a place to listen at."""

    @property
    def kind(self) -> str:
        """Return "tcp" or "unix"."""

    def examine(self) -> None:
        """Find out if one could listen at this address; take and change nothing.

        Raises:
            OSError: The address cannot be had, or is taken.
        """

    def listen(self, backlog: int) -> socket.socket:
        """Return a socket that listens at this address.

        Args:
            backlog: Connections that the kernel keeps until they are accepted.

        Raises:
            OSError: The address cannot be had.
        """

    def release(self) -> None:
        """Remove what `listen` left in the file system."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Name a TCP port.

    Args:
        host: IPv4 or IPv6 address of an interface.
        port: Port, or 0 for any free one.
    """

    host: str
    port: int

    @property
    def kind(self) -> str:
        """Return "tcp"."""
        return "tcp"

    def examine(self) -> None:
        """See `Address.examine`."""
        # A socket that is bound with SO_REUSEADDR, but does not listen, keeps nobody
        # else from the port.
        self._bound().close()

    def listen(self, backlog: int) -> socket.socket:
        """See `Address.listen`."""
        return _listening(self._bound(), backlog)

    def release(self) -> None:
        """Do nothing: the port is free when the socket is closed."""

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(made, (self.host, self.port))

    def __str__(self) -> str:
        """Return the address as the configuration writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Name a unix socket with mode 0600.

    Args:
        path: Path that belongs to this process alone: a socket there is replaced.
    """

    path: Path

    @property
    def kind(self) -> str:
        """Return "unix"."""
        return "unix"

    def examine(self) -> None:
        """See `Address.examine`."""
        if len(os.fsencode(self.path)) > MAX_SOCKET_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket")
        if self.path.exists() and not self.path.is_socket():
            raise OSError(errno.EEXIST, "the path exists and is not a socket")
        directory = self.path.parent
        directory.stat()
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            what = f"user {os.geteuid()} cannot write to {directory}"
            raise PermissionError(errno.EACCES, what)

    def listen(self, backlog: int) -> socket.socket:
        """See `Address.listen`."""
        self.examine()
        self.path.unlink(missing_ok=True)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The umask belongs to the whole process: until it is restored, files that other
        # threads create are only narrower than they would be.
        umask = os.umask(0o177)
        try:
            return _listening(_bound(made, str(self.path)), backlog)
        finally:
            os.umask(umask)

    def release(self) -> None:
        """See `Address.release`."""
        self.path.unlink(missing_ok=True)

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)


def _bound(made: socket.socket, address: str | tuple[str, int]) -> socket.socket:
    """Return the socket, bound; close it if it cannot be."""
    try:
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _listening(made: socket.socket, backlog: int) -> socket.socket:
    """Return the socket, which listens; close it if it cannot."""
    try:
        made.listen(backlog)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made

"""Own the path of the KMS socket: one live instance, the right mode, no leftovers.

1. Only the process that holds the lock on `<socket>.lock` may bind the path. It holds
   the lock until the path is cleared again. The lock file stays: if it were removed,
   two instances could lock two files of that name.
2. A socket on which a server answers is left alone, locked or not, and so is a file
   that is not a socket. A socket on which no server answers is removed.
3. The directory must not be writable by others, not even with the sticky bit. A user
   who could take the path while hsm-kms is down would be sent the API server's keys.
4. The socket appears at its path with its final owner and mode: it is bound under a
   name beside the path and then renamed. gRPC unlinks the name that it bound, so it
   can never unlink another instance's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

from hsm_kms.config.formats import MAX_SOCKET_PATH_BYTES, grpc_target
from hsm_kms.denials import hint_for
from hsm_kms.errors import SocketError
from hsm_kms.log import get_logger
from hsm_kms.server.socket_path import (
    group_id,
    lock_path,
    remove_stale,
    require_regular,
    require_usable,
    server_on,
)

_POLL_SECONDS: Final = 0.05  # between two tries for a path or lock that is taken

_log = get_logger(__name__)


class Server(Protocol):
    """Bind a port, as grpc.aio.Server does."""

    def add_insecure_port(self, address: str) -> int:
        """Bind and listen at once; calls are answered once the server has started."""
        ...


class UnixSocket:
    """Own the path of the KMS socket: call `acquire`, `bind`, and finally `close`.

    Args:
        path: Where clients connect, absolute, at most 107 bytes.
        mode: Permission bits of the socket.
        group: Name or number of the socket's group; None for the process's own.
        lock_wait: How long another instance may take to leave, in seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        mode: int = 0o600,
        group: str | None = None,
        lock_wait: float = 5.0,
    ) -> None:
        self._path = path
        self._lock_path = lock_path(path)
        self._private = _name_beside(path)
        self._mode = mode
        self._group = group
        self._lock_wait = lock_wait
        self._lock: int | None = None
        self._bound: tuple[int, int] | None = None
        self._rival: int | None = None

    async def acquire(self) -> None:
        """Take the path and clear it, waiting for another instance to leave it.

        Raises:
            SocketError: The path or its directory cannot be used, or another
                instance still held it after `lock_wait`.
        """
        require_usable(self._path, self._group)
        until = asyncio.get_running_loop().time() + self._lock_wait
        lock = _open_lock(self._lock_path)
        try:
            await self._wait_for_lock(lock, until)
            await self._wait_for_path(self._path, until)
            await self._wait_for_path(self._private, until)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def bind(self, server: Server) -> None:
        """Let a server listen on the path; it may be started later.

        The umask is changed for a moment, and it belongs to the whole process: files
        that other threads create meanwhile have fewer permissions than usual.

        Args:
            server: The server, which must be stopped before `close`.

        Raises:
            SocketError: The kernel refuses the name, the group or the mode.
        """
        if self._lock is None:
            raise SocketError(f"{self._path} was not acquired")
        gid = group_id(self._group)
        umask = os.umask(0o777 & ~(self._mode if gid is None else 0o600))
        try:
            server.add_insecure_port(grpc_target(self._private))
        except RuntimeError as e:
            raise SocketError(f"cannot bind beside {self._path}") from e
        finally:
            os.umask(umask)
        try:
            self._publish(gid)
        except OSError as e:
            self._private.unlink(missing_ok=True)
            raise SocketError(
                f"cannot give {self._path} its group and mode: {e.strerror}",
                hint="listen.group must be a group of the user hsm-kms runs as",
            ) from e

    @property
    def bound_to(self) -> Path:
        """Return the path to which `bind` binds, which the kernel shows ever after."""
        return self._private

    def close(self) -> None:
        """Remove the socket if it is still this instance's, then release the lock.

        Call this when the server has stopped; a second call does nothing.
        """
        if self._lock is None:
            return
        if self._bound is not None and _identity(self._path) == self._bound:
            self._path.unlink(missing_ok=True)
        self._bound = None
        os.close(self._lock)
        self._lock = None

    def _publish(self, gid: int | None) -> None:
        if gid is not None:
            os.chown(self._private, -1, gid)
            self._private.chmod(self._mode)
        self._bound = _identity(self._private)
        self._private.rename(self._path)

    async def _wait_for_lock(self, lock: int, until: float) -> None:
        while not _try_lock(lock):
            await self._pause(until, f"another hsm-kms holds {self._lock_path}")

    async def _wait_for_path(self, path: Path, until: float) -> None:
        # An instance that is killed may lose its lock before its socket.
        while remove_stale(path):
            await self._pause(until, f"a live server answers on {path}")

    async def _pause(self, until: float, cause: str) -> None:
        """Sleep for a moment; raise an error if it is later than `until`."""
        if self._rival is None:
            with contextlib.suppress(SocketError):
                self._rival = server_on(self._path)
            self._rival = self._rival or 0
            _log.info(
                "waiting for another instance to leave the socket",
                cause=cause,
                process=self._rival or "unknown",
                seconds=self._lock_wait,
            )
        if asyncio.get_running_loop().time() >= until:
            who = f" (process {self._rival})" if self._rival else ""
            raise SocketError(
                f"{cause}{who}", hint="stop it, or choose another listen.socket"
            )
        await asyncio.sleep(_POLL_SECONDS)


def _name_beside(path: Path) -> Path:
    beside = Path(f"{path}~")
    if len(os.fsencode(beside)) <= MAX_SOCKET_PATH_BYTES:
        return beside
    return Path(str(path)[:-1] + ("_" if path.name.endswith("~") else "~"))


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(path, flags, 0o600)
    except OSError as e:
        enter = f"let the user hsm-kms runs as write to {path.parent}"
        hint = hint_for(e, path.parent, enter, write=True)
        what = f"cannot open the lock {path}: {e.strerror}"
        raise SocketError(what, hint=hint) from e
    try:
        require_regular(path, os.fstat(lock))
    except SocketError:
        os.close(lock)
        raise
    return lock


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        raise SocketError(f"cannot lock the socket's path: {e.strerror}") from e
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino

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
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from hsm_kms.errors import SocketError

MAX_PATH_BYTES: Final = 107  # sun_path holds 108 with the NUL that ends it
_POLL_SECONDS: Final = 0.05  # between two tries for a path or lock that is taken


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
        self._lock_path = Path(f"{path}.lock")
        self._private = _name_beside(path)
        self._mode = mode
        self._group = group
        self._lock_wait = lock_wait
        self._lock: int | None = None
        self._bound: tuple[int, int] | None = None

    async def acquire(self) -> None:
        """Take the path and clear it, waiting for another instance to leave it.

        Raises:
            SocketError: The path or its directory cannot be used, or another
                instance still held it after `lock_wait`.
        """
        check_length(self._path)
        check_directory(self._path.parent)
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
        gid = None if self._group is None else _group_id(self._group)
        umask = os.umask(0o777 & ~(self._mode if gid is None else 0o600))
        try:
            # The name is read as a URI, percent signs and all.
            server.add_insecure_port(f"unix:{quote(os.fsencode(self._private))}")
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
            await _pause(
                until,
                SocketError(
                    f"another hsm-kms holds {self._lock_path}",
                    hint="stop it, or choose another listen.socket",
                ),
            )

    async def _wait_for_path(self, path: Path, until: float) -> None:
        # An instance that is killed may lose its lock before its socket.
        while _remove_stale(path):
            await _pause(
                until,
                SocketError(
                    f"a live server answers on {path}",
                    hint="stop it, or choose another listen.socket",
                ),
            )


def check_length(path: Path) -> None:
    """Refuse a path that a unix socket cannot have.

    Args:
        path: The path.

    Raises:
        SocketError: The path is relative, contains a NUL, or is over 107 bytes long.
    """
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise SocketError(
            f"the socket path has {size} bytes, and the kernel allows at most "
            f"{MAX_PATH_BYTES}: {path}",
            hint="choose a shorter listen.socket",
        )
    if not path.is_absolute() or "\0" in str(path):
        raise SocketError(f"the socket path is not absolute: {str(path)!r}")


def check_directory(directory: Path) -> None:
    """Refuse a directory in which other users could put a socket of their own.

    The directory's group may write if it is the group of this process. Parent
    directories are not checked.

    Args:
        directory: The directory of the socket.

    Raises:
        SocketError: The directory is missing, belongs to another user, or is writable
            by others.
    """
    try:
        found = directory.stat()
    except OSError as e:
        raise SocketError(
            f"cannot use the socket's directory {directory}: {e.strerror}",
            hint=f"create it with: install -d -m 0750 {directory}",
        ) from e
    if not stat.S_ISDIR(found.st_mode):
        raise SocketError(f"{directory} is not a directory")
    if found.st_uid not in {0, os.geteuid()}:
        raise SocketError(
            f"the socket's directory {directory} belongs to user {found.st_uid}",
            hint="it must belong to root or to the user hsm-kms runs as",
        )
    foreign_group = found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()
    if found.st_mode & stat.S_IWOTH or foreign_group:
        raise SocketError(
            f"the socket's directory {directory} is writable by others",
            hint=f"chmod go-w {directory}, or choose another listen.socket",
        )


def _name_beside(path: Path) -> Path:
    beside = Path(f"{path}~")
    if len(os.fsencode(beside)) <= MAX_PATH_BYTES:
        return beside
    return Path(str(path)[:-1] + ("_" if path.name.endswith("~") else "~"))


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(path, flags, 0o600)
    except OSError as e:
        raise SocketError(f"cannot open the lock {path}: {e.strerror}") from e
    if not stat.S_ISREG(os.fstat(lock).st_mode):
        os.close(lock)
        raise SocketError(f"the lock {path} is not a regular file")
    return lock


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        raise SocketError(f"cannot lock the socket's path: {e.strerror}") from e
    return True


async def _pause(until: float, error: SocketError) -> None:
    """Sleep for a moment, or raise `error` if it is later than `until`."""
    if asyncio.get_running_loop().time() >= until:
        raise error
    await asyncio.sleep(_POLL_SECONDS)


def _remove_stale(path: Path) -> bool:
    """Remove a socket on which no server answers; return True if one does."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise SocketError(
            f"{path} exists and is not a socket",
            hint="remove it, or choose another listen.socket",
        )
    if _answers(path):
        return True
    path.unlink(missing_ok=True)
    return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # the backlog of a live server is full
            return True
        except OSError as e:
            raise SocketError(
                f"cannot find out whether a server uses {path}: {e.strerror}",
                hint="stop the process that uses it, or choose another listen.socket",
            ) from e
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _group_id(group: str) -> int:
    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as e:
        raise SocketError(f"there is no group {group!r} for the socket") from e

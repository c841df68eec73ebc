"""Owns the unix socket's path: one live instance, the right mode, no leftovers.

1. Whoever holds the lock on `<socket>.lock` may bind the path; it is held until
   the path is cleared again, and its file stays, for removing it would let two
   instances lock two files of that name.
2. A path that answers belongs to someone, lock or no lock, and is left alone. So
   is anything that is no socket. A socket that nobody answers is removed.
3. The directory must not be writable by others, sticky or not: whoever could
   take the path while we are down would be sent the API server's keys.
4. The socket appears under its path with its final owner and mode: it is bound
   under a name beside it and then renamed. Thus grpc, which unlinks what it
   bound, can never unlink the socket of another.
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
_POLL: Final = 0.05  # seconds between two looks at a path or lock that is taken


class Server(Protocol):
    """Describe the part of grpc.aio.Server that is needed here."""

    def add_insecure_port(self, address: str) -> int:
        """Bind and listen at once; calls are answered from its start on."""
        ...


class UnixSocket:
    """Own the path of the KMS socket: `acquire`, `bind`, and at the very end `close`.

    Args:
        path: Where clients connect, absolute.
        mode: Permission bits of the socket.
        group: Name or number of the group it shall have; None leaves it ours.
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
        """Make the path ours and free, waiting for another instance to leave it.

        Raises:
            SocketError: The path or its directory cannot be used, or another
                instance was still there after `lock_wait`.
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
        """Let the server listen on the path; it need not be started yet.

        The umask is the process's: between two lines of this method files that
        other threads make are narrower than they would be.

        Args:
            server: Gets its port here and must be stopped before `close`.

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
        """Remove the socket if it is still ours, then let go of the lock.

        Call it when the server has stopped; calling it again does nothing.
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
                    hint="stop it, or give this one a listen.socket of its own",
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
    """Refuse a path that no unix socket can have.

    Raises:
        SocketError: It is relative, holds a NUL, or is over 107 bytes long.
    """
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise SocketError(
            f"the socket path has {size} bytes, a unix socket's has at most "
            f"{MAX_PATH_BYTES}: {path}",
            hint="choose a shorter listen.socket",
        )
    if not path.is_absolute() or "\0" in str(path):
        raise SocketError(f"the socket path is not absolute: {str(path)!r}")


def check_directory(directory: Path) -> None:
    """Refuse a directory in which others could put a socket of their own.

    Its group may write if that is the group of this very process. Directories
    further up are not looked at.

    Raises:
        SocketError: It is missing, another user's, or writable by others.
    """
    try:
        found = directory.stat()
    except OSError as e:
        raise SocketError(
            f"cannot use the socket's directory {directory}: {e.strerror}",
            hint=f"make it with: install -d -m 0750 {directory}",
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


async def _pause(until: float, last_word: SocketError) -> None:
    if asyncio.get_running_loop().time() >= until:
        raise last_word
    await asyncio.sleep(_POLL)


def _remove_stale(path: Path) -> bool:
    """Clear the path of a socket that nobody answers; return whether one does."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise SocketError(
            f"{path} exists and is not a socket", hint="move it out of the way"
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
        except BlockingIOError:  # a full backlog is somebody's
            return True
        except OSError as e:
            raise SocketError(
                f"cannot tell whose {path} is: {e.strerror}",
                hint="stop what serves it, or choose another listen.socket",
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

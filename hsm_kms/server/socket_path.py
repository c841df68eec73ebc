"""Judge the path of the KMS socket: its directory, its group, who uses it.

`server.kms_socket` takes the path by these rules; `hsm-kms check` applies the same
rules and takes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from hsm_kms.config.formats import MAX_SOCKET_PATH_BYTES
from hsm_kms.denials import hint_for
from hsm_kms.errors import SocketError
from hsm_kms.users import CAP_CHOWN, has_capability, install_line

_DIRECTORY_MODE: Final = 0o750
_UCRED: Final = "3i"  # struct ucred of unix(7): pid, uid, gid


def require_usable(path: Path, group: str | None) -> None:
    """Refuse a path, a directory or a group with which the socket cannot be made.

    Args:
        path: The path of the socket.
        group: Name or number of the socket's group; None for the process's own.

    Raises:
        SocketError: The path is not absolute or over 107 bytes long, its directory
            cannot be used, or the group does not exist or cannot be given.
    """
    _require_length(path)
    _require_private(path.parent)
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise SocketError(
            f"user {os.geteuid()} cannot write to the socket's directory {path.parent}",
            hint=f"as root, run: {install_line(path.parent, _DIRECTORY_MODE)}",
        )
    _require_group(group_id(group))


def live_server(path: Path) -> int | None:
    """Find out if a server uses the path, without changing anything.

    Args:
        path: The path of the socket.

    Returns:
        None if no server uses it; otherwise the process id of the server, which is 0
        if this process cannot see it.

    Raises:
        SocketError: The path or its lock is no file of hsm-kms.
    """
    lock = lock_path(path)
    with contextlib.suppress(FileNotFoundError):
        require_regular(lock, lock.lstat())
    return server_on(path)


def lock_path(path: Path) -> Path:
    """Return the path of the lock that an instance holds while it has the socket."""
    return Path(f"{path}.lock")


def require_regular(lock: Path, found: os.stat_result) -> None:
    """Refuse a lock that is no regular file.

    Args:
        lock: Its path.
        found: What is there.

    Raises:
        SocketError: It is not a regular file.
    """
    if not stat.S_ISREG(found.st_mode):
        raise SocketError(f"the lock {lock} is not a regular file")


def remove_stale(path: Path) -> bool:
    """Remove a socket on which no server answers; return True if one does.

    Raises:
        SocketError: The path is no socket, or what answers cannot be found out.
    """
    if server_on(path) is not None:
        return True
    path.unlink(missing_ok=True)
    return False


def server_on(path: Path) -> int | None:
    """Return the process id of the server that has a socket, even if it is stopped.

    Returns:
        0 if this process cannot see it; None if none has it, so that the path can be
        taken.

    Raises:
        SocketError: The path is no socket, or what answers cannot be found out.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(mode):
        raise SocketError(
            f"{path} exists and is not a socket",
            hint="remove it, or choose another listen.socket",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except BlockingIOError:  # the backlog of a live server is full
            return 0
        except OSError as e:
            raise SocketError(
                f"cannot find out whether a server uses {path}: {e.strerror}",
                hint="stop the process that uses it, or choose another listen.socket",
            ) from e
        return peer_of(probe)


def peer_of(connection: socket.socket) -> int:
    """Return the process id of the server of a connection; 0 if it cannot be seen.

    Args:
        connection: A connected unix socket.
    """
    size = struct.calcsize(_UCRED)
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid: int = struct.unpack(_UCRED, told)[0]
    return pid


def group_id(group: str | None) -> int | None:
    """Return the number of a group that is given by name or number; None for None.

    Raises:
        SocketError: There is no group of this name.
    """
    if group is None:
        return None
    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise SocketError(
            f"there is no group {group!r}",
            hint="create the group, or correct listen.group",
        ) from None


def _require_length(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise SocketError(
            f"the socket path has {size} bytes, and the kernel allows at most "
            f"{MAX_SOCKET_PATH_BYTES}: {path}",
            hint="choose a shorter listen.socket",
        )
    if not path.is_absolute() or "\0" in str(path):
        raise SocketError(f"the socket path is not absolute: {str(path)!r}")


def _require_private(directory: Path) -> None:
    """Refuse a directory in which other users could put a socket of their own.

    The directory's group may write if it is the group of this process. Parent
    directories are not checked.
    """
    try:
        found = directory.stat()
    except OSError as e:
        raise SocketError(
            f"cannot use the socket's directory {directory}: {e.strerror}",
            hint=_cure(directory, e),
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


def _cure(directory: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"as root, run: {install_line(directory, _DIRECTORY_MODE)}"
    enter = "let the user hsm-kms runs as enter it, or choose another listen.socket"
    return hint_for(error, directory, enter)


def _require_group(gid: int | None) -> None:
    """Refuse a group that the kernel would not let this process give to a file."""
    if (
        gid is None
        or gid in {os.getegid(), *os.getgroups()}
        or has_capability(CAP_CHOWN)
    ):
        return
    raise SocketError(
        f"user {os.geteuid()} is not in the group {gid}, which listen.group names",
        hint="add the user hsm-kms runs as to it (SupplementaryGroups= of systemd, "
        "supplementalGroups of a pod), or correct listen.group",
    )

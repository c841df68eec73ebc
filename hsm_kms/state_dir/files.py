"""Small files in one directory, replaced whole and durably or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES: Final = 256 * 1024

_PREFIX: Final = ".hsm-kms-"
_SUFFIX: Final = ".tmp"
_STALE_SECONDS: Final = 60 * 60.0
_PROBE: Final = bytes(4096)


def check_directory(path: Path) -> None:
    """Refuse a directory in which someone else could change or remove files.

    Its mode is never mended: a wrong path could be a directory that others need.

    Raises:
        OSError: It is missing, no directory, or others have power over it.
    """
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if found.st_uid not in {0, os.geteuid()}:
        raise PermissionError(errno.EPERM, f"it belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "other users can write to it")


def probe(directory: Path) -> None:
    """Write a file, and clear away what crashed writers left behind.

    Raises:
        OSError: Nothing can be written.
    """
    temporary = _write_temporary(directory, _PROBE)
    try:
        # The file system's own clock on both sides of the comparison.
        oldest = temporary.stat().st_mtime - _STALE_SECONDS
        for path in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
            if path.lstat().st_mtime < oldest:
                path.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Put `data` in the place of the file, with mode 0600.

    Raises:
        OSError: It could not be written; what was there still is.
    """
    temporary = _write_temporary(path.parent, data)
    try:
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path) -> bytes:
    """The whole of a regular file of at most `MAX_FILE_BYTES` bytes.

    Raises:
        OSError: It is missing, unreadable, too long, a link or no regular file.
    """
    # Without O_NONBLOCK a FIFO in its place would be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, "it is too long")
    return data


def lock(path: Path, *, nonblocking: bool) -> tuple[int, bool]:
    """Lock a file for this process until the descriptor is closed.

    Returns:
        The descriptor, and whether the lock is held.

    Raises:
        OSError: The file cannot be opened, or cannot be locked by anyone.
    """
    # Reading only: an existing lock can be taken on a read-only file system.
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB * nonblocking))
    except BlockingIOError:
        return descriptor, False
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, True


def _write_temporary(directory: Path, data: bytes) -> Path:
    path = directory / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise
    return path

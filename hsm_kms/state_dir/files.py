"""Read and replace small files in one directory, as a whole and durably."""

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

# flock(2) on a network file system without a lock service, or on FUSE without locks.
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_PREFIX: Final = ".hsm-kms-"
_SUFFIX: Final = ".tmp"
_STALE_SECONDS: Final = 60 * 60.0
_PROBE: Final = bytes(4096)


class NoLocksError(OSError):
    """Raised when a file system has no file locks."""


class UntrustedDirectoryError(PermissionError):
    """Raised when another user could change or remove the files in a directory."""


class UntrustedFileError(PermissionError):
    """Raised when another user owns a file or can write to it."""


def check_directory(path: Path) -> None:
    """Refuse a directory in which another user could change or remove files.

    The mode is never changed: a wrong path could be a directory that others need.

    Raises:
        UntrustedDirectoryError: Another user owns the directory or can write to it.
        OSError: The path is missing or is no directory.
    """
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    _require_own(found, UntrustedDirectoryError)


def check_file(descriptor: int) -> None:
    """Refuse an open file that another user could change.

    Raises:
        UntrustedFileError: Another user owns the file or can write to it.
        OSError: It is not a regular file.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    _require_own(found, UntrustedFileError)


def probe(directory: Path) -> None:
    """Write a test file, and remove temporary files that crashed writers left.

    Raises:
        OSError: The directory cannot be written.
    """
    temporary = _write_temporary(directory, _PROBE)
    try:
        # Both times come from the file system, whose clock may differ from ours.
        oldest = temporary.stat().st_mtime - _STALE_SECONDS
        for path in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
            if path.lstat().st_mtime < oldest:
                path.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(directory: Path) -> None:
    """Refuse a directory in which this process could not write a file; write nothing.

    Raises:
        OSError: The mode, the mount or a full disk forbids it.
    """
    disk = os.statvfs(directory)
    if disk.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    require_space(directory)


def require_space(directory: Path) -> None:
    """Refuse a directory on a full disk.

    Raises:
        OSError: The disk has no free block or inode.
    """
    disk = os.statvfs(directory)
    # Some file systems report no limit at all as 0 of 0.
    if (disk.f_blocks and not disk.f_bavail) or (disk.f_files and not disk.f_favail):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def replace(path: Path, data: bytes) -> None:
    """Replace the file at `path` by one of mode 0600 that holds `data`.

    Raises:
        OSError: The new file could not be written; the old one is unchanged.
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
    """Return the content of a regular file of at most `MAX_FILE_BYTES` bytes.

    Raises:
        OSError: The file is missing, unreadable, too long, a link or not regular.
    """
    # Without O_NONBLOCK, opening a FIFO would block.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"longer than {MAX_FILE_BYTES} bytes")
    return data


def lock(path: Path, *, nonblocking: bool) -> tuple[int, bool]:
    """Lock a file for this process until the descriptor is closed.

    Returns:
        The descriptor, and True if the lock is held.

    Raises:
        OSError: The file cannot be opened, or its file system has no locks.
    """
    # Open read-only, so that an existing file can be locked on a read-only disk.
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB * nonblocking))
    except BlockingIOError:
        return descriptor, False
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise NoLocksError(error.errno, error.strerror) from error
        raise
    return descriptor, True


def _require_own(found: os.stat_result, error: type[PermissionError]) -> None:
    if found.st_uid not in {0, os.geteuid()}:
        raise error(errno.EPERM, f"user {found.st_uid} owns it")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise error(errno.EPERM, "other users can write to it")


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

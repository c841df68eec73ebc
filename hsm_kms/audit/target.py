"""Append lines to the audit file, or write them to stdout.

1. Each call appends whole lines by one write(2) with O_APPEND, so that the lines of
   several processes never mix.
2. A line that a full disk has cut, also one of another process, is ended by a line
   break before the next one: it cannot be parsed, and no other line suffers.
3. Nobody but root and this process's user can have put the file there, or can change
   it: the rules are those of the state directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.denials import hint_for
from hsm_kms.errors import AuditError
from hsm_kms.state_dir import files
from hsm_kms.users import install_line

if TYPE_CHECKING:
    from pathlib import Path

MODE: Final = 0o600
_MOVED_SECONDS: Final = 1.0  # how often a file that was moved away is looked for
STDOUT: Final = 1
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class CutError(Exception):
    """Raised when not all bytes could be written.

    Args:
        written: Number of bytes that were.
        error: Why not all were.
    """

    def __init__(self, written: int, error: AuditError) -> None:
        super().__init__(str(error))
        self.written = written
        self.error = error


class Target(Protocol):
    """Take lines."""

    def write(self, data: bytes) -> None:
        """Write whole lines.

        Raises:
            CutError: Not all could be written.
        """

    def reopen(self) -> None:
        """Write to the file that has the name now."""


class _Appender:
    """Write lines, and end one that was cut before the next.

    Attributes:
        cut: The last line has no line break.
    """

    def __init__(self) -> None:
        self.cut = False

    def write(self, descriptor: int, data: bytes) -> tuple[int, OSError | None]:
        """Write whole lines; return how many bytes were, and why not all were."""
        written = 0
        try:
            if self.cut:
                os.write(descriptor, b"\n")
                self.cut = False
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError as error:
            self.cut = self.cut or (written > 0 and data[written - 1 :][:1] != b"\n")
            return written, error
        return written, None


class Stream:
    """Write to a stream that is open: of `serve` stdout, as the log goes to stderr.

    Args:
        descriptor: Its descriptor.
    """

    def __init__(self, descriptor: int = STDOUT) -> None:
        self._descriptor = descriptor
        self._lines = _Appender()

    def write(self, data: bytes) -> None:
        """See `Target.write`."""
        written, error = self._lines.write(self._descriptor, data)
        if error is not None:
            name = "stdout" if self._descriptor == STDOUT else "stderr"
            cause = f"cannot write audit records to {name}: {error.strerror}"
            hint = f"see where the {name} of this process goes"
            raise CutError(written, AuditError(cause, hint=hint)) from error

    def reopen(self) -> None:
        """Do nothing: there is no file."""


class AuditFile:
    """Append to a file, which is created if it is missing.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._looked = 0.0
        self._lines = _Appender()

    def write(self, data: bytes) -> None:
        """See `Target.write`."""
        try:
            descriptor = self._opened()
        except OSError as error:
            raise CutError(0, failure(self._path, error)) from error
        written, cause = self._lines.write(descriptor, data)
        if cause is not None:
            raise CutError(written, failure(self._path, cause)) from cause

    def reopen(self) -> None:
        """Close the file; the next write opens the one that has the name then."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor, self._lines.cut = None, False

    def _opened(self) -> int:
        if self._descriptor is not None and self._has_moved(self._descriptor):
            self.reopen()
        if self._descriptor is None:
            self._descriptor = open_file(self._path)
            self._looked = time.monotonic()
            self._lines.cut = ends_in_a_line(self._descriptor)
        return self._descriptor

    def _has_moved(self, descriptor: int) -> bool:
        """Return True if the name is no longer that of the open file."""
        now = time.monotonic()
        if now - self._looked < _MOVED_SECONDS:
            return False
        self._looked = now
        try:
            found = self._path.lstat()
        except OSError:
            return True
        own = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)


def open_file(path: Path, *, create: bool = True) -> int:
    """Return a descriptor that appends to the audit file.

    Args:
        path: The file.
        create: Create the file if it is missing, with mode 0600.

    Raises:
        OSError: The file cannot be opened, or must not be trusted.
    """
    files.check_directory(path.parent)
    descriptor = os.open(path, _FLAGS | (os.O_CREAT if create else 0), MODE)
    try:
        files.check_file(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def ends_in_a_line(descriptor: int) -> bool:
    """Return True if the last line of an open file has no line break."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def failure(path: Path, error: OSError) -> AuditError:
    """Return cause and cure for an audit file that cannot be written.

    Args:
        path: The file.
        error: What the kernel said.
    """
    if isinstance(error, files.UntrustedDirectoryError):
        cause = f"the directory of the audit file, {path.parent}, is not used: "
        return AuditError(
            cause + str(error.strerror), hint=f"run {install_line(path.parent)}"
        )
    cause = f"cannot write the audit file {path}: {error.strerror}"
    return AuditError(cause, hint=_cure(path, error))


def _cure(path: Path, error: OSError) -> str:
    if isinstance(error, files.UntrustedFileError):
        return f"remove it, or run chown {os.geteuid()} {path}; chmod 0600 {path}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "free space on its file system, or rotate the file"
        case errno.ENOENT:
            return f"as root, run: {install_line(path.parent)}"
        case errno.EROFS:
            return (
                "name a file in audit.file that the service may write "
                "(ReadWritePaths= of systemd, a volume of the pod)"
            )
        case errno.ELOOP | errno.EINVAL | errno.EISDIR | errno.ENXIO:
            return "name a regular file in audit.file, not a link to one"
        case _:
            enter = f"let user {os.geteuid()} write to it and to {path.parent}"
            return hint_for(error, path, enter, write=True)

"""Read and write the files of one directory, which must outlive the process.

1. A file is replaced as a whole and durably, or not at all.
2. A missing file means that nothing is known. A file that is unreadable, of another
   version or wrong in any way is corrupt; a corrupt file never counts as missing. In a
   directory that another user can write to, every file is corrupt, and so is a missing
   one: another user may have removed it.
3. If the directory cannot be used, `Store.problem` says why, and only a caller that
   writes gets an error.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec
from msgspec import Struct

from hsm_kms.errors import HsmKmsError
from hsm_kms.state_dir import files
from hsm_kms.state_dir.cures import OWN, cure_of
from hsm_kms.state_dir.writer import Writer, WriterBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_T = TypeVar("_T")


class StateCorruptError(HsmKmsError):
    """Raised when a state file is corrupt, or may have been changed by another user."""


class StateWriteError(HsmKmsError):
    """Raised when the state directory cannot be written."""


class Store:
    """Read and write the files of one directory.

    Every method but `background` is synchronous, and one that writes waits for the
    disk: the server calls it through `background`.

    Args:
        path: The directory.
        writer: Does what is given to `background`; None for one of its own.
        create: True for the server, whose `prepare` creates the directory with mode
            0700 if its parent exists, and writes a test file. A command may run as
            another user, whose directory the server could not use: its `prepare` looks.

    Attributes:
        failure: Why the last attempt to write failed; None if it succeeded.
    """

    def __init__(
        self, path: Path, writer: Writer | None = None, *, create: bool = True
    ) -> None:
        self.path = path
        self.writer = writer or Writer()
        self._create = create
        self.failure: StateWriteError | None = StateWriteError(
            "the state directory has not been opened"
        )

    @property
    def writable(self) -> bool:
        """Return True if the last attempt to write succeeded."""
        return self.failure is None

    @property
    def problem(self) -> str | None:
        """Return `failure` as one line, or None."""
        return self.failure.sentence if self.failure else None

    def open(self) -> Self:
        """Do what `prepare` does; the result is in `problem` and `writable`.

        Each call checks the directory again.
        """
        with suppress(StateWriteError):
            self.prepare()
        return self

    def prepare(self) -> None:
        """Find out if the directory can be used, after creating it if `create` is set.

        Raises:
            StateWriteError: It cannot be used; `problem` says so, too.
        """
        with self._writing():
            if not self._create:
                files.check_directory(self.path)
                files.require_writable(self.path)
                return
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            files.check_directory(self.path)
            files.probe(self.path)

    async def background(
        self, work: Callable[[], _T], seconds: float | None = None
    ) -> _T:
        """Do work that waits for the disk, while the event loop goes on.

        Work of one `Writer` is done in the order in which it was given, and also if
        the caller is cancelled or times out.

        Args:
            work: Calls methods of this object.
            seconds: Longest wait; None for no limit.

        Raises:
            StateWriteError: The disk did not answer in time; the work may be done
                later. Or the work raised this error.
        """
        try:
            return await self.writer.run(work, seconds)
        except (TimeoutError, WriterBusyError):
            raise StateWriteError(
                f"the state directory {self.path} does not answer",
                hint="see whether its disk is full, broken or not reachable",
            ) from None

    @contextmanager
    def _lock(self, name: str, *, nonblocking: bool) -> Iterator[bool]:
        try:
            lock, held = files.lock(self.path / name, nonblocking=nonblocking)
        except files.NoLocksError as error:
            raise StateWriteError(
                f"the file system of the state directory {self.path} has no file locks",
                hint="use a state_dir on a local file system, or mount this one with "
                "locks",
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield held
        finally:
            os.close(lock)

    def _load(self, name: str, kind: type[_T]) -> _T | None:
        try:
            files.check_directory(self.path)
        except files.UntrustedDirectoryError as error:
            raise StateCorruptError(
                f"the state directory {self.path} is not trusted: {error.strerror}",
                hint=OWN,
            ) from None
        except OSError:
            pass  # reading says more
        try:
            data = files.read(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise self._corrupt(name, reason) from error
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            reason = "is not a state file of version 1"
            raise self._corrupt(name, reason) from None

    def _corrupt(self, name: str, reason: str) -> StateCorruptError:
        return StateCorruptError(
            f"the state file {self.path / name} {reason}",
            hint="restore the file from a backup, or remove it to start without it",
        )

    def _save(self, name: str, file: Struct) -> None:
        data = msgspec.json.encode(file)
        # Never write a file that reads as corrupt: a ValidationError here is a bug.
        msgspec.json.decode(data, type=type(file))
        with self._writing():
            files.check_directory(self.path)
            files.replace(self.path / name, data + b"\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            failure = self._unusable(error)
            self.failure = failure
            raise failure from error
        self.failure = None

    def _unusable(self, error: OSError) -> StateWriteError:
        absent = isinstance(error, FileNotFoundError) and not self._create
        what = "does not exist" if absent else f"cannot be used: {error.strerror}"
        return StateWriteError(
            f"the state directory {self.path} {what}", hint=cure_of(error, self.path)
        )

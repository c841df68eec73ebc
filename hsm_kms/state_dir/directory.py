"""Keep the state directory: what must outlive the process, and nothing secret.

The rules that this file keeps:

1.  A file is replaced as a whole and durably, or not at all.
2.  A missing file means that nothing is known. A file that is unreadable, of another
    version or wrong in any way is corrupt; a corrupt file never counts as missing.
    In a directory that another user can write to, every file is corrupt, and so is a
    missing one: another user may have removed it.
3.  If the directory cannot be used, `StateDir.problem` says why, and only a caller
    that writes gets an error.
4.  Only the identity of a PIN file is kept, never the PIN or a digest of the PIN.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar

import msgspec
from msgspec import Struct

from hsm_kms.errors import HsmKmsError
from hsm_kms.state_dir import files
from hsm_kms.state_dir.cures import OWN, cure_of
from hsm_kms.state_dir.records import (
    MAX_FORMER_KEYS,
    MAX_PIN_RECORDS,
    FormerKey,
    FrozenMechanism,
    FrozenMechanismFile,
    KeyWorkFile,
    LastKey,
    LastKeyFile,
    NoncesFile,
    PinFile,
    PinIdentity,
    PinRecord,
)
from hsm_kms.state_dir.writer import Writer, WriterBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LAST_KEY_FILE: Final = "last-key.json"
PIN_FILE: Final = "pin.json"
PIN_LOCK: Final = "pin.lock"
MECHANISM_FILE: Final = "mechanism.json"
KEYS_FILE: Final = "keys.json"
NONCES_FILE: Final = "nonces.json"

# How long the server waits for what it saves before it acts. After that it acts all the
# same, and says that it could not save: a broken disk must not stop it.
SAVE_SECONDS: Final = 5.0

_T = TypeVar("_T")


class StateCorruptError(HsmKmsError):
    """Raised when a state file is corrupt, or may have been changed by another user."""


class StateWriteError(HsmKmsError):
    """Raised when the state directory cannot be written."""


class StateDir:
    """Read and write the state directory of one node.

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

    def last_key(self) -> LastKey | None:
        """Return the key last current on this node, or None if there never was one.

        Raises:
            StateCorruptError: The file is corrupt.
        """
        file = self._load(LAST_KEY_FILE, LastKeyFile)
        return file.last_key if file else None

    def former_keys(self) -> tuple[FormerKey, ...]:
        """Return the keys that were current before the last key, the oldest first.

        Raises:
            StateCorruptError: The file is corrupt.
        """
        file = self._load(LAST_KEY_FILE, LastKeyFile)
        return file.former if file else ()

    def save_last_key(self, key: LastKey, former: Sequence[FormerKey] = ()) -> None:
        """Save the key that is now current; this survives a power cut.

        Args:
            key: The key.
            former: The keys that were current before `key`, the oldest first.

        Raises:
            StateWriteError: The file could not be written; the old one is unchanged.
        """
        kept = tuple(former)[-MAX_FORMER_KEYS:]
        self._save(LAST_KEY_FILE, LastKeyFile(version=1, last_key=key, former=kept))

    def frozen_mechanism(self) -> FrozenMechanism | None:
        """Return the mechanism that the probe found, or None if none was saved.

        Raises:
            StateCorruptError: The file is corrupt.
        """
        file = self._load(MECHANISM_FILE, FrozenMechanismFile)
        return file.frozen if file else None

    def freeze_mechanism(self, frozen: FrozenMechanism) -> None:
        """Save the mechanism that the probe found.

        Raises:
            StateWriteError: The file could not be written; the old one is unchanged.
        """
        self._save(MECHANISM_FILE, FrozenMechanismFile(frozen=frozen))

    def key_work(self) -> KeyWorkFile:
        """Return the records of the `keys` commands; empty if there are none.

        Raises:
            StateCorruptError: The file is corrupt.
        """
        return self._load(KEYS_FILE, KeyWorkFile) or KeyWorkFile()

    def save_key_work(self, file: KeyWorkFile) -> None:
        """Save the records of the `keys` commands.

        Raises:
            StateWriteError: The file could not be written; the old one is unchanged.
        """
        self._save(KEYS_FILE, file)

    def nonces(self) -> NoncesFile:
        """Return how many nonces this node has used per KEK; empty if it used none.

        Raises:
            StateCorruptError: The file is corrupt.
        """
        nothing = NoncesFile(version=1, counts={}, others=0)
        return self._load(NONCES_FILE, NoncesFile) or nothing

    def save_nonces(self, file: NoncesFile) -> None:
        """Save the counts of used nonces; this survives a power cut.

        Raises:
            StateWriteError: The file could not be written; the old one is unchanged.
        """
        self._save(NONCES_FILE, file)

    def read_pin(self, identity: PinIdentity) -> PinRecord:
        """Return what is known about a PIN; "untried" if nothing is known."""
        try:
            pins = self._pins()
        except StateCorruptError:
            return PinRecord(identity=identity, verdict="corrupt")
        for pin in pins:
            if pin.identity == identity:
                return pin
        return PinRecord(identity=identity)

    def write_pin(self, record: PinRecord) -> None:
        """Save what is known about a PIN; the caller must hold `pin_lock`.

        Replaces the records of earlier contents of the same PIN file, and keeps the
        records of other files.

        Raises:
            ValueError: The verdict is "corrupt".
            StateCorruptError: The existing file is corrupt; it is unchanged.
            StateWriteError: The file could not be written; the old one is unchanged.
        """
        if record.verdict == "corrupt":
            raise ValueError("corrupt is not a verdict to store")
        kept = (*self._other_pins(record.identity), record)[-MAX_PIN_RECORDS:]
        self._save(PIN_FILE, PinFile(version=1, pins=kept))

    def forget_pin(self, identity: PinIdentity) -> None:
        """Delete the record of a PIN, so that the PIN is tried again.

        Only an operator may ask for this, and the caller must hold `pin_lock`. If the
        file is corrupt, the records of all PINs are deleted.

        Raises:
            StateWriteError: The file could not be written; the old one is unchanged.
        """
        try:
            kept = self._other_pins(identity)
        except StateCorruptError:
            kept = ()
        self._save(PIN_FILE, PinFile(version=1, pins=kept))

    @contextmanager
    def pin_lock(self, *, nonblocking: bool = True) -> Iterator[bool]:
        """Hold the lock that every process needs to try an unproven PIN.

        Args:
            nonblocking: If True, yield False while another process or task holds the
                lock; the caller tries again later. If False, wait without limit.

        Raises:
            StateWriteError: The lock file cannot be opened or locked.
        """
        try:
            lock, held = files.lock(self.path / PIN_LOCK, nonblocking=nonblocking)
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

    def _pins(self) -> tuple[PinRecord, ...]:
        file = self._load(PIN_FILE, PinFile)
        return file.pins if file else ()

    def _other_pins(self, mine: PinIdentity) -> tuple[PinRecord, ...]:
        def is_other(known: PinIdentity) -> bool:
            return (known.device, known.inode) != (mine.device, mine.inode)

        return tuple(pin for pin in self._pins() if is_other(pin.identity))

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

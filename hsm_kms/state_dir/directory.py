"""The state directory: what must outlive the process, and nothing secret.

The rules this file holds to:

1.  A file is replaced whole and durably, or not at all.
2.  Missing means nothing is known; unreadable, from another version or wrong in
    any way means corrupt, and corrupt never counts as missing.
3.  A directory that cannot be used is a sentence in `StateDir.problem`, and an
    error only for the one who writes.
4.  Of a PIN file only its identity is kept; never the PIN nor a digest of it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar

import msgspec
from msgspec import Struct

from hsm_kms.errors import HsmKmsError
from hsm_kms.state_dir import files
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LAST_KEY_FILE: Final = "last-key.json"
PIN_FILE: Final = "pin.json"
PIN_LOCK: Final = "pin.lock"
MECHANISM_FILE: Final = "mechanism.json"
KEYS_FILE: Final = "keys.json"
NONCES_FILE: Final = "nonces.json"

_T = TypeVar("_T")


class StateCorruptError(HsmKmsError):
    """A state file is there and cannot be believed."""


class StateWriteError(HsmKmsError):
    """The state directory cannot be written."""


class StateDir:
    """The state directory of one node. All methods are quick and synchronous.

    Args:
        path: The directory; made with mode 0700 if only it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = "the state directory has not been opened"

    @property
    def writable(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self.problem is None

    def open(self) -> Self:
        """Make the directory if need be, and find out whether it can be used.

        Never raises for what it finds: see `problem` and `writable`. Calling it
        again looks again.
        """
        with suppress(StateWriteError), self._writing():
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            files.check_directory(self.path)
            files.probe(self.path)
        return self

    def last_key(self) -> LastKey | None:
        """The key last current on this node, or None if there never was one.

        Raises:
            StateCorruptError: The file is there and cannot be believed.
        """
        file = self._load(LAST_KEY_FILE, LastKeyFile)
        return file.last_key if file else None

    def former_keys(self) -> tuple[FormerKey, ...]:
        """The keys that were current before it, the oldest first.

        Raises:
            StateCorruptError: The file is there and cannot be believed.
        """
        file = self._load(LAST_KEY_FILE, LastKeyFile)
        return file.former if file else ()

    def save_last_key(self, key: LastKey, former: Sequence[FormerKey] = ()) -> None:
        """Remember the key that is now current, also over a power cut.

        Args:
            key: The key.
            former: Those that were current before it, the oldest first.

        Raises:
            StateWriteError: It could not be written; what was there still is.
        """
        kept = tuple(former)[-MAX_FORMER_KEYS:]
        self._save(LAST_KEY_FILE, LastKeyFile(version=1, last_key=key, former=kept))

    def frozen_mechanism(self) -> FrozenMechanism | None:
        """How the token was found to wrap, or None if it never was probed.

        Raises:
            StateCorruptError: The file is there and cannot be believed.
        """
        file = self._load(MECHANISM_FILE, FrozenMechanismFile)
        return file.frozen if file else None

    def freeze_mechanism(self, frozen: FrozenMechanism) -> None:
        """Remember how the token wraps.

        Raises:
            StateWriteError: It could not be written; what was there still is.
        """
        self._save(MECHANISM_FILE, FrozenMechanismFile(frozen=frozen))

    def key_work(self) -> KeyWorkFile:
        """What the `keys` commands remember; nothing if they never wrote.

        Raises:
            StateCorruptError: The file is there and cannot be believed.
        """
        return self._load(KEYS_FILE, KeyWorkFile) or KeyWorkFile()

    def save_key_work(self, file: KeyWorkFile) -> None:
        """Remember it.

        Raises:
            StateWriteError: It could not be written; what was there still is.
        """
        self._save(KEYS_FILE, file)

    def nonces(self) -> NoncesFile:
        """How often this node has wrapped; nothing if it never did.

        Raises:
            StateCorruptError: The file is there and cannot be believed.
        """
        nothing = NoncesFile(version=1, counts={}, others=0)
        return self._load(NONCES_FILE, NoncesFile) or nothing

    def save_nonces(self, file: NoncesFile) -> None:
        """Remember it, also over a power cut.

        Raises:
            StateWriteError: It could not be written; what was there still is.
        """
        self._save(NONCES_FILE, file)

    def read_pin(self, identity: PinIdentity) -> PinRecord:
        """What is known about a PIN; "untried" if nothing is."""
        try:
            pins = self._pins()
        except StateCorruptError:
            return PinRecord(identity=identity, verdict="corrupt")
        for pin in pins:
            if pin.identity == identity:
                return pin
        return PinRecord(identity=identity)

    def write_pin(self, record: PinRecord) -> None:
        """Remember what is known about a PIN; only under `pin_lock`.

        Replaces what was known about earlier contents of the same file, and
        keeps what is known about other files.

        Raises:
            ValueError: The verdict is "corrupt".
            StateCorruptError: What is there cannot be believed; it stays.
            StateWriteError: It could not be written; what was there still is.
        """
        if record.verdict == "corrupt":
            raise ValueError("corrupt is not a verdict to store")
        kept = (*self._other_pins(record.identity), record)[-MAX_PIN_RECORDS:]
        self._save(PIN_FILE, PinFile(version=1, pins=kept))

    def forget_pin(self, identity: PinIdentity) -> None:
        """Let a PIN be tried again; only under `pin_lock`, and only when told to.

        If the file cannot be believed, everything in it is forgotten.

        Raises:
            StateWriteError: It could not be written; what was there still is.
        """
        try:
            kept = self._other_pins(identity)
        except StateCorruptError:
            kept = ()
        self._save(PIN_FILE, PinFile(version=1, pins=kept))

    @contextmanager
    def pin_lock(self, *, nonblocking: bool = True) -> Iterator[bool]:
        """Hold the lock under which an unproven PIN is tried, by any process.

        Args:
            nonblocking: Yield False if another process or task holds it; the
                caller asks again later. Otherwise wait without limit.

        Raises:
            StateWriteError: The lock cannot be used at all.
        """
        try:
            lock, held = files.lock(self.path / PIN_LOCK, nonblocking=nonblocking)
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
            hint="restore it, or remove it to start without what it held",
        )

    def _save(self, name: str, file: Struct) -> None:
        data = msgspec.json.encode(file)
        # Never store what would be found corrupt: a ValidationError is a bug.
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
            self.problem = failure.sentence
            raise failure from error
        self.problem = None

    def _unusable(self, error: OSError) -> StateWriteError:
        return StateWriteError(
            f"the state directory {self.path} cannot be used: {error.strerror}",
            hint="give hsm-kms a directory of its own, on a disk with free space, "
            "that its user owns and only that user can write to (mode 0700)",
        )

"""Keep the state directory: what must outlive the process, and nothing secret.

Only the identity of a PIN file is kept, never the PIN or a digest of the PIN. How files
are read and written is decided in `store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

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
from hsm_kms.state_dir.store import StateCorruptError, Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

LAST_KEY_FILE: Final = "last-key.json"
PIN_FILE: Final = "pin.json"
PIN_LOCK: Final = "pin.lock"
SERVER_LOCK: Final = "server.lock"
MECHANISM_FILE: Final = "mechanism.json"
KEYS_FILE: Final = "keys.json"
NONCES_FILE: Final = "nonces.json"

# How long the server waits for what it saves before it acts. After that it acts all the
# same, and says that it could not save: a broken disk must not stop it.
SAVE_SECONDS: Final = 5.0


class StateDir(Store):
    """Read and write the state directory of one node; see `Store` for the arguments."""

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

    def read_pin(self, identity: PinIdentity, credential: str = "") -> PinRecord:
        """Return what is known about a PIN; "untried" if nothing is known.

        Args:
            identity: Identity of the PIN file as it is now.
            credential: Path of the file if it is a credential; what failed with an
                earlier file of that path is then still true.
        """
        unknown = PinRecord(identity=identity, credential=credential)
        try:
            pins = self._pins()
        except StateCorruptError:
            return replace(unknown, verdict="corrupt")
        for pin in pins:
            if pin.identity == identity and pin.credential == credential:
                return pin
            if credential and pin.credential == credential:
                return pin.for_new_file(identity)
        return unknown

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
        others = self._other_pins(record.identity, record.credential)
        kept = (*others, record)[-MAX_PIN_RECORDS:]
        self._save(PIN_FILE, PinFile(version=1, pins=kept))

    def forget_pin(self, identity: PinIdentity, credential: str = "") -> None:
        """Delete the record of a PIN, so that the PIN is tried again.

        Only an operator may ask for this, and the caller must hold `pin_lock`. If the
        file is corrupt, the records of all PINs are deleted.

        Raises:
            StateWriteError: The file could not be written; the old one is unchanged.
        """
        try:
            kept = self._other_pins(identity, credential)
        except StateCorruptError:
            kept = ()
        self._save(PIN_FILE, PinFile(version=1, pins=kept))

    def pin_lock(self, *, nonblocking: bool = True) -> AbstractContextManager[bool]:
        """Hold the lock that every process needs to try an unproven PIN.

        Args:
            nonblocking: If True, yield False while another process or task holds the
                lock; the caller tries again later. If False, wait without limit.

        Raises:
            StateWriteError: The lock file cannot be opened or locked.
        """
        return self._lock(PIN_LOCK, nonblocking=nonblocking)

    def server_lock(self) -> AbstractContextManager[bool]:
        """Hold the lock of the one server that uses this directory.

        Yields False while another server holds it.

        Raises:
            StateWriteError: The lock file cannot be opened or locked.
        """
        return self._lock(SERVER_LOCK, nonblocking=True)

    def _pins(self) -> tuple[PinRecord, ...]:
        file = self._load(PIN_FILE, PinFile)
        return file.pins if file else ()

    def _other_pins(self, mine: PinIdentity, credential: str) -> tuple[PinRecord, ...]:
        def is_other(known: PinRecord) -> bool:
            if known.credential or credential:
                return known.credential != credential
            inode = known.identity.device, known.identity.inode
            return inode != (mine.device, mine.inode)

        return tuple(pin for pin in self._pins() if is_other(pin))

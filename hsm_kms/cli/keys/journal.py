"""Record what must outlive a `keys` command: work on a pair, and retired keys.

A pair is an AES key and its HMAC key. An HMAC key alone has no key_id. Only this record
says that an interrupted command left the HMAC key, and to which key_id it belongs.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from msgspec.structs import replace

from hsm_kms.clock import now, when
from hsm_kms.errors import HsmKmsError
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.state_dir import files
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.records import (
    MAX_KEY_WORK,
    MAX_RETIRED_KEYS,
    KeyWork,
    RetiredKey,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from hsm_kms.config.schema import Config
    from hsm_kms.ipc.values import KeyRef

_LOCK: Final = "keys.lock"


class Journal:
    """Read and write keys.json in the state directory.

    Args:
        config: The configuration.
    """

    def __init__(self, config: Config) -> None:
        self._state = StateDir(config.state_dir, create=False)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock that keeps other commands of this node from changing keys.

        Raises:
            HsmKmsError: Another command holds the lock.
        """
        try:
            lock, held = files.lock(self._state.path / _LOCK, nonblocking=True)
        except OSError:
            yield  # without a state directory there is no record to protect
            return
        try:
            if not held:
                raise HsmKmsError(
                    "another `hsm-kms keys` command is running on this node",
                    hint="run this again when that command has ended",
                )
            yield
        finally:
            os.close(lock)

    def require_memory(self) -> None:
        """Refuse to delete keys if it is unknown which keys were current on this node.

        Raises:
            StateCorruptError: A file in the state directory is corrupt.
        """
        self._state.last_key()
        self._state.key_work()

    def begun(self) -> tuple[KeyWork, ...]:
        """Return the work that was begun and not recorded as done, the oldest first.

        Raises:
            StateCorruptError: keys.json is corrupt.
        """
        return self._state.key_work().begun

    def begin(
        self,
        work: Literal["make", "cancel", "destroy"],
        ref: KeyRef,
        key_id: str | None = None,
    ) -> None:
        """Record that work on a pair begins, before the token is changed.

        Args:
            work: The work.
            ref: The AES key.
            key_id: As `keys list` shows it; None while the key is being generated.

        Raises:
            StateWriteError: keys.json could not be written.
            StateCorruptError: keys.json is corrupt.
        """
        entry = KeyWork(
            work=work,
            key_id=key_id,
            cka_id=ref.cka_id.hex(),
            label=ref.label,
            began=when(now()),
        )
        file = self._state.key_work()
        others = tuple(each for each in file.begun if each.cka_id != entry.cka_id)
        kept = (*others, entry)[-MAX_KEY_WORK:]
        self._state.save_key_work(replace(file, begun=kept))

    def done(self, cka_id: bytes) -> None:
        """Delete the record of work on the AES key with this CKA_ID.

        Raises:
            StateWriteError: keys.json could not be written.
            StateCorruptError: keys.json is corrupt.
        """
        file = self._state.key_work()
        kept = tuple(each for each in file.begun if each.cka_id != cka_id.hex())
        if kept != file.begun:
            self._state.save_key_work(replace(file, begun=kept))

    def retired_since(self, fingerprints: Collection[str]) -> float | None:
        """Return when `keys retire` recorded that a key is retired by `keys.retired`.

        Args:
            fingerprints: All fingerprints of the key.

        Returns:
            Seconds since the Unix epoch, or None if there is no record.

        Raises:
            StateCorruptError: keys.json is corrupt.
        """
        for each in self._state.key_work().retired:
            if fingerprint_in(each.key_id) in fingerprints:
                return seconds_of(each.since)
        return None

    def retire(self, key_id: str) -> None:
        """Record that a key is retired from now on.

        Raises:
            StateWriteError: keys.json could not be written.
            StateCorruptError: keys.json is corrupt.
        """
        entry = RetiredKey(key_id=key_id, since=when(now()))
        file = self._state.key_work()
        kept = (*file.retired, entry)[-MAX_RETIRED_KEYS:]
        self._state.save_key_work(replace(file, retired=kept))

    def forget_retired(self, fingerprints: Collection[str]) -> None:
        """Delete the record that a key is retired.

        Args:
            fingerprints: All fingerprints of the key.

        Raises:
            StateWriteError: keys.json could not be written.
            StateCorruptError: keys.json is corrupt.
        """
        file = self._state.key_work()
        kept = tuple(
            each
            for each in file.retired
            if fingerprint_in(each.key_id) not in fingerprints
        )
        if kept != file.retired:
            self._state.save_key_work(replace(file, retired=kept))


def seconds_of(text: str) -> float | None:
    """Return an ISO 8601 time in seconds since the Unix epoch; or None."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None

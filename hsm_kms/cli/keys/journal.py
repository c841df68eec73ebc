"""What must outlive a `keys` command: work on a pair, and since when a key is retired.

An HMAC key alone has no key_id: that it is the rest of a key which was made or
destroyed, and of which, only this file knows.
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
    """keys.json in the state directory.

    Args:
        config: The configuration.
    """

    def __init__(self, config: Config) -> None:
        self._state = StateDir(config.state_dir)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands of this node from changing keys meanwhile.

        Raises:
            HsmKmsError: One is at it.
        """
        try:
            lock, held = files.lock(self._state.path / _LOCK, nonblocking=True)
        except OSError:
            yield  # no state directory, so nothing to fall out over
            return
        try:
            if not held:
                raise HsmKmsError(
                    "another command is changing keys on this node",
                    hint="wait until it has ended",
                )
            yield
        finally:
            os.close(lock)

    def require_memory(self) -> None:
        """Judge no key's end where nobody knows what was current here.

        Raises:
            StateCorruptError: The state directory cannot be believed.
        """
        self._state.last_key()
        self._state.key_work()

    def begun(self) -> tuple[KeyWork, ...]:
        """Work that was begun and is not known to be done, the oldest first.

        Raises:
            StateCorruptError: The file is there and cannot be believed.
        """
        return self._state.key_work().begun

    def begin(
        self,
        work: Literal["make", "cancel", "destroy"],
        ref: KeyRef,
        key_id: str | None = None,
    ) -> None:
        """Remember that work on a pair begins; only then touch it.

        Raises:
            StateWriteError: That is not possible.
            StateCorruptError: The file is there and cannot be believed.
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
        """The work on this AES key is done.

        Raises:
            StateWriteError: It could not be noted.
            StateCorruptError: The file is there and cannot be believed.
        """
        file = self._state.key_work()
        kept = tuple(each for each in file.begun if each.cka_id != cka_id.hex())
        if kept != file.begun:
            self._state.save_key_work(replace(file, begun=kept))

    def retired_since(self, fingerprints: Collection[str]) -> float | None:
        """When `keys retire` was run for a key whose token keeps the label.

        Returns:
            Seconds since the Unix epoch; None where it was not.

        Raises:
            StateCorruptError: The file is there and cannot be believed.
        """
        for each in self._state.key_work().retired:
            if fingerprint_in(each.key_id) in fingerprints:
                return seconds_of(each.since)
        return None

    def retire(self, key_id: str) -> None:
        """Note that a key is retired from now on.

        Raises:
            StateWriteError: It could not be noted.
            StateCorruptError: The file is there and cannot be believed.
        """
        entry = RetiredKey(key_id=key_id, since=when(now()))
        file = self._state.key_work()
        kept = (*file.retired, entry)[-MAX_RETIRED_KEYS:]
        self._state.save_key_work(replace(file, retired=kept))

    def forget_retired(self, fingerprints: Collection[str]) -> None:
        """The key is retired no more, or is no more.

        Raises:
            StateWriteError: It could not be noted.
            StateCorruptError: The file is there and cannot be believed.
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
    """Seconds since the Unix epoch of an ISO 8601 time; None where it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None

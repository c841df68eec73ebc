"""Remember the key last current on this node, and what is known of its identity.

1. What is remembered is saved in the state directory before any client sees it.
2. The key that was generated on the token stays so: if the key with its fingerprint no
   longer is, another key may stand in its place (`rotation` decides).
3. With `keys.fingerprint: cka_id` a fingerprint does not name the material. A canary
   that the last key wrapped is kept, and a key that does not decrypt it is distrusted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hsm_kms.clock import when
from hsm_kms.errors import HsmKmsError, KeyLostError
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.rotation import Memory
from hsm_kms.log import get_logger
from hsm_kms.state_dir.directory import SAVE_SECONDS
from hsm_kms.state_dir.records import FormerKey, LastKey
from hsm_kms.state_dir.store import (
    StateCorruptError,
    StateWriteError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.ipc.values import Cipher, KeptCanary
    from hsm_kms.keys.token_key import (
        KeySettings,
        TokenKey,
    )
    from hsm_kms.state_dir.directory import StateDir

_log = get_logger(__name__)


def memory_of(last: LastKey | None, former: Sequence[FormerKey]) -> Memory:
    """Return what the state directory remembers of keys, for `rotation`.

    Args:
        last: The key last current on this node; None if there never was one.
        former: The keys that were current before it.
    """
    if last is None:
        return Memory()
    return Memory(
        last=last.key_id,
        ref=KeyRef(last.label, bytes.fromhex(last.cka_id)),
        born_here=last.born_here is True,
        former=frozenset(each.key_id for each in former),
    )


class KeyMemory:
    """Keep the key last current on this node, and the keys before it.

    Args:
        settings: The configuration.
        state_dir: Where they are saved.

    Attributes:
        last: The key last current on this node; None if there never was one.
        former: The keys that were current before it, the oldest first.
        fault: Why the state directory cannot be believed; None if it can.
    """

    def __init__(self, settings: KeySettings, state_dir: StateDir) -> None:
        self._by_cka_id = settings.fingerprint == "cka_id"
        self._state_dir = state_dir
        self.last: LastKey | None = None
        self.former: tuple[FormerKey, ...] = ()
        self.fault: HsmKmsError | None = None
        self._canaries: dict[tuple[str, Cipher], KeptCanary] = {}
        self._distrusted: set[tuple[str, Cipher]] = set()
        self._unsaved: str | None = None  # why the last key could not be saved
        self.load()

    def load(self) -> None:
        """Read the state directory; `fault` is set if it cannot be believed."""
        try:
            self.former = self._state_dir.former_keys()
            self.last = self._state_dir.last_key()
        except StateCorruptError as error:
            if str(error) != str(self.fault):
                _log.warning("state directory problem", error=error.sentence)
            self.fault = KeyLostError(str(error), hint=error.hint)
            self.last = None
        else:
            self.fault = None

    def memory(self) -> Memory:
        """Return what `rotation` needs to know."""
        memory = memory_of(self.last, self.former)
        return replace(memory, distrusted=frozenset(self._distrusted))

    # The last key

    async def save(self, key: TokenKey, token_serial: str, now: float) -> LastKey:
        """Save a key as the current one, before `keep` makes it that.

        If the key cannot be saved, or the disk does not answer within `SAVE_SECONDS`,
        that is logged, and the next `save` tries again.

        Args:
            key: The key, which may encrypt.
            token_serial: Serial number of the token.
            now: Seconds since the Unix epoch.

        Returns:
            What `keep` is to remember.
        """
        last = self._record(key, token_serial, now)
        if last == self.last and self._unsaved is None:
            return last
        save = partial(self._state_dir.save_last_key, last, self._former_after(last))
        try:
            await self._state_dir.background(save, SAVE_SECONDS)
        except StateWriteError as error:
            self.not_saved(error)
        else:
            self._unsaved = None
        return last

    def keep(self, key: TokenKey, last: LastKey) -> None:
        """Remember a key as the current one.

        Args:
            key: The key.
            last: What `save` returned for it.
        """
        before = self.last
        if before is None or before.key_id != last.key_id:
            _log_switch(key, before)
        self.former = self._former_after(last)
        self.last = last
        self.fault = None

    def _former_after(self, last: LastKey) -> tuple[FormerKey, ...]:
        """Return the keys that were current before, once `last` is."""
        before = self.last
        if before is None or before.key_id == last.key_id:
            return self.former
        left = FormerKey(key_id=before.key_id, since=before.since, until=last.since)
        return (*self.former, left)

    def _record(self, key: TokenKey, token_serial: str, now: float) -> LastKey:
        same = self.last is not None and self.last.key_id == key.key_id
        kept = self.last if same else None
        canary = self.kept_canary(key) or self._canaries.get(key.name)
        return LastKey(
            key_id=key.key_id,
            cka_id=key.ref.cka_id.hex(),
            token_serial=token_serial,
            label=key.ref.label,
            since=kept.since if kept else when(now),
            born_here=key.born_here,
            canary=canary,
        )

    def not_saved(self, error: StateWriteError) -> None:
        """Note that the last key is not saved; the next `save` tries again.

        Args:
            error: Why it could not be saved.
        """
        if error.sentence != self._unsaved:
            _log.warning("the current key is not saved", error=error.sentence)
        self._unsaved = error.sentence

    # Its identity

    def kept_canary(self, key: TokenKey) -> KeptCanary | None:
        """Return an earlier canary that `key` must decrypt; None if there is none."""
        last = self.last
        if not self._by_cka_id or last is None or last.key_id != key.key_id:
            return None
        canary = last.canary
        return canary if canary and canary.cipher is key.cipher else None

    def canary_passed(self, key: TokenKey, canary: KeptCanary) -> None:
        """Trust a key: it wrapped this canary, and decrypted the one that was kept."""
        self._distrusted.discard(key.name)
        if self._by_cka_id:
            self._canaries[key.name] = canary

    def distrust(self, key: TokenKey) -> bool:
        """Note that `key` is another key than the one with its names before.

        Returns:
            True if the key was trusted until now.
        """
        news = key.name not in self._distrusted
        self._distrusted.add(key.name)
        return news


def _log_switch(key: TokenKey, before: LastKey | None) -> None:
    if not key.born_here:
        _log.warning(
            "the current key was imported, or could once be read from the token",
            key_id=key.key_id,
        )
    _log.info(
        "current key",
        key_id=key.key_id,
        before=before.key_id if before is not None else None,
    )

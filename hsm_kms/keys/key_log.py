"""Log what an operator should know of the keys, once for each key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.clock import when
from hsm_kms.keys.keyring import (
    DOUBT_HINT,
    FOREIGN,
    FOREIGN_HINT,
)
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.token_key import TokenKey

_log = get_logger(__name__)


class KeyLog:
    """Log each key that will become current, that cannot yet, or that is foreign."""

    def __init__(self) -> None:
        self._pending: frozenset[str] = frozenset()
        self._failed: frozenset[str] = frozenset()
        self._doubted: frozenset[str] = frozenset()
        self._foreign: frozenset[TokenKey] = frozenset()

    def note(self, ring: Keyring, failures: Mapping[str, str]) -> None:
        """Log what is new; a key that leaves and comes back is new.

        Args:
            ring: The keyring as just built.
            failures: Why keys that are due cannot be used, by key_id.
        """
        self._note_pending(ring, failures)
        self._note_foreign(ring)

    def _note_pending(self, ring: Keyring, failures: Mapping[str, str]) -> None:
        ids = frozenset(each.key.key_id for each in ring.pending)
        for key_id in failures.keys() - self._failed:
            _log.warning(
                "a pending key cannot be used yet",
                key_id=key_id,
                reason=failures[key_id],
            )
        for each in ring.pending:
            if each.key.key_id not in self._pending:
                _log.info(
                    "pending key",
                    key_id=each.key.key_id,
                    current_from=when(each.at) if each.at is not None else None,
                )
            if each.doubt and each.key.key_id not in self._doubted:
                _log.warning(
                    "a pending key has a doubtful activation time",
                    key_id=each.key.key_id,
                    activation=when(each.key.activation),
                    missed_at=when(each.missed_at or 0),
                    reason=each.doubt,
                    hint=DOUBT_HINT,
                )
        self._pending = ids
        self._doubted = frozenset(e.key.key_id for e in ring.pending if e.doubt)
        self._failed = (self._failed | failures.keys()) & ids

    def _note_foreign(self, ring: Keyring) -> None:
        foreign = frozenset(key for key in ring.keys if ring.is_foreign(key))
        for key in foreign - self._foreign:
            _log.warning(
                "a foreign key is on the token",
                key_id=key.key_id,
                label=key.ref.label,
                cka_id=key.ref.cka_id.hex(),
                reason=FOREIGN,
                hint=FOREIGN_HINT,
            )
        self._foreign = foreign

"""Hold the KEKs of this node: which one is current, and which decrypt.

docs/spec.md has the exact bytes of fingerprint, key_id and CKA_ID.

1. A key_id follows from the key material alone (and a configured suffix): it is the
   same on every node, and no other key ever has it.
2. A retired key decrypts nothing here. A key that violates the policy encrypts
   nothing; what it encrypted before can still be decrypted.
3. A foreign key, which the token did not generate or once let out, decrypts nothing
   unless the operator named it or it was current on this node: someone who once had
   the PIN may know its value, and forge records under it.
4. A keyring is a snapshot: it never changes while a request uses it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from hsm_kms.clock import when
from hsm_kms.errors import (
    HsmKmsError,
    KeyForeignError,
    KeyNotFoundError,
    KeyRetiredError,
    UnknownKeyIdError,
)
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.token_key import KeySettings, TokenKey, UnidentifiedKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hsm_kms.ipc.values import Cipher


class KeyState(StrEnum):
    """Say what this node uses a key for."""

    PENDING = "pending"
    CURRENT = "current"
    DECRYPT_ONLY = "decrypt-only"
    RETIRED = "retired"
    REFUSED = "refused"
    FOREIGN = "foreign"


DOUBT_HINT: Final = (
    "set the clock of this node; if it is right, restart the server or name the key in "
    "keys.current"
)
FOREIGN: Final = (
    "it was not generated on this token, or could once be read from it, so it decrypts "
    "nothing"
)
FOREIGN_HINT: Final = (
    "if you trust it, map its key_id to its CKA_ID in keys.also_known_as; if you trust "
    "every key with this label, set keys.foreign: decrypt"
)

_ANY_LABEL: Final = KeySettings(label=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Name a key that will become current, and when.

    Args:
        key: The key.
        at: From when, in seconds since the Unix epoch; None if only once
            `keys.current` names it.
        missed_at: When this node looked and missed the key, although its activation
            time was long past; None unless that keeps the node from switching.
    """

    key: TokenKey
    at: float | None
    missed_at: float | None = None

    @property
    def doubt(self) -> str:
        """Return why this node does not switch at the activation time; or ""."""
        if self.missed_at is None:
            return ""
        return (
            f"at {when(self.missed_at)} it was not on the token, and its activation "
            f"time was {when(self.key.activation)}: this node's clock is ahead, or the "
            "key was made elsewhere or by a clock that is behind"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """Hold a snapshot of the keys on the token.

    Args:
        keys: Every key found by the label, or by the listed CKA_IDs.
        current: The key to encrypt under, or None.
        fault: Why there is no current key, or why it must not encrypt; or None.
        pending: Keys that will become current, the next one first.
        unidentified: Keys that cannot be used, because they were not identified.
        known: Fingerprints of the keys that are or were current on this node.
        settings: The configuration.
    """

    keys: tuple[TokenKey, ...]
    current: TokenKey | None
    fault: HsmKmsError | None
    pending: tuple[Pending, ...] = ()
    unidentified: tuple[UnidentifiedKey, ...] = ()
    known: frozenset[str] = frozenset()
    settings: KeySettings = _ANY_LABEL
    _by_name: Mapping[tuple[str, Cipher], TokenKey] = field(
        init=False, repr=False, compare=False
    )
    _foreign: frozenset[TokenKey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build the indexes that every Decrypt uses."""
        object.__setattr__(self, "_foreign", frozenset(self._find_foreign()))
        # Of several keys with one name the first decrypts, a trusted one if there is.
        keys = sorted(self.keys, key=self.is_foreign)
        by_name = {key.name: key for key in reversed(keys)}
        object.__setattr__(self, "_by_name", by_name)

    def _find_foreign(self) -> Iterator[TokenKey]:
        """Yield the foreign keys that must decrypt nothing (rule 3).

        A CKA_ID that several keys have names none of them: an attacker may have added
        one.
        """
        fingerprints: dict[tuple[bytes, Cipher], set[str]] = defaultdict(set)
        for key in self.keys:
            fingerprints[key.ref.cka_id, key.cipher].add(key.fingerprint)
        for key in self.keys:
            if key.born_here or self.settings.foreign or key.fingerprint in self.known:
                continue
            alone = len(fingerprints[key.ref.cka_id, key.cipher]) == 1
            by_cka_id = alone and self.settings.names_cka_id(key)
            if not by_cka_id and not self.settings.names_key_id(key):
                yield key

    def is_foreign(self, key: TokenKey) -> bool:
        """Return True if `key`, one of `keys`, is foreign and decrypts nothing."""
        return key in self._foreign

    @property
    def twins(self) -> tuple[TokenKey, ...]:
        """Return the keys whose CKA_LABEL and CKA_ID another key has, too."""
        names = Counter((key.ref, key.cipher) for key in self.keys)
        return tuple(key for key in self.keys if names[key.ref, key.cipher] > 1)

    @property
    def without_cka_id(self) -> tuple[TokenKey, ...]:
        """Return the keys whose CKA_ID is empty."""
        return tuple(key for key in self.keys if not key.ref.cka_id)

    def for_encrypt(self) -> TokenKey:
        """Return the current key.

        Raises:
            HsmKmsError: There is no current key, or it must not encrypt.
        """
        if self.fault is not None:
            raise self.fault.again()
        if self.current is None:
            raise KeyNotFoundError("there is no current key")
        return self.current

    def may_encrypt(self, key: TokenKey) -> bool:
        """Return True if nothing forbids to encrypt under `key`, one of `keys`."""
        retired = key.fingerprint in self.settings.retired
        return not retired and not self.settings.refuses(key)

    def for_decrypt(self, key_id: str, cipher: Cipher) -> TokenKey:
        """Return the key that a record names, by fingerprint, whatever its suffix.

        Args:
            key_id: The key_id in the record.
            cipher: The cipher of the record.

        Raises:
            KeyRetiredError: The configuration retires the key.
            KeyForeignError: The key is foreign, and nothing says that it may decrypt.
            UnknownKeyIdError: No key held here has this fingerprint.
        """
        fingerprint = fingerprint_in(key_id)
        if fingerprint in self.settings.retired:
            raise KeyRetiredError("the key with this key_id is retired")
        key = self._by_name.get((fingerprint, cipher)) or self._alias(key_id, cipher)
        if key is None:
            raise UnknownKeyIdError("no key with this key_id is held here")
        if key.fingerprint in self.settings.retired:
            raise KeyRetiredError("the key with this key_id is retired")
        if self.is_foreign(key):
            raise KeyForeignError(f"{key.key_id}: {FOREIGN}", hint=FOREIGN_HINT)
        return key

    def state(self, key: TokenKey) -> KeyState:
        """Return what this node uses `key` for, one of `keys`."""
        if key.fingerprint in self.settings.retired:
            return KeyState.RETIRED
        if self.current is not None and key.name == self.current.name:
            return KeyState.CURRENT
        if self.is_foreign(key):
            return KeyState.FOREIGN
        if self.settings.refuses(key):
            return KeyState.REFUSED
        if any(key.name == each.key.name for each in self.pending):
            return KeyState.PENDING
        return KeyState.DECRYPT_ONLY

    def _alias(self, key_id: str, cipher: Cipher) -> TokenKey | None:
        cka_id = self.settings.also_known_as.get(key_id)
        if cka_id is None:
            return None
        found = (
            key
            for key in self.keys
            if key.ref.cka_id == cka_id and key.cipher is cipher
        )
        return min(found, key=self.is_foreign, default=None)

"""Which KEKs we hold, which one is current, and what their key_ids are.

docs/spec.md has the exact bytes of fingerprint, key_id and CKA_ID.

1. A key_id follows from key material alone (and a configured suffix): it is the same
   on every node, and no other key ever has it.
2. A retired key opens nothing here, and a key that breaks the policy encrypts
   nothing; whatever it wrapped before can still be read.
3. A keyring is a snapshot: it never changes while a request looks at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from hsm_kms.errors import (
    HsmKmsError,
    KeyNotFoundError,
    KeyRetiredError,
    UnknownKeyIdError,
)
from hsm_kms.keys.key_id import fingerprint_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.ipc.values import Cipher, KeyRef, Mechanism

_NOTHING: Mapping[str, bytes] = MappingProxyType({})


class KeyState(StrEnum):
    """What a key is to this node."""

    PENDING = "pending"
    CURRENT = "current"
    DECRYPT_ONLY = "decrypt-only"
    RETIRED = "retired"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """One KEK on the token.

    Args:
        ref: How a session finds it.
        fingerprint: 26 characters, from the key material.
        key_id: What Status announces and every record carries.
        cipher: What its records are protected by. An AES key with an HMAC key beside
            it is two KEKs: alone for GCM, and as a pair.
        mechanism: How this token wraps under it, be it only for a canary; None: it
            can only be named here.
        encrypts: This token wraps DEKs by this key's cipher.
        activation: Seconds since the Unix epoch; 0 for a key not made by us.
        violations: What the policy has against it, in words.
        born_here: Made on the token, sensitive and never extractable since.
    """

    ref: KeyRef
    fingerprint: str
    key_id: str
    cipher: Cipher
    mechanism: Mechanism | None
    encrypts: bool = True
    activation: int
    violations: tuple[str, ...]
    born_here: bool

    @property
    def name(self) -> tuple[str, Cipher]:
        """What a record names it by, its suffix aside."""
        return self.fingerprint, self.cipher

    @property
    def found_by(self) -> tuple[KeyRef, Cipher]:
        """What a session finds it by, and which of the two KEKs of a pair it is."""
        return self.ref, self.cipher

    @property
    def age(self) -> tuple[int, str]:
        """Orders keys by activation time, and those with one time by fingerprint."""
        return self.activation, self.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """The `keys` section, and what it must know of the token.

    Args:
        label: CKA_LABEL of the KEKs; None: any.
        ids: Their CKA_IDs; empty: any.
        fingerprint: "block" or "cka_id".
        current: key_id or fingerprint of the key to use, or None.
        suffix: Appended to the fingerprint as ".suffix", or None.
        retired: Fingerprints of keys that must not be used any more.
        also_known_as: CKA_ID of the key that opens what names this other key_id.
        shared: Every node sees the same keys: activation times count.
        enforce: Forbid Encrypt under a key that breaks the policy.
        private: Demand CKA_PRIVATE.
        mechanism: "auto", "aes-gcm" or "aes-cbc-hmac-sha256".
        gcm_iv: Who makes the IV for AES-GCM: "auto", "caller", "token", or
            "appended" (the token, after the tag).
    """

    label: str | None
    ids: tuple[bytes, ...] = ()
    fingerprint: str = "block"
    current: str | None = None
    suffix: str | None = None
    retired: frozenset[str] = frozenset()
    also_known_as: Mapping[str, bytes] = field(default_factory=lambda: _NOTHING)
    shared: bool = False
    enforce: bool = True
    private: bool = True
    mechanism: str = "auto"
    gcm_iv: str = "auto"

    @property
    def which(self) -> str:
        """How the KEKs are told from other keys, in words."""
        labelled = [] if self.label is None else [f"labelled {self.label!r}"]
        return " and ".join(labelled + (["in keys.ids"] if self.ids else []))

    def refuses(self, key: TokenKey) -> bool:
        """Whether the key must not encrypt, whatever else speaks for it."""
        return not key.encrypts or (self.enforce and bool(key.violations))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A key that is to become current.

    Args:
        key: The key.
        at: From when, in seconds since the Unix epoch; None: once keys.current
            names it.
    """

    key: TokenKey
    at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """A snapshot of the keys on the token.

    Args:
        keys: Every key found by the label, or by the listed CKA_IDs.
        current: The one to encrypt under, or None.
        fault: Why there is none, or why it must not be used.
        pending: Keys that come after it, the next one first.
        settings: The configuration.
    """

    keys: tuple[TokenKey, ...]
    current: TokenKey | None
    fault: HsmKmsError | None
    pending: tuple[Pending, ...] = ()
    settings: KeySettings = KeySettings(label=None)
    _by_name: Mapping[tuple[str, Cipher], TokenKey] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Make the index that every Decrypt asks."""
        by_name = {key.name: key for key in reversed(self.keys)}
        object.__setattr__(self, "_by_name", by_name)

    def for_encrypt(self) -> TokenKey:
        """The current key.

        Raises:
            HsmKmsError: There is none, or the policy forbids it.
        """
        if self.fault is not None:
            raise self.fault.again()
        if self.current is None:
            raise KeyNotFoundError("there is no current key")
        return self.current

    def may_encrypt(self, key: TokenKey) -> bool:
        """Whether nothing forbids to encrypt under one of `keys`."""
        retired = key.fingerprint in self.settings.retired
        return not retired and not self.settings.refuses(key)

    def for_decrypt(self, key_id: str, cipher: Cipher) -> TokenKey:
        """The key a record names; found by fingerprint, whatever its suffix.

        Args:
            key_id: The record's.
            cipher: The record's.

        Raises:
            KeyRetiredError: The configuration says that it is retired.
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
        return key

    def state(self, key: TokenKey) -> KeyState:
        """What one of `keys` is to this node."""
        if key.fingerprint in self.settings.retired:
            return KeyState.RETIRED
        if self.current is not None and key.name == self.current.name:
            return KeyState.CURRENT
        if self.settings.refuses(key):
            return KeyState.REFUSED
        if any(key.name == each.key.name for each in self.pending):
            return KeyState.PENDING
        return KeyState.DECRYPT_ONLY

    def _alias(self, key_id: str, cipher: Cipher) -> TokenKey | None:
        cka_id = self.settings.also_known_as.get(key_id)
        if cka_id is None:
            return None
        for key in self.keys:
            if key.ref.cka_id == cka_id and key.cipher is cipher:
                return key
        return None

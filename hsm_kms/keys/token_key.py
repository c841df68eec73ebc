"""Describe the keys on the token, and what the operator says about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from hsm_kms.keys.key_id import fingerprint_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.errors import HsmKmsError
    from hsm_kms.ipc.values import Cipher, KeyRef, Mechanism

_NOTHING: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """Describe one KEK on the token.

    Args:
        ref: CKA_LABEL and CKA_ID, by which a session finds the key.
        fingerprint: 26 characters, from the key material.
        key_id: What Status announces and every record carries.
        cipher: The cipher of its records. An AES key with an HMAC key is two KEKs:
            alone for GCM, and as a pair.
        mechanism: How this token wraps under the key, even if only for a canary; None
            if the token cannot.
        encrypts: True if this token wraps DEKs by this cipher.
        activation: Seconds since the Unix epoch; 0 if hsm-kms did not make the key.
        violations: How the key violates the policy, in words.
        born_here: True if the token generated the key and has never let it out.
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
        """Return the name of the key in records, without the suffix."""
        return self.fingerprint, self.cipher

    @property
    def found_by(self) -> tuple[KeyRef, str, Cipher]:
        """Return how a session finds the key, and which KEK of a pair it is."""
        return self.ref, self.fingerprint, self.cipher

    @property
    def age(self) -> tuple[int, str]:
        """Return the sort key: activation time; fingerprint if two times are equal."""
        return self.activation, self.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class UnidentifiedKey:
    """Name a key on the token that cannot be used, because it was not identified.

    Args:
        ref: CKA_LABEL and CKA_ID, as far as they can be read.
        error: Why it was not identified, and what to do.
    """

    ref: KeyRef
    error: HsmKmsError


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """Hold the `keys` section and what belongs to it from the `token` section.

    Args:
        label: CKA_LABEL of the KEKs; None for any.
        ids: CKA_IDs of the KEKs; empty for any.
        fingerprint: "block" or "cka_id".
        current: key_id or fingerprint of the key to encrypt under, or None.
        suffix: Appended to the fingerprint as ".suffix", or None.
        retired: Fingerprints of keys that must not be used any more.
        also_known_as: key_id to the CKA_ID of the key that decrypts its records.
        foreign: True if foreign keys decrypt even if nothing names them.
        shared: True if every node sees the same keys: activation times count.
        enforce: Refuse to encrypt under a key that violates the policy.
        private: Require CKA_PRIVATE.
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
    foreign: bool = False
    shared: bool = False
    enforce: bool = True
    private: bool = True
    mechanism: str = "auto"
    gcm_iv: str = "auto"

    @property
    def which(self) -> str:
        """Return how the KEKs differ from other keys on the token, in words."""
        labelled = [] if self.label is None else [f"labelled {self.label!r}"]
        return " and ".join(labelled + (["in keys.ids"] if self.ids else []))

    def names_key_id(self, key: TokenKey) -> bool:
        """Return True if `current` or `also_known_as` names the key by its key_id."""
        key_ids = (self.current or "", *self.also_known_as)
        return key.fingerprint in map(fingerprint_in, key_ids)

    def names_cka_id(self, key: TokenKey) -> bool:
        """Return True if `ids` or `also_known_as` lists the CKA_ID of the key."""
        return key.ref.cka_id in {*self.ids, *self.also_known_as.values()}

    def refuses(self, key: TokenKey) -> bool:
        """Return True if the key must not encrypt, even if it is named."""
        return not key.encrypts or (self.enforce and bool(key.violations))

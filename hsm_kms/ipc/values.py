"""Define the keys, tokens and mechanisms that messages carry."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class KeyRef(msgspec.Struct, frozen=True):
    """CKA_LABEL and CKA_ID of a key, by which any session finds the key again."""

    label: str
    cka_id: bytes

    @property
    def partner(self) -> KeyRef:
        """Return the names of the HMAC key beside this AES key."""
        return KeyRef(f"{self.label}-hmac", self.cka_id + b"h")


class TokenSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A slot with a token in it, as C_GetTokenInfo describes it.

    `max_sessions` is None if the token reports no session limit.
    """

    slot: int
    label: str
    serial: str
    manufacturer: str
    model: str
    flags: int
    max_sessions: int | None
    aes_mechanisms: tuple[str, ...] = ()


class KeySeen(msgspec.Struct, frozen=True, kw_only=True):
    """A key and the attributes that the key policy checks.

    An attribute, or `value_len` in bytes, is None if the token does not reveal it;
    `partner` is the HMAC key beside an AES key, None if there is none.
    """

    ref: KeyRef
    value_len: int | None
    attributes: dict[str, bool | None]
    partner: KeySeen | None = None


class Cipher(StrEnum):
    """Cipher that protects a record, as the record's algorithm field names it."""

    GCM = "aes-gcm"
    CBC_HMAC = "aes-cbc-hmac-sha256"


class Mechanism(StrEnum):
    """Way in which the token wraps: the cipher, and who generates the IV."""

    GCM_CALLER = "aes-gcm-caller-iv"
    GCM_TOKEN = "aes-gcm-token-iv"  # noqa: S105 - a PKCS#11 token
    GCM_APPENDED = "aes-gcm-appended-iv"
    CBC_HMAC = "aes-cbc-hmac-sha256"

    @property
    def cipher(self) -> Cipher:
        """Return the cipher of the records that this mechanism makes."""
        return Cipher.CBC_HMAC if self is Mechanism.CBC_HMAC else Cipher.GCM

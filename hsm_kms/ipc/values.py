"""Keys, tokens and mechanisms, as server and worker name them to each other."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class KeyRef(msgspec.Struct, frozen=True):
    """How a key is found again on any session: its CKA_LABEL and CKA_ID."""

    label: str
    cka_id: bytes

    @property
    def partner(self) -> KeyRef:
        """The HMAC key of a CBC + HMAC pair."""
        return KeyRef(f"{self.label}-hmac", self.cka_id + b"h")


class TokenSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One slot with a token in it, as C_GetTokenInfo describes it."""

    slot: int
    label: str
    serial: str
    manufacturer: str
    model: str
    flags: int
    max_sessions: int | None
    aes_mechanisms: tuple[str, ...] = ()


class KeySeen(msgspec.Struct, frozen=True, kw_only=True):
    """One key and the attributes the policy looks at; None: not readable.

    `partner` is the HMAC key beside an AES key, where there is one.
    """

    ref: KeyRef
    value_len: int | None
    attributes: dict[str, bool | None]
    partner: KeySeen | None = None


class Cipher(StrEnum):
    """What protects a record; the record's algorithm says which."""

    GCM = "aes-gcm"
    CBC_HMAC = "aes-cbc-hmac-sha256"


class Mechanism(StrEnum):
    """How the token wraps: the cipher, and who makes the IV."""

    GCM_CALLER = "aes-gcm-caller-iv"
    GCM_TOKEN = "aes-gcm-token-iv"  # noqa: S105 - a PKCS#11 token
    GCM_APPENDED = "aes-gcm-appended-iv"
    CBC_HMAC = "aes-cbc-hmac-sha256"

    @property
    def cipher(self) -> Cipher:
        """What protects the records it makes."""
        return Cipher.CBC_HMAC if self is Mechanism.CBC_HMAC else Cipher.GCM

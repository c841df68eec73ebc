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
    """Describe a slot with a token in it, as C_GetTokenInfo does.

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


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Say why a request failed, or why a key could not be identified.

    Args:
        cause: A `ckr.Fault` or a `ckr.Cause`.
        detail: A message without secrets: paths, names, the loader's message.
        function: The PKCS#11 function that failed; "" if none was called.
        rv: Its CK_RV; None if it returned none.
    """

    cause: str
    detail: str = ""
    function: str = ""
    rv: int | None = None


class KeySeen(msgspec.Struct, frozen=True, kw_only=True):
    r"""Describe a key by its attributes and its fingerprint, read from one handle.

    Args:
        ref: CKA_LABEL and CKA_ID. What is not UTF-8 in a label is shown as `\\xNN`.
        value_len: CKA_VALUE_LEN in bytes; None if the token does not reveal it.
        attributes: What the key policy checks; None if the token does not reveal one.
        partner: The HMAC key beside an AES key, with the fingerprint of the pair; None
            if there is none.
        fingerprint: The fingerprint of this key; None if it was not asked for, or if
            `problem` says why there is none.
        problem: Why the key, or the pair, could not be identified.
    """

    ref: KeyRef
    value_len: int | None
    attributes: dict[str, bool | None]
    partner: KeySeen | None = None
    fingerprint: str | None = None
    problem: Problem | None = None


class Cipher(StrEnum):
    """Name the cipher that protects a record, as its algorithm field does."""

    GCM = "aes-gcm"
    CBC_HMAC = "aes-cbc-hmac-sha256"


class Identify(StrEnum):
    """Name for which keys of a listing a fingerprint is computed: that uses the key."""

    ALWAYS = "always"  # for every key
    ONCE = "once"  # unless it was computed on the same handle of this session before
    NEVER = "never"  # for none: names and attributes alone


class KeptCanary(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a canary that outlives the worker that wrapped it.

    Args:
        cipher: The cipher that protects it.
        aad: Additional authenticated data.
        iv: The IV.
        ciphertext: Ciphertext and tag.
    """

    cipher: Cipher
    aad: bytes
    iv: bytes
    ciphertext: bytes


class Mechanism(StrEnum):
    """Name how the token wraps: the cipher, and who generates the IV."""

    GCM_CALLER = "aes-gcm-caller-iv"
    GCM_TOKEN = "aes-gcm-token-iv"  # noqa: S105 - a PKCS#11 token
    GCM_APPENDED = "aes-gcm-appended-iv"
    CBC_HMAC = "aes-cbc-hmac-sha256"

    @property
    def cipher(self) -> Cipher:
        """Return the cipher of the records that this mechanism makes."""
        return Cipher.CBC_HMAC if self is Mechanism.CBC_HMAC else Cipher.GCM

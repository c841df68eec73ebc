"""Which KEKs we hold, which one is current, and what their key_ids are.

docs/spec.md has the exact bytes of fingerprint, key_id and CKA_ID.

1. A key_id follows from key material alone (and a configured suffix): it is the same
   on every node, and no other key ever has it.
2. The key last current on this node stays current; if it is gone, nothing takes its
   place until `keys.current` says so.
3. A key that breaks the policy is never used to encrypt; whatever it wrapped before
   can still be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    HsmKmsError,
    KeyAmbiguousError,
    KeyLostError,
    KeyNotFoundError,
    KeyUnsuitableError,
    UnknownKeyIdError,
)
from hsm_kms.worker.values import Cipher, KeyRef, KeySeen, Mechanism

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KEY_BYTES: Final = 32
_GUARDED: Final = {"CKA_SENSITIVE": True, "CKA_EXTRACTABLE": False, "CKA_TOKEN": True}
_ENCRYPTS: Final = {"CKA_ENCRYPT": True, "CKA_DECRYPT": True}
_SIGNS: Final = {"CKA_SIGN": True, "CKA_VERIFY": True}
_BIRTH: Final = ("CKA_LOCAL", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """One KEK on the token.

    Args:
        ref: How a session finds it.
        fingerprint: 26 characters, from the key material.
        key_id: What Status announces and every record carries.
        cipher: What its records are protected by. An AES key with an HMAC key beside
            it is two KEKs: alone for GCM, and as a pair.
        mechanism: How this token wraps under it; None: it can only be named here.
        activation: Seconds since the Unix epoch; 0 for a key not made by us.
        offences: What the policy has against it, in words.
        born_here: Made on the token, sensitive and never extractable since.
    """

    ref: KeyRef
    fingerprint: str
    key_id: str
    cipher: Cipher
    mechanism: Mechanism | None
    activation: int
    offences: tuple[str, ...]
    born_here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """The `keys` section, and whether the token wants a login.

    Args:
        label: CKA_LABEL of the KEKs; None: any.
        ids: Their CKA_IDs; empty: any.
        fingerprint: "block" or "cka_id".
        current: key_id or fingerprint of the key to use, or None.
        suffix: Appended to the fingerprint as ".suffix", or None.
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
    enforce: bool = True
    private: bool = True
    mechanism: str = "auto"
    gcm_iv: str = "auto"

    @property
    def which(self) -> str:
        """How the KEKs are told from other keys, in words."""
        labelled = [] if self.label is None else [f"labelled {self.label!r}"]
        return " and ".join(labelled + (["in keys.ids"] if self.ids else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """A snapshot of the keys on the token.

    Args:
        keys: Every key found by the label, or by the listed CKA_IDs.
        current: The one to encrypt under, or None.
        fault: Why there is none, or why it must not be used.
    """

    keys: tuple[TokenKey, ...]
    current: TokenKey | None
    fault: HsmKmsError | None

    def for_encrypt(self) -> TokenKey:
        """The current key.

        Raises:
            HsmKmsError: There is none, or the policy forbids it.
        """
        if self.fault is not None:
            raise self.fault.with_traceback(None)  # shared by all who ask
        if self.current is None:
            raise KeyNotFoundError("there is no current key")
        return self.current

    def for_decrypt(self, key_id: str, cipher: Cipher) -> TokenKey:
        """The key a record names; found by fingerprint, whatever its suffix.

        Args:
            key_id: The record's.
            cipher: The record's.

        Raises:
            UnknownKeyIdError: No key held here has this fingerprint.
        """
        fingerprint = key_id.partition(".")[0]
        for key in self.keys:
            if key.fingerprint == fingerprint and key.cipher is cipher:
                return key
        raise UnknownKeyIdError("no key with this key_id is held here")


def choose(
    keys: Sequence[TokenKey], last: str | None, settings: KeySettings
) -> tuple[TokenKey | None, HsmKmsError | None]:
    """Which key is current, and what speaks against using it.

    Args:
        keys: The keys found.
        last: key_id last current on this node, or None.
        settings: The configuration.
    """
    if settings.current is not None:
        return _configured(keys, settings.current, settings)
    if last is not None:
        return _as_before(keys, last, settings)
    if not keys:
        return None, KeyNotFoundError(
            f"no AES key {settings.which} is on the token",
            hint="correct keys.ids"
            if settings.ids
            else "make one with `hsm-kms keys generate`",
        )
    if len(keys) > 1:
        return None, _several(keys, settings)
    return keys[0], _forbidden(keys[0], settings)


def _configured(
    keys: Sequence[TokenKey], wanted: str, settings: KeySettings
) -> tuple[TokenKey | None, HsmKmsError | None]:
    fingerprint = wanted.partition(".")[0]
    for key in keys:
        if key.fingerprint == fingerprint:
            return key, _forbidden(key, settings)
    return None, KeyLostError(
        f"keys.current names {wanted}, and no such key is on the token",
        hint="see `hsm-kms keys list`, and correct keys.current",
    )


def _as_before(
    keys: Sequence[TokenKey], last: str, settings: KeySettings
) -> tuple[TokenKey | None, HsmKmsError | None]:
    fingerprint = last.partition(".")[0]
    for key in keys:
        if key.fingerprint == fingerprint:
            if len(keys) > 1:
                return key, _several(keys, settings)
            return key, _forbidden(key, settings)
    return None, KeyLostError(
        f"the key last current here, {last}, is not on the token any more",
        hint="restore the token, or name another key in keys.current",
    )


def _several(keys: Sequence[TokenKey], settings: KeySettings) -> KeyAmbiguousError:
    ids = ", ".join(key.key_id for key in keys)
    return KeyAmbiguousError(
        f"{len(keys)} keys are {settings.which}: {ids}",
        hint="name the one to encrypt with in keys.current",
    )


def _forbidden(key: TokenKey, settings: KeySettings) -> HsmKmsError | None:
    if not key.offences or not settings.enforce:
        return None
    return KeyUnsuitableError(
        f"key {key.key_id} breaks the policy: {', '.join(key.offences)}",
        hint="make a key with `hsm-kms keys generate`, or set keys.policy: warn",
    )


def offences(seen: KeySeen, cipher: Cipher, settings: KeySettings) -> tuple[str, ...]:
    """What the policy has against a key, as attribute and value.

    Args:
        seen: The AES key, and its partner where there is one.
        cipher: What it would be used for.
        settings: The configuration.
    """
    private = {"CKA_PRIVATE": True} if settings.private else {}
    found = [*_against(seen, _GUARDED | _ENCRYPTS | private)]
    if cipher is Cipher.CBC_HMAC and seen.partner is not None:
        partner = _against(seen.partner, _GUARDED | _SIGNS | private)
        found += [f"{offence} (HMAC key)" for offence in partner]
    return tuple(found)


def _against(seen: KeySeen, wanted: dict[str, bool]) -> Iterator[str]:
    if seen.value_len != _KEY_BYTES:
        length = "unknown" if seen.value_len is None else f"{seen.value_len} bytes"
        yield f"CKA_VALUE_LEN is {length}, not {_KEY_BYTES} bytes"
    for name, value in wanted.items():
        is_ = seen.attributes.get(name)
        if is_ is not value:
            yield f"{name} is {'not readable' if is_ is None else is_}"


def born_here(seen: KeySeen) -> bool:
    """Made on the token, and sensitive and never extractable since."""
    keys = (seen,) if seen.partner is None else (seen, seen.partner)
    return all(key.attributes.get(name) is True for key in keys for name in _BIRTH)

"""Check a KEK against the key policy, and tell whether the token generated it.

The attributes are what the token reports: anyone who can forge them controls the token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.ipc.values import Cipher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.keys.token_key import KeySettings

_KEY_BYTES: Final = 32
_GUARDED: Final = {"CKA_SENSITIVE": True, "CKA_EXTRACTABLE": False, "CKA_TOKEN": True}
_ENCRYPTS: Final = {"CKA_ENCRYPT": True, "CKA_DECRYPT": True}
_SIGNS: Final = {"CKA_SIGN": True, "CKA_VERIFY": True}
_BIRTH: Final = ("CKA_LOCAL", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE")


def violations(seen: KeySeen, cipher: Cipher, settings: KeySettings) -> tuple[str, ...]:
    """Return how a key violates the policy, each as attribute and value.

    Args:
        seen: The AES key, with its HMAC key if it has one.
        cipher: The cipher that the key would be used for.
        settings: The configuration.
    """
    private = {"CKA_PRIVATE": True} if settings.private else {}
    found = [*_against(seen, _GUARDED | _ENCRYPTS | private)]
    if cipher is Cipher.CBC_HMAC and seen.partner is not None:
        partner = _against(seen.partner, _GUARDED | _SIGNS | private)
        found += [f"{violation} (HMAC key)" for violation in partner]
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
    """Return True if the token generated the key and has never let it out.

    That is CKA_LOCAL, CKA_ALWAYS_SENSITIVE and CKA_NEVER_EXTRACTABLE.
    """
    keys = (seen,) if seen.partner is None else (seen, seen.partner)
    return all(key.attributes.get(name) is True for key in keys for name in _BIRTH)

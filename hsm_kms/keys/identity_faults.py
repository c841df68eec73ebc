"""Say why the last current key is not the key that has its place now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.errors import HsmKmsError, KeyLostError, KeyReplacedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.keys.rotation import Memory
    from hsm_kms.keys.token_key import (
        TokenKey,
        UnidentifiedKey,
    )


def replaced(keys: Sequence[TokenKey], memory: Memory) -> HsmKmsError | None:
    """Return the error if another key has the names of the last current key."""
    for key in keys:
        if key.ref == memory.ref:
            return KeyReplacedError(
                f"key {key.key_id} has the CKA_LABEL and CKA_ID of the key last "
                f"current here, {memory.last}",
                hint=f"give them back to {memory.last}, or name the key to encrypt "
                "with in keys.current",
            )
    return None


def unidentified_last(
    unidentified: Sequence[UnidentifiedKey], memory: Memory
) -> HsmKmsError | None:
    """Return the error if the last current key may be there, unidentified."""
    for each in unidentified:
        if each.ref == memory.ref:
            return KeyLostError(
                f"the last current key, {memory.last}, is not found, and {each.error}",
                hint=each.error.hint,
            )
    return None


def distrusted(key: TokenKey, memory: Memory) -> HsmKmsError | None:
    """Return the error if a key does not decrypt what it wrapped before."""
    if key.name not in memory.distrusted or key.key_id != memory.last:
        return None
    return KeyReplacedError(
        f"the key that has the CKA_ID of the last current key, {memory.last}, "
        "does not decrypt the canary kept from before: it is another key",
        hint="restore the key, name another one in keys.current, or set keys.suffix "
        "to a value never used",
    )


def no_longer_born_here(key: TokenKey, memory: Memory) -> HsmKmsError | None:
    """Return the error if a key was generated on the token, and now was not."""
    if key.born_here or not memory.born_here:
        return None
    return KeyReplacedError(
        f"the last current key, {memory.last}, was generated on the token, and "
        f"the key that has its place now, {key.key_id}, was imported",
        hint="restore the key, or name the key to encrypt with in keys.current",
    )

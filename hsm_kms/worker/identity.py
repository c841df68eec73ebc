"""Tell which key an object handle stands for, by what the key computes.

1. A handle is used only for the key whose fingerprint was computed on it. Label and
   CKA_ID only say where to look: several objects may bear them, one after the other
   or at once.
2. A fingerprint is computed once for each handle that a session finds.
3. With `keys.fingerprint: cka_id` there is nothing to compute: then the one object
   with the names is the key, and two of them cannot be told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pkcs11 import KeyType

from hsm_kms.ipc.ckr import Cause
from hsm_kms.ipc.fingerprints import (
    FINGERPRINT_BLOCK,
    fingerprint_of,
    fingerprint_of_cka_id,
)
from hsm_kms.ipc.values import KeySeen
from hsm_kms.worker import search
from hsm_kms.worker.errors import WorkerError
from hsm_kms.worker.mechanisms import Keyed, encrypt_block

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hsm_kms.ipc.messages import GenerateSessionKey
    from hsm_kms.ipc.values import KeyRef
    from hsm_kms.worker.cryptoki import Cryptoki

_T = TypeVar("_T")


def compute(on: Keyed) -> str:
    """Return the fingerprint of a key, or of a pair if `on` has an HMAC key.

    Raises:
        WorkerError: The token failed, or refuses the mechanisms with this key.
    """
    block = encrypt_block(on.c, on.session, on.key, FINGERPRINT_BLOCK)
    if on.mac is None:
        return fingerprint_of(block)
    mac = on.c.sign_hmac(on.session, on.mac, FINGERPRINT_BLOCK)
    return fingerprint_of(block, mac)


def describe_own(on: Keyed, request: GenerateSessionKey, *, by_cka_id: bool) -> KeySeen:
    """Return a key that the session generated for itself, with its fingerprint.

    Raises:
        WorkerError: The token failed, or refuses the mechanisms with this key.
    """
    ref = request.ref
    name = fingerprint_of_cka_id(ref.cka_id) if by_cka_id else compute(on)
    return KeySeen(ref=ref, value_len=None, attributes={}, fingerprint=name)


def find(
    c: Cryptoki, session: int, ref: KeyRef, fingerprint: str, *, paired: bool
) -> Keyed:
    """Return the key that has these names and this fingerprint.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        ref: CKA_LABEL and CKA_ID of the AES key.
        fingerprint: Fingerprint of the key; if `paired`, of the pair.
        paired: Find the HMAC key beside the AES key, too.

    Raises:
        WorkerError: No key has these names, or none of those that have them has this
            fingerprint; or the token failed with one of them and the others are other
            keys.
    """
    failed: WorkerError | None = None
    found = ""
    for on in candidates(c, session, ref, paired=paired):
        try:
            found = compute(on)
        except WorkerError as error:
            failed = failed or error
            continue
        if found == fingerprint:
            return on
    raise failed or other_key(ref, f"it is {found}, not {fingerprint}")


def find_by_names(
    c: Cryptoki, session: int, ref: KeyRef, fingerprint: str, *, paired: bool
) -> Keyed:
    """Return the one key that has these names, if the fingerprint is of its CKA_ID.

    Raises:
        WorkerError: No key has these names, or several do, or the fingerprint is that
            of another CKA_ID; or the token failed.
    """
    on = the_one([*candidates(c, session, ref, paired=paired)], ref)
    if fingerprint_of_cka_id(ref.cka_id) != fingerprint:
        raise other_key(ref, f"its CKA_ID does not make {fingerprint}")
    return on


def candidates(
    c: Cryptoki, session: int, ref: KeyRef, *, paired: bool
) -> Iterator[Keyed]:
    """Yield every key, or pair of keys, that has these names.

    Raises:
        WorkerError: There is none, or the token could not be searched.
    """
    keys = search.find_keys(c, session, ref, KeyType.AES)
    partner = ref.partner
    macs: list[int | None] = [None]
    if paired:
        macs = [*search.find_keys(c, session, partner, KeyType.GENERIC_SECRET)]
    if not keys or not macs:
        raise no_key(partner if keys else ref)
    for key in keys:
        for mac in macs:
            yield Keyed(c=c, session=session, key=key, mac=mac)


def the_one(found: Sequence[_T], ref: KeyRef) -> _T:
    """Return the only key found.

    Args:
        found: The keys, or their handles.
        ref: Names that they have.

    Raises:
        WorkerError: There is none, or there are several.
    """
    if not found:
        raise no_key(ref)
    if len(found) > 1:
        raise several_keys(ref, len(found))
    return found[0]


def no_key(ref: KeyRef) -> WorkerError:
    """Return the error for names that no key has."""
    return WorkerError(Cause.NO_KEY, f"no key {_names(ref)}")


def several_keys(ref: KeyRef, count: int) -> WorkerError:
    """Return the error for names that several keys have."""
    return WorkerError(Cause.SEVERAL_KEYS, f"{count} keys {_names(ref)}")


def other_key(ref: KeyRef, detail: str) -> WorkerError:
    """Return the error for names that another key has than the one that is meant."""
    return WorkerError(
        Cause.OTHER_KEY, f"the key {_names(ref)} is another one: {detail}"
    )


def _names(ref: KeyRef) -> str:
    return f"labelled {ref.label!r} with CKA_ID {ref.cka_id.hex() or '(empty)'}"

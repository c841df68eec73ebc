"""Find, generate, relabel and destroy single keys on the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.exceptions import PKCS11Error

from hsm_kms.ipc.ckr import Cause
from hsm_kms.ipc.values import KeyRef
from hsm_kms.worker.errors import WorkerError, from_pkcs11
from hsm_kms.worker.listing import describe, find, named

if TYPE_CHECKING:
    from pkcs11 import Session
    from pkcs11.types import Object

    from hsm_kms.ipc.messages import Destroy, GenerateKey, Relabel
    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.worker.cryptoki import Cryptoki

KEY_BYTES: Final = 32


def find_handle(
    c: Cryptoki, session: int, ref: KeyRef, kind: KeyType = KeyType.AES
) -> int:
    """Return the CK_OBJECT_HANDLE of the one key with this CKA_LABEL and CKA_ID.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        ref: CKA_LABEL and CKA_ID of the key.
        kind: CKK_AES, or CKK_GENERIC_SECRET for an HMAC key.

    Raises:
        WorkerError: The token holds no such key, or several.
    """
    found = find(c, session, named(ref), kind)
    return found[0] if len(found) == 1 else _not_one(ref, len(found))


def generate(c: Cryptoki, session: Session, request: GenerateKey) -> KeySeen | None:
    """Generate a key of 256 bits: sensitive, never extractable, modifiable.

    CKA_MODIFIABLE lets `keys retire` change the label later. It gives no access to the
    value, which CKA_SENSITIVE and CKA_EXTRACTABLE protect permanently.

    Args:
        c: The module.
        session: A read-write session.
        request: The key to generate: AES, or HMAC (CKK_GENERIC_SECRET).

    Returns:
        The key as the token describes it; None if the token does not name it.

    Raises:
        WorkerError: C_GenerateKey failed.
    """
    kind, capabilities = (
        (KeyType.GENERIC_SECRET, MechanismFlag.SIGN | MechanismFlag.VERIFY)
        if request.partner
        else (KeyType.AES, MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT)
    )
    own = request.ref.partner if request.partner else request.ref
    try:
        key = session.generate_key(
            kind,
            KEY_BYTES * 8,
            id=own.cka_id,
            label=own.label,
            store=True,
            capabilities=capabilities,
            template={
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.PRIVATE: request.private,
                Attribute.MODIFIABLE: True,
            },
        )
    except PKCS11Error as error:
        raise from_pkcs11("C_GenerateKey", error) from None
    return describe(c, handle_of(session), handle_of(key))


def relabel(session: Session, request: Relabel) -> None:
    """Change the CKA_LABEL of a key, on a read-write session.

    Raises:
        WorkerError: There is no such key, or C_SetAttributeValue failed.
    """
    after = KeyRef(request.label, request.ref.cka_id)
    key = _one_of_two(session, request.ref, partner=request.partner)
    try:
        key[Attribute.LABEL] = after.partner.label if request.partner else after.label
    except PKCS11Error as error:
        raise from_pkcs11("C_SetAttributeValue", error) from None


def destroy(session: Session, request: Destroy) -> None:
    """Destroy a key, on a read-write session.

    Raises:
        WorkerError: There is no such key, or C_DestroyObject failed.
    """
    key = _one_of_two(session, request.ref, partner=request.partner)
    try:
        key.destroy()
    except PKCS11Error as error:
        raise from_pkcs11("C_DestroyObject", error) from None


def _one_of_two(session: Session, ref: KeyRef, *, partner: bool) -> Object:
    """Return the AES key, or the HMAC key that belongs to it."""
    if partner:
        return _only(session, ref.partner, KeyType.GENERIC_SECRET)
    return _only(session, ref, KeyType.AES)


def _only(session: Session, ref: KeyRef, kind: KeyType) -> Object:
    whole = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: kind,
        Attribute.TOKEN: True,
        Attribute.LABEL: ref.label,
        Attribute.ID: ref.cka_id,
    }
    try:
        # A list at once: while the generator lives, the session is in C_FindObjects.
        keys = list(session.get_objects(whole))
    except PKCS11Error as error:
        raise from_pkcs11("C_FindObjects", error) from None
    return keys[0] if len(keys) == 1 else _not_one(ref, len(keys))


def _not_one(ref: KeyRef, count: int) -> NoReturn:
    names = f"labelled {ref.label!r} with CKA_ID {ref.cka_id.hex() or '(empty)'}"
    if not count:
        raise WorkerError(Cause.NO_KEY, f"no key {names}")
    raise WorkerError(Cause.SEVERAL_KEYS, f"{count} keys {names}")


def handle_of(thing: Session | Object) -> int:
    """Return the CK_SESSION_HANDLE or CK_OBJECT_HANDLE of a python-pkcs11 object."""
    handle: int = thing.handle  # type: ignore[union-attr, assignment]
    return handle

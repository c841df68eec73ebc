"""Keys on the token: find, generate, read the attributes the policy looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.exceptions import ObjectHandleInvalid, PKCS11Error

from hsm_kms.worker.failures import Cause, WorkerError, from_pkcs11
from hsm_kms.worker.values import KeyRef, KeySeen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pkcs11 import Session
    from pkcs11.types import Object

    from hsm_kms.worker.messages import GenerateKey

KEY_BYTES: Final = 32

_FLAGS: Final = {
    "CKA_SENSITIVE": Attribute.SENSITIVE,
    "CKA_EXTRACTABLE": Attribute.EXTRACTABLE,
    "CKA_ENCRYPT": Attribute.ENCRYPT,
    "CKA_DECRYPT": Attribute.DECRYPT,
    "CKA_SIGN": Attribute.SIGN,
    "CKA_VERIFY": Attribute.VERIFY,
    "CKA_TOKEN": Attribute.TOKEN,
    "CKA_PRIVATE": Attribute.PRIVATE,
    "CKA_LOCAL": Attribute.LOCAL,
    "CKA_ALWAYS_SENSITIVE": Attribute.ALWAYS_SENSITIVE,
    "CKA_NEVER_EXTRACTABLE": Attribute.NEVER_EXTRACTABLE,
}


def list_keys(
    session: Session, label: str | None, ids: Sequence[bytes] = ()
) -> tuple[KeySeen, ...]:
    """Every AES key on the token with this CKA_LABEL, and one of these CKA_IDs.

    An object that vanishes while it is being listed is left out, and so is a key
    that could never be found again because its label is not UTF-8.

    Args:
        session: Logged in, where that is needed to see the keys.
        label: CKA_LABEL; None: any.
        ids: CKA_IDs; empty: any.
    """
    labelled: dict[Attribute, object] = (
        {} if label is None else {Attribute.LABEL: label}
    )
    templates = [{**labelled, Attribute.ID: each} for each in ids] or [labelled]
    found = []
    for key in (key for each in templates for key in _search(session, each)):
        try:
            own = str(key[Attribute.LABEL]) if label is None else label
            found.append(_with_partner(session, _describe(key, own)))
        except (ObjectHandleInvalid, UnicodeDecodeError):
            continue
        except PKCS11Error as error:
            raise from_pkcs11("C_GetAttributeValue", error) from None
    return tuple(found)


def find_handle(session: Session, ref: KeyRef, kind: KeyType = KeyType.AES) -> int:
    """CK_OBJECT_HANDLE of the one key with this CKA_LABEL and CKA_ID.

    Raises:
        WorkerError: None, or more than one.
    """
    keys = _search(session, _template(ref), kind)
    name = f"key labelled {ref.label!r} with CKA_ID {ref.cka_id.hex() or '(empty)'}"
    if not keys:
        raise WorkerError(Cause.NO_KEY, f"no {name}")
    if len(keys) > 1:
        raise WorkerError(Cause.SEVERAL_KEYS, f"{len(keys)} times a {name}")
    handle: int = keys[0].handle  # type: ignore[assignment]
    return handle


def generate(session: Session, request: GenerateKey) -> KeySeen:
    """C_GenerateKey: 256 bits, sensitive, never extractable, modifiable.

    CKA_MODIFIABLE lets a later `keys retire` change the label; it gives no way to
    the value, which CKA_SENSITIVE and CKA_EXTRACTABLE guard for good.

    Args:
        session: Read-write.
        request: What to make: the AES key, or the HMAC key (CKK_GENERIC_SECRET).
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
        return _describe(key, own.label)
    except PKCS11Error as error:
        raise from_pkcs11("C_GenerateKey", error) from None


def _with_partner(session: Session, seen: KeySeen) -> KeySeen:
    """Add the HMAC key that belongs to an AES key, where there is exactly one."""
    keys = _search(session, _template(seen.ref.partner), KeyType.GENERIC_SECRET)
    if len(keys) != 1:
        return seen
    partner = _describe(keys[0], seen.ref.partner.label)
    return msgspec.structs.replace(seen, partner=partner)


def _template(ref: KeyRef) -> dict[Attribute, object]:
    return {Attribute.LABEL: ref.label, Attribute.ID: ref.cka_id}


def _search(
    session: Session,
    template: dict[Attribute, object],
    kind: KeyType = KeyType.AES,
) -> list[Object]:
    whole = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: kind,
        Attribute.TOKEN: True,
        **template,
    }
    try:
        # A list, at once: the generator holds an active C_FindObjects.
        return list(session.get_objects(whole))
    except PKCS11Error as error:
        raise from_pkcs11("C_FindObjects", error) from None


def _describe(key: Object, label: str) -> KeySeen:
    return KeySeen(
        ref=KeyRef(label, bytes(key[Attribute.ID])),
        value_len=_read(key, Attribute.VALUE_LEN),
        attributes={name: _flag(key, which) for name, which in _FLAGS.items()},
    )


def _flag(key: Object, attribute: Attribute) -> bool | None:
    value = _read(key, attribute)
    return None if value is None else bool(value)


def _read(key: Object, attribute: Attribute) -> int | None:
    """One attribute, None where this token does not tell it."""
    try:
        value: int = key[attribute]
    except ObjectHandleInvalid:
        raise
    except PKCS11Error as error:
        if from_pkcs11("C_GetAttributeValue", error).cause != "operator":
            raise
        return None
    return value

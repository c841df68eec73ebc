"""Generate, relabel and destroy single keys on the token."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_ulong, c_void_p
from typing import TYPE_CHECKING, Final

from pkcs11 import Attribute, KeyType, MechanismFlag
from pkcs11.exceptions import PKCS11Error

from hsm_kms.ipc.values import KeyRef
from hsm_kms.worker.attributes import describe
from hsm_kms.worker.errors import from_pkcs11
from hsm_kms.worker.mechanisms import Keyed
from hsm_kms.worker.structs import CkAttribute

if TYPE_CHECKING:
    from pkcs11 import Session
    from pkcs11.types import Object

    from hsm_kms.ipc.messages import GenerateKey, GenerateSessionKey, Relabel
    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.worker.cryptoki import Cryptoki

KEY_BYTES: Final = 32


def generate(c: Cryptoki, session: Session, request: GenerateKey) -> KeySeen | None:
    """Generate a key of 256 bits: sensitive, never extractable, modifiable.

    CKA_MODIFIABLE lets `keys retire` change the label later. It gives no access to the
    value, which CKA_SENSITIVE and CKA_EXTRACTABLE protect permanently.

    Args:
        c: The module.
        session: A read-write session.
        request: The key to generate: AES, or HMAC (CKK_GENERIC_SECRET).

    Returns:
        The key as the token describes it, without its fingerprint; None if the token
        does not name it.

    Raises:
        WorkerError: C_GenerateKey failed.
    """
    key = _generate(session, request, store=True, partner=request.partner)
    return describe(c, handle_of(session), key)


def generate_own(c: Cryptoki, session: Session, request: GenerateSessionKey) -> Keyed:
    """Generate a key, or a pair, that the token destroys when the session closes.

    Args:
        c: The module.
        session: Any session.
        request: The key to generate.

    Raises:
        WorkerError: C_GenerateKey failed.
    """
    return Keyed(
        c=c,
        session=handle_of(session),
        key=_generate(session, request, store=False, partner=False),
        mac=_generate(session, request, store=False, partner=True)
        if request.paired
        else None,
    )


def _generate(
    session: Session,
    request: GenerateKey | GenerateSessionKey,
    *,
    store: bool,
    partner: bool,
) -> int:
    """Generate one object and return its CK_OBJECT_HANDLE.

    Raises:
        WorkerError: C_GenerateKey failed.
    """
    kind, capabilities = (
        (KeyType.GENERIC_SECRET, MechanismFlag.SIGN | MechanismFlag.VERIFY)
        if partner
        else (KeyType.AES, MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT)
    )
    own = request.ref.partner if partner else request.ref
    try:
        key = session.generate_key(
            kind,
            KEY_BYTES * 8,
            id=own.cka_id,
            label=own.label,
            store=store,
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
    return handle_of(key)


def relabel(c: Cryptoki, session: int, key: int, request: Relabel) -> None:
    """Change the CKA_LABEL of a key.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE of a read-write session.
        key: CK_OBJECT_HANDLE.
        request: The new label.

    Raises:
        WorkerError: C_SetAttributeValue failed.
    """
    after = KeyRef(request.label, request.ref.cka_id)
    label = (after.partner if request.partner else after).label.encode()
    value = ctypes.create_string_buffer(label, len(label) or 1)
    new = CkAttribute(Attribute.LABEL, ctypes.cast(value, c_void_p), len(label))
    c.call(
        *("C_SetAttributeValue", c_ulong(session), c_ulong(key)),
        *(byref(new), c_ulong(1)),
    )


def destroy(c: Cryptoki, session: int, key: int) -> None:
    """Destroy a key.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE of a read-write session.
        key: CK_OBJECT_HANDLE.

    Raises:
        WorkerError: C_DestroyObject failed.
    """
    c.call("C_DestroyObject", c_ulong(session), c_ulong(key))


def handle_of(thing: Session | Object) -> int:
    """Return the CK_SESSION_HANDLE or CK_OBJECT_HANDLE of a python-pkcs11 object."""
    handle: int = thing.handle  # type: ignore[union-attr, assignment]
    return handle

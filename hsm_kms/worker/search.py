"""Find objects and read their attributes in as few C calls as possible.

python-pkcs11 makes two calls for each attribute and a dozen for each object found,
and for a network HSM each is a round trip.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_ubyte, c_ulong, c_void_p
from typing import TYPE_CHECKING, Final

from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_kms.ipc import ckr
from hsm_kms.worker.errors import WorkerError
from hsm_kms.worker.structs import CkAttribute

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hsm_kms.ipc.values import KeyRef
    from hsm_kms.worker.cryptoki import Cryptoki

MOST_AT_ONCE: Final = 256
BUFFER_BYTES: Final = 1024
_ULONG_BYTES: Final = ctypes.sizeof(c_ulong)
# NSS writes a CK_ULONG only into a buffer of exactly its size.
_EXACT: Final[dict[int, int]] = {Attribute.VALUE_LEN: _ULONG_BYTES}
_BLANK: Final = 0xFF  # what a buffer holds that no module has touched


# These say nothing about the attribute that was read.
_NOT_THE_ATTRIBUTE: Final = frozenset({ckr.Fault.LOGIN, ckr.Fault.SESSION})


def find_keys(c: Cryptoki, session: int, ref: KeyRef, kind: KeyType) -> list[int]:
    """Return the CK_OBJECT_HANDLE of every secret key with this CKA_LABEL and CKA_ID.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        ref: CKA_LABEL and CKA_ID.
        kind: CKK_AES, or CKK_GENERIC_SECRET for HMAC keys.

    Raises:
        WorkerError: The token could not be searched.
    """
    names: dict[int, bytes] = {
        Attribute.LABEL: ref.label.encode(),
        Attribute.ID: ref.cka_id,
    }
    return find_secret(c, session, names, kind)


def find_secret(
    c: Cryptoki, session: int, template: Mapping[int, bytes], kind: KeyType
) -> list[int]:
    """Return the CK_OBJECT_HANDLE of every matching secret key of one type.

    Raises:
        WorkerError: The token could not be searched.
    """
    whole = {
        Attribute.CLASS: ulong(ObjectClass.SECRET_KEY),
        Attribute.KEY_TYPE: ulong(kind),
        Attribute.TOKEN: b"\1",
        **template,
    }
    return find(c, session, whole)


def find(c: Cryptoki, session: int, template: Mapping[int, bytes]) -> list[int]:
    """Return the CK_OBJECT_HANDLE of every object that matches.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        template: Values by CKA number, in the bytes that C_FindObjectsInit expects.

    Raises:
        WorkerError: C_FindObjectsInit or C_FindObjects failed.
    """
    keep = [
        (c_ubyte * len(value)).from_buffer_copy(value) for value in template.values()
    ]
    wanted = (CkAttribute * len(template))(
        *(
            CkAttribute(kind, ctypes.cast(value, c_void_p), len(value))
            for kind, value in zip(template, keep, strict=True)
        )
    )
    c.call("C_FindObjectsInit", c_ulong(session), wanted, c_ulong(len(template)))
    found: list[int] = []
    try:
        while True:
            handles, count = (c_ulong * MOST_AT_ONCE)(), c_ulong()
            c.call(
                *("C_FindObjects", c_ulong(session), handles),
                *(c_ulong(MOST_AT_ONCE), byref(count)),
            )
            found += handles[: min(count.value, MOST_AT_ONCE)]
            if count.value == 0:
                return found
    finally:
        _final(c, session)


def _final(c: Cryptoki, session: int) -> None:
    try:
        c.call("C_FindObjectsFinal", c_ulong(session))
    except WorkerError:
        return  # the search itself has succeeded, or its own error is on its way


def read(
    c: Cryptoki, session: int, handle: int, kinds: Sequence[int]
) -> dict[int, bytes | None]:
    """Return attribute values by CKA number; None if one cannot be read.

    The token does not reveal it, or fails for this attribute alone.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        handle: CK_OBJECT_HANDLE.
        kinds: CKA numbers; a value may have up to `BUFFER_BYTES` - 1 bytes.

    Raises:
        WorkerError: No attribute can be read: the object, the session or the token
            is gone.
    """
    values: dict[int, bytes | None] = dict.fromkeys(kinds)
    failed: WorkerError | None = None
    try:
        values, singly = _read_at_once(c, session, handle, kinds)
    except WorkerError as error:
        if error.cause in _NOT_THE_ATTRIBUTE:
            raise
        failed, singly = error, list(kinds)
    # Some modules stop at the first attribute that they do not reveal, and some fail
    # as a whole.
    for kind in singly:
        try:
            values |= _read_at_once(c, session, handle, [kind])[0]
        except WorkerError as error:
            if error.cause in _NOT_THE_ATTRIBUTE:
                raise
            failed = error
    if failed is not None and not any(value is not None for value in values.values()):
        raise failed
    return values


def _read_at_once(
    c: Cryptoki, session: int, handle: int, kinds: Sequence[int]
) -> tuple[dict[int, bytes | None], list[int]]:
    buffers = [(c_ubyte * _EXACT.get(kind, BUFFER_BYTES))() for kind in kinds]
    for buffer in buffers:
        ctypes.memset(buffer, _BLANK, len(buffer))
    asked = (CkAttribute * len(kinds))(
        *(
            CkAttribute(kind, ctypes.cast(buffer, c_void_p), len(buffer))
            for kind, buffer in zip(kinds, buffers, strict=True)
        )
    )
    partly = False
    try:
        c.call(
            *("C_GetAttributeValue", c_ulong(session), c_ulong(handle)),
            *(asked, c_ulong(len(kinds))),
        )
    except WorkerError as error:
        if error.cause != ckr.Fault.OPERATOR and error.rv != ckr.CKR_BUFFER_TOO_SMALL:
            raise
        partly = True  # the module does not reveal some; it wrote the others
    values: dict[int, bytes | None] = {}
    untouched: list[int] = []
    for kind, buffer, each in zip(kinds, buffers, asked, strict=True):
        length, size = each.ulValueLen, len(buffer)
        blank = length == size and bytes(buffer) == bytes([_BLANK]) * size
        told = length <= size and not blank
        values[kind] = bytes(buffer[:length]) if told else None
        if partly and blank and len(kinds) > 1:
            untouched.append(kind)
    return values, untouched


def ulong(value: int) -> bytes:
    """Return the bytes of a CK_ULONG for a template."""
    return bytes(c_ulong(value))


def number(value: bytes | None) -> int | None:
    """Return a CK_ULONG attribute as a number; None if it has another length.

    NSS returns fewer bytes than a CK_ULONG has.
    """
    if value is None or not 0 < len(value) <= _ULONG_BYTES:
        return None
    return int.from_bytes(value, sys.byteorder)


def flag(value: bytes | None) -> bool | None:
    """Return a CK_BBOOL attribute as a boolean; None if it has another length."""
    return None if value is None or len(value) != 1 else value != b"\0"

"""Find objects and read their attributes in as few C calls as there can be.

python-pkcs11 makes two calls for each attribute and a dozen for each object found,
which a network HSM answers one round trip at a time.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_ubyte, c_ulong, c_void_p
from typing import TYPE_CHECKING, Final

from pkcs11 import Attribute

from hsm_kms.ipc import ckr
from hsm_kms.worker.errors import WorkerError
from hsm_kms.worker.structs import CkAttribute

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hsm_kms.worker.cryptoki import Cryptoki

MOST_AT_ONCE: Final = 256
BUFFER_BYTES: Final = 1024
_ULONG_BYTES: Final = ctypes.sizeof(c_ulong)
# NSS tells a length only into a buffer of exactly its size.
_EXACT: Final[dict[int, int]] = {Attribute.VALUE_LEN: _ULONG_BYTES}
_BLANK: Final = 0xFF  # what a buffer holds that no module has touched


def find(c: Cryptoki, session: int, template: Mapping[int, bytes]) -> list[int]:
    """CK_OBJECT_HANDLE of every object that matches.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        template: Values by CKA number, as the module wants their bytes.

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
        return  # what matters was found, or failed before


def read(
    c: Cryptoki, session: int, handle: int, kinds: Sequence[int]
) -> dict[int, bytes | None]:
    """Values of attributes; None where the token does not tell one.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        handle: CK_OBJECT_HANDLE.
        kinds: CKA numbers; a value may have up to `BUFFER_BYTES` - 1 bytes.

    Raises:
        WorkerError: C_GetAttributeValue failed otherwise.
    """
    values, untouched = _read_at_once(c, session, handle, kinds)
    # Some modules stop at the first attribute that they do not tell.
    for kind in untouched:
        values |= _read_at_once(c, session, handle, [kind])[0]
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
        partly = True  # some attributes could not be told; the others were
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
    """A CK_ULONG as a template holds it."""
    return bytes(c_ulong(value))


def number(value: bytes | None) -> int | None:
    """A CK_ULONG as an attribute holds it, NSS' shorter ones too; None: it is none."""
    if value is None or not 0 < len(value) <= _ULONG_BYTES:
        return None
    return int.from_bytes(value, sys.byteorder)


def flag(value: bytes | None) -> bool | None:
    """A CK_BBOOL as an attribute holds it; None where it is none."""
    return None if value is None or len(value) != 1 else value != b"\0"

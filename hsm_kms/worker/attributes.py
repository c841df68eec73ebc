"""Read the attributes of a key that discovery and the key policy need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pkcs11 import Attribute

from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Cause
from hsm_kms.ipc.values import KeyRef, KeySeen, Problem
from hsm_kms.worker import search
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from hsm_kms.worker.cryptoki import Cryptoki

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
_READ: Final = (Attribute.LABEL, Attribute.ID, Attribute.VALUE_LEN, *_FLAGS.values())
_TOO_LONG: Final = (
    f"its {{}} is not readable, or longer than {search.BUFFER_BYTES - 1} bytes"
)


def describe(c: Cryptoki, session: int, handle: int) -> KeySeen | None:
    """Return a key with the attributes that the key policy checks.

    Returns None if the key no longer exists. `KeySeen.problem` is set if the key cannot
    be found by its names: its CKA_ID cannot be read, or its label is not UTF-8.

    Raises:
        WorkerError: The attributes could not be read.
    """
    try:
        values = search.read(c, session, handle, _READ)
    except WorkerError as error:
        if error.rv == ckr.CKR_OBJECT_HANDLE_INVALID:
            return None  # deleted since the search
        raise
    label, cka_id = values[Attribute.LABEL], values[Attribute.ID]
    return KeySeen(
        ref=KeyRef((label or b"").decode("utf-8", "backslashreplace"), cka_id or b""),
        value_len=search.number(values[Attribute.VALUE_LEN]),
        attributes={name: search.flag(values[which]) for name, which in _FLAGS.items()},
        problem=_unnamed(label, cka_id),
    )


def _unnamed(label: bytes | None, cka_id: bytes | None) -> Problem | None:
    """Return why a key cannot be found by its names; None if it can."""
    if label is None:
        return Problem(cause=Cause.UNNAMED, detail=_TOO_LONG.format("CKA_LABEL"))
    if cka_id is None:
        return Problem(cause=Cause.UNNAMED, detail=_TOO_LONG.format("CKA_ID"))
    try:
        label.decode()
    except UnicodeDecodeError:
        return Problem(cause=Cause.UNNAMED, detail="its CKA_LABEL is not UTF-8")
    return None

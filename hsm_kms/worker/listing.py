"""List the keys on a token, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_kms.ipc import ckr
from hsm_kms.ipc.messages import KeyPage
from hsm_kms.ipc.values import KeyRef, KeySeen
from hsm_kms.worker import search
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from hsm_kms.ipc.messages import FindKeys
    from hsm_kms.worker.cryptoki import Cryptoki

_PAGE_BYTES: Final = 64 * 1024  # the last key of a page may exceed it

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


class Listing:
    """The objects that one search found, described page by page.

    A page leaves out an object that was deleted meanwhile, and a key that could not be
    found again: its label is not UTF-8, or a name is too long for `search.read`.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE, logged in if the token needs that to show the keys.
        wanted: The keys to search for.

    Raises:
        WorkerError: The token could not be searched.
    """

    def __init__(self, c: Cryptoki, session: int, wanted: FindKeys) -> None:
        self._c = c
        self._session = session
        self._wanted = wanted
        labelled: dict[int, bytes] = {}
        if wanted.label is not None and not wanted.prefix:
            labelled[Attribute.LABEL] = wanted.label.encode()
        templates = [{**labelled, Attribute.ID: each} for each in wanted.ids]
        kind = KeyType.GENERIC_SECRET if wanted.partners else KeyType.AES
        self._found = [
            handle
            for each in templates or [labelled]
            for handle in find(c, session, each, kind)
        ]
        self._has_partners = not wanted.partners and bool(
            find(c, session, {}, KeyType.GENERIC_SECRET)
        )

    def page(self, skip: int, limit: int) -> KeyPage:
        """Describe the next objects.

        Args:
            skip: Number of objects on the pages before.
            limit: Largest number of objects on this page; the page ends earlier if
                the message would become too long.

        Raises:
            WorkerError: The attributes could not be read.
        """
        keys: list[KeySeen] = []
        room = _PAGE_BYTES
        position = skip
        end = min(skip + limit, len(self._found))
        while position < end and room > 0:
            seen = self._look(self._found[position])
            position += 1
            if seen is not None:
                keys.append(seen)
                room -= len(msgspec.msgpack.encode(seen))
        more = position < len(self._found)
        return KeyPage(keys=tuple(keys), next=position if more else None)

    def _look(self, handle: int) -> KeySeen | None:
        seen = describe(self._c, self._session, handle)
        if seen is None or not seen.ref.label.startswith(self._wanted.label or ""):
            return None
        return self._with_partner(seen) if self._has_partners else seen

    def _with_partner(self, seen: KeySeen) -> KeySeen:
        """Return `seen` with its HMAC key, if the token holds exactly one."""
        template = named(seen.ref.partner)
        keys = find(self._c, self._session, template, KeyType.GENERIC_SECRET)
        partner = describe(self._c, self._session, keys[0]) if len(keys) == 1 else None
        if partner is None:
            return seen
        return msgspec.structs.replace(seen, partner=partner)


def named(ref: KeyRef) -> dict[int, bytes]:
    """Return the template that finds one key by its CKA_LABEL and CKA_ID."""
    return {Attribute.LABEL: ref.label.encode(), Attribute.ID: ref.cka_id}


def find(
    c: Cryptoki, session: int, template: dict[int, bytes], kind: KeyType
) -> list[int]:
    """Return the CK_OBJECT_HANDLE of every matching secret key of one type.

    Raises:
        WorkerError: The token could not be searched.
    """
    whole = {
        Attribute.CLASS: search.ulong(ObjectClass.SECRET_KEY),
        Attribute.KEY_TYPE: search.ulong(kind),
        Attribute.TOKEN: b"\1",
        **template,
    }
    return search.find(c, session, whole)


def describe(c: Cryptoki, session: int, handle: int) -> KeySeen | None:
    """Return a key with the attributes that the key policy checks.

    Returns None if the key no longer exists, or if its CKA_LABEL and CKA_ID do not
    name it: one cannot be read, or the label is not UTF-8.

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
    if label is None or cka_id is None:
        return None
    try:
        ref = KeyRef(label.decode(), cka_id)
    except UnicodeDecodeError:
        return None
    return KeySeen(
        ref=ref,
        value_len=search.number(values[Attribute.VALUE_LEN]),
        attributes={name: search.flag(values[which]) for name, which in _FLAGS.items()},
    )

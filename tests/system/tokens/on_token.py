"""Run as a process of its own: import a key, or read what a token tells of its keys.

The job comes as JSON on stdin, the result goes as JSON to stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pkcs11 import Attribute, KeyType, ObjectClass, Session, Token
from pkcs11._pkcs11 import lib

from hsm_kms.ipc.messages import FindKeys
from hsm_kms.worker.cryptoki import Cryptoki, load
from hsm_kms.worker.listing import Listing
from hsm_kms.worker.module import same_list

_USAGE = {
    "AES": (Attribute.ENCRYPT, Attribute.DECRYPT),
    "GENERIC_SECRET": (Attribute.SIGN, Attribute.VERIFY),
}


def main() -> None:
    """Do the one job."""
    job = json.load(sys.stdin)
    verbs = {"import": _import, "attributes": _attributes}
    library = _library(job["token"])  # finalised when this name goes
    session = _token(library, job["token"]).open(rw=True, user_pin=job["pin"])
    json.dump(verbs[job["verb"]](library, session, job), sys.stdout)


def _library(settings: dict[str, Any]) -> lib:
    library = lib.__new__(lib, settings["module"])
    if arguments := settings.get("init_args"):
        # python-pkcs11 by itself cannot give C_Initialize any.
        Cryptoki(load(settings["module"])).initialize(arguments)
    else:
        library.initialize()
    return library


def _token(library: lib, settings: dict[str, Any]) -> Token:
    tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
    (token,) = (
        token
        for token in tokens
        if settings.get("slot") in {None, token.slot.slot_id}
        and settings.get("token_label") in {None, token.label}
    )
    return token


def _import(_library: lib, session: Session, job: dict[str, Any]) -> None:
    kind = job["kind"]
    session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType[kind],
            Attribute.VALUE: bytes.fromhex(job["key"]),
            Attribute.LABEL: job["label"],
            Attribute.ID: bytes.fromhex(job["id"]),
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            **dict.fromkeys(_USAGE[kind], True),
        }
    )


def _attributes(
    library: lib, session: Session, job: dict[str, Any]
) -> list[dict[str, bool | None]]:
    functions = same_list(load(job["token"]["module"]), library)
    wanted = FindKeys(label=job["label"])
    listing = Listing(Cryptoki(functions), session.handle, wanted)
    keys, position = [], 0
    while position is not None:
        page = listing.page(position, 100)
        keys += page.keys
        position = page.next
    return [{"CKA_VALUE_LEN": key.value_len, **key.attributes} for key in keys]


if __name__ == "__main__":
    main()

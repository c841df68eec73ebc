"""Keys that another tool put on the token."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from hsm_kms.ipc.values import KeyRef
from tests.harness.softhsm import PIN, TOKEN_LABEL, softhsm_module

if TYPE_CHECKING:
    from tests.harness.softhsm import SoftHsm

LABEL = "k8s-kek"
MATERIAL = bytes(range(1, 33))
IMPORTED = KeyRef("imported", b"\x07")

# A process of its own: the tests themselves never load a module. `hsm_kms.worker` is
# imported first because half the time that pkcs11 takes is for what no AES key needs.
_MAKER = """
import json, sys, hsm_kms.worker, pkcs11
module, token, pin, key = sys.argv[1:]
key = json.loads(key)
capabilities = pkcs11.MechanismFlag(0)
for name in key["usage"]:
    capabilities |= pkcs11.MechanismFlag[name]
template = {pkcs11.Attribute[name]: value for name, value in key["template"].items()}
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as s:
    for cka_id in key["ids"]:
        s.generate_key(
            pkcs11.KeyType.AES, key["bits"], id=bytes.fromhex(cka_id), store=True,
            label=key["label"], capabilities=capabilities, template=template,
        )
"""


def make_key(
    hsm: SoftHsm,
    cka_id: bytes = b"odd",
    *,
    bits: int = 256,
    usage: tuple[str, ...] = ("ENCRYPT", "DECRYPT"),
    label: str = LABEL,
    **template: Any,
) -> None:
    """Generate an AES key with exactly these attributes."""
    make_keys(hsm, [cka_id], bits=bits, usage=usage, label=label, **template)


def make_keys(
    hsm: SoftHsm,
    cka_ids: list[bytes],
    *,
    bits: int = 256,
    usage: tuple[str, ...] = ("ENCRYPT", "DECRYPT"),
    label: str = LABEL,
    **template: Any,
) -> None:
    """Generate one AES key for each CKA_ID."""
    key = {
        "ids": [each.hex() for each in cka_ids],
        "bits": bits,
        "usage": usage,
        "label": label,
        "template": {"SENSITIVE": True, "EXTRACTABLE": False, **template},
    }
    hsm.run(
        *(sys.executable, "-c", _MAKER, softhsm_module()),
        *(TOKEN_LABEL, PIN, json.dumps(key)),
    )


def create(hsm: SoftHsm, ref: KeyRef = IMPORTED, value: bytes = MATERIAL) -> None:
    """Create a key of known material from another process."""
    change(hsm, ("import", ref, value))


_CHANGE = """
import json, sys, hsm_kms.worker, pkcs11
from pkcs11 import Attribute as A
module, token, pin, steps = sys.argv[1:]
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as s:
    def find(label, cka_id):
        names = {A.CLASS: pkcs11.ObjectClass.SECRET_KEY, A.LABEL: label}
        names[A.ID] = bytes.fromhex(cka_id)
        return list(s.get_objects(names))
    for what, label, cka_id, argument in json.loads(steps):
        if what == "relabel":
            for key in find(label, cka_id):
                key[A.LABEL] = argument
        elif what == "destroy":
            for key in find(label, cka_id):
                key.destroy()
        elif what == "import":
            s.create_object({
                A.CLASS: pkcs11.ObjectClass.SECRET_KEY,
                A.KEY_TYPE: pkcs11.KeyType.AES, A.LABEL: label,
                A.ID: bytes.fromhex(cka_id), A.VALUE: bytes.fromhex(argument),
                A.TOKEN: True, A.PRIVATE: True, A.SENSITIVE: True,
                A.EXTRACTABLE: False, A.ENCRYPT: True, A.DECRYPT: True,
            })
        else:
            s.generate_key(
                pkcs11.KeyType.AES, 256, id=bytes.fromhex(cka_id), label=label,
                store=True, template={A.SENSITIVE: True, A.EXTRACTABLE: False},
                capabilities=pkcs11.MechanismFlag.ENCRYPT
                | pkcs11.MechanismFlag.DECRYPT,
            )
"""


def change(hsm: SoftHsm, *steps: tuple[str, KeyRef, str | bytes]) -> None:
    """Change keys in one go, from a process of an administrator.

    Args:
        hsm: The token.
        steps: "relabel" with the new label, "import" with the value, "generate" or
            "destroy" with nothing, each with the names of the key.
    """
    plain = [
        (
            what,
            ref.label,
            ref.cka_id.hex(),
            text.hex() if isinstance(text, bytes) else text,
        )
        for what, ref, text in steps
    ]
    hsm.run(
        *(sys.executable, "-c", _CHANGE, softhsm_module(), TOKEN_LABEL, PIN),
        json.dumps(plain),
    )


def damage_newest(hsm: SoftHsm) -> None:
    """Damage the value of the key that was made last, in its object file."""
    value = (0x11).to_bytes(8, "big") + (3).to_bytes(8, "big")  # CKA_VALUE, bytes
    objects = set(hsm.tokens.rglob("*.object")) - set(hsm.tokens.rglob("token.object"))
    path = max(objects, key=lambda each: each.stat().st_ctime_ns)
    data = bytearray(path.read_bytes())
    at = data.index(value)
    length = int.from_bytes(data[at + 16 : at + 24], "big")
    data[at + 24 : at + 24 + length] = bytes(length)
    path.write_bytes(data)

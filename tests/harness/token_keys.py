"""Keys that another tool put on the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hsm_kms.ipc.values import KeyRef
from tests.harness.administrator import Generate, Import, change

if TYPE_CHECKING:
    from tests.harness.softhsm import SoftHsm

LABEL = "k8s-kek"
MATERIAL = bytes(range(1, 33))
IMPORTED = KeyRef("imported", b"\x07")


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
    change(hsm, Generate(KeyRef(label, cka_id), bits, usage, template))


def create(hsm: SoftHsm, ref: KeyRef = IMPORTED, value: bytes = MATERIAL) -> None:
    """Create a key of known material from another process."""
    change(hsm, Import(ref, value))


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

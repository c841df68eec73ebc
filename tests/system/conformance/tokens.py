"""Tokens that hold a key of our choosing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness.softhsm import SoftHsm


def import_kek(hsm: SoftHsm, kek: bytes, cka_id: bytes = b"\x01") -> SoftHsm:
    """Put this AES key on the token as a KEK that the policy accepts."""
    file = hsm.directory / "kek"
    file.write_bytes(kek)
    hsm.pkcs11_tool(
        *("--write-object", str(file), "--type", "secrkey", "--key-type", "AES:32"),
        *("--id", cka_id.hex(), "--label", "k8s-kek"),
        *("--private", "--sensitive", "--usage-decrypt"),
    )
    file.unlink()
    return hsm

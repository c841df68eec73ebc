"""A DEK wrapped in software, by a local KEK: AES-256-GCM (docs/spec.md, kind 2)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.errors import CiphertextError
from hsm_kms.wrapping.record import (
    CIPHERTEXT_SENTENCE,
    LOCAL_KEK_BYTES,
    Kind,
    Record,
)


def open_dek(record: Record, local_kek: bytes, scope: str) -> bytes:
    """Open a DEK with the local KEK that its record carries.

    Args:
        record: Of kind 2.
        local_kek: What the nested record holds, 32 bytes, authenticated by the token.
        scope: The configured cluster name, 0 to 64 bytes of UTF-8.

    Returns:
        The DEK, 1 to 1,024 bytes.

    Raises:
        CiphertextError: Not authentic under this local KEK and scope, or the nested
            record holds something else than a local KEK.
        ValueError: Another kind of record.
    """
    if record.header.kind is not Kind.DEK_BY_LOCAL_KEK:
        raise ValueError("only a DEK by a local KEK is opened in software")
    if len(local_kek) != LOCAL_KEK_BYTES:
        raise CiphertextError(CIPHERTEXT_SENTENCE)
    aad = record.header.aad(scope)
    try:
        return AESGCM(local_kek).decrypt(record.iv, record.ciphertext, aad)
    except InvalidTag:
        raise CiphertextError(CIPHERTEXT_SENTENCE) from None

"""Make the fingerprints that server and worker name a key by.

The exact bytes, with vectors, are in docs/spec.md.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

FINGERPRINT_DOMAIN: Final = b"hsm-kms/fingerprint/1"
FINGERPRINT_BLOCK: Final = b"hsm-kms fp block"
_FINGERPRINT_BYTES: Final = 16


def fingerprint_of(block: bytes, mac: bytes = b"") -> str:
    """Return the fingerprint of a key from `FINGERPRINT_BLOCK` encrypted under it.

    Args:
        block: The encrypted block, 16 bytes.
        mac: For a pair, the HMAC of `FINGERPRINT_BLOCK`, 32 bytes; else empty.

    Returns:
        26 characters: 16 bytes of SHA-256 in base32 (RFC 4648), lower case.
    """
    return _base32(hashlib.sha256(FINGERPRINT_DOMAIN + block + mac).digest())


def fingerprint_of_cka_id(cka_id: bytes) -> str:
    """Return the fingerprint for `keys.fingerprint: cka_id`.

    It names the CKA_ID, not the key material.
    """
    return _base32(hashlib.sha256(FINGERPRINT_DOMAIN + b"/cka_id" + cka_id).digest())


def _base32(digest: bytes) -> str:
    data = digest[:_FINGERPRINT_BYTES]
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()

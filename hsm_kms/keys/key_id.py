"""Make fingerprints, key_ids, and CKA_IDs that carry an activation time.

The exact bytes, with vectors, are in docs/spec.md.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from typing import Final

FINGERPRINT_DOMAIN: Final = b"hsm-kms/fingerprint/1"
FINGERPRINT_BLOCK: Final = b"hsm-kms fp block"
_FINGERPRINT_BYTES: Final = 16

_CKA_ID: Final = struct.Struct(">4sBQ8s")
_CKA_ID_MAGIC: Final = b"hkms"
_CKA_ID_VERSION: Final = 1


def fingerprint_of(block: bytes, mac: bytes = b"") -> str:
    """Return the fingerprint of a key from `FINGERPRINT_BLOCK` encrypted under it.

    Args:
        block: The encrypted block, 16 bytes.
        mac: For a pair, the HMAC of `FINGERPRINT_BLOCK`, 32 bytes; else empty.

    Returns:
        26 characters: 16 bytes of SHA-256 in base32 (RFC 4648), lower case.
    """
    digest = hashlib.sha256(FINGERPRINT_DOMAIN + block + mac).digest()[
        :_FINGERPRINT_BYTES
    ]
    return _base32(digest)


def fingerprint_of_cka_id(cka_id: bytes) -> str:
    """Return the fingerprint for `keys.fingerprint: cka_id`.

    It names the CKA_ID, not the key material.
    """
    digest = hashlib.sha256(FINGERPRINT_DOMAIN + b"/cka_id" + cka_id).digest()
    return _base32(digest[:_FINGERPRINT_BYTES])


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def fingerprint_in(key_id: str) -> str:
    """Return the fingerprint that a key_id begins with, without its suffix.

    Args:
        key_id: A key_id, or a fingerprint alone.
    """
    return key_id.partition(".")[0]


def make_cka_id(activation: int) -> bytes:
    """Return a CKA_ID for a new key: 21 bytes with its activation time.

    Args:
        activation: Seconds since the Unix epoch.
    """
    return _CKA_ID.pack(_CKA_ID_MAGIC, _CKA_ID_VERSION, activation, os.urandom(8))


def activation_of(cka_id: bytes) -> int:
    """Return the activation time in a CKA_ID, 0 if hsm-kms did not make it."""
    if len(cka_id) != _CKA_ID.size:
        return 0
    magic, version, activation, _ = _CKA_ID.unpack(cka_id)
    if (magic, version) != (_CKA_ID_MAGIC, _CKA_ID_VERSION):
        return 0
    return int(activation)

"""Read key_ids, and make CKA_IDs that carry an activation time.

The exact bytes, with vectors, are in docs/spec.md.
"""

from __future__ import annotations

import os
import struct
from typing import Final

_CKA_ID: Final = struct.Struct(">4sBQ8s")
_CKA_ID_MAGIC: Final = b"hkms"
_CKA_ID_VERSION: Final = 1


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

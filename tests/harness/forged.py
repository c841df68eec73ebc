"""Records made in software by someone who knows the value of a key."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.ipc.fingerprints import FINGERPRINT_BLOCK, fingerprint_of
from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record

KNOWN = bytes(range(1, 33))  # the value of the key


def forge(dek: bytes, kek: bytes = KNOWN) -> tuple[bytes, str]:
    """Return a record that holds `dek` under the key with this value, and its key_id.

    The scope is that of the default configuration.
    """
    block = Cipher(algorithms.AES(kek), modes.ECB()).encryptor()  # noqa: S305
    key_id = fingerprint_of(block.update(FINGERPRINT_BLOCK))
    header = Header(
        kind=Kind.DEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=key_id
    )
    iv = os.urandom(12)
    ciphertext = AESGCM(kek).encrypt(iv, dek, header.aad(""))
    return Record(header=header, iv=iv, ciphertext=ciphertext).encode(), key_id

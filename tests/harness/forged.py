"""Records made in software by someone who knows the value of a key."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record
from tests.harness.one_worker import imported
from tests.harness.token_keys import MATERIAL


def forge(dek: bytes) -> tuple[bytes, str]:
    """Return a record that holds `dek` under the key of `MATERIAL`, and its key_id.

    The scope is that of the default configuration.
    """
    key_id = imported().fingerprint
    header = Header(
        kind=Kind.DEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=key_id
    )
    iv = os.urandom(12)
    ciphertext = AESGCM(MATERIAL).encrypt(iv, dek, header.aad(""))
    return Record(header=header, iv=iv, ciphertext=ciphertext).encode(), key_id

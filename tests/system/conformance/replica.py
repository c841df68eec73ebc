"""Another node with the same KEK, whose records are cold to the server under test."""

from __future__ import annotations

import base64
import hashlib
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.wrapping.by_local_kek import LocalKek, Sealer
from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record

IV_BYTES = 12


def key_id_of(kek: bytes) -> str:
    """Return what docs/spec.md makes of a key, by other means than the server's."""
    encryptor = Cipher(algorithms.AES(kek), modes.ECB()).encryptor()  # noqa: S305
    block = encryptor.update(b"hsm-kms fp block")
    digest = hashlib.sha256(b"hsm-kms/fingerprint/1" + block).digest()[:16]
    return base64.b32encode(digest).decode().rstrip("=").lower()


class Replica:
    """Makes records as a node whose token holds this KEK.

    Args:
        kek: The key on its token, 32 bytes.
        scope: Its cluster name.

    Attributes:
        key_id: Of the KEK.
        material: Of the local KEK made last.
    """

    def __init__(self, kek: bytes, scope: str = "") -> None:
        self._kek = AESGCM(kek)
        self._scope = scope
        self.key_id = key_id_of(kek)

    def by_token(self, dek: bytes) -> bytes:
        """A DEK that its token wrapped."""
        return self._wrapped(Kind.DEK_BY_TOKEN, dek).encode()

    def local(self) -> LocalKek:
        """A new local KEK of its own."""
        self.material = os.urandom(32)
        nested = self._wrapped(Kind.LOCAL_KEK_BY_TOKEN, self.material)
        return LocalKek(nested, self.material, self._scope)

    def by_local(self, kek: LocalKek, dek: bytes) -> bytes:
        """A DEK that this local KEK wrapped."""
        return Sealer(kek, 0).seal(dek)

    def _wrapped(self, kind: Kind, plaintext: bytes) -> Record:
        header = Header(kind=kind, algorithm=Algorithm.AES_256_GCM, key_id=self.key_id)
        iv = os.urandom(IV_BYTES)
        sealed = self._kek.encrypt(iv, plaintext, header.aad(self._scope))
        return Record(header=header, iv=iv, ciphertext=sealed)

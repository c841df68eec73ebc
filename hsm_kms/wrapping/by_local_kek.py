"""Wrap and unwrap DEKs in this process with local KEKs (docs/spec.md, kinds 2 and 3).

1. A local KEK encrypts and decrypts only records that carry it, wrapped by the token.
2. IVs are hedged: if the random source repeats itself, an IV repeats only with the same
   plaintext.
3. The bytes of a key are kept in one buffer, which is wiped when nothing refers to it
   any more. docs/threat-model.md says what copies Python and OpenSSL make.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hsm_kms.errors import OTHER_SCOPE, CiphertextError
from hsm_kms.wrapping.record import (
    CIPHERTEXT_SENTENCE,
    GCM_TAG_BYTES,
    LOCAL_IV_BYTES,
    LOCAL_KEK_BYTES,
    MAX_PLAINTEXT_BYTES,
    Algorithm,
    Header,
    Kind,
    Record,
)

RANDOM_BYTES: Final = 32  # from each of the two random sources
MAX_USES: Final = 2**31  # NIST SP 800-38D section 8.3 allows 2^32 random IVs

_KEY_INFO: Final = b"hsm-kms/local-kek/1"
_IV_LENGTH: Final = bytes([LOCAL_IV_BYTES])
_TAIL_BYTES: Final = range(
    1 + LOCAL_IV_BYTES + 1 + GCM_TAG_BYTES,
    1 + LOCAL_IV_BYTES + MAX_PLAINTEXT_BYTES + GCM_TAG_BYTES + 1,
)


def make_material(token_random: bytes) -> bytearray:
    """Derive the bytes of a new local KEK, by HKDF-SHA-256 (RFC 5869).

    The input is 32 bytes of the operating system and 32 of the token. Someone who
    knows one of the two knows nothing about the key.

    Args:
        token_random: 32 bytes from C_GenerateRandom.

    Returns:
        32 bytes; the caller must wipe them.

    Raises:
        ValueError: `token_random` does not have 32 bytes.
    """
    if len(token_random) != RANDOM_BYTES:
        raise ValueError("the token returned another number of random bytes")
    both = bytearray(2 * RANDOM_BYTES)  # wiped; concatenation would leave copies
    both[:RANDOM_BYTES] = os.urandom(RANDOM_BYTES)
    both[RANDOM_BYTES:] = token_random
    material = bytearray(LOCAL_KEK_BYTES)
    HKDF(SHA256(), LOCAL_KEK_BYTES, salt=None, info=_KEY_INFO).derive_into(
        both, material
    )
    wipe(both)
    return material


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer with zeros."""
    buffer[:] = bytes(len(buffer))


class LocalKek:
    """Hold a local KEK in memory.

    Args:
        nested: The record of kind 3 that holds the local KEK, which the token has
            authenticated.
        material: The local KEK, 32 bytes; copied.
        scope: The configured cluster name, 0 to 64 bytes of UTF-8.

    Attributes:
        nested: The record of kind 3 that holds the local KEK.
        scope: The configured cluster name.
        key_id: Names the KEK on the token that wraps the local KEK.
        header: The first bytes of every record made with the local KEK.
        aad: Associated data of every record made with the local KEK.

    Raises:
        CiphertextError: `material` does not have 32 bytes.
    """

    __slots__ = ("_material", "aad", "header", "key_id", "nested", "scope")

    def __init__(self, nested: Record, material: bytes | bytearray, scope: str) -> None:
        self._material = bytearray(material)
        if len(material) != LOCAL_KEK_BYTES:
            raise CiphertextError(CIPHERTEXT_SENTENCE)
        header = Header(
            kind=Kind.DEK_BY_LOCAL_KEK,
            algorithm=Algorithm.AES_256_GCM,
            key_id=nested.header.key_id,
            nested=nested.encode(),
        )
        self.nested = nested
        self.scope = scope
        self.key_id = header.key_id
        self.header = header.encode()
        self.aad = header.aad(scope)

    def __del__(self) -> None:
        """Wipe the key, because nothing refers to it any more."""
        wipe(self._material)

    @property
    def cipher(self) -> AESGCM:
        """Return AES-256-GCM under the local KEK; it keeps a copy of the key."""
        return AESGCM(self._material)

    def open(self, data: bytes) -> bytes:
        """Decrypt a record that begins with `header`.

        Args:
            data: The whole record.

        Returns:
            The DEK, 1 to 1,024 bytes.

        Raises:
            CiphertextError: The record is malformed, or not authentic under this local
                KEK and scope.
            ValueError: The record begins with another header.
        """
        if not data.startswith(self.header):
            raise ValueError("the record carries another local KEK")
        at = len(self.header)
        if len(data) - at not in _TAIL_BYTES or data[at] != LOCAL_IV_BYTES:
            raise CiphertextError(CIPHERTEXT_SENTENCE)
        begin = at + 1 + LOCAL_IV_BYTES
        try:
            return self.cipher.decrypt(data[at + 1 : begin], data[begin:], self.aad)
        except InvalidTag:
            raise CiphertextError(CIPHERTEXT_SENTENCE, hint=OTHER_SCOPE) from None


class Sealer:
    """Wrap DEKs with a local KEK that this process has created.

    Args:
        kek: The local KEK; no other process makes IVs for it.
        created: When it was created, in seconds of `clock.since_boot`.

    Attributes:
        kek: The local KEK.
        created: When it was created, in seconds of `clock.since_boot`.
        uses: Number of IVs made so far.
    """

    __slots__ = ("_cipher", "_nonces", "created", "kek", "uses")

    def __init__(self, kek: LocalKek, created: float) -> None:
        self.kek = kek
        self.created = created
        self.uses = 0
        # Both are made once, because `seal` is the hot path of all writes.
        self._cipher = kek.cipher
        self._nonces = HMAC(os.urandom(RANDOM_BYTES), SHA256())

    def seal(self, plaintext: bytes) -> bytes:
        """Encrypt a DEK and return the record (docs/spec.md, kind 2).

        Args:
            plaintext: The DEK, 1 to 1,024 bytes.

        Raises:
            OverflowError: The local KEK has been used `MAX_USES` times.
        """
        if self.uses >= MAX_USES:
            raise OverflowError("the local KEK has been used too often")
        self.uses += 1
        hedged = self._nonces.copy()
        hedged.update(os.urandom(RANDOM_BYTES) + plaintext)
        iv = hedged.finalize()[:LOCAL_IV_BYTES]
        sealed = self._cipher.encrypt(iv, plaintext, self.kek.aad)
        return self.kek.header + _IV_LENGTH + iv + sealed

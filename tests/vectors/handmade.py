"""Records, fingerprints and CKA_IDs built by hand from docs/spec.md.

`cryptography` is the only tool, so that nothing here shares a line, and a mistake,
with `hsm_kms`. The keys are for tests only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEK = bytes(range(0x20))
HMAC_KEY = bytes(range(0x20, 0x40))
OTHER_KEK = bytes(range(0x60, 0x80))
LOCAL_KEK = bytes(range(0x40, 0x60))
DEK = bytes(range(0x80, 0xA0))
IV12 = bytes(range(0xC0, 0xCC))
IV16 = bytes(range(0xC0, 0xD0))
LOCAL_IV = bytes(range(0xD0, 0xDC))
BLOCK = b"hsm-kms fp block"
SCOPE = "prod-eu"

GCM, CBC = 1, 2


def fingerprint(kek: bytes, hmac_key: bytes = b"") -> str:
    ecb = Cipher(algorithms.AES(kek), modes.ECB()).encryptor()  # noqa: S305 - one constant block, as specified
    data = b"hsm-kms/fingerprint/1" + ecb.update(BLOCK) + ecb.finalize()
    if hmac_key:
        data += hmac.digest(hmac_key, BLOCK, "sha256")
    return base32(hashlib.sha256(data).digest()[:16])


def base32(data: bytes) -> str:
    return base64.b32encode(data).decode().lower().rstrip("=")


KEY_ID = fingerprint(KEK)
PAIR_ID = fingerprint(KEK, HMAC_KEY)
OTHER_ID = fingerprint(OTHER_KEK)


def prefix(kind, algorithm, key_id, nested=None, version=1) -> bytes:
    data = bytes([version, kind, algorithm, len(key_id)]) + key_id.encode("latin-1")
    return data if nested is None else data + struct.pack(">H", len(nested)) + nested


def aad(head, scope) -> bytes:
    text = scope.encode()
    return b"hsm-kms/record/1" + bytes([len(text)]) + text + head


def gcm(head, plaintext=DEK, iv=IV12, scope=SCOPE, key=KEK) -> bytes:
    sealed = AESGCM(key).encrypt(iv, plaintext, aad(head, scope))
    return head + bytes([len(iv)]) + iv + sealed


def cbc(head, plaintext=DEK, iv=IV16, scope=SCOPE) -> bytes:
    padder = padding.PKCS7(128).padder()
    return cbc_padded(head, padder.update(plaintext) + padder.finalize(), iv, scope)


def cbc_padded(head, padded, iv=IV16, scope=SCOPE) -> bytes:
    encryptor = Cipher(algorithms.AES(KEK), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(padded) + encryptor.finalize()
    tail = bytes([len(iv)]) + iv + ciphertext
    return head + tail + hmac.digest(HMAC_KEY, aad(head, scope) + tail, "sha256")


HEAD = prefix(1, GCM, KEY_ID)
CBC_HEAD = prefix(1, CBC, PAIR_ID)
GOOD = gcm(HEAD)
GOOD_CBC = cbc(CBC_HEAD)
NESTED = gcm(prefix(3, GCM, KEY_ID), LOCAL_KEK)
LOCAL_HEAD = prefix(2, GCM, KEY_ID, NESTED)


def local(nested, *, algorithm=GCM, iv=LOCAL_IV) -> bytes:
    return gcm(prefix(2, algorithm, KEY_ID, nested), iv=iv, key=LOCAL_KEK)


GOOD_LOCAL = local(NESTED)


def lengthened(record, at, by) -> bytes:
    """The record with `by` added to the byte at `at`."""
    return record[:at] + bytes([record[at] + by]) + record[at + 1 :]


def flipped(record, at, bit=1) -> bytes:
    changed = bytearray(record)
    changed[at] ^= bit
    return bytes(changed)


def from_cka_id(cka_id) -> str:
    digest = hashlib.sha256(b"hsm-kms/fingerprint/1/cka_id" + cka_id).digest()
    return base32(digest[:16])

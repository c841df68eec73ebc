"""Decrypt the data of a stored value with its DEK or seed, as kube-apiserver does.

1. The key of the object in etcd is the authenticated data: the data of a value that was
   copied to another key cannot be decrypted.
2. kube-apiserver up to 1.24 encrypted by AES-CBC in KMS v1, and later ones still read
   that. AES-CBC authenticates nothing, and the caller is told.

The formats are those of k8s.io/apiserver, in pkg/storage/value/encrypt/aes. Sources of
the algorithms: RFC 5869, section 2.3 (HKDF-Expand); NIST SP 800-38D (GCM); RFC 5652,
section 6.3 (padding of CBC).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.padding import PKCS7

from hsm_kms.errors import CiphertextError
from hsm_kms.etcd.values import Provider

if TYPE_CHECKING:
    from hsm_kms.etcd.values import Stored

DEK_BYTES: Final = (16, 24, 32)
MIN_SEED_BYTES: Final = 32

_INFO_BYTES: Final = 32
_DERIVED_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_BLOCK_BYTES: Final = 16
_BITS: Final = 8
_BEGINNINGS: Final = (b"k8s\0", b"{")


@dataclass(frozen=True, slots=True)
class Plaintext:
    """Hold the object in a stored value.

    Args:
        data: The object as the API server encoded it: protobuf or JSON.
        authenticated: False if nothing proves that the value is unchanged.
    """

    data: bytes = field(repr=False)
    authenticated: bool


def decrypt_data(stored: Stored, secret: bytes, etcd_key: bytes) -> Plaintext:
    """Decrypt the data of a value that was written through KMS.

    Args:
        stored: The parsed value.
        secret: The DEK (16, 24 or 32 bytes), or the seed (at least 32 bytes), as
            `stored.source` says.
        etcd_key: The key of the object in etcd.

    Raises:
        CiphertextError: The data is not authentic, or DEK or seed have another length.
    """
    if stored.source == "seed":
        info, rest = stored.data[:_INFO_BYTES], stored.data[_INFO_BYTES:]
        return Plaintext(
            _open_gcm(_derived(secret, info), rest, etcd_key), authenticated=True
        )
    if len(secret) not in DEK_BYTES:
        raise CiphertextError("the DEK has a length that AES does not have")
    try:
        return Plaintext(_open_gcm(secret, stored.data, etcd_key), authenticated=True)
    except CiphertextError:
        if stored.provider is not Provider.KMS_V1:
            raise
    return Plaintext(_open_cbc(secret, stored.data), authenticated=False)


def _derived(seed: bytes, info: bytes) -> bytes:
    if len(seed) < MIN_SEED_BYTES:
        raise CiphertextError("the seed is too short")
    return HKDFExpand(SHA256(), _DERIVED_BYTES, info).derive(seed)


def _open_gcm(key: bytes, data: bytes, etcd_key: bytes) -> bytes:
    nonce, ciphertext = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, etcd_key)
    except (InvalidTag, ValueError):
        raise CiphertextError("the data is not authentic") from None


def _open_cbc(key: bytes, data: bytes) -> bytes:
    """Return the object in data of AES-CBC: an IV of 16 bytes, and padded blocks.

    One of 256 random values has a valid padding, so the object must begin like one.
    """
    iv, ciphertext = data[:_BLOCK_BYTES], data[_BLOCK_BYTES:]
    unpadder = PKCS7(_BLOCK_BYTES * _BITS).unpadder()
    try:
        decryptor = Cipher(AES(key), CBC(iv)).decryptor()
        padded = decryptor.update(ciphertext) + decryptor.finalize()
        plaintext = unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        raise CiphertextError("the data is not authentic") from None
    if not plaintext.startswith(_BEGINNINGS):
        raise CiphertextError("the data is not authentic")
    return plaintext

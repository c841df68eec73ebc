"""Encode and decode the bytes of a record, as docs/spec.md specifies them.

1. A record that breaks a rule of the specification cannot be built: the constructors
   refuse it with ValueError, the decoder with CiphertextError.
2. Every byte belongs to a field, and every length is checked before it is used.
3. Each record has one encoding: a decoded record is encoded to the same bytes.
4. All causes of refusal share one class and one message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hsm_kms.errors import CiphertextError

VERSION: Final = 1
AAD_DOMAIN: Final = b"hsm-kms/record/1"

MAX_PLAINTEXT_BYTES: Final = 1024
MAX_SCOPE_BYTES: Final = 64
LOCAL_KEK_BYTES: Final = 32

BLOCK_BYTES: Final = 16
GCM_TAG_BYTES: Final = 16
GCM_IV_BYTES: Final = range(12, 16 + 1)
LOCAL_IV_BYTES: Final = 12
HMAC_TAG_BYTES: Final = 32

FINGERPRINT_CHARS: Final = 26
MAX_KEY_ID_BYTES: Final = FINGERPRINT_CHARS + len(".") + 16

_FIXED_BYTES: Final = 4  # version, kind, algorithm, length of key_id
MAX_NESTED_BYTES: Final = (
    _FIXED_BYTES
    + MAX_KEY_ID_BYTES
    + 1
    + BLOCK_BYTES
    + (LOCAL_KEK_BYTES + BLOCK_BYTES + HMAC_TAG_BYTES)
)
MAX_RECORD_BYTES: Final = (
    _FIXED_BYTES
    + MAX_KEY_ID_BYTES
    + (2 + MAX_NESTED_BYTES)
    + (1 + LOCAL_IV_BYTES)
    + (MAX_PLAINTEXT_BYTES + GCM_TAG_BYTES)
)

CIPHERTEXT_SENTENCE: Final = "the ciphertext is malformed or not authentic"

# The last of the 26 characters carries 3 bits; the other 2 must be zero.
_KEY_ID = re.compile(r"[a-z2-7]{25}[aeimquy4](?:\.[a-z0-9]{1,16})?")


class Kind(IntEnum):
    """Name what is wrapped, and by which key."""

    DEK_BY_TOKEN = 1
    DEK_BY_LOCAL_KEK = 2
    LOCAL_KEK_BY_TOKEN = 3
    CANARY = 4


class Algorithm(IntEnum):
    """Name how it is wrapped; always with integrity."""

    AES_256_GCM = 1
    AES_256_CBC_HMAC_SHA256 = 2


FROM_OUTSIDE: Final = frozenset({Kind.DEK_BY_TOKEN, Kind.DEK_BY_LOCAL_KEK})
"""The kinds that a request may carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Hold the part of a record that is authenticated as associated data.

    Args:
        kind: What is wrapped, and by which key.
        algorithm: How it is wrapped; always AES-256-GCM for `Kind.DEK_BY_LOCAL_KEK`.
        key_id: Names the KEK on the token, 26 to 43 characters.
        nested: The encoded record of the local KEK, at most `MAX_NESTED_BYTES` bytes,
            for `Kind.DEK_BY_LOCAL_KEK`; empty for every other kind.

    Raises:
        ValueError: A field breaks a rule of the specification.
    """

    kind: Kind
    algorithm: Algorithm
    key_id: str
    nested: bytes = b""

    def __post_init__(self) -> None:
        """Refuse a header that breaks a rule of the specification."""
        if not _KEY_ID.fullmatch(self.key_id):
            raise ValueError("key_id breaks its grammar")
        if self.kind is Kind.DEK_BY_LOCAL_KEK:
            self._check_local()
        elif self.nested:
            raise ValueError("only a DEK by a local KEK carries a nested record")

    def _check_local(self) -> None:
        if self.algorithm is not Algorithm.AES_256_GCM:
            raise ValueError("a local KEK wraps by AES-256-GCM only")
        if len(self.nested) > MAX_NESTED_BYTES:
            raise ValueError("the nested record is too long")
        # The kind is checked before the record is parsed: there is no third level.
        if self.nested[1:2] != bytes([Kind.LOCAL_KEK_BY_TOKEN]):
            raise ValueError("the nested record is not a local KEK by the token")
        if _parse(self.nested).header.key_id != self.key_id:
            raise ValueError("the nested record names another key")

    def encode(self) -> bytes:
        """Return every byte of the record before the IV length."""
        key_id = self.key_id.encode("ascii")
        head = bytes([VERSION, self.kind, self.algorithm, len(key_id)]) + key_id
        if self.kind is Kind.DEK_BY_LOCAL_KEK:
            head += len(self.nested).to_bytes(2, "big") + self.nested
        return head

    def aad(self, scope: str) -> bytes:
        """Return the associated data, which binds this header and the scope.

        Args:
            scope: The configured cluster name, 0 to 64 bytes of UTF-8.

        Raises:
            ValueError: The scope is too long or is not valid Unicode.
        """
        encoded = scope.encode()
        if len(encoded) > MAX_SCOPE_BYTES:
            raise ValueError("the scope is longer than 64 bytes")
        return AAD_DOMAIN + bytes([len(encoded)]) + encoded + self.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Hold one wrapped DEK, local KEK or canary.

    Args:
        header: What is authenticated as associated data.
        iv: 12 to 16 bytes for GCM (12 under a local KEK), 16 for CBC.
        ciphertext: The ciphertext followed by its tag: 17 to 1,040 bytes for
            GCM; 16 to 1,040 bytes in whole blocks and 32 more for CBC and HMAC.

    Raises:
        ValueError: A field breaks a rule of the specification.
    """

    header: Header
    iv: bytes
    ciphertext: bytes

    def __post_init__(self) -> None:
        """Refuse lengths that break a rule of the specification."""
        if len(self.iv) not in _iv_bytes(self.header):
            raise ValueError("the IV has a wrong length")
        if len(self.ciphertext) not in _ciphertext_bytes(self.header):
            raise ValueError("the ciphertext has a wrong length")

    def encode(self) -> bytes:
        """Return the bytes of the record, as they are stored."""
        return self.header.encode() + bytes([len(self.iv)]) + self.iv + self.ciphertext

    @staticmethod
    def decode(data: bytes, *, kinds: frozenset[Kind] = FROM_OUTSIDE) -> Record:
        """Decode a record that may be hostile.

        Only the shape of the record is checked; nothing is authenticated yet.

        Args:
            data: The bytes, of any length.
            kinds: The kinds that are accepted; by default those that a request may
                carry.

        Raises:
            CiphertextError: The record breaks a rule of the specification, or is of
                another kind; the message is always the same.
        """
        try:
            record = _parse(data)
        except ValueError:
            raise CiphertextError(CIPHERTEXT_SENTENCE) from None
        if record.header.kind not in kinds:
            raise CiphertextError(CIPHERTEXT_SENTENCE)
        return record


def _iv_bytes(header: Header) -> range:
    """Return the lengths that the IV of a record with this header may have."""
    if header.kind is Kind.DEK_BY_LOCAL_KEK:
        return range(LOCAL_IV_BYTES, LOCAL_IV_BYTES + 1)
    if header.algorithm is Algorithm.AES_256_GCM:
        return GCM_IV_BYTES
    return range(BLOCK_BYTES, BLOCK_BYTES + 1)


def _ciphertext_bytes(header: Header) -> range:
    """Return the lengths that the ciphertext may have, with its tag."""
    smallest, largest = 1, MAX_PLAINTEXT_BYTES
    if header.kind is Kind.LOCAL_KEK_BY_TOKEN:
        smallest = largest = LOCAL_KEK_BYTES
    if header.algorithm is Algorithm.AES_256_GCM:
        return range(smallest + GCM_TAG_BYTES, largest + GCM_TAG_BYTES + 1)
    # PKCS #7 padding (RFC 5652 section 6.3) always adds 1 to 16 bytes.
    return range(
        _padded(smallest) + HMAC_TAG_BYTES,
        _padded(largest) + HMAC_TAG_BYTES + 1,
        BLOCK_BYTES,
    )


def _padded(size: int) -> int:
    return (size // BLOCK_BYTES + 1) * BLOCK_BYTES


def header_of_local(data: bytes) -> bytes:
    """Return the bytes where a record of kind 2 has its header, b"" for other kinds.

    Nothing is checked: the caller must compare the bytes with headers that are known.

    Args:
        data: The record; it may be any bytes.
    """
    if len(data) < _FIXED_BYTES or data[1] != Kind.DEK_BY_LOCAL_KEK:
        return b""
    at = _FIXED_BYTES + data[3]
    return data[: at + 2 + int.from_bytes(data[at : at + 2], "big")]


class _Reader:
    """Take bytes from the front of a record, and never more than are left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ValueError("the record ends too early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def _parse(data: bytes) -> Record:
    """Decode a record of any kind.

    Raises:
        ValueError: The record breaks a rule of the specification.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError("the record is too long")
    reader = _Reader(data)
    if reader.number(1) != VERSION:
        raise ValueError("the version is unknown")
    kind = Kind(reader.number(1))
    algorithm = Algorithm(reader.number(1))
    key_id = reader.take(reader.number(1)).decode("ascii")
    nested = reader.take(reader.number(2)) if kind is Kind.DEK_BY_LOCAL_KEK else b""
    header = Header(kind=kind, algorithm=algorithm, key_id=key_id, nested=nested)
    iv = reader.take(reader.number(1))
    return Record(header=header, iv=iv, ciphertext=reader.rest())

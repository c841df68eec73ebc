"""Parse one stored value without any key (docs/etcd.md).

The rules that this file keeps:

1.  Any bytes give a `Stored`; a message says what is wrong with them.
2.  The messages are from a fixed set and quote nothing.
3.  What a value says about itself is not authenticated; `text` makes it safe to print.
4.  A record counts as a record of hsm-kms only if it parses and nothing contradicts it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from google.protobuf.message import DecodeError

from hsm_kms.etcd.kms_v1 import MAX_NAME_BYTES, record_of, split_v1
from hsm_kms.etcd.rpc.envelope_pb2 import EncryptedDEKSourceType, EncryptedObject
from hsm_kms.etcd.text import text_of
from hsm_kms.wrapping.record import Kind, Record

ENCRYPTED: Final = b"k8s:enc:"
"""Prefix of every encrypted value, and of no unencrypted one."""

MAX_KEY_ID_BYTES: Final = 1024
MAX_WRAPPED_BYTES: Final = 1024
MAX_ANNOTATIONS: Final = 64
"""Most annotation names that are kept; the API server allows 32 KiB in total."""

_GCM_BYTES: Final = 12 + 16  # nonce and tag
_CBC_BYTES: Final = 16 + 16  # IV and one block
_SECRETBOX_BYTES: Final = 24 + 16  # nonce and tag
_SEED_DATA_BYTES: Final = 32 + _GCM_BYTES  # info for HKDF before them
_BLOCK_BYTES: Final = 16

CUT: Final = "the value is truncated"
NO_NAME: Final = "the value does not say which provider or key wrote it"
NAME_NOT_TEXT: Final = "the name of the provider is not text"
GARBLED: Final = "the envelope is truncated or corrupt"
NO_KEY_ID: Final = "the envelope has no key_id"
LONG_KEY_ID: Final = "the key_id is longer than the API server accepts"
NO_WRAPPED: Final = "the envelope has no wrapped seed or DEK"
LONG_WRAPPED: Final = "the wrapped seed is longer than the API server accepts"
SOURCE_UNKNOWN: Final = "the envelope has an unknown type of seed"
SHORT_DATA: Final = "the encrypted data is too short"
PART_BLOCK: Final = "the encrypted data is not a whole number of blocks"
CONTRADICTION: Final = "the key_id beside the record differs from that in the record"


class Provider(StrEnum):
    """Name the kind of provider that wrote a value."""

    IDENTITY = "identity"
    KMS_V2 = "kms v2"
    KMS_V1 = "kms v1"
    AESCBC = "aescbc"
    AESGCM = "aesgcm"
    SECRETBOX = "secretbox"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Hold what one value says about itself; hostile until proven otherwise.

    Args:
        provider: Kind of provider that wrote the value; IDENTITY if unencrypted.
        name: Name of the provider or key in the prefix; "" for identity. Of an unknown
            prefix, the part in the place of the name.
        version: "v1" or "v2" as in the prefix; "" if the prefix has none.
        key_id: In v2 the key_id beside the wrapped seed, otherwise that of the record;
            None if there is neither.
        record: The record of hsm-kms; None if the wrapped part is not one.
        wrapped: The wrapped seed or DEK, or None.
        source: What is wrapped: "seed", "DEK", or "" if nothing is.
        data: The encrypted data of a KMS value; b"" of other providers.
        data_bytes: Length of the encrypted data; of an unencrypted value, its length.
        annotations: Names of the annotations, at most `MAX_ANNOTATIONS`.
        other_key_id: The key_id inside a record that contradicts `key_id`, or None.
        problem: Why the value cannot be parsed, or can never be decrypted; or "".
    """

    provider: Provider
    name: str = ""
    version: str = ""
    key_id: str | None = None
    record: Record | None = field(default=None, repr=False)
    wrapped: bytes | None = field(default=None, repr=False)
    source: str = ""
    data: bytes = field(default=b"", repr=False)
    data_bytes: int = 0
    annotations: tuple[str, ...] = ()
    other_key_id: str | None = None
    problem: str = ""

    @property
    def kind(self) -> str:
        """Return what made the record: "token" or "local KEK"; "" without a record."""
        if self.record is None:
            return ""
        local = self.record.header.kind is Kind.DEK_BY_LOCAL_KEK
        return "local KEK" if local else "token"


def explain(value: bytes) -> Stored:
    """Parse one value; any bytes are accepted, and no error is raised.

    Args:
        value: The value as etcd holds it, of any length.
    """
    if not value.startswith(ENCRYPTED):
        return Stored(provider=Provider.IDENTITY, data_bytes=len(value))
    for prefix, provider in _PREFIXES.items():
        if value.startswith(prefix):
            rest = value[len(prefix) :]
            if provider is Provider.KMS_V2:
                return _kms_v2(rest)
            if provider is Provider.KMS_V1:
                return _kms_v1(rest)
            return _by_key(provider, rest)
    return _unknown(value[len(ENCRYPTED) :])


_PREFIXES: Final = {
    b"k8s:enc:kms:v2:": Provider.KMS_V2,
    b"k8s:enc:kms:v1:": Provider.KMS_V1,
    b"k8s:enc:aescbc:v1:": Provider.AESCBC,
    b"k8s:enc:aesgcm:v1:": Provider.AESGCM,
    b"k8s:enc:secretbox:v1:": Provider.SECRETBOX,
}
_LEAST_BYTES: Final = {
    Provider.AESCBC: _CBC_BYTES,
    Provider.AESGCM: _GCM_BYTES,
    Provider.SECRETBOX: _SECRETBOX_BYTES,
}


def _kms_v2(rest: bytes) -> Stored:
    name, body, problem = _named(rest)
    if body is None:
        return Stored(provider=Provider.KMS_V2, version="v2", problem=problem)
    try:
        envelope = EncryptedObject.FromString(body)
    except DecodeError:
        return Stored(
            provider=Provider.KMS_V2,
            name=name,
            version="v2",
            data_bytes=len(body),
            problem=problem or GARBLED,
        )
    wrapped = envelope.encryptedDEKSource
    known = 0 < len(envelope.keyID.encode()) <= MAX_KEY_ID_BYTES
    key_id = envelope.keyID if known else None
    record = record_of(wrapped)
    inside = record.header.key_id if record else None
    contradicted = inside is not None and inside != key_id
    return Stored(
        provider=Provider.KMS_V2,
        name=name,
        version="v2",
        key_id=key_id,
        record=None if contradicted else record,
        wrapped=wrapped or None,
        source=_source(envelope),
        data=envelope.encryptedData,
        data_bytes=len(envelope.encryptedData),
        annotations=tuple(_annotations(envelope)),
        other_key_id=inside if contradicted else None,
        problem=problem
        or _wrong_with(envelope)
        or (CONTRADICTION if contradicted else ""),
    )


def _wrong_with(envelope: EncryptedObject) -> str:
    """Return why the API server would refuse this envelope; "" if it would not."""
    least = _GCM_BYTES if _source(envelope) == "DEK" else _SEED_DATA_BYTES
    checks = (
        (not _source(envelope), SOURCE_UNKNOWN),
        (not envelope.keyID, NO_KEY_ID),
        (len(envelope.keyID.encode()) > MAX_KEY_ID_BYTES, LONG_KEY_ID),
        (not envelope.encryptedDEKSource, NO_WRAPPED),
        (len(envelope.encryptedDEKSource) > MAX_WRAPPED_BYTES, LONG_WRAPPED),
        (len(envelope.encryptedData) < least, SHORT_DATA),
    )
    return next((problem for wrong, problem in checks if wrong), "")


def _source(envelope: EncryptedObject) -> str:
    kind = envelope.encryptedDEKSourceType
    if kind == EncryptedDEKSourceType.AES_GCM_KEY:
        return "DEK"
    if kind == EncryptedDEKSourceType.HKDF_SHA256_XNONCE_AES_GCM_SEED:
        return "seed"
    return ""


def _annotations(envelope: EncryptedObject) -> list[str]:
    # More or longer names can only come from a client that bypassed the API server.
    names = sorted(name[:MAX_NAME_BYTES] for name in envelope.annotations)
    return names[:MAX_ANNOTATIONS]


def _kms_v1(rest: bytes) -> Stored:
    found = split_v1(rest)
    if found is None:
        name, _, problem = _named(rest)
        return Stored(
            provider=Provider.KMS_V1, name=name, version="v1", problem=problem or CUT
        )
    split, record = found
    name, problem = _text(rest[: split.name_bytes])
    return Stored(
        provider=Provider.KMS_V1,
        name=name,
        version="v1",
        key_id=record.header.key_id if record else None,
        record=record,
        wrapped=rest[split.start : split.end],
        source="DEK",
        data=rest[split.end :],
        data_bytes=len(rest) - split.end,
        problem=problem,
    )


def _by_key(provider: Provider, rest: bytes) -> Stored:
    """Parse a value of a provider whose key is in the EncryptionConfiguration."""
    name, data, problem = _named(rest)
    size = len(data or b"")
    if not problem and size < _LEAST_BYTES[provider]:
        problem = SHORT_DATA
    if not problem and provider is Provider.AESCBC and size % _BLOCK_BYTES:
        problem = PART_BLOCK
    return Stored(
        provider=provider, name=name, version="v1", data_bytes=size, problem=problem
    )


def _unknown(rest: bytes) -> Stored:
    """Parse a value that begins like an encrypted one but has an unknown prefix."""
    words = rest[:MAX_NAME_BYTES].split(b":", 2)[:2]
    name = text_of(b":".join(words))
    return Stored(provider=Provider.UNKNOWN, name=name, data_bytes=len(rest))


def _named(rest: bytes) -> tuple[str, bytes | None, str]:
    """Return the name, the rest after its colon or None, and the problem or ""."""
    at = rest.find(b":", 0, MAX_NAME_BYTES + 1)
    if at < 0:
        return "", None, CUT if len(rest) <= MAX_NAME_BYTES else NO_NAME
    name, problem = _text(rest[:at])
    return name, rest[at + 1 :], problem


def _text(name: bytes) -> tuple[str, str]:
    if not name:
        return "", NO_NAME
    try:
        return name.decode(), ""
    except UnicodeDecodeError:
        return text_of(name), NAME_NOT_TEXT

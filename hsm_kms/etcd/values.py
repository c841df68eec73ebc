"""One stored value taken apart, without any key (docs/etcd.md).

The rules this file holds to:

1.  Any bytes whatsoever give a `Stored`; what is wrong with them is a sentence.
2.  The sentences are from a fixed set and quote nothing.
3.  What a value says of itself is not authenticated: it is a claim, which `text`
    makes fit for a terminal.
4.  A record counts as ours only where it parses and nothing contradicts it.
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
"""What every encrypted value begins with, and no other."""

MAX_KEY_ID_BYTES: Final = 1024
MAX_WRAPPED_BYTES: Final = 1024
MAX_ANNOTATIONS: Final = 64
"""How many annotation names are kept; the API server allows 32 KiB in all."""

_GCM_BYTES: Final = 12 + 16  # nonce and tag
_CBC_BYTES: Final = 16 + 16  # IV and one block
_SECRETBOX_BYTES: Final = 24 + 16  # nonce and tag
_SEED_DATA_BYTES: Final = 32 + _GCM_BYTES  # info for HKDF before them
_BLOCK_BYTES: Final = 16

CUT: Final = "the value ends too early"
NO_NAME: Final = "the value does not say which provider or key wrote it"
NAME_NOT_TEXT: Final = "the name of the provider is not text"
GARBLED: Final = "the envelope is cut or garbled"
NO_KEY_ID: Final = "the envelope has no key_id"
LONG_KEY_ID: Final = "the key_id is longer than the API server accepts"
NO_WRAPPED: Final = "the envelope has no wrapped seed or DEK"
LONG_WRAPPED: Final = "the wrapped seed is longer than the API server accepts"
SOURCE_UNKNOWN: Final = "the envelope holds a kind of seed that nobody knows"
SHORT_DATA: Final = "the encrypted data is too short to be any"
PART_BLOCK: Final = "the encrypted data is not in whole blocks"
CONTRADICTION: Final = "the key_id beside the record is not the one in the record"


class Provider(StrEnum):
    """Which kind of provider wrote a value."""

    IDENTITY = "identity"
    KMS_V2 = "kms v2"
    KMS_V1 = "kms v1"
    AESCBC = "aescbc"
    AESGCM = "aesgcm"
    SECRETBOX = "secretbox"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What one value says of itself; hostile until proven otherwise.

    Args:
        provider: Which kind of provider wrote it; IDENTITY where it is in clear.
        name: The provider's or key's name in the prefix, "" for identity; of an
            unknown prefix what stands in the name's place.
        version: "v1" or "v2" as in the prefix, "" where there is none.
        key_id: As stored beside the wrapped seed in v2, else from our record;
            None where neither says.
        record: Our own record, None where the wrapped part is not ours.
        wrapped: The wrapped seed or DEK, None where there is none.
        source: What is wrapped: "seed", "DEK", or "" where nothing is.
        data_bytes: Length of the encrypted data, in clear of the whole value.
        annotations: Names of the annotations, at most `MAX_ANNOTATIONS`.
        other_key_id: The key_id inside a record that contradicts `key_id`.
        problem: Why it cannot be taken apart, or could never be decrypted; "".
    """

    provider: Provider
    name: str = ""
    version: str = ""
    key_id: str | None = None
    record: Record | None = field(default=None, repr=False)
    wrapped: bytes | None = field(default=None, repr=False)
    source: str = ""
    data_bytes: int = 0
    annotations: tuple[str, ...] = ()
    other_key_id: str | None = None
    problem: str = ""

    @property
    def kind(self) -> str:
        """What wrapped a record of ours: "token" or "local KEK"; "" if not ours."""
        if self.record is None:
            return ""
        local = self.record.header.kind is Kind.DEK_BY_LOCAL_KEK
        return "local KEK" if local else "token"


def explain(value: bytes) -> Stored:
    """Take one value apart; any bytes will do, and nothing is raised.

    Args:
        value: As etcd holds it, of any length.
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
        data_bytes=len(envelope.encryptedData),
        annotations=tuple(_annotations(envelope)),
        other_key_id=inside if contradicted else None,
        problem=problem
        or _wrong_with(envelope)
        or (CONTRADICTION if contradicted else ""),
    )


def _wrong_with(envelope: EncryptedObject) -> str:
    """Why the API server would refuse this envelope."""
    least = _GCM_BYTES if _source(envelope) == "DEK" else _SEED_DATA_BYTES
    checks = (
        (not _source(envelope), SOURCE_UNKNOWN),
        (not envelope.keyID, NO_KEY_ID),
        (len(envelope.keyID.encode()) > MAX_KEY_ID_BYTES, LONG_KEY_ID),
        (not envelope.encryptedDEKSource, NO_WRAPPED),
        (len(envelope.encryptedDEKSource) > MAX_WRAPPED_BYTES, LONG_WRAPPED),
        (len(envelope.encryptedData) < least, SHORT_DATA),
    )
    return next((sentence for wrong, sentence in checks if wrong), "")


def _source(envelope: EncryptedObject) -> str:
    kind = envelope.encryptedDEKSourceType
    if kind == EncryptedDEKSourceType.AES_GCM_KEY:
        return "DEK"
    if kind == EncryptedDEKSourceType.HKDF_SHA256_XNONCE_AES_GCM_SEED:
        return "seed"
    return ""


def _annotations(envelope: EncryptedObject) -> list[str]:
    # Only a client that went past the API server writes more, or longer ones.
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
        data_bytes=len(rest) - split.end,
        problem=problem,
    )


def _by_key(provider: Provider, rest: bytes) -> Stored:
    """A provider whose key stands in the EncryptionConfiguration itself."""
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
    """What begins like an encrypted value but names no provider known here."""
    words = rest[:MAX_NAME_BYTES].split(b":", 2)[:2]
    name = text_of(b":".join(words))
    return Stored(provider=Provider.UNKNOWN, name=name, data_bytes=len(rest))


def _named(rest: bytes) -> tuple[str, bytes | None, str]:
    """Name, what follows its colon (None where there is none), what is wrong."""
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

"""What the API server stores: the part of a value in etcd that needs no key."""

from __future__ import annotations

from dataclasses import dataclass

V1 = b"k8s:enc:kms:v1:"
V2 = b"k8s:enc:kms:v2:"
BY_A_LOST_KEY = b"k8s:enc:aescbc:v1:lost:" + bytes(range(64))
"""A value of another provider, whose key nobody has."""
VARINT, LENGTH_DELIMITED = 0, 2


@dataclass(frozen=True)
class StoredV2:
    """Fields of the envelope of one v2 value."""

    provider: str
    key_id: str
    encrypted_dek_source: bytes


def parse_v2(value: bytes) -> StoredV2:
    """Take apart a value that the API server wrote through KMS v2.

    Raises:
        ValueError: It did not.
    """
    if not value.startswith(V2):
        msg = f"not a KMS v2 value: {value[:40]!r}"
        raise ValueError(msg)
    provider, _, message = value.removeprefix(V2).partition(b":")
    fields = _fields(message)
    return StoredV2(
        provider=provider.decode(),
        key_id=_one(fields, 2).decode(),
        encrypted_dek_source=_one(fields, 3),
    )


def encrypted_dek_v1(value: bytes) -> bytes:
    """The wrapped DEK of a value that the API server wrote through KMS v1.

    Raises:
        ValueError: It did not.
    """
    if not value.startswith(V1):
        msg = f"not a KMS v1 value: {value[:40]!r}"
        raise ValueError(msg)
    _, _, rest = value.removeprefix(V1).partition(b":")
    return rest[2 : 2 + int.from_bytes(rest[:2], "big")]


def _one(fields: dict[int, list[bytes]], number: int) -> bytes:
    (value,) = fields.get(number, [b""])
    return value


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """Split a protobuf message; numbers come as little-endian bytes."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            integer, at = _varint(message, at)
            data = integer.to_bytes(8, "little")
        elif kind == LENGTH_DELIMITED:
            length, at = _varint(message, at)
            data = message[at : at + length]
            at += length
        else:
            msg = f"field {number} has wire type {kind}"
            raise ValueError(msg)
        found.setdefault(number, []).append(data)
    if at != len(message):
        msg = "the message ends inside a field"
        raise ValueError(msg)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            msg = "the message ends inside a number"
            raise ValueError(msg)
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7

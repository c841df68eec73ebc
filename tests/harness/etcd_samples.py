"""Stored values as the API server writes them, put together by hand."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record

if TYPE_CHECKING:
    from pathlib import Path

KEY_ID = "abcdefghijklmnopqrstuvwxya"
OTHER_KEY_ID = "zyxwvutsrqponmlkjihgfedcba"
SEED_TYPE = 1

# What the API server's own tests recorded: under a seed, and under a DEK.
SEED_DATA = bytes.fromhex(
    "2442759e33945fbad709db577a0f037fd8a709fc76979b8942209debcecb9d57efe3d6ff6a1ef6ee"
    "9a5003b9833b3043cec1e47b35175b151107a8d2416b0e296bbf66b5d102fcefdf9a78f293d271"
)
DEK_DATA = bytes.fromhex(
    "9f27c8fcea8a58c467d8e437dbf2d85955f9b4bd912f4ef967d788a0cb07797dac0a3f0a0845605c"
    "a85ac8562b4ae1"
)


def record(key_id: str = KEY_ID, *, local: bool = False) -> bytes:
    """A record of ours; its ciphertext is made up."""
    if not local:
        header = Header(
            kind=Kind.DEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=key_id
        )
        return Record(header=header, iv=bytes(12), ciphertext=bytes(48)).encode()
    inner = Header(
        kind=Kind.LOCAL_KEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=key_id
    )
    nested = Record(header=inner, iv=bytes(12), ciphertext=bytes(48)).encode()
    header = Header(
        kind=Kind.DEK_BY_LOCAL_KEK,
        algorithm=Algorithm.AES_256_GCM,
        key_id=key_id,
        nested=nested,
    )
    return Record(header=header, iv=bytes(12), ciphertext=bytes(48)).encode()


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def envelope(
    wrapped: bytes,
    key_id: str = KEY_ID,
    data: bytes = SEED_DATA,
    source: int = SEED_TYPE,
    annotations: dict[str, bytes] | None = None,
) -> bytes:
    """An EncryptedObject."""
    extra = b"".join(
        field(4, field(1, name.encode()) + field(2, value))
        for name, value in (annotations or {}).items()
    )
    kind = bytes([5 << 3, source]) if source else b""
    return field(1, data) + field(2, key_id.encode()) + field(3, wrapped) + extra + kind


def v2(wrapped: bytes | None = None, name: str = "hsm", **fields: Any) -> bytes:
    """A value written through KMS v2, by default one of ours."""
    wrapped = record(fields.get("key_id", KEY_ID)) if wrapped is None else wrapped
    return b"k8s:enc:kms:v2:" + name.encode() + b":" + envelope(wrapped, **fields)


def v1(
    wrapped: bytes | None = None, name: bytes = b"hsm-v1", data: bytes = DEK_DATA
) -> bytes:
    """A value written through KMS v1, by default one of ours."""
    wrapped = record(local=True) if wrapped is None else wrapped
    length = len(wrapped).to_bytes(2, "big")
    return b"k8s:enc:kms:v1:" + name + b":" + length + wrapped + data


def by_cbc(dek: bytes, plaintext: bytes, *, padding: bytes = b"") -> bytes:
    """Data as API servers up to 1.24 encrypted it with a DEK of KMS v1."""
    iv = os.urandom(16)
    least = 16 - len(plaintext) % 16
    padded = plaintext + (padding or bytes([least]) * least)
    encryptor = Cipher(AES(dek), CBC(iv)).encryptor()
    return iv + encryptor.update(padded) + encryptor.finalize()


def etcdctl_json(
    objects: dict[str, bytes], revision: int = 7, **others: object
) -> bytes:
    """What `etcdctl get --prefix / -w json` prints."""
    pairs = [
        {
            "key": base64.b64encode(key.encode()).decode(),
            "create_revision": 2,
            "mod_revision": 3,
            "version": 1,
            "value": base64.b64encode(value).decode(),
        }
        for key, value in objects.items()
    ]
    header = {
        "cluster_id": 14841639068965178418,
        "member_id": 10276657743932975437,
        "revision": revision,
        "raft_term": 2,
    }
    return json.dumps(
        {"header": header, "kvs": pairs, "count": len(pairs)} | others
    ).encode()


def written(path: Path, objects: dict[str, bytes], **others: Any) -> Path:
    """The same in a file."""
    path.write_bytes(etcdctl_json(objects, **others))
    return path

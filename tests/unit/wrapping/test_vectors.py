"""Every vector of tests/vectors, read by `hsm_kms.wrapping.record`."""

from __future__ import annotations

import hmac
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.errors import CiphertextError
from hsm_kms.ipc.fingerprints import (
    FINGERPRINT_BLOCK,
    fingerprint_of,
    fingerprint_of_cka_id,
)
from hsm_kms.keys.key_id import activation_of, make_cka_id
from hsm_kms.wrapping.record import FROM_OUTSIDE, Algorithm, Kind, Record

VECTORS = Path(__file__).parents[2] / "vectors"
ACCEPT = {
    "": FROM_OUTSIDE,
    "canary": frozenset({Kind.CANARY}),
    "nested": frozenset({Kind.LOCAL_KEK_BY_TOKEN}),
}
PLAINTEXT_BYTES = {
    Kind.DEK_BY_TOKEN: range(1, 1025),
    Kind.LOCAL_KEK_BY_TOKEN: range(32, 33),
    Kind.CANARY: range(1, 1025),
}


def load(path):
    """Return the fields of one vector file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = (line.partition(":")[::2] for line in lines)
    return {name: value.strip() for name, value in fields}


def vectors(folder):
    """Return the vectors below a folder, each named by its path."""
    return [
        pytest.param(load(path), id=str(path.relative_to(VECTORS).with_suffix("")))
        for path in sorted((VECTORS / folder).rglob("*.txt"))
    ]


def field(vector, name):
    return bytes.fromhex(vector[name])


def open_gcm(record, key, scope):
    return AESGCM(key).decrypt(record.iv, record.ciphertext, record.header.aad(scope))


def open_cbc(record, key, hmac_key, scope):
    ciphertext, tag = record.ciphertext[:-32], record.ciphertext[-32:]
    iv = bytes([len(record.iv)]) + record.iv
    signed = record.header.aad(scope) + iv + ciphertext
    if not hmac.compare_digest(hmac.digest(hmac_key, signed, "sha256"), tag):
        raise InvalidTag
    decryptor = Cipher(algorithms.AES(key), modes.CBC(record.iv)).decryptor()
    unpadder = padding.PKCS7(128).unpadder()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    plaintext = unpadder.update(padded) + unpadder.finalize()
    if len(plaintext) not in PLAINTEXT_BYTES[record.header.kind]:
        raise ValueError("wrong length of plaintext")
    return plaintext


def open_by_token(record, vector):
    if record.header.algorithm is Algorithm.AES_256_GCM:
        return open_gcm(record, field(vector, "kek"), vector["scope"])
    keys = field(vector, "kek"), field(vector, "hmac-key")
    return open_cbc(record, *keys, vector["scope"])


def open_record(record, vector):
    if record.header.kind is not Kind.DEK_BY_LOCAL_KEK:
        return open_by_token(record, vector)
    nested = Record.decode(record.header.nested, kinds=ACCEPT["nested"])
    local_kek = open_by_token(nested, vector)
    assert field(vector, "local-kek") == local_kek
    return open_gcm(record, local_kek, vector["scope"])


def test_record():
    """Each record is decrypted, or refused at the step that its `expect:` names."""
    cases = vectors("record")
    assert cases
    for case in cases:
        try:
            check_record(*case.values)
        except (AssertionError, pytest.fail.Exception) as error:
            error.add_note(f"vector: {case.id}")
            raise


def check_record(vector):
    data, kinds = field(vector, "record"), ACCEPT[vector.get("accept", "")]
    if vector["expect"] == "malformed":
        with pytest.raises(CiphertextError):
            Record.decode(data, kinds=kinds)
        return

    record = Record.decode(data, kinds=kinds)

    assert data == record.encode()
    if vector["expect"] == "ok":
        assert field(vector, "plaintext") == open_record(record, vector)
    else:
        assert vector["expect"] == "not authentic"
        with pytest.raises((InvalidTag, ValueError)):
            open_record(record, vector)


@pytest.mark.parametrize("vector", vectors("fingerprint"))
def test_fingerprint(vector):
    """A fingerprint follows from the keys as docs/spec.md says."""
    # CBC with a zero IV, by which a token may also encrypt the block.
    cipher = Cipher(algorithms.AES(field(vector, "kek")), modes.CBC(bytes(16)))
    block = cipher.encryptor().update(FINGERPRINT_BLOCK)
    if "hmac-key" in vector:
        block += hmac.digest(field(vector, "hmac-key"), FINGERPRINT_BLOCK, "sha256")

    assert vector["fingerprint"] == fingerprint_of(block)


@pytest.mark.parametrize("vector", vectors("cka_id"))
def test_cka_id(vector):
    """The activation time is read from a CKA_ID of ours, and from no other."""
    cka_id = field(vector, "cka-id")

    assert int(vector.get("activation", "0")) == activation_of(cka_id)
    assert vector["fingerprint"] == fingerprint_of_cka_id(cka_id)


def test_make_cka_id():
    """A new CKA_ID differs from a vector in its random bytes only."""
    vector = load(VECTORS / "cka_id" / "usual.txt")
    made = make_cka_id(int(vector["activation"]))

    assert field(vector, "cka-id")[:13] == made[:13]
    assert len(made) == 21
    assert made != make_cka_id(int(vector["activation"]))


def test_generate(tmp_path):
    """The generator writes the committed vectors again, and no others."""
    script = VECTORS / "generate.py"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, script, tmp_path], check=True, env=env)

    def contents(root):
        return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*.txt")}

    assert contents(VECTORS) == contents(tmp_path)

"""Test decryption of the API server's own envelope, with what it recorded itself."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.errors import CiphertextError
from hsm_kms.etcd.envelope import decrypt_data
from hsm_kms.etcd.values import Provider, explain
from tests.harness.etcd_samples import DEK_DATA, SEED_DATA, by_cbc, v1, v2

# Of the API server's own tests: see SEED_DATA and DEK_DATA.
SEED = bytes.fromhex("5d40323a820ff95561675e3b95e81867c5fdd561d35a88a2d08b08aa9d4fcf5c")
DEK = b"snorlax_awesomes"
KEY = b"bamboo"
TEXT = b"pandas are the best"
OBJECT = b"k8s\0an object"


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        (v2(data=SEED_DATA), SEED),
        (v2(data=DEK_DATA, source=0), DEK),
        (v1(data=DEK_DATA), DEK),
    ],
    ids=["v2 seed", "v2 DEK", "v1"],
)
def test_recorded_by_the_api_server(value, secret):
    """What the API server's own tests recorded is decrypted, for its key only."""
    stored = explain(value)
    opened = decrypt_data(stored, secret, KEY)

    assert (TEXT, True) == (opened.data, opened.authenticated)
    assert TEXT.decode() not in repr(opened)
    for at in range(len(stored.data)):
        changed = bytearray(stored.data)
        changed[at] ^= 1
        with pytest.raises(CiphertextError):
            decrypt_data(replace(stored, data=bytes(changed)), secret, KEY)
    for other in (b"", b"bambo", b"bamboos"):
        with pytest.raises(CiphertextError):
            decrypt_data(stored, secret, other)


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_cbc(bits):
    """AES-CBC of KMS v1 is decrypted, and is said to prove nothing."""
    dek = os.urandom(bits // 8)
    for length in range(16):
        text = OBJECT + bytes(length)
        opened = decrypt_data(explain(v1(data=by_cbc(dek, text))), dek, KEY)

        assert (text, False) == (opened.data, opened.authenticated)


@pytest.mark.parametrize(
    ("text", "padding"),
    [
        (b"x" * 31, b""),  # a valid padding, and no object
        (OBJECT + b"\0", b"\0\0"),
        (OBJECT + b"\0", b"\1\2"),
        (OBJECT + b"\0", b"\x11\x11"),
    ],
)
def test_cbc_that_is_no_object(text, padding):
    """A wrong padding, or a plaintext that is no object, is not authentic."""
    dek = os.urandom(32)

    with pytest.raises(CiphertextError):
        decrypt_data(explain(v1(data=by_cbc(dek, text, padding=padding))), dek, KEY)


def test_cbc_is_of_v1_only():
    """No API server wrote AES-CBC through KMS v2, so it is refused there."""
    dek = os.urandom(32)

    with pytest.raises(CiphertextError):
        decrypt_data(explain(v2(data=by_cbc(dek, OBJECT), source=0)), dek, KEY)


@given(st.binary(max_size=80), st.binary(max_size=300), st.booleans())
def test_anything(secret, data, seed):
    """Any other secret and data are refused, with one kind of error."""
    stored = explain(v2(data=data, source=int(seed)))
    assert Provider.KMS_V2 is stored.provider
    with pytest.raises(CiphertextError):
        decrypt_data(stored, secret, KEY)

"""A server on a real token, as a client sees it."""

from __future__ import annotations

import pytest


def test_round_trip(shared_server):
    """Decrypt returns what Encrypt wrapped, under the key_id of Status."""
    sealed = shared_server.encrypt(b"d" * 32)

    assert shared_server.status().key_id == sealed.key_id
    assert b"d" * 32 == shared_server.decrypt(sealed.ciphertext, sealed.key_id)


def test_v1_round_trip(shared_server):
    """v1 wraps and unwraps without a key_id."""
    assert b"ping" == shared_server.v1_decrypt(shared_server.v1_encrypt(b"ping"))


@pytest.mark.parametrize("size", [1, 4, 32, 1023, 1024])
def test_sizes(shared_server, size):
    """Plaintexts of 1 to 1,024 bytes are encrypted and decrypted."""
    sealed = shared_server.encrypt(b"s" * size)

    assert b"s" * size == shared_server.decrypt(sealed.ciphertext, sealed.key_id)

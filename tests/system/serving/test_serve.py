"""A server on a real token, as a client sees it."""

from __future__ import annotations

import pytest


def test_round_trip(plugin):
    """What Encrypt wrapped, Decrypt opens, under the key_id of Status."""
    sealed = plugin.encrypt(b"d" * 32)

    assert plugin.status().key_id == sealed.key_id
    assert b"d" * 32 == plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_v1_round_trip(plugin):
    """v1 wraps and unwraps without a key_id beside it."""
    assert b"ping" == plugin.v1_decrypt(plugin.v1_encrypt(b"ping"))


@pytest.mark.parametrize("size", [1, 4, 32, 1023, 1024])
def test_sizes(plugin, size):
    """Every length from 1 to 1,024 bytes comes back as it was."""
    sealed = plugin.encrypt(b"s" * size)

    assert b"s" * size == plugin.decrypt(sealed.ciphertext, sealed.key_id)

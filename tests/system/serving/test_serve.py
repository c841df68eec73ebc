"""A server on a real token, as a client sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.plugin import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.softhsm import SoftHsm


@pytest.fixture(scope="module")
def served(
    session_directory: Path, keyed_template: SoftHsm, pin_file: Path
) -> Iterator[Plugin]:
    """A healthy server for all tests of this file."""
    hsm = keyed_template.copy(session_directory / "serve")
    directory = hsm.directory / "p"
    directory.mkdir(mode=0o700)
    plugin = Plugin(directory, hsm, pin_file).start()
    plugin.wait_healthz("ok")
    yield plugin
    plugin.close()


def test_round_trip(served):
    """Decrypt returns what Encrypt wrapped, under the key_id of Status."""
    sealed = served.encrypt(b"d" * 32)

    assert served.status().key_id == sealed.key_id
    assert b"d" * 32 == served.decrypt(sealed.ciphertext, sealed.key_id)


def test_v1_round_trip(served):
    """v1 wraps and unwraps without a key_id."""
    assert b"ping" == served.v1_decrypt(served.v1_encrypt(b"ping"))


@pytest.mark.parametrize("size", [1, 4, 32, 1023, 1024])
def test_sizes(served, size):
    """Plaintexts of 1 to 1,024 bytes are encrypted and decrypted."""
    sealed = served.encrypt(b"s" * size)

    assert b"s" * size == served.decrypt(sealed.ciphertext, sealed.key_id)

"""Opening what a local KEK wrapped: the vectors, and what is none of its business."""

from __future__ import annotations

import pytest

from hsm_kms.errors import CiphertextError
from hsm_kms.wrapping.local import open_dek
from hsm_kms.wrapping.record import CIPHERTEXT_SENTENCE, Record
from tests.test_vectors import VECTORS, field, load


def vector(name):
    """A vector of a record, and the record."""
    found = load(VECTORS / "record" / f"{name}.txt")
    return found, Record.decode(field(found, "record"))


@pytest.mark.parametrize("name", ["local", "local-nested-cbc-longest"])
def test_opens(name):
    """The DEK comes out that went in."""
    found, record = vector(f"ok/{name}")

    opened = open_dek(record, field(found, "local-kek"), found["scope"])

    assert field(found, "plaintext") == opened


def test_not_authentic():
    """One wrong bit, another scope, another local KEK: one sentence for all."""
    found, good = vector("ok/local")
    _, bad = vector("not-authentic/local-tag")
    local_kek = field(found, "local-kek")
    attempts = [
        (bad, local_kek, found["scope"]),
        (good, local_kek, "another"),
        (good, bytes(32), found["scope"]),
        (good, local_kek[:16], found["scope"]),
        (good, local_kek + b"\0", found["scope"]),
    ]

    for record, key, scope in attempts:
        with pytest.raises(CiphertextError) as caught:
            open_dek(record, key, scope)
        assert CIPHERTEXT_SENTENCE == str(caught.value)


def test_another_kind():
    """What the token wrapped is the token's to open."""
    _, record = vector("ok/gcm-iv12")

    with pytest.raises(ValueError, match="only a DEK by a local KEK"):
        open_dek(record, bytes(32), "")

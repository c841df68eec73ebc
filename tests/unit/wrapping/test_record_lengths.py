"""Which lengths the fields of a record may have, and where its header ends."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from hsm_kms.wrapping.record import Kind, header_of_local
from tests.unit.wrapping.test_record import CBC, make, make_local

LOCAL_KEK = Kind.LOCAL_KEK_BY_TOKEN

# name: a record · the lengths of its IV · those of its ciphertext, with the tag
LENGTHS = {
    "gcm": (make(), range(12, 17), range(17, 1041)),
    "cbc": (make(algorithm=CBC), [16], range(48, 1073, 16)),
    "local": (make_local(), [12], range(17, 1041)),
    "local KEK, gcm": (make(LOCAL_KEK), range(12, 17), [48]),
    "local KEK, cbc": (make(LOCAL_KEK, CBC), [16], [80]),
}


def accepted(record, name, sizes):
    """Return the lengths of one field with which the record can be built."""
    found = []
    for size in sizes:
        with contextlib.suppress(ValueError):
            found.append(dataclasses.replace(record, **{name: bytes(size)}))
    return [len(getattr(each, name)) for each in found]


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths(name):
    """An IV or a ciphertext of another length than docs/spec.md says is refused."""
    record, ivs, ciphertexts = LENGTHS[name]

    assert list(ivs) == accepted(record, "iv", range(20))
    assert list(ciphertexts) == accepted(record, "ciphertext", range(1100))


def test_header_of_local():
    """The header of a record of kind 2 is found without a check of anything else."""
    record = make_local()

    assert record.header.encode() == header_of_local(record.encode())
    for data in (b"\x01\x02\x01\x00", b"\x09\x02\x09\xff", b"\x01\x02\x01\x00\x01\x00"):
        assert data == header_of_local(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01\x02\x01", make().encode(), make(LOCAL_KEK).encode()],
    ids=["empty", "short", "kind 1", "kind 3"],
)
def test_no_header_of_local(data):
    """Bytes that are no record of kind 2 have no such header."""
    assert b"" == header_of_local(data)

"""How a key violates the policy, and which keys the token generated."""

from __future__ import annotations

import pytest

from hsm_kms.ipc.values import Cipher, KeyRef, KeySeen
from hsm_kms.keys.policy import born_here, violations
from tests.unit.keys.key_samples import settings

GOOD = {
    "CKA_SENSITIVE": True,
    "CKA_EXTRACTABLE": False,
    "CKA_ENCRYPT": True,
    "CKA_DECRYPT": True,
    "CKA_TOKEN": True,
    "CKA_PRIVATE": True,
    "CKA_LOCAL": False,  # imported: no offence
}

# name: what differs from a good key · its length in bytes · what is said
OFFENCES = {
    "good": ({}, 32, ()),
    "readable": ({"CKA_SENSITIVE": False}, 32, ("CKA_SENSITIVE is False",)),
    "extractable": ({"CKA_EXTRACTABLE": True}, 32, ("CKA_EXTRACTABLE is True",)),
    "cannot encrypt": ({"CKA_ENCRYPT": False}, 32, ("CKA_ENCRYPT is False",)),
    "cannot decrypt": ({"CKA_DECRYPT": False}, 32, ("CKA_DECRYPT is False",)),
    "session object": ({"CKA_TOKEN": False}, 32, ("CKA_TOKEN is False",)),
    "public": ({"CKA_PRIVATE": False}, 32, ("CKA_PRIVATE is False",)),
    "AES-128": ({}, 16, ("CKA_VALUE_LEN is 16 bytes, not 32 bytes",)),
    "length untold": ({}, None, ("CKA_VALUE_LEN is unknown, not 32 bytes",)),
    "flag untold": ({"CKA_SENSITIVE": None}, 32, ("CKA_SENSITIVE is not readable",)),
    "two at once": (
        {"CKA_SENSITIVE": False, "CKA_EXTRACTABLE": True},
        32,
        ("CKA_SENSITIVE is False", "CKA_EXTRACTABLE is True"),
    ),
}


def seen(changes, length=32, partner=None):
    return KeySeen(
        ref=KeyRef("kek", b"1"),
        value_len=length,
        attributes=GOOD | changes,
        partner=partner,
    )


@pytest.mark.parametrize("name", OFFENCES)
def test_offences(name):
    """Each attribute that violates the policy is named with its value."""
    changes, length, wanted = OFFENCES[name]

    assert wanted == violations(seen(changes, length), Cipher.GCM, settings())


def test_public_where_no_login():
    """On a token without login CKA_PRIVATE is not required."""
    public = seen({"CKA_PRIVATE": False})

    assert () == violations(public, Cipher.GCM, settings(private=False))


def test_partner():
    """The HMAC key of a pair is judged by its own attributes, where it is used."""
    partner = seen({"CKA_SIGN": True, "CKA_VERIFY": None, "CKA_ENCRYPT": False})
    pair = seen({}, partner=partner)

    assert () == violations(pair, Cipher.GCM, settings())
    assert ("CKA_VERIFY is not readable (HMAC key)",) == violations(
        pair, Cipher.CBC_HMAC, settings()
    )


BORN = {
    "CKA_LOCAL": True,
    "CKA_ALWAYS_SENSITIVE": True,
    "CKA_NEVER_EXTRACTABLE": True,
}


def test_born_here():
    """A key that the token generated, and that was never extractable, is born here."""
    assert born_here(seen(BORN))


@pytest.mark.parametrize("name", BORN)
@pytest.mark.parametrize("value", [False, None], ids=["no", "untold"])
def test_not_born_here(name, value):
    """A key is not born here if one attribute, also of its HMAC key, is missing."""
    other = seen(BORN | {name: value})

    assert not born_here(other)
    assert not born_here(seen(BORN, partner=other))
    assert born_here(seen(BORN, partner=seen(BORN)))

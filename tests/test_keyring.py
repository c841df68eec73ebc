"""Which key is current, and what the policy has against a key: tables of cases."""

from __future__ import annotations

import dataclasses

import pytest

from hsm_kms.errors import (
    KeyAmbiguousError,
    KeyLostError,
    KeyNotFoundError,
    KeyUnsuitableError,
    UnknownKeyIdError,
)
from hsm_kms.keyring import Keyring, KeySettings, TokenKey, choose, offences
from hsm_kms.worker.values import Cipher, KeyRef, KeySeen

A, B, GONE = ("a" * 26, "b" * 26, "g" * 26)
NONE = (
    "no AES key labelled 'kek' is on the token; make one with `hsm-kms keys generate`"
)
SEVERAL = (
    f"2 keys are labelled 'kek': {A}, {B}; name the one to encrypt with in keys.current"
)
NAMED_GONE = (
    f"keys.current names {GONE}, and no such key is on the token; "
    "see `hsm-kms keys list`, and correct keys.current"
)
LOST = (
    f"the key last current here, {GONE}, is not on the token any more; "
    "restore the token, or name another key in keys.current"
)
FORBIDS = (
    f"key {A} breaks the policy: CKA_SENSITIVE is False; "
    "make a key with `hsm-kms keys generate`, or set keys.policy: warn"
)


def key(fingerprint, *offending, suffix="", cipher=Cipher.GCM):
    return TokenKey(
        ref=KeyRef("kek", fingerprint[:1].encode()),
        fingerprint=fingerprint,
        key_id=fingerprint + suffix,
        cipher=cipher,
        mechanism=None,
        activation=0,
        offences=offending,
        born_here=True,
    )


def settings(**changes):
    return KeySettings(label="kek", **changes)


FORBIDDEN = key(A, "CKA_SENSITIVE is False")
SUFFIXED = key(A, suffix=".two")

# name: keys held · last current · keys.* · current · fault · its sentence
CHOICES = {
    "nothing there": (
        [],
        None,
        {},
        None,
        KeyNotFoundError,
        NONE,
    ),
    "the only key": ([key(A)], None, {}, A, None, None),
    "two keys": (
        [key(A), key(B)],
        None,
        {},
        None,
        KeyAmbiguousError,
        SEVERAL,
    ),
    "two keys, one named": ([key(A), key(B)], None, {"current": B}, B, None, None),
    "the only key is not the one named": (
        [key(A)],
        None,
        {"current": GONE},
        None,
        KeyLostError,
        NAMED_GONE,
    ),
    "as before": ([key(A)], A, {}, A, None, None),
    "as before, beside a second": (
        [key(A), key(B)],
        B,
        {},
        B,
        KeyAmbiguousError,
        SEVERAL,
    ),
    "the last one is gone": (
        [key(A)],
        GONE,
        {},
        None,
        KeyLostError,
        LOST,
    ),
    "the last one is gone, nothing is left": (
        [],
        GONE,
        {},
        None,
        KeyLostError,
        LOST,
    ),
    "the last one is gone, another named": (
        [key(A)],
        GONE,
        {"current": A},
        A,
        *[None] * 2,
    ),
    "an older key named": ([key(A), key(B)], B, {"current": A}, A, None, None),
    "last known under another suffix": ([SUFFIXED], A + ".one", {}, A, None, None),
    "named with a suffix": ([SUFFIXED], None, {"current": A + ".old"}, A, None, None),
    "forbidden": (
        [FORBIDDEN],
        None,
        {},
        A,
        KeyUnsuitableError,
        FORBIDS,
    ),
    "forbidden, only warned of": ([FORBIDDEN], None, {"enforce": False}, A, None, None),
    "forbidden, though named": (
        [FORBIDDEN, key(B)],
        None,
        {"current": A},
        A,
        KeyUnsuitableError,
        FORBIDS,
    ),
    "a forbidden one beside the one named": (
        [FORBIDDEN, key(B)],
        None,
        {"current": B},
        B,
        None,
        None,
    ),
}


def test_by_cka_id():
    """Where the keys are listed by CKA_ID the cure is to correct the list."""
    _, fault = choose([], None, settings(ids=(b"1",)))

    assert fault.sentence == (
        "no AES key labelled 'kek' and in keys.ids is on the token; correct keys.ids"
    )


@pytest.mark.parametrize("name", CHOICES)
def test_choose(name):
    """The one named, else the last one, else the only one; and what forbids it."""
    keys, last, changes, wanted, fault, sentence = CHOICES[name]
    current, found = choose(keys, last, settings(**changes))

    assert wanted == (current.fingerprint if current else None)
    assert fault is (type(found) if found else None)
    assert sentence == (found.sentence if found else None)


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


def seen(changes, length, partner=None):
    return KeySeen(
        ref=KeyRef("kek", b"1"),
        value_len=length,
        attributes=GOOD | changes,
        partner=partner,
    )


@pytest.mark.parametrize("name", OFFENCES)
def test_offences(name):
    """Each attribute that is not as it must be is named, with what it is."""
    changes, length, wanted = OFFENCES[name]

    assert wanted == offences(seen(changes, length), Cipher.GCM, settings())


def test_public_where_no_login():
    """A token without login holds public keys only, and that is no offence."""
    public = seen({"CKA_PRIVATE": False}, 32)

    assert () == offences(public, Cipher.GCM, settings(private=False))


def test_partner():
    """The HMAC key of a pair is judged too, by what it is for, where it is used."""
    partner = seen({"CKA_SIGN": True, "CKA_VERIFY": None, "CKA_ENCRYPT": False}, 32)
    pair = seen({}, 32, partner)

    assert () == offences(pair, Cipher.GCM, settings())
    assert ("CKA_VERIFY is not readable (HMAC key)",) == offences(
        pair, Cipher.CBC_HMAC, settings()
    )


def ring(*keys, current=None, fault=None):
    return Keyring(keys=keys, current=current, fault=fault)


@pytest.mark.parametrize("named", [A, A + ".one", A + ".another"])
def test_for_decrypt(named):
    """A key is found by fingerprint, whatever suffix a record or a node has."""
    paired = key(A, cipher=Cipher.CBC_HMAC)
    held = ring(key(B), paired, SUFFIXED)

    assert SUFFIXED is held.for_decrypt(named, Cipher.GCM)
    assert paired is held.for_decrypt(named, Cipher.CBC_HMAC)


@pytest.mark.parametrize("named", [GONE, "", A[:-1], A + "a", "." + A, A.upper()])
def test_unknown_key_id(named):
    """Any other key_id is unknown; none is cut or folded to fit."""
    with pytest.raises(UnknownKeyIdError):
        ring(key(A), key(B)).for_decrypt(named, Cipher.GCM)


def test_unknown_cipher():
    """A key that is held for one cipher opens no record of the other."""
    with pytest.raises(UnknownKeyIdError):
        ring(key(A)).for_decrypt(A, Cipher.CBC_HMAC)


def test_for_encrypt():
    """The current key is given out, and its fault instead where it has one."""
    fault = KeyLostError("gone")
    good = ring(key(A), current=key(A))

    assert key(A) == good.for_encrypt()
    with pytest.raises(KeyLostError):
        dataclasses.replace(good, fault=fault).for_encrypt()
    with pytest.raises(KeyNotFoundError):
        ring().for_encrypt()

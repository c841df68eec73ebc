"""What a keyring decrypts, what it encrypts under, and the state of each key."""

from __future__ import annotations

import dataclasses

import pytest

from hsm_kms.errors import (
    KeyForeignError,
    KeyLostError,
    KeyNotFoundError,
    KeyRetiredError,
    UnknownKeyIdError,
)
from hsm_kms.ipc.values import Cipher
from hsm_kms.keys.keyring import (
    Keyring,
    KeyState,
    Pending,
)
from tests.unit.keys.key_samples import GONE, A, B, C, key, settings

SUFFIXED = key(A, suffix="two")


def ring(*keys, **given):
    return Keyring(**({"keys": keys, "current": None, "fault": None} | given))


@pytest.mark.parametrize("named", [A, A + ".one", A + ".another"])
def test_for_decrypt(named):
    """A key is found by fingerprint, whatever suffix a record or a node has."""
    paired = key(A, cipher=Cipher.CBC_HMAC)
    held = ring(key(B), paired, SUFFIXED)

    assert SUFFIXED is held.for_decrypt(named, Cipher.GCM)
    assert paired is held.for_decrypt(named, Cipher.CBC_HMAC)


FOREIGN = key(C, born_here=False, cka_id=b"\x0c")


@pytest.mark.parametrize(
    "given",
    [
        {"settings": settings(foreign=True)},
        {"settings": settings(current=C + ".two")},
        {"settings": settings(ids=(b"\x0c",))},
        {"settings": settings(also_known_as={GONE: b"\x0c"})},
        {"settings": settings(also_known_as={C: b"\x0d"})},
        {"known": frozenset({C})},
    ],
    ids=["all", "current", "ids", "alias", "itself", "was current"],
)
def test_foreign_key_that_is_trusted(given):
    """A foreign key decrypts if the operator named it, or it was current here."""
    held = ring(key(A), FOREIGN, **given)

    assert FOREIGN is held.for_decrypt(C, Cipher.GCM)
    assert KeyState.DECRYPT_ONLY is held.state(FOREIGN)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"ids": (b"\x0d",)},
        {"current": A, "also_known_as": {A: b"\x0d", GONE: b"\x0e"}},
    ],
)
def test_foreign_key(given):
    """A foreign key that nothing names decrypts nothing, and is shown as foreign."""
    held = ring(key(A), FOREIGN, settings=settings(**given))

    with pytest.raises(KeyForeignError) as refused:
        held.for_decrypt(C, Cipher.GCM)
    assert str(refused.value).startswith(f"{C}: it was not generated on this token")
    assert "set keys.foreign: decrypt" in refused.value.sentence
    assert KeyState.FOREIGN is held.state(FOREIGN)


def test_a_cka_id_that_two_keys_have_names_neither():
    """A planted key with the CKA_ID of a trusted one decrypts nothing."""
    planted = key(GONE, born_here=False, cka_id=b"a")
    listed = settings(ids=(b"a",), also_known_as={B: b"a"})
    held = ring(planted, key(A), settings=listed)

    assert KeyState.FOREIGN is held.state(planted)
    with pytest.raises(KeyForeignError):
        held.for_decrypt(GONE, Cipher.GCM)
    assert A == held.for_decrypt(B, Cipher.GCM).fingerprint


def test_a_planted_key_under_the_name_of_a_trusted_one():
    """Of two keys with one fingerprint the one generated on the token decrypts."""
    planted, trusted = key(A, born_here=False, cka_id=b"x"), key(A)

    assert trusted is ring(planted, trusted).for_decrypt(A, Cipher.GCM)


@pytest.mark.parametrize("named", [GONE, "", A[:-1], A + "a", "." + A, A.upper()])
def test_unknown_key_id(named):
    """Any other key_id is unknown; none is cut or folded to fit."""
    with pytest.raises(UnknownKeyIdError, match=r"^no key with this key_id is held"):
        ring(key(A), key(B)).for_decrypt(named, Cipher.GCM)


def test_names_that_are_not_unique():
    """Keys of one cipher that share label and CKA_ID, and keys without, are found."""
    first, other = key(A, cka_id=b"1"), key(B, cka_id=b"1")
    apart = key(C, cka_id=b"1", cipher=Cipher.CBC_HMAC)
    nameless = key(GONE, cka_id=b"")
    held = ring(first, nameless, apart, other)

    assert (first, other) == held.twins
    assert (nameless,) == held.without_cka_id


def test_unknown_cipher():
    """A key that is held for one cipher decrypts no record of the other."""
    with pytest.raises(UnknownKeyIdError):
        ring(key(A)).for_decrypt(A, Cipher.CBC_HMAC)


def test_two_objects_of_one_key():
    """Of two copies of one key always the same one decrypts."""
    first, copy = key(A, cka_id=b"1"), key(A, cka_id=b"2")

    assert first is ring(first, copy).for_decrypt(A, Cipher.GCM)


@pytest.mark.parametrize("named", [A, A + ".one"])
def test_retired_opens_nothing(named):
    """A retired key is refused by name, on the token or not, under any suffix."""
    retired = settings(retired=frozenset({A}))

    for held in (ring(SUFFIXED, key(B), settings=retired), ring(settings=retired)):
        with pytest.raises(KeyRetiredError, match=r"^the key with this key_id is ret"):
            held.for_decrypt(named, Cipher.GCM)


ALIAS = {GONE + ".old": b"b"}


def test_also_known_as():
    """A record with a key_id in `also_known_as` is decrypted by the key named there."""
    held = ring(key(A), key(B), settings=settings(also_known_as=ALIAS))

    assert key(B) == held.for_decrypt(GONE + ".old", Cipher.GCM)


@pytest.mark.parametrize("named", [GONE, GONE + ".older"])
def test_also_known_as_is_exact(named):
    """`also_known_as` holds for a whole key_id, and for no other."""
    held = ring(key(B), settings=settings(also_known_as=ALIAS))

    with pytest.raises(UnknownKeyIdError):
        held.for_decrypt(named, Cipher.GCM)


def test_also_known_as_of_no_use():
    """`also_known_as` finds no key that is not held, or not for this cipher."""
    known = settings(also_known_as=ALIAS)

    for held in (
        ring(key(A), settings=known),
        ring(key(B, cipher=Cipher.CBC_HMAC), settings=known),
    ):
        with pytest.raises(UnknownKeyIdError):
            held.for_decrypt(GONE + ".old", Cipher.GCM)


def test_also_known_as_never_shadows():
    """A key_id that is held stays its own, whatever the configuration says of it."""
    known = settings(also_known_as={A: b"b"})

    assert key(A) == ring(key(A), key(B), settings=known).for_decrypt(A, Cipher.GCM)


def test_also_known_as_retired():
    """A retired key decrypts nothing under another name."""
    known = settings(also_known_as=ALIAS, retired=frozenset({B}))

    with pytest.raises(KeyRetiredError, match=r"^the key with this key_id is retired"):
        ring(key(B), settings=known).for_decrypt(GONE + ".old", Cipher.GCM)


def test_for_encrypt():
    """`for_encrypt` returns the current key, or raises its fault."""
    fault = KeyLostError("gone")
    good = ring(key(A), current=key(A))

    assert key(A) == good.for_encrypt()
    with pytest.raises(KeyLostError):
        dataclasses.replace(good, fault=fault).for_encrypt()
    with pytest.raises(KeyNotFoundError, match=r"^there is no current key$"):
        ring().for_encrypt()


OFFENDS = {"violations": ("CKA_SENSITIVE is False",)}

# name: the key · what it is, beside the current key A, C pending, and GONE retired
STATES = {
    "current": (key(A), KeyState.CURRENT),
    "a copy of the current one": (key(A, cka_id=b"2"), KeyState.CURRENT),
    "pending": (key(C), KeyState.PENDING),
    "older": (key(B), KeyState.DECRYPT_ONLY),
    "of the other cipher": (key(A, cipher=Cipher.CBC_HMAC), KeyState.DECRYPT_ONLY),
    "retired": (key(GONE), KeyState.RETIRED),
    "forbidden": (key(B, **OFFENDS), KeyState.REFUSED),
    "cannot encrypt here": (key(B, encrypts=False), KeyState.REFUSED),
}


@pytest.mark.parametrize("name", STATES)
def test_state(name):
    """Every key has exactly one state."""
    one, wanted = STATES[name]
    held = ring(
        one,
        current=key(A),
        pending=(Pending(key=key(C), at=None),),
        settings=settings(retired=frozenset({GONE})),
    )

    assert wanted is held.state(one)


def test_words_of_states():
    """Commands, /status and metrics name a state by the same word in every version."""
    words = ["pending", "current", "decrypt-only", "retired", "refused", "foreign"]

    assert words == list(KeyState)


def test_state_where_policy_warns():
    """A key that only causes a warning is not refused."""
    held = ring(settings=settings(enforce=False))

    assert KeyState.DECRYPT_ONLY is held.state(key(B, **OFFENDS))


@pytest.mark.parametrize("name", STATES)
def test_may_encrypt(name):
    """A key may encrypt unless it is retired, breaks the policy or cannot wrap."""
    one, state = STATES[name]
    held = ring(one, settings=settings(retired=frozenset({GONE})))

    assert (state not in {KeyState.RETIRED, KeyState.REFUSED}) == held.may_encrypt(one)

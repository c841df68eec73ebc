"""Which key is current, and which one comes next: tables of cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.errors import KeyLostError, KeyUnsuitableError
from hsm_kms.ipc.values import Cipher, KeyRef
from hsm_kms.keys.keyring import KeyState
from hsm_kms.keys.rotation import Memory, build_keyring
from hsm_kms.keys.token_key import UnidentifiedKey
from tests.unit.keys.key_samples import GONE, NOW, A, B, C, key, settings
from tests.unit.keys.rotation_cases import FIRST, NAMED, NEVER, Case
from tests.unit.keys.rotation_cases_later import AS_BEFORE


def check_all(cases):
    """Check every case, and name the one that differs."""
    for name, case in cases.items():
        try:
            case.check()
        except AssertionError as error:
            error.add_note(f"case: {name}")
            raise


def test_named():
    """`keys.current` decides, as long as it names what may encrypt."""
    check_all(NAMED)


def test_as_before():
    """The last key stays until the activation time of a younger one has come."""
    check_all(AS_BEFORE)


def test_first():
    """A node that remembers no key takes one only if there is no doubt."""
    check_all(FIRST)


def test_key_without_a_name():
    """Why a key could not be identified is the fault if there is no other key."""
    trouble = KeyUnsuitableError("the key cannot be identified")
    unidentified = (UnidentifiedKey(ref=KeyRef("kek", b"1"), error=trouble),)

    def fault(keys, **keys_section):
        given = settings(**keys_section)
        ring = build_keyring(keys, given, Memory(), NOW, unidentified=unidentified)
        assert unidentified == ring.unidentified
        return ring.fault

    assert trouble is fault(())
    assert None is fault((key(A),))
    assert KeyLostError is type(fault((), current=A))


def test_the_first_key_decrypts_what_it_encrypts():
    """A foreign key that becomes current at the first start decrypts from then on."""
    foreign = key(A, born_here=False)
    held = build_keyring((foreign, key(B, NEVER)), settings(), Memory(last=A), NOW)
    first = build_keyring((foreign,), settings(), Memory(), NOW)

    assert foreign is first.current
    for each in (first, held):
        assert foreign is each.for_decrypt(A, Cipher.GCM)


def test_the_keyring_keeps_the_settings():
    """A key that the configuration retires is held, and decrypts nothing."""
    given = settings(retired=frozenset({B}))
    held = build_keyring((key(A), key(B)), given, Memory(), NOW)

    assert given is held.settings
    assert (KeyState.CURRENT, KeyState.RETIRED) == tuple(map(held.state, held.keys))


# name: the case · what is told, and what to do about it
SENTENCES = {
    "none": (
        FIRST["nothing there"],
        (
            "no AES key labelled 'kek' is on the token; "
            "make one with `hsm-kms keys generate`"
        ),
    ),
    "none by its CKA_ID": (
        Case(keys_section={"ids": (b"1",)}),
        "no AES key labelled 'kek' and in keys.ids is on the token; correct keys.ids",
    ),
    "several": (
        FIRST["two"],
        (
            f"2 keys are labelled 'kek': {A}, {B}; "
            "name the one to encrypt with in keys.current"
        ),
    ),
    "not active": (
        FIRST["shared, all before their time"],
        (
            f"no key is active yet; {A} will be from 2027-01-15T08:00:02Z; "
            "see whether this node's clock is right, or wait"
        ),
    ),
    "never active": (
        Case(keys=(key(A, NEVER),)),
        (
            f"no key is active yet; {A} will be from "
            "18446744073709551616 seconds after 1970; "
            "see whether this node's clock is right, or wait"
        ),
    ),
    "forbidden": (
        FIRST["the only one, against the policy"],
        (
            f"key {A} breaks the policy: CKA_SENSITIVE is False; "
            "make a key with `hsm-kms keys generate`, or set keys.policy: warn"
        ),
    ),
    "forbidden for two reasons": (
        Case(keys=(key(A, violations=("CKA_SENSITIVE is False", "it is short")),)),
        (
            f"key {A} breaks the policy: CKA_SENSITIVE is False, it is short; "
            "make a key with `hsm-kms keys generate`, or set keys.policy: warn"
        ),
    ),
    "cannot encrypt": (
        FIRST["the only one, that cannot encrypt here"],
        (
            f"this token cannot wrap under key {A}; "
            "make a key with `hsm-kms keys generate`"
        ),
    ),
    "lost": (
        AS_BEFORE["the last is gone"],
        (
            f"the last current key, {GONE}, is not on the token; "
            "restore it, or name another key in keys.current: see `hsm-kms keys list`"
        ),
    ),
    "the last is retired": (
        AS_BEFORE["the last is retired"],
        (
            f"the last current key, {A}, is in keys.retired; "
            "remove it from keys.retired, or name another key in keys.current"
        ),
    ),
    "the last cannot encrypt": (
        AS_BEFORE["the last cannot encrypt here any more"],
        (
            f"the last current key, {A}, cannot wrap on this token; "
            "undo what changed on the token or in keys.mechanism, or name another key "
            "in keys.current"
        ),
    ),
    "a suffix of old": (
        AS_BEFORE["a suffix of old"],
        (
            f"the key_id {A} was current here before {A}.one; "
            "set keys.suffix to one never used, or back to what it was"
        ),
    ),
    "named and gone": (
        NAMED["not there"],
        (
            f"the key that keys.current names, {GONE}, is not on the token; "
            "restore it, or name another key in keys.current: see `hsm-kms keys list`"
        ),
    ),
    "named and retired": (
        NAMED["retired"],
        (
            f"the key that keys.current names, {A}, is in keys.retired; "
            "remove it from keys.retired, or name another key in keys.current"
        ),
    ),
    "named and cannot encrypt": (
        NAMED["cannot encrypt here"],
        (
            f"the key that keys.current names, {A}, cannot wrap on this token; "
            "undo what changed on the token or in keys.mechanism, or name another key "
            "in keys.current"
        ),
    ),
    "named and used before": (
        NAMED["current before"],
        (
            f"keys.current names {A}, which was current here before; "
            "give it a new key_id: set keys.suffix to one never used"
        ),
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences(name):
    """Each fault names the key, the cause and the cure."""
    case, sentence = SENTENCES[name]

    assert sentence == case.ring().fault.sentence


times = st.integers(0, 5) | st.just(NEVER)
any_key = st.builds(
    key,
    st.sampled_from([A, B, C, GONE]),
    times,
    born_here=st.booleans(),
    encrypts=st.booleans(),
    violations=st.sampled_from([(), ("CKA_SENSITIVE is False",)]),
)
some_keys = st.lists(any_key, max_size=4, unique_by=lambda one: one.fingerprint)
moments = st.lists(st.tuples(some_keys, st.floats(-2, 8)), max_size=8)


@given(moments, st.booleans())
def test_nothing_goes_back(moments, shared):
    """No key_id becomes current twice, whatever keys and clocks do.

    And what becomes current by its time was born here, is fit, and had its time.
    """
    told: list[str] = []
    for keys, now in moments:
        memory = Memory(
            last=told[-1] if told else None,
            former=frozenset(told[:-1]),
            first_seen=dict.fromkeys((A, B, C, GONE), -1000.0),
        )
        ring = build_keyring(keys, settings(shared=shared), memory, now)
        if ring.fault is not None or ring.current.key_id in told[-1:]:
            continue
        assert ring.current.key_id not in told
        assert ring.current.activation <= now
        assert ring.current.encrypts
        assert not ring.current.violations
        if told:
            assert shared
            assert ring.current.born_here
        told.append(ring.current.key_id)

"""Cases of rotation on a node that remembers its last key."""

from __future__ import annotations

from hsm_kms.errors import KeyLostError, KeyReusedError, KeyUnsuitableError
from tests.unit.keys.key_samples import GONE, NOW, A, B, C, key
from tests.unit.keys.rotation_cases import LONG_AGO, NEVER, OFFENDS, SHARED, Case


def two(at, **given):
    """A is current; B is younger, and the nodes share the token."""
    return Case(
        **(
            {
                "keys": (key(A, 1), key(B, at)),
                "keys_section": SHARED,
                "last": A,
                "current": A,
            }
            | given
        )
    )


AS_BEFORE = {
    "alone": Case(keys=(key(A),), last=A, current=A),
    "beside a younger one, not shared": two(
        LONG_AGO, keys_section={}, pending=((B, None),)
    ),
    "beside an older one": two(LONG_AGO, last=B, current=B),
    "beside an imported one": two(
        0, keys=(key(A, 1), key(B, LONG_AGO, born_here=False))
    ),
    "before the time of the next": two(NOW + 10, pending=((B, NOW + 10),)),
    "a moment before": two(NOW, now=NOW - 0.001, pending=((B, NOW),)),
    "at the time of the next": two(NOW, seen={B: NOW - 1}, current=B),
    "the time of the next is long past": two(LONG_AGO, current=B),
    "seen late": two(NOW, pending=((B, NOW + 90),)),
    "seen a moment before its time": two(NOW, seen={B: NOW - 0.001}, current=B),
    "seen at its time, which is 90 s ago": two(NOW - 90, seen={B: NOW - 90}, current=B),
    "seen at its time, which is nearly 90 s ago": two(
        NOW - 89, seen={B: NOW - 89}, pending=((B, NOW + 1),)
    ),
    "seen nearly ten minutes late": two(NOW - 599, pending=((B, NOW + 90),)),
    "seen ten minutes late": two(NOW - 600, current=B),
    "appeared long after its time": two(
        LONG_AGO, missed={B: LONG_AGO + 121}, pending=((B, None),)
    ),
    "appeared soon after its time": two(
        LONG_AGO, missed={B: LONG_AGO + 120}, current=B
    ),
    "appeared long after its time, and named": two(
        LONG_AGO,
        missed={B: NOW},
        keys_section=SHARED | {"current": B},
        current=B,
    ),
    "seen late, on a clock set back since": two(
        NOW, seen={B: NOW + 500}, now=NOW + 1, pending=((B, NOW + 590),)
    ),
    "two are due": Case(
        keys=(key(A, 1), key(B, 2), key(C, 3)),
        keys_section=SHARED,
        last=A,
        current=C,
    ),
    "two are due at one time": Case(
        keys=(key(A, 1), key(C, 2), key(B, 2)),
        keys_section=SHARED,
        last=A,
        current=C,
    ),
    "one is due, one is to come": Case(
        keys=(key(A, 1), key(B, 2), key(C, NOW + 1)),
        keys_section=SHARED,
        last=A,
        current=B,
        pending=((C, NOW + 1),),
    ),
    "a tie with the last one": two(5, keys=(key(A, 5), key(B, 5)), current=B),
    "a tie that the last one wins": two(
        5, keys=(key(A, 5), key(B, 5)), last=B, current=B
    ),
    "the youngest is due and not proven": Case(
        keys=(key(A, 1), key(B, 2), key(C, 3)),
        keys_section=SHARED,
        last=A,
        not_yet=(C,),
        current=B,
        pending=((C, 3),),
    ),
    "both are due and not proven": Case(
        keys=(key(A, 1), key(B, 2), key(C, 3)),
        keys_section=SHARED,
        last=A,
        not_yet=(B, C),
        current=A,
        pending=((B, 2), (C, 3)),
    ),
    "pending ones in the order of their times": Case(
        keys=(key(A, 1), key(C, NOW + 5), key(B, NOW + 7)),
        keys_section=SHARED,
        last=A,
        current=A,
        pending=((C, NOW + 5), (B, NOW + 7)),
    ),
    "pending ones without times": Case(
        keys=(key(A, 1), key(C, 7), key(B, 9)),
        last=A,
        current=A,
        pending=((C, None), (B, None)),
    ),
    # who once has the PIN must not be able to plant a key that he knows
    "a planted key": two(2, keys=(key(A, 1), key(B, 2, born_here=False))),
    "a planted key, and a good one": Case(
        keys=(key(A, 1), key(B, 2), key(C, 3, born_here=False)),
        keys_section=SHARED,
        last=A,
        current=B,
    ),
    "a foreign CKA_ID": two(0, keys=(key(A, 0), key(B, 0))),
    "never": two(NEVER, pending=((B, float(NEVER)),)),
    "against the policy": two(2, keys=(key(A, 1), key(B, 2, **OFFENDS))),
    "against the policy, which warns": two(
        2,
        keys=(key(A, 1), key(B, 2, **OFFENDS)),
        keys_section={"shared": True, "enforce": False},
        current=B,
    ),
    "the younger cannot encrypt here": two(
        2, keys=(key(A, 1), key(B, 2, encrypts=False))
    ),
    "the younger is retired": two(
        2, keys_section={"shared": True, "retired": frozenset({B})}
    ),
    "the younger was current before": two(2, former=(B,)),
    "the younger was current under another suffix": two(2, former=(B + ".one",)),
    "a copy of the current key with another time": two(
        2, keys=(key(A, 1), key(A, 2, cka_id=b"copy"))
    ),
    "the clock was set back before its time": two(
        NOW + 9999, last=B, current=B, former=(A,)
    ),
    "the last is gone": Case(keys=(key(A),), last=GONE, fault=KeyLostError),
    "the last is gone, all is gone": Case(last=GONE, fault=KeyLostError),
    "the last is gone, a younger one is due": Case(
        keys=(key(B, 2),), keys_section=SHARED, last=A, fault=KeyLostError
    ),
    "the last is retired": Case(
        keys=(key(A), key(B)),
        keys_section={"retired": frozenset({A})},
        last=A,
        fault=KeyUnsuitableError,
    ),
    "the last cannot encrypt here any more": Case(
        keys=(key(A, encrypts=False),), last=A, fault=KeyUnsuitableError
    ),
    "the last is against the policy": Case(
        keys=(key(A, **OFFENDS),), last=A, current=A, fault=KeyUnsuitableError
    ),
    "the last is against the policy, a younger one is due": two(
        2, keys=(key(A, 1, **OFFENDS), key(B, 2)), current=B
    ),
    "a new suffix": Case(
        keys=(key(A, suffix="two"),), last=A + ".one", former=(A,), current=A + ".two"
    ),
    "a suffix of old": Case(
        keys=(key(A),), last=A + ".one", former=(A,), current=A, fault=KeyReusedError
    ),
    "a suffix of old, a younger one is due": two(
        2, last=A + ".one", former=(A,), current=B
    ),
    "a new suffix for the one before, the next by its time": Case(
        keys=(key(A, 1), key(B, 2), key(C, 3)),
        keys_section=SHARED,
        last=A + ".two",
        former=(A, B),
        current=C,
    ),
}

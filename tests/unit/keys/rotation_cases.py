"""A case of rotation: what is there and known, and what must follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hsm_kms.errors import (
    HsmKmsError,
    KeyAmbiguousError,
    KeyLostError,
    KeyNotActiveError,
    KeyNotFoundError,
    KeyReusedError,
    KeyUnsuitableError,
)
from hsm_kms.ipc.values import Cipher
from hsm_kms.keys.rotation import Memory, build_keyring
from tests.unit.keys.key_samples import GONE, NOW, A, B, C, key, settings

OFFENDS = {"violations": ("CKA_SENSITIVE is False",)}
NEVER = 2**64 - 1  # the latest activation time that a CKA_ID can hold
LONG_AGO = NOW - 1000


@dataclass(frozen=True, kw_only=True)
class Case:
    """Hold what is there and known, and what must follow.

    Args:
        keys: Keys found.
        keys_section: What the configuration says.
        last: key_id of the last current key.
        former: key_ids current before.
        seen: When keys were first seen; any other just now.
        missed: When keys that have appeared were last missed.
        not_yet: Keys that are due and not proven on every worker.
        now: The time.
        current: key_id that is current.
        fault: Why it must not be used, or why there is none.
        pending: The next keys, and from when.
    """

    keys: tuple = ()
    keys_section: dict[str, Any] = field(default_factory=dict)
    last: str | None = None
    former: tuple[str, ...] = ()
    seen: dict[str, float] = field(default_factory=dict)
    missed: dict[str, float] = field(default_factory=dict)
    not_yet: tuple[str, ...] = ()
    now: float = NOW
    current: str | None = None
    fault: type[HsmKmsError] | None = None
    pending: tuple[tuple[str, float | None], ...] = ()

    def ring(self):
        memory = Memory(
            last=self.last,
            former=frozenset(self.former),
            first_seen=self.seen,
            missed_at=self.missed,
            not_yet=frozenset((each, Cipher.GCM) for each in self.not_yet),
        )
        return build_keyring(self.keys, settings(**self.keys_section), memory, self.now)

    def check(self):
        ring = self.ring()
        assert self.current == (ring.current.key_id if ring.current else None)
        assert self.fault is (type(ring.fault) if ring.fault else None)
        assert self.pending == tuple((e.key.fingerprint, e.at) for e in ring.pending)
        assert self.keys == ring.keys


def named(wanted, **more):
    return {"current": wanted} | more


NAMED = {
    "one of two": Case(
        keys=(key(A, 1), key(B, LONG_AGO)), keys_section=named(B), current=B
    ),
    "a younger one waits to be named": Case(
        keys=(key(A, 1), key(B, LONG_AGO)),
        keys_section=named(A, shared=True),
        last=A,
        current=A,
        pending=((B, None),),
    ),
    "with another suffix": Case(
        keys=(key(A, suffix="new"),), keys_section=named(A + ".old"), current=A + ".new"
    ),
    "another than the last, which is gone": Case(
        keys=(key(A),), keys_section=named(A), last=GONE, current=A
    ),
    "not there": Case(
        keys=(key(A),), keys_section=named(GONE), last=A, fault=KeyLostError
    ),
    "retired": Case(
        keys=(key(A), key(B)),
        keys_section=named(A, retired=frozenset({A})),
        fault=KeyUnsuitableError,
    ),
    "cannot encrypt here": Case(
        keys=(key(A, encrypts=False),), keys_section=named(A), fault=KeyUnsuitableError
    ),
    "against the policy": Case(
        keys=(key(A, **OFFENDS), key(B)),
        keys_section=named(A),
        current=A,
        fault=KeyUnsuitableError,
    ),
    "against the policy, which warns": Case(
        keys=(key(A, **OFFENDS),), keys_section=named(A, enforce=False), current=A
    ),
    "beside one against the policy": Case(
        keys=(key(A, **OFFENDS), key(B)), keys_section=named(B), current=B
    ),
    "imported": Case(
        keys=(key(A, born_here=False), key(B)), keys_section=named(A), current=A
    ),
    "before its time": Case(keys=(key(A, NOW + 1),), keys_section=named(A), current=A),
    "current before": Case(
        keys=(key(A), key(B)),
        keys_section=named(A),
        last=B,
        former=(A,),
        current=A,
        fault=KeyReusedError,
    ),
    "current before, with a new suffix": Case(
        keys=(key(A, suffix="two"), key(B, suffix="two")),
        keys_section=named(A),
        last=B,
        former=(A,),
        current=A + ".two",
    ),
    "current before, with an old suffix": Case(
        keys=(key(A, suffix="two"),),
        keys_section=named(A),
        last=A + ".three",
        former=(A, A + ".two"),
        current=A + ".two",
        fault=KeyReusedError,
    ),
}

SHARED = {"shared": True}

FIRST = {
    "nothing there": Case(fault=KeyNotFoundError),
    "nothing but a retired one": Case(
        keys=(key(A),),
        keys_section={"retired": frozenset({A})},
        fault=KeyNotFoundError,
    ),
    "the only one": Case(keys=(key(A),), current=A),
    "the only one, shared": Case(keys=(key(A, 1),), keys_section=SHARED, current=A),
    "the only one, imported": Case(keys=(key(A, born_here=False),), current=A),
    "the only one, imported, shared": Case(
        keys=(key(A, born_here=False),), keys_section=SHARED, current=A
    ),
    "the only one, at its time": Case(keys=(key(A, NOW),), current=A),
    "the only one, before its time": Case(
        keys=(key(A, NOW + 1),), fault=KeyNotActiveError
    ),
    "the only one, against the policy": Case(
        keys=(key(A, **OFFENDS),), current=A, fault=KeyUnsuitableError
    ),
    "the only one, against the policy, which warns": Case(
        keys=(key(A, **OFFENDS),), keys_section={"enforce": False}, current=A
    ),
    "the only one, that cannot encrypt here": Case(
        keys=(key(A, encrypts=False),), current=A, fault=KeyUnsuitableError
    ),
    "two": Case(keys=(key(A, 1), key(B, 2)), fault=KeyAmbiguousError),
    "two, one before its time": Case(
        keys=(key(A, 1), key(B, NOW + 1)), fault=KeyAmbiguousError
    ),
    "two, one against the policy": Case(keys=(key(A, **OFFENDS), key(B)), current=B),
    "two, both against the policy": Case(
        keys=(key(A, **OFFENDS), key(B, **OFFENDS)), fault=KeyAmbiguousError
    ),
    "two, one retired": Case(
        keys=(key(A), key(B)), keys_section={"retired": frozenset({A})}, current=B
    ),
    "a pair, and the AES key of it": Case(
        keys=(key(A, cipher=Cipher.CBC_HMAC), key(B, encrypts=False)), current=A
    ),
    "shared, the youngest of the active": Case(
        keys=(key(A, 1), key(C, 2), key(B, 3)), keys_section=SHARED, current=B
    ),
    "shared, a tie": Case(
        keys=(key(B, 2), key(C, 2), key(A, 2)), keys_section=SHARED, current=C
    ),
    "shared, the next is to come": Case(
        keys=(key(A, 1), key(B, NOW + 1)),
        keys_section=SHARED,
        current=A,
        pending=((B, NOW + 1),),
    ),
    "shared, a younger one is imported": Case(
        keys=(key(A, 1), key(B, 2, born_here=False)), keys_section=SHARED, current=A
    ),
    "shared, an imported one, and one to come": Case(
        keys=(key(A, born_here=False), key(B, NOW + 1)),
        keys_section=SHARED,
        fault=KeyAmbiguousError,
    ),
    "shared, two imported": Case(
        keys=(key(A, born_here=False), key(B, born_here=False)),
        keys_section=SHARED,
        fault=KeyAmbiguousError,
    ),
    "shared, two with foreign CKA_IDs": Case(
        keys=(key(A), key(B)), keys_section=SHARED, fault=KeyAmbiguousError
    ),
    "shared, all before their time": Case(
        keys=(key(A, NOW + 2), key(B, NEVER)),
        keys_section=SHARED,
        fault=KeyNotActiveError,
    ),
    "shared, the youngest is against the policy": Case(
        keys=(key(A, 1), key(B, 2, **OFFENDS)), keys_section=SHARED, current=A
    ),
}

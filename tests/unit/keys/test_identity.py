"""The last current key, and keys that have its names."""

from __future__ import annotations

import pytest

from hsm_kms.errors import KeyLostError, KeyReplacedError, KeyUnsuitableError
from hsm_kms.ipc.values import Cipher, KeptCanary, KeyRef
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.inventory import Replaced
from hsm_kms.keys.rotation import Memory, build_keyring
from hsm_kms.keys.token_key import UnidentifiedKey
from tests.unit.keys.key_samples import (
    LABEL,
    NOW,
    OLD,
    YOUNG,
    A,
    B,
    C,
    Seen,
    key,
    settings,
)
from tests.unit.keys.keyring_node import KeyringNode

REF = KeyRef(LABEL, b"1")
LAST = key(A, 1, cka_id=b"1")
TAKER = key(B, 1, cka_id=b"1")
CANARY = KeptCanary(cipher=Cipher.GCM, aad=b"aad", iv=b"iv", ciphertext=b"data")


@pytest.fixture
def node(tmp_path):
    """Make a node that has seen no key yet."""
    return KeyringNode(tmp_path / "state")


def fault(*keys, unidentified=(), current=None, **memory):
    """Return the fault of a keyring where `LAST` was current."""
    known = Memory(**({"last": A, "ref": REF} | memory))
    given = settings(current=current)
    ring = build_keyring(keys, given, known, NOW, unidentified=unidentified)
    return ring.fault


@pytest.mark.parametrize("current", [None, A], ids=["by memory", "named"])
def test_replaced(current):
    """Another key under the names of the last key is told with both key_ids."""
    error = fault(TAKER, current=current)

    assert KeyReplacedError is type(error)
    assert A in str(error)
    assert B in str(error)
    assert "keys.current" in error.hint


def test_replaced_until_another_is_named():
    """`keys.current` decides: it may name the key that has the names now."""
    assert fault(TAKER, current=B) is None


def test_not_replaced():
    """A key with other names does not explain why the last one is gone."""
    assert KeyLostError is type(fault(key(C, 1)))
    assert fault(LAST, TAKER) is None


def test_no_longer_born_here():
    """A key that was generated on the token, and is not, is a fault until named."""
    copy = key(A, 1, cka_id=b"1", born_here=False)
    for known, error in ((True, KeyReplacedError), (False, type(None))):
        assert error is type(fault(copy, born_here=known))

    assert fault(copy, born_here=True, current=A) is None
    assert fault(LAST, born_here=True) is None


def test_no_switch_from_a_replaced_key():
    """No key becomes current by its time while another has the last key's place."""
    copy = key(A, 1, cka_id=b"1", born_here=False)
    later = key(C, NOW - 60)
    known = Memory(last=A, ref=REF, born_here=True)
    ring = build_keyring((copy, later), settings(shared=True), known, NOW)

    assert (A, KeyReplacedError) == (ring.current.fingerprint, type(ring.fault))


@pytest.mark.parametrize("current", [None, A], ids=["by memory", "named"])
def test_distrusted(current):
    """A key that does not decrypt the kept canary needs a new key_id."""
    error = fault(LAST, distrusted=frozenset({LAST.name}), current=current)

    assert KeyReplacedError is type(error)
    assert "keys.suffix" in error.hint


def test_last_key_unidentified():
    """Why the last key could not be identified is told."""
    trouble = KeyUnsuitableError("it cannot be identified", hint="mend it")
    unidentified = (UnidentifiedKey(ref=REF, error=trouble),)
    error = fault(key(C, 1), unidentified=unidentified)

    assert KeyLostError is type(error)
    assert error.sentence.endswith("it cannot be identified; mend it")


def test_restart_remembers(node):
    """A new process remembers that the key was generated here, and its names."""
    node.sees(LAST).serve()
    assert node.sees(key(A, 1, cka_id=b"1", born_here=False)).keyring.ring.fault
    node.serve().sees(TAKER)

    assert KeyReplacedError is type(node.keyring.ring.fault)
    assert node.sees(LAST).keyring.ring.fault is None


def test_named_then_remembered(node):
    """What `keys.current` decided holds when it is removed again."""
    copy = key(A, 1, cka_id=b"1", born_here=False)
    node.sees(LAST).serve(current=A).sees(copy).serve().sees(copy)

    assert A == node.current


def test_canary_is_kept(node):
    """With `cka_id` a canary of the current key outlives the process."""
    node.serve(fingerprint="cka_id").keyring.memory.canary_passed(LAST, CANARY)
    node.sees(LAST).serve(fingerprint="cka_id")
    memory = node.keyring.memory
    assert CANARY == memory.kept_canary(LAST)
    pair = key(A, 1, cka_id=b"1", cipher=Cipher.CBC_HMAC)
    assert [None] * 2 == [memory.kept_canary(each) for each in (TAKER, pair)]

    assert [True, False] == [memory.distrust(LAST) for _ in range(2)]
    assert KeyReplacedError is type(node.sees(LAST).keyring.ring.fault)
    memory.canary_passed(LAST, CANARY)
    assert node.sees(LAST).keyring.ring.fault is None


def test_canary_is_not_kept_where_the_material_is_named(node):
    """A canary is kept only if a fingerprint does not name key material."""
    node.keyring.memory.canary_passed(LAST, CANARY)

    assert node.sees(LAST).keyring.memory.kept_canary(LAST) is None


# What the inventory finds out


def note(seen, worker, *keys, unidentified=()):
    listing = KeyListing(keys=keys, unidentified=unidentified)
    return seen.note(worker, listing, NOW)


def test_lost_names():
    """A key whose names lead to another key is dropped at once, and that is told."""
    seen = Seen()
    assert () == note(seen, OLD, LAST)

    assert (Replaced(key=LAST, by=TAKER),) == note(seen, YOUNG, TAKER)
    assert (TAKER,) == seen.keys
    assert (Replaced(key=TAKER, by=LAST),) == note(seen, YOUNG, LAST)


def test_twin():
    """A second key with the same names takes none away, nor does the first's end."""
    seen = Seen()
    note(seen, OLD, LAST)
    assert () == note(seen, OLD, LAST, TAKER)
    assert () == note(seen, OLD, TAKER)

    assert (LAST, TAKER) == seen.keys


def test_unidentified_is_not_replaced():
    """A key that may be there unidentified has not lost its names."""
    seen = Seen()
    note(seen, OLD, LAST)
    unclear = UnidentifiedKey(ref=REF, error=KeyUnsuitableError("odd"))

    assert () == note(seen, OLD, TAKER, unidentified=(unclear,))
    assert LAST in seen.keys

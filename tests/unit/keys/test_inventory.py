"""What the workers see of the keys, put together: one test per rule."""

from __future__ import annotations

import pytest

from hsm_kms.ipc.values import Cipher
from tests.unit.keys.key_samples import OLD, YOUNG, YOUNGEST, A, B, Looker, Seen, key


@pytest.fixture
def seen():
    """Nothing was seen yet."""
    return Seen()


def test_held_by_all(seen):
    """What one worker sees is held, also where others do not see it."""
    seen.by(OLD, key(A, 1)).by(YOUNG, key(A, 1), key(B, 2)).by(OLD, key(A, 1))

    assert (key(A, 1), key(B, 2)) == seen.keys
    assert not seen.sees(OLD, key(B, 2))
    assert seen.sees(YOUNG, key(B, 2))


def test_stable_order(seen):
    """The order is one of age and cipher, whoever lists them in which order."""
    pair = key(A, 1, cipher=Cipher.CBC_HMAC)
    keys = [key(B, 2), key(A, 1), pair]
    seen.by(OLD, *keys)

    assert (pair, key(A, 1), key(B, 2)) == seen.keys
    assert seen.keys == Seen().by(OLD, *reversed(keys)).keys


def test_dropped_at_the_third_miss(seen):
    """Two looks in a row without a key do not drop it; three do."""
    seen.by(OLD, key(A), key(B))
    for _ in range(2):
        seen.by(OLD, key(B))
        assert (key(A), key(B)) == seen.keys

    assert (key(B),) == seen.by(OLD, key(B)).keys


def test_misses_in_a_row(seen):
    """A key that is seen again in between has missed nothing."""
    seen.by(OLD, key(A))
    for _ in range(5):
        seen.by(OLD).by(OLD).by(OLD, key(A))

    assert (key(A),) == seen.keys


def test_misses_of_several_workers(seen):
    """It is the looks that count, whichever worker has them, if it is young enough."""
    seen.by(OLD, key(A)).by(OLD).by(YOUNG).by(YOUNGEST)

    assert () == seen.keys


def test_an_older_worker_misses_nothing(seen):
    """What came after a worker had started it may never see: it is no witness."""
    seen.by(OLD).by(YOUNG, key(A))
    for _ in range(5):
        seen.by(OLD)

    assert (key(A),) == seen.keys


def test_who_once_saw_it_is_a_witness(seen):
    """A key is dropped although only a worker that has left saw it last."""
    seen.by(OLD, key(A), key(B)).by(YOUNGEST, key(A), key(B))
    for _ in range(3):
        assert not seen.by(OLD, key(A)).is_behind(OLD)

    assert (key(A),) == seen.keys


def test_who_sees_nothing_is_no_witness(seen):
    """A worker that has lost its token says nothing of the keys on it."""
    seen.by(OLD, key(A)).by(YOUNGEST, key(A))
    for _ in range(5):
        seen.by(OLD)

    assert (key(A),) == seen.keys


def test_the_youngest_is_the_witness(seen):
    """Once a younger worker has seen a key, the misses of older ones count no more."""
    seen.by(OLD, key(A)).by(OLD).by(OLD).by(YOUNG, key(A))
    for _ in range(5):
        seen.by(OLD)

    assert (key(A),) == seen.keys
    assert () == seen.by(YOUNG).by(YOUNGEST).by(YOUNG).keys


def test_another_key_in_its_place(seen):
    """An object that became another key is another key at once."""
    seen.by(OLD, key(A, cka_id=b"1"))

    assert (key(B, cka_id=b"1"),) == seen.by(OLD, key(B, cka_id=b"1")).keys


def test_first_seen(seen):
    """When a key was first seen is kept as long as it is held, and no longer."""
    seen.by(OLD, key(A), now=10.0).by(YOUNG, key(A), key(B), now=20.0)
    assert {A: 10.0, B: 20.0} == seen.first_seen

    for moment in (30.0, 40.0, 50.0):
        seen.by(YOUNG, key(B), now=moment)
    assert {B: 20.0} == seen.first_seen
    assert {A: 60.0, B: 20.0} == seen.by(YOUNG, key(A), now=60.0).first_seen


def test_first_seen_of_a_copy(seen):
    """As long as one of its objects is there the key has not gone."""
    seen.by(OLD, key(A, cka_id=b"1"), key(A, cka_id=b"2"), now=10.0)
    for _ in range(3):
        seen.by(OLD, key(A, cka_id=b"2"), now=20.0)

    assert {A: 10.0} == seen.first_seen


def test_is_behind(seen):
    """A worker is behind that looks later than a younger one, and sees less."""
    seen.by(OLD, key(A)).by(YOUNG, key(A), key(B)).by(OLD, key(A))
    assert not seen.is_behind(OLD)  # B may be gone again: the next look tells
    seen.by(YOUNG, key(A), key(B)).by(OLD, key(A))

    assert seen.is_behind(OLD)
    assert not seen.is_behind(YOUNG)
    assert not seen.is_behind(YOUNGEST)


def test_is_not_behind_before_it_looks(seen):
    """A key that came after its last look tells nothing about a worker."""
    seen.by(OLD, key(A)).by(YOUNG, key(A), key(B))
    assert not seen.is_behind(OLD)

    assert not seen.by(OLD, key(A), key(B)).is_behind(OLD)


def test_is_not_behind_when_a_key_goes(seen):
    """A key that goes is first missed by one worker, and then by all."""
    seen.by(OLD, key(A), key(B)).by(YOUNG, key(A), key(B))
    for _ in range(3):
        assert not seen.by(OLD, key(A)).is_behind(OLD)
        assert not seen.by(YOUNG, key(A)).is_behind(OLD)

    assert (key(A),) == seen.keys


def test_is_not_behind_an_older_one(seen):
    """What only an older worker sees is gone, or will be: nobody is replaced for it."""
    seen.by(OLD, key(A), key(B)).by(YOUNG, key(A)).by(OLD, key(A), key(B))

    assert not seen.is_behind(YOUNG)


def test_is_not_behind_when_in_doubt(seen):
    """While a key may have gone nobody is replaced for not seeing it."""
    seen.by(YOUNG, key(A)).by(OLD).by(YOUNGEST)

    assert not seen.is_behind(OLD)


def test_forget_lost(seen):
    """Of a worker that is gone nothing is kept but the keys."""
    gone = Looker(2.0)
    seen.by(OLD, key(A)).by(gone, key(A), key(B))
    gone.lost.set()
    seen.forget_lost()

    assert (key(A), key(B)) == seen.keys
    assert not seen.sees(gone, key(A))
    assert seen.by(OLD, key(A)).by(OLD, key(A)).is_behind(OLD)

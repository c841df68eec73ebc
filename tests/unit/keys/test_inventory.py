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
    """A key that one worker sees is held, even if others do not see it."""
    seen.by(OLD, key(A, 1)).by(YOUNG, key(A, 1), key(B, 2)).by(OLD, key(A, 1))

    assert (key(A, 1), key(B, 2)) == seen.keys
    assert not seen.sees(OLD, key(B, 2))
    assert seen.sees(YOUNG, key(B, 2))


def test_stable_order(seen):
    """Keys are ordered by age and cipher, in whatever order they are listed."""
    pair = key(A, 1, cipher=Cipher.CBC_HMAC)
    keys = [key(B, 2), key(A, 1), pair]
    seen.by(OLD, *keys)

    assert (pair, key(A, 1), key(B, 2)) == seen.keys
    assert seen.keys == Seen().by(OLD, *reversed(keys)).keys


def test_dropped_at_the_third_miss(seen):
    """Two listings in a row without a key do not drop it; three do."""
    seen.by(OLD, key(A), key(B))
    for _ in range(2):
        seen.by(OLD, key(B))
        assert (key(A), key(B)) == seen.keys

    assert (key(B),) == seen.by(OLD, key(B)).keys


def test_misses_in_a_second():
    """Many misses within a second drop no key; one more does when time has passed."""
    moment = [100.0]
    seen = Seen(apart=30.0, clock=lambda: moment[0]).by(OLD, key(A), key(B))
    for _ in range(30):
        assert (key(A), key(B)) == seen.by(OLD, key(B)).keys
        moment[0] += 0.99
    moment[0] = 130.0

    assert (key(B),) == seen.by(OLD, key(B)).keys


def test_misses_in_a_row(seen):
    """A key that is seen again starts with no misses."""
    seen.by(OLD, key(A))
    for _ in range(5):
        seen.by(OLD).by(OLD).by(OLD, key(A))

    assert (key(A),) == seen.keys


def test_misses_of_several_workers(seen):
    """Misses of several workers count together, if each is young enough."""
    seen.by(OLD, key(A)).by(OLD).by(YOUNG).by(YOUNGEST)

    assert () == seen.keys


def test_an_older_worker_misses_nothing(seen):
    """A worker that is older than the youngest one that saw a key is no witness."""
    seen.by(OLD).by(YOUNG, key(A))
    for _ in range(5):
        seen.by(OLD)

    assert (key(A),) == seen.keys


def test_who_once_saw_it_is_a_witness(seen):
    """A worker that once saw a key is a witness, even if a younger one saw it, too."""
    seen.by(OLD, key(A), key(B)).by(YOUNGEST, key(A), key(B))
    for _ in range(3):
        assert not seen.by(OLD, key(A)).is_behind(OLD)

    assert (key(A),) == seen.keys


def test_who_sees_nothing_is_no_witness(seen):
    """A worker that sees no key at all is no witness."""
    seen.by(OLD, key(A)).by(YOUNGEST, key(A))
    for _ in range(5):
        seen.by(OLD)

    assert (key(A),) == seen.keys


def test_who_sees_nothing_agrees_with_the_youngest(seen):
    """Once a younger worker has missed a key, those that see no key count, too."""
    seen.by(OLD, key(A)).by(YOUNG, key(A)).by(OLD).by(OLD).by(YOUNGEST)
    assert (key(A),) == seen.by(OLD).keys

    assert () == seen.by(OLD).keys


def test_workers_that_have_lost_their_token():
    """Only a worker started after the first miss can show that no key is left."""
    seen = Seen(clock=lambda: 2.5).by(OLD, key(A)).by(YOUNG, key(A))
    for _ in range(5):
        seen.by(OLD).by(YOUNG)
    assert (key(A),) == seen.keys

    assert () == seen.by(YOUNGEST).keys


def test_the_youngest_is_the_witness(seen):
    """Once a younger worker has seen a key, misses of older workers do not count."""
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
    """The time when a key was first seen is kept as long as the key is held."""
    seen.by(OLD, key(A), now=10.0).by(YOUNG, key(A), key(B), now=20.0)
    assert {A: 10.0, B: 20.0} == seen.first_seen

    for moment in (30.0, 40.0, 50.0):
        seen.by(YOUNG, key(B), now=moment)
    assert {B: 20.0} == seen.first_seen
    assert {A: 60.0, B: 20.0} == seen.by(YOUNG, key(A), now=60.0).first_seen


def test_first_seen_of_a_copy(seen):
    """A key is held as long as one of its objects is there."""
    seen.by(OLD, key(A, cka_id=b"1"), key(A, cka_id=b"2"), now=10.0)
    for _ in range(3):
        seen.by(OLD, key(A, cka_id=b"2"), now=20.0)

    assert {A: 10.0} == seen.first_seen


def test_is_behind(seen):
    """A worker is behind if it looks later than a younger one and sees less."""
    seen.by(OLD, key(A)).by(YOUNG, key(A), key(B)).by(OLD, key(A))
    assert not seen.is_behind(OLD)  # B may be gone again: the next look tells
    seen.by(YOUNG, key(A), key(B)).by(OLD, key(A))

    assert seen.is_behind(OLD)
    assert not seen.is_behind(YOUNG)
    assert not seen.is_behind(YOUNGEST)


def test_is_not_behind_before_it_looks(seen):
    """A worker is not behind for a key that was made after its last look."""
    seen.by(OLD, key(A)).by(YOUNG, key(A), key(B))
    assert not seen.is_behind(OLD)

    assert not seen.by(OLD, key(A), key(B)).is_behind(OLD)


def test_is_not_behind_when_a_key_goes(seen):
    """No worker is behind while a deleted key is missed by one after the other."""
    seen.by(OLD, key(A), key(B)).by(YOUNG, key(A), key(B))
    for _ in range(3):
        assert not seen.by(OLD, key(A)).is_behind(OLD)
        assert not seen.by(YOUNG, key(A)).is_behind(OLD)

    assert (key(A),) == seen.keys


def test_is_not_behind_an_older_one(seen):
    """A worker is not behind for a key that only an older worker sees."""
    seen.by(OLD, key(A), key(B)).by(YOUNG, key(A)).by(OLD, key(A), key(B))

    assert not seen.is_behind(YOUNG)


def test_is_not_behind_when_in_doubt(seen):
    """No worker is behind for a key that may have been deleted."""
    seen.by(YOUNG, key(A)).by(OLD).by(YOUNGEST)

    assert not seen.is_behind(OLD)


def test_forget_lost(seen):
    """Only the keys that a lost worker saw are kept."""
    gone = Looker(2.0)
    seen.by(OLD, key(A)).by(gone, key(A), key(B))
    gone.lost.set()
    seen.forget_lost()

    assert (key(A), key(B)) == seen.keys
    assert not seen.sees(gone, key(A))
    assert seen.by(OLD, key(A)).by(OLD, key(A)).is_behind(OLD)

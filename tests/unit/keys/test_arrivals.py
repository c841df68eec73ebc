"""Keys that appear after their activation time, and what that proves."""

from __future__ import annotations

import pytest

from hsm_kms.errors import KeyUnsuitableError
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.token_key import UnidentifiedKey
from tests.unit.keys.key_samples import NOW, OLD, YOUNG, A, B, Seen, key

FIRST, LATER = key(A, 1), key(B, NOW - 600)


@pytest.fixture
def seen():
    """Nothing was seen yet."""
    return Seen()


def test_there_from_the_start(seen):
    """A key that the first listing shows was never missed."""
    seen.by(OLD, FIRST, LATER, now=NOW).by(YOUNG, FIRST, LATER, now=NOW + 1)

    assert {} == seen.missed_at


def test_missed_by_the_worker_that_sees_it(seen):
    """A key was missed until the last listing of the worker that now shows it."""
    seen.by(OLD, FIRST, now=NOW - 60).by(YOUNG, FIRST, now=NOW - 30)
    seen.by(OLD, FIRST, now=NOW - 20).by(OLD, FIRST, LATER, now=NOW)
    seen.by(YOUNG, FIRST, LATER, now=NOW + 1)

    assert {B: NOW - 20} == seen.missed_at


def test_missed_by_a_worker_that_sees_what_was_there_at_its_start(seen):
    """If a fresh worker shows the key first, the first listing before it counts."""
    seen.by(OLD, FIRST, now=NOW - 900).by(OLD, FIRST, now=NOW - 30)
    seen.by(YOUNG, FIRST, LATER, now=NOW)

    assert {B: NOW - 900} == seen.missed_at


def test_listing_without_any_key(seen):
    """A listing that shows nothing does not prove that the key was missing."""
    seen.by(OLD, FIRST, now=NOW - 900).by(OLD, now=NOW - 30)
    seen.by(OLD, FIRST, LATER, now=NOW)

    assert {B: NOW - 900} == seen.missed_at


def test_key_under_another_fingerprint(seen):
    """A key that gets its HMAC key, or is identified at last, is not new."""
    pair = key("p" * 26, cka_id=LATER.ref.cka_id)
    odd = key(B, 1, cka_id=b"odd")
    unclear = UnidentifiedKey(ref=odd.ref, error=KeyUnsuitableError("odd"))
    listing = KeyListing(keys=(FIRST, LATER), unidentified=(unclear,))
    seen.note(OLD, listing, NOW)
    seen.by(OLD, FIRST, LATER, pair, odd, now=NOW + 1)

    assert {} == seen.missed_at


def test_key_that_is_gone(seen):
    """A key that is no longer held is forgotten."""
    seen.by(OLD, FIRST, now=NOW - 900).by(OLD, FIRST, LATER, now=NOW)
    for _ in range(3):
        seen.by(OLD, FIRST, now=NOW + 1)

    assert {} == seen.missed_at


def test_clock_set_back(seen):
    """A clock that is set back takes the times along; one set forward does not."""
    seen.by(OLD, FIRST, now=NOW - 30).by(OLD, FIRST, LATER, now=NOW)
    seen.by(OLD, FIRST, LATER, now=NOW + 9000)
    assert {B: NOW - 30} == seen.missed_at
    seen.by(OLD, FIRST, LATER, now=NOW + 7800)

    assert pytest.approx(NOW - 1230, abs=60) == seen.missed_at[B]

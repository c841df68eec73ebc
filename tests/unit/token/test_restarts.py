"""When the next worker starts: the pauses between its starts."""

from __future__ import annotations

import pytest

from hsm_kms.errors import PinUnavailableError, TokenError
from hsm_kms.token.restarts import (
    FIRST_SECONDS,
    LONGEST_BESIDE_SECONDS,
    LONGEST_SECONDS,
    PIN_SECONDS,
    Backoff,
)

FULL = TokenError("no session is left")
STARTS = 20


@pytest.fixture
def even(monkeypatch):
    """Pauses without jitter."""
    monkeypatch.setattr("secrets.SystemRandom.random", lambda _: 0.5)


@pytest.mark.usefixtures("even")
@pytest.mark.parametrize(
    ("beside", "longest"), [(False, LONGEST_SECONDS), (True, LONGEST_BESIDE_SECONDS)]
)
def test_pauses_grow(beside, longest):
    """The pauses double, and grow longer while other workers serve."""
    backoff = Backoff()
    pauses = [backoff.pause(FULL, beside=beside) for _ in range(STARTS)]

    assert [min(FIRST_SECONDS * 2**i, longest) for i in range(STARTS)] == pauses


@pytest.mark.usefixtures("even")
def test_others_are_gone():
    """Once no other worker serves, the pause is short again."""
    backoff = Backoff()
    for _ in range(STARTS):
        backoff.pause(FULL, beside=True)

    assert LONGEST_SECONDS == backoff.pause(FULL)


def test_pin_file():
    """A PIN that cannot be tried is looked at every second: that starts no process."""
    assert PIN_SECONDS == Backoff().pause(PinUnavailableError("no PIN"), beside=True)


def test_first_end():
    """A worker that ended for the first time is replaced at once."""
    backoff = Backoff()

    assert 0.0 == backoff.pause()
    assert backoff.pause() > 0

"""When a PIN may be tried, by what earlier tries came to."""

from __future__ import annotations

import os

import pytest

from hsm_kms.errors import PinRejectedError, PinUnavailableError, TokenError
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token import pin_verdict
from hsm_kms.token.pin_file import PinSource
from hsm_kms.token.pin_verdict import MOST_TRIES, PinVerdict

GENERAL_ERROR = TokenError(function="C_Login", rv=0x5)
DEVICE_ERROR = TokenError(function="C_Login", rv=0x30)
PAUSES = (5, 10, 20, 40, 80, 160, 300, 300)


class Clock:
    """The node's clock, moved by the test."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch, pin_file):
    """A clock that the verdict reads, long after the PIN file was written."""
    clock = Clock(pin_file.stat().st_ctime + 3600)
    monkeypatch.setattr(pin_verdict, "now", clock)
    return clock


@pytest.fixture
def source(directory):
    """A PIN file of the test's own, old enough to be used."""
    path = directory / "own-pin"
    path.write_text("1234")
    path.chmod(0o600)
    return PinSource(path=path, user_type=1)


@pytest.fixture
def again(source, directory, clock, monkeypatch):
    """Return a verdict as the next process reads it from the state directory."""
    monkeypatch.setattr(pin_verdict, "require_stable", lambda _: None)
    return lambda: PinVerdict(source, StateDir(directory / "state").open())


def test_pauses_after_inconclusive_errors(again, source, clock):
    """Each inconclusive error doubles the pause, up to 5 minutes, in every process."""
    for seconds in PAUSES:
        again().undo(again().begin(source), GENERAL_ERROR)
        clock.seconds += seconds - 0.5
        with pytest.raises(PinUnavailableError, match="returned CKR_GENERAL_ERROR"):
            again().check()
        clock.seconds += 1
        again().check()

    assert "untried" == again().word


def test_no_pause_for_a_device_error(again, source):
    """An error that cannot mean a wrong PIN uses up no try and costs no pause."""
    for _ in range(MOST_TRIES + 1):
        again().undo(again().begin(source), DEVICE_ERROR)
        again().check()


def test_clock_set_back_ends_the_pause(again, source, clock):
    """A pause does not last until a clock that was set back has caught up."""
    again().undo(again().begin(source), GENERAL_ERROR)
    clock.seconds -= 3600
    again().check()


def test_new_content_waits_for_nothing(again, source):
    """A pause belongs to one content of the PIN file."""
    again().undo(again().begin(source), GENERAL_ERROR)
    source.path.write_text("5678")
    os.utime(source.path, ns=(1, 1))
    again().check()


def test_interrupted_tries_are_counted_beside_pauses(again, source, clock):
    """Two processes that died inside C_Login stop all tries, whatever came between."""
    again().begin(source)
    again().undo(again().begin(source), GENERAL_ERROR)
    clock.seconds += PAUSES[0]
    again().begin(source)
    with pytest.raises(PinRejectedError, match="were interrupted"):
        again().check()

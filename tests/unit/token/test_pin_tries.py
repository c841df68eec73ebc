"""What each try of a PIN leaves behind, and what is said of a PIN that is not tried."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hsm_kms.errors import PinRejectedError, PinUnavailableError, TokenError
from hsm_kms.state_dir.directory import PIN_FILE, StateDir
from hsm_kms.state_dir.store import StateWriteError
from hsm_kms.token import pin_file, pin_verdict
from hsm_kms.token.pin_file import PinSource
from hsm_kms.token.pin_verdict import PinVerdict
from tests.harness.log_capture import captured
from tests.unit.token.pin_rig import GENERAL_ERROR, REJECTION, Clock

FEW_TRIES = PinUnavailableError("few tries are left", hint="see the HSM")
REPLACE = (
    "put the right PIN into the PIN file; if it is right already, run "
    "`hsm-kms token retry-pin`"
)

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def state(directory):
    """A state directory."""
    return StateDir(directory / "state").open()


@pytest.fixture
def verdict(source, state):
    """What one process knows about the PIN."""
    return PinVerdict(source, state)


@pytest.fixture
def make(source, state):
    """Make verdicts of other processes, and of an operator who vouches for the PIN."""
    return lambda **given: PinVerdict(source, StateDir(state.path).open(), **given)


def refusal(verdict):
    """Return the error because of which the PIN is not tried."""
    with pytest.raises((PinRejectedError, PinUnavailableError)) as refused:
        verdict.check()
    return refused.value


def test_a_proven_pin_is_used_without_a_record(verdict, source, state):
    """A login with a proven PIN writes nothing, whatever comes of it."""
    verdict.accept(verdict.begin(source))
    written = (state.path / PIN_FILE).stat().st_mtime_ns
    verdict.accept(verdict.begin(source))
    verdict.give_back(verdict.begin(source))
    verdict.undo(verdict.begin(source), GENERAL_ERROR)

    assert written == (state.path / PIN_FILE).stat().st_mtime_ns
    assert "proven" == verdict.word


def test_a_proven_pin_that_is_rejected(verdict, source, make):
    """A PIN that was proven is rejected like any other, for every process."""
    verdict.accept(verdict.begin(source))
    verdict.reject(verdict.begin(source), REJECTION)

    assert ["rejected"] * 2 == [verdict.word, make().word]


def test_a_try_that_was_not_made(verdict, source):
    """A try that is given back is not counted."""
    for _ in range(3):
        verdict.give_back(verdict.begin(source))

    assert 0 == verdict.begin(source).tries
    assert "untried" == verdict.word


def test_tries_are_recorded_before_they_are_made(verdict, source, state):
    """While a try is under way, the record counts it; a rejection keeps the count."""
    identity = pin_file.identify(source.path)
    verdict.begin(source)
    before = verdict.begin(source)

    assert (1, 2) == (before.tries, state.read_pin(identity).tries)
    verdict.reject(before, REJECTION)
    record = state.read_pin(identity)
    assert (1, "C_Login", 0xA0) == (record.tries, record.function, record.rv)


@pytest.mark.parametrize("end", ["accept", "reject"])
def test_an_operator_vouches(verdict, source, make, end):
    """A PIN that the operator vouches for is tried like one that nobody tried yet."""
    before = verdict.begin(source)
    verdict.accept(before) if end == "accept" else verdict.reject(before, REJECTION)
    vouched = make(retry=True)
    vouched.check()
    tried = vouched.begin(source)

    assert ("untried", 0) == (tried.verdict, tried.tries)
    assert not vouched.refuses_low(tried)
    assert "untried" == make().word


def test_few_tries_left(verdict, source):
    """Only a PIN that is proven is tried while the token reports few tries."""
    untried = verdict.begin(source)
    verdict.accept(untried)

    assert verdict.refuses_low(untried)
    assert not verdict.refuses_low(verdict.begin(source))


def test_rejected(verdict, source, make):
    """A rejected PIN is not tried; the error says by what it was rejected."""
    verdict.reject(verdict.begin(source), REJECTION)

    for each in (verdict, make()):
        error = refusal(each)
        assert "the token rejected the PIN in the PIN file" == str(error)
        assert REPLACE == error.hint
        assert ("C_Login", 0xA0) == (error.function, error.rv)
    source.path.write_text("another")
    verdict.check()


def test_interrupted(verdict, source):
    """After two logins that were interrupted the PIN is not tried any more."""
    verdict.begin(source)
    verdict.begin(source)
    error = refusal(verdict)

    assert PinRejectedError is type(error)
    assert (
        "two logins with this PIN were interrupted; it may have been rejected; "
        f"{REPLACE}" == error.sentence
    )


def test_damaged(verdict, source, state, make):
    """If the record is damaged, only an operator can have the PIN tried."""
    verdict.begin(source)
    (state.path / PIN_FILE).write_text("{")
    error = refusal(verdict)

    assert PinUnavailableError is type(error)
    assert (
        "the record of PIN tries in the state directory is damaged; check that the PIN "
        "is right, then run `hsm-kms token retry-pin`" == error.sentence
    )
    vouched = make(retry=True)
    vouched.accept(vouched.begin(source))
    verdict.check()


@pytest.mark.parametrize(
    ("rv", "name"),
    [
        (0x5, "CKR_GENERAL_ERROR"),
        (0x80000001, "CKR_VENDOR_0x80000001"),
        (None, "no CK_RV"),
    ],
)
def test_inconclusive(verdict, source, rv, name):
    """While the PIN waits after an error, the error is told, and what to look at."""
    verdict.undo(verdict.begin(source), TokenError(function="C_Login", rv=rv))
    error = refusal(verdict)

    assert PinUnavailableError is type(error)
    assert (
        f"C_Login returned {name}, which does not say that the PIN is wrong; the PIN "
        "is tried again after a pause; see whether the HSM and its client service are "
        "up" == error.sentence
    )
    assert ("C_Login", rv) == (error.function, error.rv)


def test_a_worker_refused(verdict, source, monkeypatch, make):
    """What a worker refused to try is not offered for a minute, or until it changes."""
    timer = Clock()
    monkeypatch.setattr(pin_verdict, "time", SimpleNamespace(monotonic=timer))
    for _ in range(3):
        verdict.undo(verdict.begin(source), FEW_TRIES)
        timer.seconds += 59.5
        error = refusal(verdict)
        assert FEW_TRIES.sentence == error.sentence
        assert FEW_TRIES is not error
        make().check()  # of another process the worker may see something else
        timer.seconds += 0.5
        verdict.check()

    verdict.undo(verdict.begin(source), FEW_TRIES)
    source.path.write_text("another")
    verdict.check()


def test_a_file_that_was_just_written(verdict, source, clock):
    """A PIN file is not used within two seconds of a change."""
    clock.seconds = source.path.stat().st_ctime + 1
    assert "has not changed for 2 s" in str(refusal(verdict))

    clock.seconds += 1.5
    verdict.check()


def test_no_state_directory(source, directory):
    """Where no result can be recorded, no PIN is tried that is not proven."""
    state = StateDir(directory / "absent" / "state").open()
    error = refusal(PinVerdict(source, state))

    assert PinUnavailableError is type(error)
    assert (
        f"not logging in: a rejected PIN could not be recorded: {state.failure}"
        == str(error)
    )
    assert state.failure.hint == error.hint is not None


def test_a_proven_pin_needs_no_record(verdict, source, state):
    """A proven PIN is used although no result can be recorded."""
    verdict.accept(verdict.begin(source))
    state.failure = StateWriteError("the disk is full", hint="make room")

    assert "proven" == verdict.begin(source).verdict


def test_a_result_that_cannot_be_saved(verdict, source, state):
    """A rejection that cannot be saved holds in this process, until the PIN changes."""
    before = verdict.begin(source)
    state.path.chmod(0o777)  # it is not believed, so nothing is written to it
    with captured() as log:
        verdict.reject(before, REJECTION)
    state.path.chmod(0o700)
    state.open()

    (event,) = log.events()
    assert ("warning", "login result not saved") == (event["level"], event["event"])
    assert "other users can write to it" in event["error"]
    assert PinRejectedError is type(refusal(verdict))
    source.path.write_text("another")
    verdict.check()
    verdict.accept(verdict.begin(source))
    assert "proven" == verdict.word


def test_no_login(state):
    """A token that wants no login needs no PIN."""
    verdict = PinVerdict(None, state)
    verdict.check()

    assert "none" == verdict.word


def test_a_typed_pin(state, directory):
    """A PIN that the operator typed needs no file, and no earlier try counts."""
    typed = PinSource(path=directory / "absent", typed=True, user_type=1)
    verdict = PinVerdict(typed, state)
    verdict.check()

    assert "absent" == verdict.word


def test_absent(verdict, source):
    """A PIN file that is absent cannot be used, and is said to be absent."""
    source.path.unlink()

    assert "absent" == verdict.word
    assert "cannot be read: No such file or directory" in str(refusal(verdict))

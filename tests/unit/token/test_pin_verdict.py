"""When a PIN may be tried, by what earlier tries came to."""

from __future__ import annotations

import os

import pytest

from hsm_kms.errors import PinRejectedError, PinUnavailableError, TokenError
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token import pin_file
from hsm_kms.token.pin_file import PinSource
from hsm_kms.token.pin_verdict import MOST_TRIES, PinVerdict
from tests.unit.token.pin_rig import GENERAL_ERROR, REJECTION

DEVICE_ERROR = TokenError(function="C_Login", rv=0x30)
PAUSES = (5, 10, 20, 40, 80, 160, 300, 300)


@pytest.fixture
def again(source, directory, clock):
    """Return a verdict as the next process reads it from the state directory."""
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


class Credential:
    """A PIN that systemd copies into a new file at each start of the service."""

    def __init__(self, path, state):
        self.path = path
        self.source = PinSource(path=path, user_type=1)
        self._state = state

    def restart(self, content="1234"):
        """Return a verdict as the next process of the service has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        copy = self.path.with_suffix(".new")
        copy.write_text(content)
        copy.chmod(0o400)
        copy.replace(self.path)
        return self.beside()

    def beside(self, *, retry=False):
        """Return a verdict as a command has it that runs meanwhile."""
        return PinVerdict(self.source, StateDir(self._state).open(), retry=retry)


@pytest.fixture
def credential(directory, monkeypatch):
    """A credential, in a directory that stands for /run/credentials."""
    monkeypatch.setattr(pin_file, "CREDENTIALS", directory / "credentials")
    path = directory / "credentials" / "hsm-kms.service" / "pin"
    return Credential(path, directory / "state")


def test_a_rejected_credential_stays_rejected(credential):
    """The next start's copy of a rejected PIN is not tried, until someone vouches."""
    verdict = credential.restart()
    verdict.reject(verdict.begin(credential.source), REJECTION)

    for content in ("1234", "another"):
        with pytest.raises(PinRejectedError) as told:
            credential.restart(content).check()
        assert "restart the service, then run `hsm-kms token retry-pin`" in (
            told.value.hint
        )
    vouched = credential.beside(retry=True)
    vouched.accept(vouched.begin(credential.source))
    credential.beside().check()
    assert "proven" == credential.beside().word


def test_a_proven_credential_is_proven_again(credential):
    """What one start proved says nothing about the next start's file."""
    verdict = credential.restart()
    verdict.accept(verdict.begin(credential.source))
    again = credential.restart()

    assert "untried" == again.word
    again.check()
    assert again.refuses_low(again.begin(credential.source))


def test_an_operator_vouches_for_a_proven_credential(credential):
    """A credential that was proven is tried anew once somebody vouches for the PIN."""
    verdict = credential.restart()
    verdict.accept(verdict.begin(credential.source))
    vouched = credential.beside(retry=True)

    assert "untried" == vouched.begin(credential.source).verdict
    assert "untried" == credential.beside().word


def test_interrupted_tries_of_a_credential_add_up(credential):
    """Two starts that died inside C_Login stop the third one."""
    for _ in range(MOST_TRIES):
        verdict = credential.restart()
        verdict.begin(credential.source)

    with pytest.raises(PinRejectedError, match="were interrupted"):
        credential.restart().check()


def test_pauses_of_a_credential_add_up(credential, clock):
    """A restart does not end the pause after an inconclusive error."""
    verdict = credential.restart()
    clock.seconds = credential.path.stat().st_ctime + 60
    verdict.undo(verdict.begin(credential.source), GENERAL_ERROR)

    with pytest.raises(PinUnavailableError, match="returned CKR_GENERAL_ERROR"):
        credential.restart().check()


def test_each_credential_has_its_own_verdict(credential, directory):
    """Another credential, and a file, are not judged by a rejected credential."""
    verdict = credential.restart()
    verdict.reject(verdict.begin(credential.source), REJECTION)
    other = Credential(credential.path.with_name("other"), directory / "state")
    other.restart().check()
    link = directory / "link"
    link.symlink_to(credential.path)

    with pytest.raises(PinRejectedError):
        Credential(link, directory / "state").beside().check()


def test_an_absent_credential(credential):
    """A credential that is missing is not to be created by hand."""
    with pytest.raises(PinUnavailableError) as told:
        credential.beside().check()

    assert "start the service" in told.value.hint

"""A PIN that systemd loads: a new file at each start, below /run/credentials."""

from __future__ import annotations

import os
import shutil

import pytest

from hsm_kms.token.pin_file import CREDENTIALS
from tests.harness.softhsm import PIN
from tests.harness.spy import Spy
from tests.harness.wait import wait_for

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root may write below /run/credentials"
)

WRONG = "1111-Wrong-PIN"
REJECTED = "the token rejected the PIN"


@pytest.fixture
def unit(directory):
    """The directory of the credentials of a unit that nobody else has."""
    made = CREDENTIALS / f"{directory.name}.service"
    yield made
    shutil.rmtree(made, ignore_errors=True)


def load(unit, pin):
    """Load the credential as systemd does when it starts the service."""
    shutil.rmtree(unit, ignore_errors=True)
    unit.mkdir(parents=True, mode=0o700)
    (unit / "pin").write_text(pin)
    (unit / "pin").chmod(0o440)  # with an ACL for the service's user


@pytest.fixture
def spied(make_plugin, hsm, unit, directory):
    """A server on a token whose calls are counted, and the spy."""
    spy = Spy(directory / "spy.log")
    token = {
        "module": spy.module,
        "pin_file": str(unit / "pin"),
        "env": hsm.env | spy.env,
        "sessions_per_worker": 1,
    }
    return make_plugin(hsm, token=token), spy


def test_a_wrong_credential_is_tried_once(spied, unit):
    """Restarts and commands try a wrong PIN once; a new one waits for `retry-pin`."""
    plugin, spy = spied
    for _ in range(3):
        load(unit, WRONG)
        plugin.start()
        wait_for(lambda: REJECTED in plugin.log())
        check = plugin.cli("check")
        plugin.stop()
        plugin.log_file.unlink()
        assert 1 == spy.count("C_Login")
        cure = "restart the service, then run `hsm-kms token retry-pin`"
        assert plugin.hint(cure) in check.stdout

    load(unit, PIN)
    plugin.start()
    wait_for(lambda: REJECTED in plugin.log())
    assert 1 == spy.count("C_Login")
    assert 0 == plugin.cli("token", "retry-pin").returncode
    plugin.wait_healthz("ok")


def test_a_right_credential(spied, unit):
    """A server whose credential is right serves after each start by itself."""
    plugin, _ = spied
    for _ in range(2):
        load(unit, PIN)
        plugin.start().wait_healthz("ok")
        assert "pin: proven" in plugin.cli("status").stdout.lower()
        plugin.stop()

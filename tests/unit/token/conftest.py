"""Workers on a token of the test's own, and what several of their tests change."""

from __future__ import annotations

import pytest

from hsm_kms.token import pin_file as pin_files
from hsm_kms.token import pin_verdict, process
from hsm_kms.token.pin_file import PinSource
from tests.harness.served import Served
from tests.harness.wait import patient
from tests.unit.token.pin_rig import Clock


@pytest.fixture
def make(hsm, pin_file, directory):
    """Make workers on a token with one KEK."""

    def make(**settings):
        return Served(hsm, pin_file, directory, **settings)

    return make


@pytest.fixture
def unhurried(monkeypatch):
    """Let a worker take its time to leave, so that a busy machine kills none."""
    monkeypatch.setattr(process, "LEAVE_SECONDS", patient())
    monkeypatch.setattr(process, "_IDLE_SECONDS", patient())


@pytest.fixture
def source(directory):
    """A PIN file of the test's own."""
    path = directory / "own-pin"
    path.write_text("1234")
    path.chmod(0o600)
    return PinSource(path=path, user_type=1)


@pytest.fixture
def clock(source, monkeypatch):
    """The node's clock, two hours after the PIN file was written."""
    clock = Clock()
    clock.seconds = source.path.stat().st_ctime + 7200
    for module in (pin_files, pin_verdict):
        monkeypatch.setattr(module, "now", clock)
    return clock

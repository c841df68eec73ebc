"""Workers on a token of the test's own, and what several of their tests change."""

from __future__ import annotations

import pytest

from hsm_kms.token import process
from tests.harness.served import Served
from tests.harness.wait import patient


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

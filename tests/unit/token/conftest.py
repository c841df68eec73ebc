"""What several tests of workers change."""

from __future__ import annotations

import pytest

from hsm_kms.token import process
from tests.harness.wait import patient


@pytest.fixture
def unhurried(monkeypatch):
    """Let a worker take its time to leave, so that a busy machine kills none."""
    monkeypatch.setattr(process, "LEAVE_SECONDS", patient())
    monkeypatch.setattr(process, "_IDLE_SECONDS", patient())

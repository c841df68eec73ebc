"""Test the kubelet's probes against a server."""

from __future__ import annotations

import os
import signal

import pytest

from hsm_kms import healthcheck
from tests.harness.wait import wait_for


@pytest.fixture
def probe(plugin):
    """Return the exit code of a probe of the server."""
    path = str(plugin.directory / "admin.sock")
    return lambda page: healthcheck.run([page, path])


def test_a_token_outage_is_no_reason_to_restart(plugin, probe, capfd):
    """Without its token a server is alive, not ready, and ready again by itself."""
    assert (0, 0) == (probe("livez"), probe("readyz"))

    plugin.hsm.take_away()
    wait_for(lambda: probe("readyz") == 1)
    capfd.readouterr()
    assert (0, 1) == (probe("livez"), probe("readyz"))
    assert "token" in capfd.readouterr().out

    plugin.hsm.put_back()
    wait_for(lambda: probe("readyz") == 0)


def test_a_process_that_hangs(plugin, probe, monkeypatch):
    """A server that does not run any more fails both probes, and passes them again."""
    monkeypatch.setattr(healthcheck, "SECONDS", 0.5)
    os.kill(plugin.process.pid, signal.SIGSTOP)
    try:
        assert (1, 1) == (probe("livez"), probe("readyz"))
    finally:
        os.kill(plugin.process.pid, signal.SIGCONT)
    wait_for(lambda: (probe("livez"), probe("readyz")) == (0, 0))


def test_a_process_that_was_killed(plugin, probe):
    """The socket that a killed server leaves fails the readiness probe alone."""
    plugin.kill()

    assert (0, 1) == (probe("livez"), probe("readyz"))

"""A real Prometheus scrapes a server in faults: its alerts fire, and they clear.

The rules are those of manifests/monitoring, without the time that a fault must last.
"""

from __future__ import annotations

import signal

import pytest

from tests.harness.prometheus import JOB, scraping
from tests.harness.wait import wait_for
from tests.system.faults.observed import QUICK


@pytest.fixture
def rig(make_rig):
    """Provide a healthy server on the shim."""
    made = make_rig(token=QUICK, http={"listen": "127.0.0.1:0"})
    made.start()
    made.well()
    made.plugin.status()
    return made


@pytest.fixture
def prometheus(rig, directory):
    """Provide a Prometheus that scrapes that server."""
    with scraping(directory, {JOB: {"cp-1": rig.plugin.http_port()}}) as started:
        yield started


@pytest.mark.slow
def test_faults(rig, prometheus):
    """Nothing fires on a healthy server; each fault has its alert, until it is over."""
    plugin = rig.plugin
    prometheus.wait()

    plugin.config["scope"] = 7
    plugin.write_config()
    prometheus.wait("HsmKmsConfigNotInForce")
    plugin.config["scope"] = ""
    plugin.write_config()
    prometheus.wait()

    rig.hsm.take_away()
    wait_for(lambda: "HsmKmsFailed" in prometheus.firing())
    rig.hsm.put_back()
    wait_for(lambda: "HsmKmsFailed" not in prometheus.firing())

    assert plugin.process is not None
    plugin.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: "HsmKmsDown" in prometheus.firing())
    plugin.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "HsmKmsDown" not in prometheus.firing())

"""Local KEKs on a node that is suspended, or whose virtual machine is paused."""

from __future__ import annotations

import pytest

from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.faults.observed import ObservedServer

HOURS = 3600.0
CREATED = 'hsm_kms_local_keks_created_total{result="ok"}'


@pytest.fixture
def rig(make_plugin, hsm, clock):
    """A healthy server that wraps in software, by the clock of the test."""
    plugin = make_plugin(
        hsm,
        apis={"v2": {"enabled": True, "wrapping": "software"}},
        local_keys={"max_offline": "5h", "max_age": "1d"},
    )
    plugin.start(spawn=True).wait_healthz("ok")
    made = ObservedServer(plugin=plugin, hsm=hsm, shim=None)
    wait_for(lambda: 1 == made.metrics().get(CREATED))
    return made


def test_max_offline(rig, hsm, clock):
    """`max_offline` ends local KEKs also if this node was suspended meanwhile."""
    hsm.take_away()
    wait_for(lambda: "degraded" == rig.admin()["state"])
    clock.suspend(4 * HOURS)
    assert "OK" == code_of(lambda: rig.plugin.encrypt(b"dek"))
    clock.suspend(2 * HOURS)

    assert "UNAVAILABLE" == code_of(lambda: rig.plugin.encrypt(b"dek"))
    hsm.put_back()
    wait_for(lambda: "OK" == code_of(lambda: rig.plugin.encrypt(b"dek")))


def test_max_age(rig, clock):
    """A local KEK that grew old while this node was suspended is replaced."""
    rig.plugin.encrypt(b"dek")
    clock.suspend(23 * HOURS)
    rig.plugin.encrypt(b"dek")
    assert 1 == rig.metrics()[CREATED]
    clock.suspend(2 * HOURS)

    wait_for(lambda: 2 == rig.metrics()[CREATED])

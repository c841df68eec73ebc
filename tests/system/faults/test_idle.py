"""A device that drops the connection of a process that does not use it.

The module then fails until C_Finalize, as that of the YubiHSM 2 does after 30 s.
"""

from __future__ import annotations

import time

from hsm_kms.config.schema import Health, Keys
from hsm_kms.health.monitor import _JITTER
from tests.harness.plugin import code_of
from tests.harness.wait import patient, wait_for

IDLE = patient(4.0)  # seconds; ten times the interval
DROPS_AFTER = 30.0  # seconds: YubiHSM 2


def test_kept_warm(make_rig):
    """Inspections keep the connection of every worker alive, and lose no request."""
    rig = make_rig(health={"interval": "400ms"})
    rig.start()
    rig.well()
    rig.shim.set(f"idle={IDLE * 1000:g}")
    workers = rig.workers()
    began = time.monotonic()
    wait_for(lambda: time.monotonic() > began + 1.5 * IDLE)

    for _ in range(8):  # as many as sessions
        assert "OK" == code_of(lambda: rig.plugin.v1_encrypt(b"d"))
    assert workers == rig.workers()
    assert [] == rig.plugin.events("token worker ended")


def test_the_default_keeps_warm():
    """With the default settings, a worker is never idle for 30 s."""
    longest = min(Health().interval, Keys().discover) * (1 + _JITTER / 2)

    assert longest + 5 < DROPS_AFTER  # 5 s for the inspection itself


def test_dropped(make_rig):
    """If the interval is too long, a dropped worker is replaced; the token is back."""
    rig = make_rig(health={"interval": "1h"}, keys={"discover": "1h"})
    rig.start()
    rig.well()
    workers = rig.workers()
    rig.wait_inspected()
    rig.shim.set("idle=1")
    assert "UNAVAILABLE" == code_of(lambda: rig.plugin.v1_encrypt(b"d"))
    rig.shim.clear()

    # A worker that called nothing meanwhile was not dropped.
    wait_for(lambda: set(workers) - set(rig.workers()))
    wait_for(lambda: code_of(lambda: rig.plugin.v1_encrypt(b"d")) == "OK")

"""The breaker opens for errors of the token, and not for what clients send."""

from __future__ import annotations

import statistics
import time

from tests.harness.plugin import code_of
from tests.harness.wait import patient, wait_for
from tests.system.faults.observed import NO_CANARY

REQUESTS = 60
FAST_SECONDS = patient(0.2)  # of which a request takes a hundredth
DOWN_SECONDS = 60.0


def asked(rig):
    """Return how many Encrypts were sent to the token, canaries not counted."""
    return rig.metrics().get('hsm_kms_token_calls_total{operation="encrypt"}', 0)


def test_fails_fast(rig, shim):
    """While the token is unavailable, requests fail at once and do not reach it."""
    shim.set("C_EncryptInit rv=0x30", "C_DecryptInit rv=0x30")
    wait_for(lambda: code_of(lambda: rig.plugin.encrypt(b"dek")) == "UNAVAILABLE")
    rig.plugin.wait_healthz("the token", DOWN_SECONDS)
    before, seconds, codes = asked(rig), [], set()
    for _ in range(REQUESTS):
        began = time.monotonic()
        codes.add(code_of(lambda: rig.plugin.encrypt(b"dek")))
        seconds.append(time.monotonic() - began)
    after = asked(rig)

    assert {"UNAVAILABLE"} == codes
    assert statistics.median(seconds) < FAST_SECONDS
    assert after - before < REQUESTS / 2
    shim.clear()
    rig.well()
    assert "OK" == code_of(lambda: rig.plugin.encrypt(b"dek"))


def test_opens_and_closes(rig, shim):
    """Consecutive errors open the breaker; the next canary that passes closes it."""
    workers = rig.workers()
    shim.set("C_Encrypt len=77 rv=0x30")
    rig.wait_breaker_open()
    shim.clear()
    wait_for(lambda: code_of(lambda: rig.plugin.encrypt(NO_CANARY)) == "OK")

    assert "device" in rig.plugin.events("breaker open")[0]["error"].lower()
    assert len(rig.plugin.events("breaker open")) == len(
        rig.plugin.events("breaker closed")
    )
    assert 0 == rig.metrics()["hsm_kms_breaker_open"]
    assert "closed" == rig.admin()["breaker"]
    assert set(workers) <= set(rig.worker_pids)
    assert rig.metrics()['hsm_kms_token_errors_total{ckr="CKR_DEVICE_ERROR"}'] >= 5

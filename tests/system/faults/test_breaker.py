"""The breaker opens for the token's errors, and for nothing that a client sends."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.faults.load import Flood, Load

PLAINTEXT = b"f" * 77  # of a length that no canary has
REQUESTS = 60
FAST_SECONDS = 0.02


def test_fails_fast(rig, shim):
    """While the token is down, requests do not wait, and do not reach it."""
    shim.set("C_EncryptInit rv=0x30", "C_DecryptInit rv=0x30")
    wait_for(lambda: code_of(lambda: rig.plugin.encrypt(b"dek")) == "UNAVAILABLE")
    rig.plugin.wait_healthz("the token", 30)
    before, seconds, codes = shim.calls("C_EncryptInit"), [], set()
    for _ in range(REQUESTS):
        began = time.monotonic()
        codes.add(code_of(lambda: rig.plugin.encrypt(b"dek")))
        seconds.append(time.monotonic() - began)
    asked = shim.calls("C_EncryptInit") - before

    assert {"UNAVAILABLE"} == codes
    assert statistics.median(seconds) < FAST_SECONDS
    assert asked < REQUESTS / 2
    shim.clear()
    rig.well(20)
    assert "OK" == code_of(lambda: rig.plugin.encrypt(b"dek"))


def test_opens_and_closes(rig, shim):
    """Errors in a row open it; the next canary that passes closes it."""
    workers = rig.workers()
    shim.set("C_Encrypt len=77 rv=0x30")
    wait_for(
        lambda: (
            code_of(lambda: rig.plugin.encrypt(PLAINTEXT)) == "UNAVAILABLE"
            and rig.plugin.events("breaker open")
        )
    )
    shim.clear()
    wait_for(lambda: code_of(lambda: rig.plugin.encrypt(PLAINTEXT)) == "OK")

    assert "device" in rig.plugin.events("breaker open")[0]["error"].lower()
    assert len(rig.plugin.events("breaker open")) == len(
        rig.plugin.events("breaker closed")
    )
    assert 0 == rig.metrics()["hsm_kms_breaker_open"]
    assert "closed" == rig.admin()["breaker"]
    assert workers == rig.worker_pids
    assert rig.metrics()['hsm_kms_token_errors_total{ckr="CKR_DEVICE_ERROR"}'] >= 5


@pytest.mark.parametrize("rv", [0, 0x05, 0x06, 0x07])
def test_hostile(rig, shim, rv):
    """Bad ciphertexts at full rate cost nobody else anything."""
    sealed = rig.plugin.encrypt(PLAINTEXT)
    workers, opened = rig.workers(), shim.calls("C_OpenSession")
    if rv:
        shim.set(f"bad_tag={rv:#x}")
    with Flood(rig.plugin, sealed) as flood, Load(rig.plugin, 2) as load:
        time.sleep(2)
        assert PLAINTEXT == rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)

    print(f"{len(load.answers)} good, {dict(flood.codes)}")  # noqa: T201
    assert {"INVALID_ARGUMENT"} == set(flood.codes)
    assert flood.codes["INVALID_ARGUMENT"] > 100
    assert [] == [*load.failures(), *load.wrong]
    assert (workers, opened) == (rig.worker_pids, shim.calls("C_OpenSession"))
    assert [] == rig.plugin.events("breaker open")
    assert [] == rig.plugin.events("token fault under a request")
    assert {} == rig.admin()["workers"]["ended"]

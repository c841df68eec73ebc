"""Probes, metrics and the server's own status, while all is well and while not."""

from __future__ import annotations

import stat

import pytest

from tests.harness.plugin import code_of
from tests.harness.wait import wait_for

DOWN_SECONDS = 60.0


def test_well(rig):
    """Probes, metrics and /status show a healthy server and its requests."""
    sealed = rig.plugin.encrypt(b"dek")
    rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)
    metrics, admin = rig.metrics(), rig.admin()

    assert (200, "ok\n") == rig.get("/livez") == rig.get("/readyz")
    assert 404 == rig.get("/status")[0] == rig.get("/")[0]
    assert ("ok", "ok", sealed.key_id) == (
        admin["state"],
        admin["detail"],
        admin["key_id"],
    )
    assert ("closed", "proven") == (admin["breaker"], admin["pin"])
    assert {"held": 8, "idle": 8, "waiting": 0} == admin["sessions"]
    assert 1 == metrics['hsm_kms_requests_total{code="OK",method="v2.Encrypt"}']
    assert 1 == metrics['hsm_kms_requests_total{code="OK",method="v2.Decrypt"}']
    assert 1 == metrics['hsm_kms_token_calls_total{operation="encrypt"}']
    assert 2 == metrics['hsm_kms_token_calls_total{operation="decrypt"}']  # read back
    assert 1 == metrics['hsm_kms_health{state="ok"}']
    assert (2, 8) == (metrics["hsm_kms_workers"], metrics["hsm_kms_sessions"])
    assert sealed.key_id not in rig.get("/metrics")[1]
    states = ("pending", "current", "decrypt-only", "retired", "refused", "foreign")
    assert [0, 1, 0, 0, 0, 0] == [
        metrics[f'hsm_kms_keys{{state="{state}"}}'] for state in states
    ]
    mode = (rig.plugin.directory / "admin.sock").stat().st_mode
    assert 0o600 == stat.S_IMODE(mode)


def test_keys(make_rig):
    """/status and the log show each key's state and activation time."""
    rig = make_rig()
    rig.start()
    rig.well()
    first = rig.plugin.status().key_id
    assert 0 == rig.plugin.cli("keys", "generate", "--another").returncode
    wait_for(lambda: len(rig.admin()["keys"]) == 2)
    keys = {key["key_id"]: key for key in rig.admin()["keys"]}
    second = keys[(set(keys) - {first}).pop()]

    assert ("current", None) == (keys[first]["state"], keys[first]["current_from"])
    assert ("pending", None) == (second["state"], second["current_from"])
    assert second["generated_on_token"]
    assert "aes-gcm-caller-iv" == second["mechanism"]
    assert 1 == rig.metrics()['hsm_kms_keys{state="pending"}']
    (event,) = rig.plugin.events("pending key")
    assert (second["key_id"], None) == (event["key_id"], event["current_from"])


def test_token_unavailable(rig):
    """A server without its token is alive and not ready, and /readyz says why."""
    rig.hsm.take_away()
    wait_for(lambda: rig.get("/readyz")[0] == 503, DOWN_SECONDS)

    assert (200, "ok\n") == rig.get("/livez")
    wait_for(lambda: rig.get("/readyz")[1].strip() == rig.plugin.healthz())
    assert "failed" == rig.admin()["state"]
    assert 1 == rig.metrics()['hsm_kms_health{state="failed"}']
    rig.hsm.put_back()
    rig.well()
    assert 200 == rig.get("/readyz")[0]


@pytest.mark.parametrize("reason", ["lost", "login"])
def test_restarts_by_reason(rig, shim, reason):
    """The metrics count ended workers by reason."""
    name = f'hsm_kms_worker_ends_total{{reason="{reason}"}}'
    assert 0 == rig.metrics()[name]
    if reason == "lost":
        shim.set("C_Encrypt count=1 segv")
    else:
        shim.set("logged_out")
    code_of(lambda: rig.plugin.encrypt(b"dek"))
    wait_for(lambda: rig.metrics().get(name, 0) >= 1)
    shim.clear()
    rig.well()

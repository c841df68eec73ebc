"""Metrics of a running server: each number is what the test caused."""

from __future__ import annotations

import pytest

from hsm_kms import clock
from hsm_kms.api.rpc import kms_v2_pb2
from hsm_kms.log import key_id_hash
from tests.harness.plugin import code_of
from tests.harness.wait import patient, wait_for
from tests.system.faults.observed import ObservedServer

SLEEP_MS = 300


@pytest.fixture
def rig(make_plugin, hsm, shim):
    """Provide a healthy server on the shim, with one worker and no canaries."""
    token = {
        "module": str(shim.module),
        "env": {**hsm.env, **shim.env},
        "sessions_per_worker": 1,
        "session_wait": "20s",
        "call_timeout": "30s",
    }
    plugin = make_plugin(
        hsm,
        token=token,
        health={"interval": "1h"},
        keys={"discover": "1h"},
        local_keys={"verify_wraps": False},
    )
    made = ObservedServer(plugin=plugin, hsm=hsm, shim=shim)
    made.start()
    plugin.wait_healthz("ok")
    wait_for(lambda: made.admin()["sessions"]["idle"] == 1)
    return made


def difference(before, after):
    """Return what has been added to each counter."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if "_total" in name and value != before.get(name, 0)
    }


def test_functions_of_the_module(rig):
    """The server counts each call of a function that the module saw, and times it."""
    before = rig.metrics()
    rig.shim.set(f"C_Decrypt sleep={SLEEP_MS}")
    sealed = rig.plugin.encrypt(b"d" * 32)
    for _ in range(2):
        rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)
    rig.wait_calls_counted()  # an inspection may be under way
    after = rig.metrics()
    added = difference(before, after)

    assert added['hsm_kms_pkcs11_calls_total{function="C_Encrypt"}'] >= 1
    count = added['hsm_kms_pkcs11_calls_total{function="C_Decrypt"}']
    seconds = added['hsm_kms_pkcs11_seconds_total{function="C_Decrypt"}']
    assert count >= 2
    assert 2 * SLEEP_MS / 1000 <= seconds
    assert seconds > added['hsm_kms_pkcs11_seconds_total{function="C_Encrypt"}']


def test_requests_that_wait(rig):
    """A request that waits for the only session is counted, with its seconds."""
    rig.shim.set(f"C_Encrypt sleep={SLEEP_MS}")
    before = rig.metrics()
    request = kms_v2_pb2.EncryptRequest(plaintext=b"d" * 32, uid="one of two")
    both = [
        rig.plugin.v2.Encrypt.future(request, timeout=patient(60)) for _ in range(2)
    ]
    for each in both:
        each.result()
    added = difference(before, rig.metrics())

    assert 1 == added["hsm_kms_session_waits_total"]
    assert 0 < added["hsm_kms_session_wait_seconds_total"]


def test_keys_and_status(rig):
    """The key has its state and its decrypts; Status and canary have times."""
    began = clock.now()
    sealed = rig.plugin.encrypt(b"d" * 32)
    for _ in range(3):
        rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)
    refused = code_of(lambda: rig.plugin.decrypt(sealed.ciphertext, "x" * 26))
    assert "INVALID_ARGUMENT" == refused
    rig.plugin.status()
    seen = rig.metrics()
    label = f'key_id_hash="{key_id_hash(sealed.key_id)}"'

    assert 1 == seen[f'hsm_kms_key_info{{{label},state="current"}}']
    assert 3 == seen[f"hsm_kms_key_decrypts_total{{{label}}}"]
    for name in (
        f"hsm_kms_key_last_decrypt_timestamp_seconds{{{label}}}",
        "hsm_kms_last_status_timestamp_seconds",
    ):
        assert began <= seen[name] <= clock.now()
    assert seen["hsm_kms_canary_last_success_timestamp_seconds"] <= clock.now()
    assert 1 == seen['hsm_kms_logins_total{result="ok"}']
    assert 1 == seen["hsm_kms_state_dir_writable"]


def test_status_of_an_operator(rig):
    """`hsm-kms status` does not count as a question of the API server."""
    rig.plugin.status()
    name = "hsm_kms_last_status_timestamp_seconds"
    before = rig.metrics()[name]
    shown = rig.plugin.cli("status")

    assert 0 == shown.returncode
    assert before == rig.metrics()[name]


def test_reloads(rig):
    """Each changed file counts once, as applied or as rejected."""
    plugin = rig.plugin
    plugin.config["health"] |= {"grace": "61s"}
    plugin.write_config()
    wait_for(lambda: plugin.events("configuration applied"))
    plugin.config["scope"] = 7
    plugin.write_config()
    wait_for(lambda: plugin.events("configuration rejected"))
    seen = rig.metrics()

    assert [1, 1] == [
        seen[f'hsm_kms_config_reloads_total{{result="{each}"}}']
        for each in ("applied", "rejected")
    ]
    assert 0 == seen["hsm_kms_config_in_force"]

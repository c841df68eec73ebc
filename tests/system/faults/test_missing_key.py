"""A server whose current key was deleted still decrypts under the other keys."""

from __future__ import annotations

import time

import pytest

from hsm_kms.health.fresh_worker import APART_SECONDS
from hsm_kms.ipc.values import KeyRef
from tests.harness.administrator import Destroy, change
from tests.harness.plugin import code_of
from tests.harness.token_keys import LABEL, make_key
from tests.harness.wait import wait_for
from tests.system.faults.load import OLD, Kept, Load

SECOND = KeyRef(LABEL, b"second")
LISTINGS = 40  # several for each worker
LOST = "the last current key"


def key_id_of(rig, cka_id):
    """Return the key_id of a key, or None while it is not held."""
    found = {each["cka_id"]: each["key_id"] for each in rig.admin()["keys"]}
    return found.get(cka_id.hex())


@pytest.fixture
def switched(rig):
    """A server on its second key, and what it encrypted under the first."""
    sealed = rig.plugin.encrypt(b"dek")
    make_key(rig.hsm, SECOND.cka_id)
    key_id = wait_for(lambda: key_id_of(rig, SECOND.cka_id))
    rig.plugin.stop()
    rig.plugin.config["keys"]["current"] = key_id
    rig.plugin.write_config()
    rig.start()
    rig.well()
    assert key_id == rig.plugin.encrypt(b"dek").key_id
    return rig, Kept(b"dek", sealed.ciphertext, sealed.key_id)


def test_key_deleted(switched, shim):
    """No worker ends for a deleted key, one fresh worker looks, and Decrypt goes on."""
    rig, old = switched
    workers, logins = set(rig.workers()), shim.calls("C_Login")
    began = time.monotonic()
    with Load(rig.plugin, 1, [old]) as load:
        change(rig.hsm, Destroy(SECOND))
        wait_for(lambda: LOST in rig.plugin.status().healthz)
        wait_for(
            lambda: "FAILED_PRECONDITION" == code_of(lambda: rig.plugin.encrypt(b"dek"))
        )
        wait_for(lambda: shim.calls("C_Login") > logins)  # the fresh worker
        listings = shim.calls("C_FindObjectsInit") + LISTINGS
        wait_for(lambda: shim.calls("C_FindObjectsInit") >= listings)
    elapsed = time.monotonic() - began

    assert [] == [each for each in load.failures() if each.method == OLD]
    assert [] == load.wrong
    assert {} == rig.admin()["workers"]["ended"]
    assert workers == set(rig.workers())
    assert shim.calls("C_Login") - logins <= 1 + elapsed // APART_SECONDS


def test_breaker_closes(switched, shim):
    """Any key that works closes the breaker, also while there is no current key."""
    rig, old = switched

    def decrypt():
        return code_of(lambda: rig.plugin.decrypt(old.ciphertext, old.key_id))

    change(rig.hsm, Destroy(SECOND))
    wait_for(lambda: LOST in rig.plugin.status().healthz)
    shim.set("C_Decrypt rv=0x30")
    wait_for(lambda: decrypt() == "UNAVAILABLE" and rig.plugin.events("breaker open"))
    shim.clear()
    wait_for(lambda: decrypt() == "OK")

    assert "closed" == rig.admin()["breaker"]
    assert "failed" == rig.admin()["state"]

"""One odd key on the token, or one odd slot, never takes another key down."""

from __future__ import annotations

import json

import pytest

from hsm_kms.ipc.values import KeyRef
from tests.harness.administrator import Generate, change
from tests.harness.one_worker import imported
from tests.harness.shim.driver import Shim
from tests.harness.token_keys import LABEL, MATERIAL, create, damage_newest
from tests.harness.wait import wait_for
from tests.system.faults.observed import ObservedServer

DEK = b"d" * 32
OTHER = MATERIAL[::-1]
SAME_NAMES = "another key has the same CKA_LABEL and CKA_ID"
NOT_IDENTIFIED = "cannot be identified"


def observed(plugin):
    """Return a view of the admin socket and the metrics."""
    return ObservedServer(plugin=plugin, hsm=plugin.hsm, shim=None)


def works(plugin, *sealed):
    """Encrypt, and decrypt this and all that was encrypted before."""
    new = plugin.encrypt(DEK)
    for each in (*sealed, new):
        assert DEK == plugin.decrypt(each.ciphertext, each.key_id)
    return new


@pytest.mark.parametrize("cka_id", [b"kek", b""], ids=["CKA_ID", "no CKA_ID"])
def test_twins(make_plugin, empty_hsm, cka_id):
    """Two keys with the same names are told apart, and a restart serves as before."""
    ref = KeyRef(LABEL, cka_id)
    create(empty_hsm, ref)
    plugin = make_plugin(empty_hsm).start()
    plugin.wait_healthz("ok")
    key_id = plugin.status().key_id
    assert imported(ref).fingerprint == key_id
    first = works(plugin)
    create(empty_hsm, ref, OTHER)
    twins = wait_for(
        lambda: [k for k in observed(plugin).admin()["keys"] if k["same_names"]]
    )
    ids = {key_id, imported(ref, OTHER).fingerprint}
    assert ids == {key["key_id"] for key in twins}
    second = works(plugin, first)
    told = plugin.events("key needs attention")
    assert ids <= {each["key_id"] for each in told if SAME_NAMES in each["reason"]}
    assert 2.0 == metric(plugin, "hsm_kms_keys_with_same_names")

    plugin.stop()
    plugin.start().wait_healthz("ok")
    assert key_id == plugin.status().key_id
    works(plugin, first, second)
    listed = json.loads(plugin.cli("keys", "list", "-o", "json").stdout)
    assert ids == {key["key_id"] for key in listed}
    assert 2 == plugin.cli("keys", "list").stdout.count(SAME_NAMES)
    checked = plugin.cli("check")
    assert (0, 2) == (checked.returncode, checked.stdout.count(SAME_NAMES))


def metric(plugin, name):
    """Return the value of a metric without labels."""
    return observed(plugin).metrics()[name]


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_damaged_key(make_plugin, hsm, when):
    """A damaged key that nobody uses is named, and harms no request."""
    ref = KeyRef(LABEL, b"damaged")
    plugin = make_plugin(hsm)
    if when == "while it runs":
        plugin.start().wait_healthz("ok")
        first = works(plugin)
        create(hsm, ref)
        fingerprint = imported(ref).fingerprint
        wait_for(
            lambda: (
                fingerprint in {k["key_id"] for k in observed(plugin).admin()["keys"]}
            )
        )
        damage_newest(hsm)
        plugin.stop()
        plugin.start().wait_healthz("ok")
        works(plugin, first)
    else:
        create(hsm, ref)
        damage_newest(hsm)
        plugin.start().wait_healthz("ok")
    works(plugin)

    (odd,) = wait_for(lambda: observed(plugin).admin()["unidentified_keys"])
    assert (LABEL, ref.cka_id.hex()) == (odd["label"], odd["cka_id"])
    assert NOT_IDENTIFIED in odd["reason"]
    assert [odd["reason"]] == [
        each["reason"] for each in plugin.events("key needs attention")
    ]
    assert 1.0 == metric(plugin, "hsm_kms_keys_unidentified")
    listed = json.loads(plugin.cli("keys", "list", "-o", "json").stdout)
    assert {"current", "refused"} == {key["state"] for key in listed}
    checked = plugin.cli("check")
    assert 0 == checked.returncode
    for part in odd["reason"].split("; "):
        assert part in checked.stdout
    works(plugin)


def test_damaged_current_key(make_plugin, hsm):
    """Where the current key is damaged, other keys still decrypt."""
    plugin = make_plugin(hsm).start()
    plugin.wait_healthz("ok")
    first = works(plugin)
    ref = KeyRef(LABEL, b"second")
    change(hsm, Generate(ref))
    second = wait_for(
        lambda: [
            key["key_id"]
            for key in observed(plugin).admin()["keys"]
            if key["cka_id"] == ref.cka_id.hex()
        ]
    )[0]
    plugin.stop()
    plugin.config["keys"]["current"] = second
    plugin.write_config()
    plugin.start().wait_healthz("ok")
    assert second == works(plugin, first).key_id
    plugin.stop()
    del plugin.config["keys"]["current"]
    plugin.write_config()
    damage_newest(hsm)
    plugin.start()
    plugin.wait_healthz("the last current key is not on the token")
    assert NOT_IDENTIFIED in observed(plugin).admin()["detail"]

    assert DEK == plugin.decrypt(first.ciphertext, first.key_id)


def test_one_attribute(make_plugin, hsm, directory):
    """One attribute of one key that cannot be read concerns that key alone."""
    ref = KeyRef(LABEL, b"odd\xee")
    create(hsm, ref)
    shim = Shim(directory)
    shim.set("odd_value_len=0xee")
    plugin = make_plugin(
        hsm, token={"module": str(shim.module), "env": dict(hsm.env | shim.env)}
    ).start()
    plugin.wait_healthz("ok")
    works(plugin)
    keys = {key["cka_id"]: key for key in observed(plugin).admin()["keys"]}

    odd = keys.pop(ref.cka_id.hex())
    assert ["CKA_VALUE_LEN is unknown, not 32 bytes"] == odd["policy_violations"]
    assert [[]] == [key["policy_violations"] for key in keys.values()]


@pytest.mark.parametrize("rule", ["C_GetSlotInfo rv=0x5", "C_GetSlotInfo rv=0x30"])
def test_slots_that_do_not_describe_themselves(make_plugin, hsm, directory, rule):
    """A slot that cannot tell what is in it does not hide the token."""
    shim = Shim(directory)
    shim.set(rule)
    plugin = make_plugin(
        hsm, token={"module": str(shim.module), "env": dict(hsm.env | shim.env)}
    ).start()
    plugin.wait_healthz("ok")

    works(plugin)
    assert 0 == plugin.cli("check").returncode

"""Test pairs of an AES key and an HMAC key after a crash between the two."""

from __future__ import annotations

import subprocess

import pytest

from tests.cli.conftest import PAIRS
from tests.cli.keys_rig import Keys
from tests.harness.command_line import HSM_KMS
from tests.harness.softhsm import softhsm_module
from tests.harness.token_keys import make_key
from tests.harness.wait import wait_for

SIGNED = ("--without-scan", "--yes")
# Where the worker dies: before or after the first or second of the two calls.
CRASHES = [
    "abort",
    "abort after",
    "skip=1 abort",
    "skip=1 abort after",
]
ON = list(zip(CRASHES, ["retire", "undo", "retire", "undo"], strict=True))


@pytest.fixture
def on(make_plugin, shim):
    """Make the commands on a token behind the shim, which all nodes share."""

    def on(hsm):
        env = {**hsm.env, **shim.env}
        token = {"module": str(shim.module), "env": env, "shared": True}
        sections = {"token": token, "keys": PAIRS}
        return Keys(make_plugin(hsm, **sections))

    return on


@pytest.fixture
def keys(on, empty_hsm):
    """Run the commands on an empty token."""
    return on(empty_hsm)


@pytest.fixture
def one(on, pairs_of_keys, directory):
    """Run the commands on a token with one pair."""
    keys = on(pairs_of_keys.one.copy(directory / "one"))
    keys.old = pairs_of_keys.old
    return keys


@pytest.fixture
def two(on, pairs_of_keys, directory):
    """Run the commands on a token with two pairs, of which the new one is current."""
    keys = on(pairs_of_keys.both.copy(directory / "two"))
    keys.use(pairs_of_keys.old, pairs_of_keys.new)
    return keys


def crash(keys, shim, function, when, *command):
    """Run a command whose worker dies in this function."""
    shim.set(f"{function} {when}")
    said = keys.refusal(*command)
    shim.clear()
    assert "worker" in said


def objects(hsm):
    """Return the number of AES keys and of HMAC keys on the token."""
    listed = hsm.pkcs11_tool("--list-objects", "--type", "secrkey").stdout
    return listed.count("AES length"), listed.count("Generic secret")


@pytest.mark.parametrize("when", CRASHES)
def test_generate(keys, shim, empty_hsm, when):
    """The next `generate` explains and removes half a pair, then makes a whole one."""
    crash(keys, shim, "C_GenerateKey", when, "generate")
    left = objects(empty_hsm)
    listed = keys.json("list")
    again = keys.run("generate")

    assert {"abort": (0, 0), "skip=1 abort after": (1, 1)}.get(when, (0, 1)) == left
    if left == (0, 0):
        assert [] == listed
    elif left == (0, 1):
        assert [("unfinished", None)] == [
            (each["state"], each["key_id"]) for each in listed
        ]
        assert "the next run of either removes it" in listed[0]["reason"]
        assert "removing the HMAC key (CKA_ID " in again.err
    assert (1 if left == (1, 1) else 0) == again.code  # the pair was whole
    assert (1, 1) == objects(empty_hsm)
    assert ["current"] == list(keys.states().values())


@pytest.mark.parametrize("when", CRASHES)
def test_rotate(one, shim, when):
    """The next `rotate` replaces half a pair, and never touches the current pair."""
    crash(one, shim, "C_GenerateKey", when, "rotate")
    whole = objects(one.plugin.hsm) == (2, 2)
    states = one.states()
    assert "current" == states.pop(one.old)
    new = next(iter(states)) if whole else one.rotate()

    assert {"abort": {}, "skip=1 abort after": {new: "pending"}}.get(
        when, {"-": "unfinished"}
    ) == states
    assert {one.old: "current", new: "pending"} == one.states()
    assert (2, 2) == objects(one.plugin.hsm)


@pytest.mark.parametrize("when", CRASHES)
def test_cancel(one, shim, when):
    """The same `cancel` finishes an interrupted one, whichever key is gone."""
    new = one.rotate()
    crash(one, shim, "C_DestroyObject", when, "cancel", new, "--yes")
    left = objects(one.plugin.hsm)
    listed = one.run("list")
    again = one.json("cancel", new, "--yes")

    assert {"abort": (2, 2), "skip=1 abort after": (1, 1)}.get(when, (1, 2)) == left
    if left == (1, 2):
        assert f"run `hsm-kms keys cancel {new}` to finish" in listed.out
    if left == (2, 2):
        assert "before it destroyed anything" in listed.err
    assert sum(left) - 2 == again["destroyed"]
    assert {one.old: "current"} == one.states()
    assert (1, 1) == objects(one.plugin.hsm)
    assert "" == one.run("list").err


@pytest.mark.parametrize(("when", "then"), ON)
def test_retire(two, shim, when, then):
    """A half-retired key can be retired or restored, under the same key_id."""
    old, new = two.old, two.new
    crash(two, shim, "C_SetAttributeValue", when, "retire", old, *SIGNED)
    retired = two.states()[old] == "retired"
    half = "`keys retire` was interrupted" in two.run("list").out

    assert (when != "abort", when in CRASHES[1:3]) == (retired, half)
    if then == "retire":
        assert old == two.json("retire", old, *SIGNED)["key_id"]
        assert {old: "retired", new: "current"} == two.states()
    elif retired:
        assert "k8s-kek" == two.json("retire", old, "--undo")["label"]
        assert {old: "decrypt-only", new: "current"} == two.states()
    assert "interrupted" not in two.run("list").out


@pytest.mark.parametrize(("when", "then"), ON)
def test_undo(two, shim, when, then):
    """An interrupted --undo can be finished or reversed."""
    old, new = two.old, two.new
    two.json("retire", old, *SIGNED)
    crash(two, shim, "C_SetAttributeValue", when, "retire", old, "--undo")
    back = two.states()[old] == "decrypt-only"
    half = "`keys retire` was interrupted" in two.run("list").out

    assert (when == CRASHES[-1], when in CRASHES[1:3]) == (back, half)
    if then == "retire":
        two.json("retire", old, *SIGNED)
        assert {old: "retired", new: "current"} == two.states()
    elif not back:
        two.json("retire", old, "--undo")
        assert {old: "decrypt-only", new: "current"} == two.states()
    assert "interrupted" not in two.run("list").out


def test_killed(keys, shim, empty_hsm):
    """A command that is killed between two keys of a pair can be finished."""
    shim.set("C_GenerateKey skip=1 hang")
    command = [*HSM_KMS, "keys", "generate"]
    with subprocess.Popen(
        [*command, "--config", str(keys.plugin.config_file)], stderr=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: shim.acted("C_GenerateKey"))
        busy = keys.refusal("generate")
        process.kill()
    shim.clear()

    assert "another `hsm-kms keys` command is running on this node" in busy
    assert (0, 1) == objects(empty_hsm)
    keys.generate()
    assert (1, 1) == objects(empty_hsm)


def test_first_pair_found_out(keys, shim, empty_hsm):
    """On a token without GCM, `generate` completes a lone AES key with its HMAC key."""
    keys.configure("keys", mechanism="auto")
    shim.set("no_gcm", "C_GenerateKey skip=1 abort")
    keys.refusal("generate")
    shim.set("no_gcm")
    listed = keys.run("list")
    again = keys.run("generate")

    assert (1, "  the key could not be identified" in listed.out) == (listed.code, True)
    assert "the AES key has no HMAC key beside it" in listed.err
    assert "an earlier run was interrupted; generating the HMAC key now" in again.err
    assert (0, (1, 1)) == (again.code, objects(empty_hsm))
    assert ["current"] == list(keys.states().values())


def test_aes_key_of_others_gets_no_partner(keys, shim, empty_hsm):
    """An imported AES key gets no HMAC key."""
    empty_hsm.import_aes(b"k" * 32, label="k8s-kek", cka_id=b"imp")
    refused = keys.refusal("generate")

    assert "no interrupted run left this" in refused
    assert (1, 0) == objects(empty_hsm)


def test_lone_halves(keys, empty_hsm):
    """Halves of unknown origin are explained, and removed only by their CKA_ID."""
    old = keys.generate()
    make_key(empty_hsm, b"aes alone", PRIVATE=True)
    keygen = ("--keygen", "--key-type", "GENERIC:32", "--label", "k8s-kek-hmac")
    empty_hsm.pkcs11_tool(
        *keygen, "--id", b"mac aloneh".hex(), "--sensitive", "--private"
    )
    aes, mac = b"aes alone".hex(), b"mac alone".hex()
    states = keys.states()
    listed = keys.run("list").out
    rotated = keys.run("rotate")

    assert ("current", "unfinished") == (states.pop(old), states.pop("-"))
    assert ["refused"] == list(states.values())
    assert (
        "it has no HMAC key, which it needs because this token lacks AES-GCM" in listed
    )
    assert f"run `hsm-kms keys cancel {mac}` to remove it" in listed
    assert (0, True) == (rotated.code, f"keys cancel {mac}" in rotated.err)
    assert "is neither a pending key nor half of a pair" in keys.refusal(
        "cancel", aes + "00", "--yes"
    )
    assert "is a complete key" in keys.refusal("cancel", aes, "--yes")
    gone = keys.json("cancel", mac, "--yes")
    assert {"key_id": None, "cka_id": mac, "destroyed": 1} == gone
    assert "-" not in keys.states()


def test_other_name(keys, shim):
    """A key that was current with GCM keeps its key_id when it gets an HMAC key."""
    keys.configure("token", module=softhsm_module())
    keys.configure("keys", mechanism="aes-gcm")
    alone = keys.generate()
    keys.plugin.start().wait_healthz("ok")
    keys.plugin.stop()
    [key] = keys.json("list")
    keygen = ("--keygen", "--key-type", "GENERIC:32", "--label", "k8s-kek-hmac")
    keys.plugin.hsm.pkcs11_tool(
        *keygen, "--id", key["cka_id"] + b"h".hex(), "--sensitive", "--private"
    )
    keys.configure("keys", mechanism="aes-cbc-hmac-sha256")
    [pair] = keys.json("list")

    assert [{"key_id": alone, "cipher": "aes-gcm"}] == pair["also"]
    assert f"with aes-gcm its key_id is {alone}" in keys.run("list").out

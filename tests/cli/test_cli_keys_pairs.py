"""Pairs of an AES key and an HMAC key: a crash between the two, and what ends it."""

from __future__ import annotations

import subprocess

import pytest

from tests.cli.keys_rig import Keys
from tests.harness.command_line import HSM_KMS
from tests.harness.shim.driver import Shim
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
def shim(directory) -> Shim:
    """A shim that does nothing yet."""
    return Shim(directory)


@pytest.fixture
def keys(make_plugin, empty_hsm, shim):
    """The commands on an empty token behind the shim, which all nodes share."""
    token = {
        "module": str(shim.module),
        "env": {**empty_hsm.env, **shim.env},
        "shared": True,
    }
    sections = {"token": token, "keys": {"mechanism": "aes-cbc-hmac-sha256"}}
    return Keys(make_plugin(empty_hsm, **sections))


def crash(keys, shim, function, when, *command):
    """Run a command whose worker dies in this function."""
    shim.set(f"{function} {when}")
    said = keys.refusal(*command)
    shim.clear()
    assert "worker" in said


def objects(hsm):
    """How many AES keys and HMAC keys are on the token."""
    listed = hsm.pkcs11_tool("--list-objects", "--type", "secrkey").stdout
    return listed.count("AES length"), listed.count("Generic secret")


@pytest.mark.parametrize("when", CRASHES)
def test_generate(keys, shim, empty_hsm, when):
    """Half a pair is explained, removed by the next run, and a whole one made."""
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
        assert "the next removes it" in listed[0]["reason"]
        assert "it is removed" in again.err
    assert (1 if left == (1, 1) else 0) == again.code  # the pair was whole
    assert (1, 1) == objects(empty_hsm)
    assert ["current"] == list(keys.states().values())


@pytest.mark.parametrize("when", CRASHES)
def test_rotate(keys, shim, empty_hsm, when):
    """The same beside a current pair: that one is never touched."""
    old = keys.generate()
    crash(keys, shim, "C_GenerateKey", when, "rotate")
    whole = objects(empty_hsm) == (2, 2)
    states = keys.states()
    assert "current" == states.pop(old)
    new = next(iter(states)) if whole else keys.rotate()

    assert {"abort": {}, "skip=1 abort after": {new: "pending"}}.get(
        when, {"-": "unfinished"}
    ) == states
    assert {old: "current", new: "pending"} == keys.states()
    assert (2, 2) == objects(empty_hsm)


@pytest.mark.parametrize("when", CRASHES)
def test_cancel(keys, shim, empty_hsm, when):
    """The same key_id again ends it, whichever of the two is gone."""
    old = keys.generate()
    new = keys.rotate()
    crash(keys, shim, "C_DestroyObject", when, "cancel", new, "--yes")
    left = objects(empty_hsm)
    listed = keys.run("list")
    again = keys.json("cancel", new, "--yes")

    assert {"abort": (2, 2), "skip=1 abort after": (1, 1)}.get(when, (1, 2)) == left
    if left == (1, 2):
        assert f"`hsm-kms keys cancel {new}` ends it" in listed.out
    if left == (2, 2):
        assert "nothing was destroyed" in listed.err
    assert sum(left) - 2 == again["destroyed"]
    assert {old: "current"} == keys.states()
    assert (1, 1) == objects(empty_hsm)
    assert "" == keys.run("list").err


@pytest.mark.parametrize(("when", "then"), ON)
def test_retire(keys, shim, when, then):
    """Half retired, the key goes on either way, by the key_id it always had."""
    old = keys.generate()
    new = keys.generate("--another")
    keys.configure("keys", current=new)
    crash(keys, shim, "C_SetAttributeValue", when, "retire", old, *SIGNED)
    retired = keys.states()[old] == "retired"
    half = "`keys retire` was interrupted" in keys.run("list").out

    assert (when != "abort", when in CRASHES[1:3]) == (retired, half)
    if then == "retire":
        assert old == keys.json("retire", old, *SIGNED)["key_id"]
        assert {old: "retired", new: "current"} == keys.states()
    elif retired:
        assert "k8s-kek" == keys.json("retire", old, "--undo")["label"]
        assert {old: "decrypt-only", new: "current"} == keys.states()
    assert "interrupted" not in keys.run("list").out


@pytest.mark.parametrize(("when", "then"), ON)
def test_undo(keys, shim, when, then):
    """The same on the way back."""
    old = keys.generate()
    new = keys.generate("--another")
    keys.configure("keys", current=new)
    keys.json("retire", old, *SIGNED)
    crash(keys, shim, "C_SetAttributeValue", when, "retire", old, "--undo")
    back = keys.states()[old] == "decrypt-only"
    half = "`keys retire` was interrupted" in keys.run("list").out

    assert (when == CRASHES[-1], when in CRASHES[1:3]) == (back, half)
    if then == "retire":
        keys.json("retire", old, *SIGNED)
        assert {old: "retired", new: "current"} == keys.states()
    elif not back:
        keys.json("retire", old, "--undo")
        assert {old: "decrypt-only", new: "current"} == keys.states()
    assert "interrupted" not in keys.run("list").out


def test_killed(keys, shim, empty_hsm):
    """SIGKILL of the command itself between the two keys of a pair."""
    shim.set("C_GenerateKey skip=1 hang")
    command = [*HSM_KMS, "keys", "generate"]
    with subprocess.Popen(
        [*command, "--config", str(keys.plugin.config_file)], stderr=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: shim.acted("C_GenerateKey"))
        busy = keys.refusal("generate")
        process.kill()
    shim.clear()

    assert "another command is changing keys on this node" in busy
    assert (0, 1) == objects(empty_hsm)
    keys.generate()
    assert (1, 1) == objects(empty_hsm)


def test_first_pair_found_out(keys, shim, empty_hsm):
    """Without GCM, and nobody said so: an AES key that lacks its HMAC key gets it."""
    keys.configure("keys", mechanism="auto")
    shim.set("no_gcm", "C_GenerateKey skip=1 abort")
    keys.refusal("generate")
    shim.set("no_gcm")
    listed = keys.run("list")
    again = keys.run("generate")

    assert (1, "  it was not identified" in listed.out) == (listed.code, True)
    assert "the AES key has no HMAC key beside it" in listed.err
    assert "an earlier run was interrupted; the HMAC key is made now" in again.err
    assert (0, (1, 1)) == (again.code, objects(empty_hsm))
    assert ["current"] == list(keys.states().values())


def test_aes_key_of_others_gets_no_partner(keys, shim, empty_hsm):
    """A lone AES key that was imported is not made a pair of ours."""
    empty_hsm.import_aes(b"k" * 32, label="k8s-kek", cka_id=b"imp")
    refused = keys.refusal("generate")

    assert "it is no rest of an earlier run" in refused
    assert (1, 0) == objects(empty_hsm)


def test_lone_halves(keys, empty_hsm):
    """Halves that nothing here has begun: explained, and removed only by name."""
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
    assert "it has no HMAC key beside it, which this token needs" in listed
    assert f"`hsm-kms keys cancel {mac}` removes it" in listed
    assert (0, True) == (rotated.code, f"keys cancel {mac}" in rotated.err)
    assert "is neither a pending key nor half of a pair" in keys.refusal(
        "cancel", aes + "00", "--yes"
    )
    assert "is a complete key" in keys.refusal("cancel", aes, "--yes")
    gone = keys.json("cancel", mac, "--yes")
    assert {"key_id": None, "cka_id": mac, "destroyed": 1} == gone
    assert "-" not in keys.states()


def test_other_name(keys, shim):
    """A key that was current by GCM, and got an HMAC key since, keeps its name."""
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
    assert f"by aes-gcm it is {alone}" in keys.run("list").out

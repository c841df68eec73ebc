"""Test `keys destroy`: its conditions, and what an interrupted run leaves."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from hsm_kms.ipc.messages import Relabel
from hsm_kms.ipc.values import KeyRef
from tests.cli.conftest import PAIRS
from tests.cli.keys_rig import (
    Keys,
    ask_worker,
    etcd_json,
    retired_long_ago,
    stored_value,
)
from tests.harness.etcd_server import EtcdServer
from tests.harness.forged import forge
from tests.harness.token_keys import LABEL, create

UNREACHABLE = ("--endpoints", "127.0.0.1:1")
SIGNED = ("--without-scan", "--yes")


@pytest.fixture
def two(make_plugin, aes_keys, directory):
    """Run the commands with two keys of a token that all nodes share."""
    hsm = aes_keys.both.copy(directory / "two")
    keys = Keys(make_plugin(hsm, token={"shared": True}))
    keys.use(aes_keys.old, aes_keys.new)
    return keys


@pytest.fixture
def pairs(make_plugin, pairs_of_keys, directory, shim):
    """Two pairs of an AES and an HMAC key, behind the shim."""
    hsm = pairs_of_keys.both.copy(directory / "two")
    env = {**hsm.env, **shim.env}
    token = {"module": str(shim.module), "env": env, "shared": True}
    keys = Keys(make_plugin(hsm, token=token, keys=PAIRS))
    keys.use(pairs_of_keys.old, pairs_of_keys.new)
    return keys


def wanted(keys, endpoint):
    """Return the command with every option that it requires."""
    confirmed = ("destroy", keys.old, "--confirm", keys.old, "--backups-expired")
    return *confirmed, "--endpoints", endpoint


def test_retired_at_an_unknown_time(two):
    """What another tool retired is destroyed 24 hours after `retire` has seen it."""
    [key] = [key for key in two.json("list") if key["key_id"] == two.old]
    ref = KeyRef(key["label"], bytes.fromhex(key["cka_id"]))
    ask_worker(two.plugin, [Relabel(ref=ref, label=f"{LABEL}/retired/by-hand")])
    unknown = two.refusal(*wanted(two, "127.0.0.1:1"))
    two.json("retire", two.old, "--without-scan", "--yes")
    known = two.refusal(*wanted(two, "127.0.0.1:1"))

    record = f"run `hsm-kms keys retire {two.old}` to record the time"
    assert two.plugin.hint(record) in unknown
    assert "less than 24 hours ago" in known


def test_destroy_refused(two, tmp_path, monkeypatch):
    """Each missing condition is reported, and the key is kept."""
    old, new = two.old, two.new
    monkeypatch.delenv("ETCDCTL_ENDPOINTS", raising=False)
    wanted = ("destroy", old, "--confirm", old)
    stale = etcd_json(tmp_path / "etcd", b"value")

    assert "no etcd endpoint" in two.refusal(*wanted, code=2)
    assert "do not show what is stored now" in two.refusal(*wanted, *stale, code=2)
    assert "names another key_id" in two.refusal(
        "destroy", old, "--confirm", new, *UNREACHABLE, code=2
    )
    assert f"{old} is not retired" in two.refusal(*wanted, *UNREACHABLE)
    # What no answer could change is said before a terminal is missed.
    for command in (
        ("destroy", new, *UNREACHABLE),
        ("retire", new, "--without-scan"),
        ("cancel", new, "--without-scan"),
    ):
        assert f"this node encrypts with {new}" in two.refusal(*command)
    two.json("retire", old, *SIGNED)
    said = two.refusal(*wanted, *UNREACHABLE, "--backups-expired")
    assert f"does not know when {old} was last used" in said
    assert "older snapshots of etcd" in said
    assert "less than 24 hours ago" in said
    retired_long_ago(two, old)
    assert "backups may still need the key" in two.refusal(*wanted, *UNREACHABLE)
    unasked = ("destroy", old, *UNREACHABLE, "--backups-expired")
    assert "give --confirm KEY_ID" in two.refusal(*unasked, code=2)
    assert "127.0.0.1:1" in two.refusal(*wanted, *UNREACHABLE, "--backups-expired")
    assert {new: "current", old: "retired"} == two.states()


def test_destroy_says_when_it_was_used(two):
    """`destroy` prints when this node last used the key."""
    plugin = two.plugin
    for key_id in (two.old, two.new):
        two.configure("keys", current=key_id)
        plugin.start().wait_healthz("ok")
        plugin.stop()
    said = two.refusal("destroy", two.old, "--confirm", two.old, *UNREACHABLE)

    today = datetime.now(UTC).date().isoformat()
    assert f"{two.old} was last used on this node at {today}" in said


def test_destroyed(two):
    """If nothing is stored under it, the key is destroyed, and no other key."""
    two.json("retire", two.old, *SIGNED)
    retired_long_ago(two, two.old)
    two.plugin.start().wait_healthz("ok")
    objects = {b"/registry/secrets/d/new": stored_value(two.plugin)}
    with EtcdServer(objects) as etcd:
        ended = two.run(*wanted(two, etcd.endpoint))

    assert (0, f"destroyed {two.old}\n") == (ended.code, ended.out)
    assert "none of 1 objects in" in ended.err
    assert {two.new: "current"} == two.states()
    assert ("ok", two.new) == (two.plugin.healthz(), two.plugin.status().key_id)
    assert f"no key {two.old}" in two.refusal(*wanted(two, "127.0.0.1:1"))


def test_planted_key_is_removed(two):
    """A planted key is retired and destroyed like one of ours, once etcd is clean."""
    create(two.plugin.hsm, KeyRef(LABEL, b"planted"))
    record, planted = forge(b"d" * 32)
    forged = b"k8s:enc:kms:v1:hsm-kms:" + len(record).to_bytes(2, "big") + record
    assert "foreign" == two.states()[planted]
    with EtcdServer({b"/registry/secrets/d/x": forged + bytes(40)}) as etcd:
        refused = two.refusal("retire", planted, "--yes", "--endpoints", etcd.endpoint)
    with EtcdServer({b"/registry/events/x": b"k8s"}) as etcd:
        source = ("--endpoints", etcd.endpoint)
        two.json("retire", planted, "--yes", *source)
        retired_long_ago(two, planted)
        confirmed = ("--confirm", planted, "--backups-expired")
        two.json("destroy", planted, *confirmed, *source)

    assert f"are stored under {planted}" in refused
    assert planted not in two.states()


def test_something_is_left(two):
    """One object that is or may be stored under the key prevents its destruction."""
    two.configure("keys", current=two.old)
    two.plugin.start().wait_healthz("ok")
    under = {b"/registry/secrets/d/old": stored_value(two.plugin)}
    two.plugin.stop()
    two.configure("keys", current=two.new)
    two.plugin.start().wait_healthz("ok")
    two.json("retire", two.old, *SIGNED)
    retired_long_ago(two, two.old)
    garbled = {b"/registry/secrets/d/x": b"k8s:enc:kms:v2:x:\xff"}
    for objects, words in (
        ({}, "no object below"),
        (under, f"1 of 1 objects in 127.0.0.1:PORT are stored under {two.old}"),
        (garbled, "1 of them cannot be parsed"),
    ):
        with EtcdServer(objects) as etcd:
            said = two.refusal(*wanted(two, etcd.endpoint))
            assert words.replace("PORT", str(etcd.port)) in said
            assert "retired" == two.states()[two.old]
    with EtcdServer(garbled) as etcd:
        two.json(*wanted(two, etcd.endpoint), "--ignore-unreadable")
    assert two.old not in two.states()


@pytest.mark.parametrize(
    ("when", "left", "rest"),
    [
        ("abort", "retired", 2),
        ("abort after", "unfinished", 1),
        ("skip=1 abort", "unfinished", 1),
        ("skip=1 abort after", None, 0),
    ],
)
def test_interrupted_work(pairs, shim, when, left, rest):
    """The same command finishes an interrupted one; until then `list` explains it."""
    pairs.json("retire", pairs.old, *SIGNED)
    retired_long_ago(pairs, pairs.old)
    clear = {b"/registry/pods/d/x": b"k8s-in-clear"}
    with EtcdServer(clear) as etcd:
        shim.set(f"C_DestroyObject {when}")
        said = pairs.refusal(*wanted(pairs, etcd.endpoint))
        shim.clear()
        listed = {key["key_id"]: key for key in pairs.json("list")}
        again = pairs.json(*wanted(pairs, etcd.endpoint))

    assert "worker" in said
    found = listed.pop(pairs.old, None)
    assert [pairs.new] == list(listed)
    assert (left, rest) == (found and found["state"], again["destroyed"])
    if left == "unfinished":
        assert f"run `hsm-kms keys destroy {pairs.old}` to finish" in found["reason"]
    # Where the AES key was gone already nothing can be stored under it.
    assert (1 if left == "retired" else None) == again["scanned"]
    assert {pairs.new: "current"} == pairs.states()
    assert {"version": 1, "begun": [], "retired": []} == json.loads(
        (pairs.plugin.state_dir / "keys.json").read_text()
    )

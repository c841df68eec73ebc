"""Test `keys cancel`: which keys it destroys, and what proof it requires."""

from __future__ import annotations

import pytest

from tests.cli.keys_rig import Keys, etcd_json, stored_value
from tests.harness.etcd_server import EtcdServer
from tests.harness.token_keys import make_key

SIGNED = ("--without-scan", "--confirm")


@pytest.fixture
def keys(make_plugin, hsm):
    """Run the commands on a token that all nodes share, with one key."""
    return Keys(make_plugin(hsm, token={"shared": True}))


@pytest.fixture
def others(make_plugin, hsm):
    """Provide two nodes with separate keys, and a key that one of them encrypts with.

    The first one remembers the old key; the new one is named on the second alone.
    """
    first, second = (Keys(make_plugin(hsm)) for _ in range(2))
    first.plugin.start().wait_healthz("ok")
    first.plugin.stop()
    (first.old,) = first.states()
    first.new = first.generate("--another")
    second.configure("keys", current=first.new)
    second.plugin.start().wait_healthz("ok")
    first.value = stored_value(second.plugin)
    second.plugin.stop()
    return first


@pytest.fixture(autouse=True)
def no_etcd(monkeypatch):
    """Remove the variables that name an etcd."""
    monkeypatch.delenv("ETCDCTL_ENDPOINTS", raising=False)


def test_cancel(keys):
    """`cancel` destroys a pending key, even while a server holds it, and no other."""
    plugin = keys.plugin.start()
    plugin.wait_healthz("ok")
    (old,) = keys.states()
    new = keys.rotate()
    answer = keys.json("cancel", new, "--yes")

    assert (new, 1) == (answer["key_id"], answer["destroyed"])
    assert {old: "current"} == keys.states()
    assert ("ok", old) == (plugin.healthz(), plugin.status().key_id)
    refused = keys.refusal("cancel", old, "--yes")
    rotate = plugin.hint("run `hsm-kms keys rotate`")
    assert f"this node encrypts with {old}\nhint: {rotate}" in refused
    assert "is neither a pending key nor half of a pair" in keys.refusal(
        "cancel", new, "--yes"
    )
    assert "neither a key_id nor a CKA_ID" in keys.refusal("cancel", "x", code=2)


def test_what_to_do_with_a_key_in_use(keys):
    """The hint names what makes another key current: it is not the same everywhere."""
    (old,) = keys.states()
    new = keys.rotate()
    waiting = keys.refusal("retire", old, "--without-scan", "--yes")
    keys.configure("keys", current=old)
    by_name = keys.refusal("retire", old, "--without-scan", "--yes")

    assert f"hint: wait until {new} becomes current at 20" in waiting
    assert "hint: name another key in keys.current on every node first" in by_name


def test_a_key_that_was_retired(keys):
    """A retired key is destroyed by `destroy`, as the hint says."""
    (old,) = keys.states()
    keys.configure("keys", current=keys.generate("--another"))
    keys.json("retire", old, "--without-scan", "--yes")

    assert keys.plugin.hint(
        f"hsm-kms: {old} is retired\nhint: run `hsm-kms keys destroy {old}`\n"
    ) == keys.refusal("cancel", old, "--yes")


def test_used_by_another_node(others):
    """If the token is not shared, a key that another node encrypts with is kept."""
    new, value = others.new, others.value
    assert {others.old: "current", new: "pending"} == others.states()
    unproven = others.refusal("cancel", new, "--yes")
    with EtcdServer({b"/registry/secrets/d/new": value}) as etcd:
        stored = others.refusal("cancel", new, "--yes", "--endpoints", etcd.endpoint)
    with EtcdServer({b"/registry/x": b"k8s:enc:kms:v2:x:\xff"}) as etcd:
        unread = others.refusal("cancel", new, "--yes", "--endpoints", etcd.endpoint)

    assert f"keys.current of another node may name {new} already" in unproven
    assert "give --endpoints" in unproven
    assert f"1 of 1 objects in {etcd.endpoint.partition(':')[0]}" in stored
    assert f"are stored under {new}" in stored
    assert "hint: a node encrypts with it already, so it must not be" in stored
    assert "cannot be parsed" in unread
    assert {others.old: "current", new: "pending"} == others.states()


def test_nothing_stored_under_it(others):
    """If the token is not shared, a key is destroyed after a scan of etcd."""
    with EtcdServer({b"/registry/events/one": b"k8s"}) as etcd:
        ended = others.run("cancel", others.new, "--yes", "--endpoints", etcd.endpoint)

    assert (0, f"destroyed {others.new}\n") == (ended.code, ended.out)
    assert "none of 1 objects in" in ended.err
    assert {others.old: "current"} == others.states()


def test_without_a_scan(others, tmp_path):
    """Only the repeated key_id replaces a scan; --yes and a file do not."""
    new, file = others.new, etcd_json(tmp_path / "etcd", b"value")
    assert "give --confirm KEY_ID" in others.refusal(
        "cancel", new, "--without-scan", "--yes", code=2
    )
    assert "the two key_ids differ" in others.refusal(
        "cancel", new, *SIGNED, others.old
    )
    assert "do not show what is stored now" in others.refusal(
        "cancel", new, "--yes", *file, code=2
    )
    others.json("cancel", new, *SIGNED, new)

    assert {others.old: "current"} == others.states()


def test_repeated_although_nobody_asked(keys):
    """A key_id that --confirm repeats must be that of the key, needed or not."""
    (old,) = keys.states()
    new = keys.rotate("--activate-in", "10m")
    refused = keys.refusal("cancel", new, "--yes", "--confirm", old)
    keys.json("cancel", new, "--yes", "--confirm", new)

    assert "the two key_ids differ" in refused
    assert new not in keys.states()


def test_in_the_last_minute(keys):
    """In the last minute before its time, a key needs a proof to be cancelled."""
    new = keys.rotate("--activate-in", "30s", "--force")
    refused = keys.refusal("cancel", new, "--yes")
    with EtcdServer({b"/registry/events/one": b"k8s"}) as etcd:
        keys.json("cancel", new, "--yes", "--endpoints", etcd.endpoint)

    assert "a node whose clock is ahead may use it already" in refused
    assert new not in keys.states()


def test_past_its_time(keys):
    """A key past its time needs a proof; a key that was current is kept.

    `keys.current` keeps this node from it.
    """
    (old,) = keys.states()
    keys.configure("keys", current=old)
    keys.plugin.start().wait_healthz("ok")
    keys.plugin.stop()
    make_key(keys.plugin.hsm, b"older", PRIVATE=True)
    (older,) = keys.states().keys() - {old}
    new = keys.generate("--another")
    assert {old: "current", older: "decrypt-only", new: "pending"} == keys.states()
    refused = keys.refusal("cancel", new, "--yes")
    keys.json("cancel", new, *SIGNED, new)

    assert "has passed: another node may have switched to it" in refused
    assert {old: "current", older: "decrypt-only"} == keys.states()
    assert "is not pending" in keys.refusal("cancel", older, *SIGNED, older)
    assert "this node encrypts with" in keys.refusal("cancel", old, *SIGNED, old)
